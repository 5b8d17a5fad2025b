"""`logs`: all that a run logs besides its loss and figures; none of it changes what is trained."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl

from lesionseg.callbacks.block_figures import BlockFigures
from lesionseg.callbacks.lesion_logs import LesionLogs
from lesionseg.callbacks.loggers import UnlinkLogs
from lesionseg.callbacks.loss_parts import LossParts
from lesionseg.callbacks.net_artifact import NetArtifact
from lesionseg.callbacks.overlays import Overlays
from lesionseg.callbacks.worst_lesions import WorstLesions


def logs(folder: Path) -> list[pl.Callback]:
    """The callbacks, for the run in this folder; they stand before `Results`, which resets the test's metric."""
    told = [LossParts(), BlockFigures(), LesionLogs(), Overlays(folder), NetArtifact(), WorstLesions(folder)]
    return [UnlinkLogs(), *told]
