"""`LesionLogs`: the confusion of lesion types, and every lesion of the inner validation with what became of it."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import wandb
from torch import Tensor

from lesionseg.boxes import Box
from lesionseg.callbacks.loggers import log_figures, told_to_wandb, validates_training, wandb_run
from lesionseg.callbacks.results import lesion_id, lesion_table
from lesionseg.data.dataset import Batch
from lesionseg.inputs import paste, resize
from lesionseg.lesions import FIRST_TYPE, type_probabilities
from lesionseg.metrics import LesionFigures
from lesionseg.ranks import of_all_ranks
from lesionseg.results import MISSED, REFERENCE

#: Rows of the lesion table, largest lesions first.
MOST_ROWS = 300


class LesionLogs(pl.Callback):
    """After every validation: `val/confusion/<type>/<predicted type or missed>`, and the lesion table to W&B.

    The table is HTML: a `wandb.Table` goes by a file whose full path W&B keeps in its log. Its probabilities are not
    calibrated.
    """

    def __init__(self) -> None:
        self._noted: dict[str, np.ndarray] = {}

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget those of the last validation."""
        self._noted = {}

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, *_: int
    ) -> None:
        """Note, for W&B alone, how probable each type is for each lesion, where the pixels have scores of types."""
        metric, data = pl_module.get_submodule("validation_metric"), trainer.datamodule  # type: ignore[attr-defined]
        if outputs["scores"] is None or not validates_training(trainer) or not isinstance(metric, LesionFigures):
            return
        if not told_to_wandb(trainer):
            return
        said = (outputs["classes"], outputs["scores"], batch.boxes, batch.references, batch.places)
        for classes, scores, box, reference, place in zip(*said, strict=True):
            ref = data.validation.slices[place.position]
            for n, row in enumerate(_probabilities(classes, scores, box, reference)):
                self._noted[lesion_id(ref.case_id, ref.slice, REFERENCE, n)] = row

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Before the task resets its metric; what W&B is told is gathered from all processes."""
        metric = pl_module.get_submodule("validation_metric")
        if not validates_training(trainer) or not isinstance(metric, LesionFigures):
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        table = lesion_table(metric, data, data.validation)
        counts = confusion_counts(table, metric.lesion_types)
        log_figures(trainer, {f"val/confusion/{k}": float(n) for k, n in counts.items()})
        # Also where W&B is off: it may be on elsewhere, and all ranks must gather.
        noted = {lesion: row for each in of_all_ranks(self._noted) for lesion, row in each.items()}
        with wandb_run(trainer) as run:
            if run is not None:
                shown = table.assign(probability=_of_predicted(table, noted, metric.lesion_types))
                run.log({"val/lesions": wandb.Html(as_html(shown)), "trainer/global_step": trainer.global_step})


def _probabilities(classes: Tensor, scores: Tensor, box: Box, reference: Tensor) -> np.ndarray:
    """Of each type for each reference lesion (n, n_types), from classes (H, W) and scores (K, S, S) of a slice."""
    types = paste(resize(scores[FIRST_TYPE:].float(), box.side).softmax(0), box, *reference.shape)
    return type_probabilities(*(each.cpu().numpy() for each in (classes, reference, types)))


def _of_predicted(table: pd.DataFrame, noted: dict[str, np.ndarray], types: tuple[str, ...]) -> list[float]:
    """Probability of the type that each lesion was given; NaN: it has none, or its pixels have no such scores."""
    pairs = zip(table.lesion_id, table.predicted_type, strict=True)
    return [float(noted[lesion][types.index(name)]) if name and lesion in noted else math.nan for lesion, name in pairs]


def confusion_counts(table: pd.DataFrame, types: tuple[str, ...]) -> dict[str, int]:
    """`true/predicted` → reference lesions of a lesion table; `missed` stands for those not found."""
    reference = table[table.kind == REFERENCE]
    seen = Counter(zip(reference.type, reference.predicted_type.replace("", MISSED), strict=True))
    return {f"{true}/{predicted}": seen[true, predicted] for true in types for predicted in (*types, MISSED)}


def as_html(table: pd.DataFrame) -> str:
    """A lesion table for a dashboard, largest lesions first."""
    shown = table.assign(hit=table.found.map({1: "hit", 0: "miss"})).sort_values("area_px", ascending=False)
    shown.loc[shown.kind != REFERENCE, "hit"] = "false positive"
    columns = [
        "hit",
        "type",
        "predicted_type",
        "probability",
        "area_px",
        "area_mm2",
        "overlap",
        "patient_id",
        "lesion_id",
    ]
    return f"<p>{min(len(shown), MOST_ROWS)} of {len(shown)}</p>" + shown[columns].head(MOST_ROWS).to_html(
        index=False, float_format="{:.2f}".format, na_rep="", border=0
    )
