"""The checkpoints of a run: `last.ckpt`, from which it goes on, the one before it, and `best.ckpt`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from lesionseg.runs import LAST_CHECKPOINT, PREVIOUS_CHECKPOINT
from lesionseg.writing import whole


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints written beside their place and put there in one step; `previous.ckpt` is the last but one.

    Lightning's own way writes to the system's folder for temporary files and moves the file from there. To another
    disk that is a copy, of which a kill leaves half.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; OSError where the disk is full, with the earlier one left as it was."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()  # torch's own writer answers a full disk with an error about its inside
        torch.save(checkpoint, content)
        with whole(path) as part:
            part.write_bytes(content.getbuffer())
            if path.name == LAST_CHECKPOINT.name and path.exists():
                path.replace(path.with_name(PREVIOUS_CHECKPOINT.name))


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
