"""`run_callbacks`: the callbacks of every run, in the order in which they must stand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl

from lesionseg.callbacks.checkpoints import checkpoints
from lesionseg.callbacks.global_batch import GlobalBatch
from lesionseg.callbacks.guards import FiniteLoss, StopOnSignal
from lesionseg.callbacks.logs import logs
from lesionseg.callbacks.lost_ranks import LostRanks
from lesionseg.callbacks.progress import TimeLeft
from lesionseg.callbacks.results import Results
from lesionseg.callbacks.seeding import SeedEveryStep
from lesionseg.run_weights import LAST_CHECKPOINT


def run_callbacks(
    folder: Path,
    *,
    seed: int,
    cell: str | None,
    monitor: str | None,
    validate_every: int,
    lost_ranks: LostRanks,
    bar: Sequence[pl.Callback],
) -> list[pl.Callback]:
    """All but the schedule, which is the user's.

    Args:
        folder: of the run.
        seed: of the run.
        cell: place in a grid, see `TimeLeft`.
        monitor: figure of the inner validation by which the best checkpoint is kept; None: there is no validation.
        validate_every: epochs between two validations.
        lost_ranks: is also told of the test that follows a fit.
        bar: from `progress_bar`.
    """
    finite = FiniteLoss()
    stop = StopOnSignal(folder / LAST_CHECKPOINT, finite)
    return [
        finite,  # before what would log such figures
        *logs(folder),
        Results(folder),
        SeedEveryStep(seed),
        stop,
        lost_ranks,
        GlobalBatch(),
        TimeLeft(cell),
        *bar,
        *checkpoints(folder, stop, monitor, validate_every),
    ]
