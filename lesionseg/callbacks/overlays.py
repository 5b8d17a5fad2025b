"""`Overlays`: a few fixed slices of the inner validation after every validation, reference beside prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import wandb

from lesionseg.boxes import crop
from lesionseg.burned_in import png, side_by_side
from lesionseg.callbacks.loggers import validates_training, wandb_run
from lesionseg.callbacks.views import View, views
from lesionseg.data.dataset import Batch, SliceDataset
from lesionseg.figures import grey_crop
from lesionseg.labels import BACKGROUND, NAMES
from lesionseg.runs import OVERLAYS_FOLDER

#: Slices with something to find, evenly spaced over the inner validation: the same in every run of a fold.
SLICES = 4


class Overlays(pl.Callback):
    """Writes `overlays/epoch-<n>.png` (a row a slice, outlines burned in), and logs image and masks to W&B.

    Nothing is written in the pictures but pixels; W&B calls a slice by its place among the `SLICES`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / OVERLAYS_FOLDER
        self._fixed: list[int] = []
        self._predicted: dict[int, np.ndarray] = {}

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget what was predicted in the last validation, and find the slices, on the process that draws them."""
        drawn = validates_training(trainer) and trainer.is_global_zero
        self._fixed = fixed_positions(trainer.datamodule.validation) if drawn else []  # type: ignore[attr-defined]
        self._predicted = {}

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, *_: int
    ) -> None:
        """Keep the class maps of the fixed slices, so that they need not be predicted again."""
        for place, plane in zip(batch.places, outputs["classes"], strict=True):
            if place.position in self._fixed:
                self._predicted[place.position] = plane.cpu().numpy()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """On the process that draws, where there is something to draw."""
        if not self._fixed:
            return
        part: SliceDataset = trainer.datamodule.validation  # type: ignore[attr-defined]
        seen = views(trainer, pl_module, part, self._fixed, self._predicted)
        self.folder.mkdir(parents=True, exist_ok=True)
        sheet = np.concatenate([side_by_side(view.hu, view.reference, view.predicted, view.box) for view in seen])
        path = self.folder / f"epoch-{trainer.current_epoch:03d}.png"
        path.write_bytes(png(sheet))
        with wandb_run(trainer) as run:
            if run is not None:
                images = {f"overlays/slice{i}": _with_masks(view) for i, view in enumerate(seen)}
                images["overlays/burned_in"] = wandb.Image(str(path))  # copied, not packed again
                run.log({**images, "trainer/global_step": trainer.global_step})


def fixed_positions(part: SliceDataset) -> list[int]:
    """Where the slices lie in the inner validation."""
    found = np.flatnonzero(part.slices.foreground).tolist()
    return [found[i] for i in sorted({round(x) for x in np.linspace(0, len(found) - 1, SLICES)})] if found else []


def _with_masks(view: View) -> Any:
    """The slice as W&B shows it, with masks to switch on and off."""
    names = {label: name for label, name in NAMES.items() if label != BACKGROUND}
    masks = {"reference": view.reference, "prediction": view.predicted}
    held = {
        kind: {"mask_data": crop(labels, view.box, fill=BACKGROUND), "class_labels": names}
        for kind, labels in masks.items()
    }
    return wandb.Image(grey_crop(view.hu, view.box), masks=held)
