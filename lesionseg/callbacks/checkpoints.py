"""The checkpoints of a run: `last.ckpt`, from which it goes on, and `best.ckpt`."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from lesionseg.runs import LAST_CHECKPOINT


def checkpoints(folder: Path, monitor: str | None, validate_every: int) -> list[pl.Callback]:
    """`last.ckpt` after every epoch, and the weights that did best on the inner validation where there is one.

    Two callbacks: with one, Lightning writes `last.ckpt` only in epochs that gave a new best.
    """
    folder = folder / LAST_CHECKPOINT.parent
    last = ModelCheckpoint(
        folder, filename=LAST_CHECKPOINT.stem, save_on_train_epoch_end=True, enable_version_counter=False
    )
    if monitor is None:
        return [last]
    best = ModelCheckpoint(
        folder,
        filename="best",
        monitor=monitor,
        mode="max",
        save_weights_only=True,
        every_n_epochs=validate_every,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    return [best, last]
