"""The checkpoints of a run: `last.ckpt`, from which it goes on, the one before it, and `best.ckpt`."""

from __future__ import annotations

import io
from collections.abc import Callable
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


class RunCheckpoint(ModelCheckpoint):
    """A `ModelCheckpoint` that notes its files by their names alone.

    A checkpoint then says nothing of where a user keeps her runs, and a run folder that has moved goes on as before.
    """

    def state_dict(self) -> dict[str, Any]:
        """Lightning's, without folders."""
        return _renamed(super().state_dict(), lambda path: Path(path).name)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning's, in the folder of this run."""
        folder = Path(str(self.dirpath))
        super().load_state_dict(_renamed(state_dict, lambda path: str(folder / path)) | {"dirpath": self.dirpath})


def _renamed(state: dict[str, Any], rename: Callable[[str], str]) -> dict[str, Any]:
    """The state of a `ModelCheckpoint` with its paths changed; an empty one stays so."""
    paths = {key: rename(path) if path else path for key, path in state.items() if key.endswith("path")}
    return state | paths | {"best_k_models": {rename(path): score for path, score in state["best_k_models"].items()}}


def checkpoints(folder: Path, monitor: str | None, validate_every: int) -> list[pl.Callback]:
    """`last.ckpt` after every epoch, and the weights that did best on the inner validation where there is one.

    Two callbacks: with one, Lightning writes `last.ckpt` only in epochs that gave a new best.
    """
    folder = folder / LAST_CHECKPOINT.parent
    last = RunCheckpoint(
        folder, filename=LAST_CHECKPOINT.stem, save_on_train_epoch_end=True, enable_version_counter=False
    )
    if monitor is None:
        return [last]
    best = RunCheckpoint(
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
