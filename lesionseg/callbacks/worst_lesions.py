"""`WorstLesions`: pictures of the largest test lesions that were missed or wrongly typed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytorch_lightning as pl

from lesionseg.burned_in import png, side_by_side
from lesionseg.callbacks.results import lesion_table
from lesionseg.callbacks.views import View, views
from lesionseg.lesions import components
from lesionseg.metrics import LesionFigures
from lesionseg.results import REFERENCE, worst_lesions
from lesionseg.runs import WORST_FOLDER

#: Pictures that a run leaves.
PICTURES = 6


class WorstLesions(pl.Callback):
    """Writes `worst/<lesion_id>.png` after a test of a lesion net: reference beside prediction, the lesion in corners.

    The net predicts these slices once more: no label map of the other slices is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / WORST_FOLDER

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather the lesions of all processes; predict and draw on the first. `Results` resets the metric after it."""
        metric = pl_module.get_submodule("test_metric")
        if not isinstance(metric, LesionFigures):
            return
        part = trainer.datamodule.test  # type: ignore[attr-defined]
        table = lesion_table(metric, trainer.datamodule, part)  # type: ignore[attr-defined]
        if not trainer.is_global_zero:
            return
        worst = worst_lesions(table.assign(number=_numbers(table))).head(PICTURES)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        place = {(ref.case_id, ref.slice): position for position, ref in enumerate(part.slices)}
        positions = [place[at] for at in zip(worst.case_id, worst.slice, strict=True)]
        seen = views(trainer, pl_module, part, positions)
        for name, number, view in zip(worst.lesion_id, worst.number, seen, strict=True):
            lesion = nth_lesion(view, int(number))
            picture = side_by_side(view.hu, view.reference, view.predicted, view.box, lesion)
            (self.folder / f"{name}.png").write_bytes(png(picture))


def _numbers(table: pd.DataFrame) -> pd.Series:
    """The place of each reference lesion among those of its slice."""
    return table[table.kind == REFERENCE].groupby(["case_id", "slice"]).cumcount()


def nth_lesion(view: View, number: int) -> np.ndarray:
    """Mask (H, W) of a reference lesion, counted as `lesions.compare_slice` does: by type, then row by row."""
    for label in np.unique(view.reference[view.reference > 1]):
        labelled, n = components(view.reference == label)
        if number < n:
            return labelled == number + 1
        number -= n
    raise IndexError("the slice holds fewer lesions")
