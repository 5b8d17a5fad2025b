"""The checkpoints of a run: `last.ckpt`, from which it goes on, the one before it, and `best.ckpt`."""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from lesionseg.callbacks.guards import StopOnSignal
from lesionseg.run_folder import forget_earlier
from lesionseg.run_weights import BEST_CHECKPOINT, FINGERPRINT, LAST_CHECKPOINT, PREVIOUS_CHECKPOINT
from lesionseg.writing import whole

#: The most of a training's time that goes into writing checkpoints; and the seconds after which one is written in any
#: case.
SHARE, LONGEST_S = 1 / 20, 600.0


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints written beside their place and put there in one step; `previous.ckpt` is the last but one.

    `best.ckpt` is kept in memory until `last.ckpt` is written. But for a kill between the two, it is of no epoch that
    comes after those of `last.ckpt`; and writing both takes its share of the time.

    Lightning's own way writes to the system's folder for temporary files and moves the file from there. To another
    disk that is a copy, of which a kill leaves half.
    """

    def __init__(self, run: Path, fingerprint: str) -> None:
        """For the run in this folder; checkpoints that its user asks for are written at once.

        Args:
            run: its folder.
            fingerprint: of the run, which each of its checkpoints holds, so that none passes for that of another.
        """
        super().__init__()
        self._run = Path(os.path.realpath(run))  # as `ModelCheckpoint` calls it
        self._fingerprint = fingerprint
        self._held: io.BytesIO | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; OSError where the disk is full, with the earlier one left as it was."""
        path = Path(path)
        content = io.BytesIO()  # torch's own writer answers a full disk with an error about its inside
        torch.save({**checkpoint, FINGERPRINT: self._fingerprint}, content)
        if path == self._run / BEST_CHECKPOINT:
            self._held = content
            return
        if path.name == LAST_CHECKPOINT.name and self._held is not None:
            _write(self._run / BEST_CHECKPOINT, self._held)
            self._held = None
        _write(path, content)
        if path.name == LAST_CHECKPOINT.name:
            forget_earlier(self._run)


def _write(path: Path, content: io.BytesIO) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part:
        with part.open("wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave an empty file in the place of the one before
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


class LastCheckpoint(RunCheckpoint):
    """`last.ckpt` after an epoch, where that takes no more than `SHARE` of the time since it was last begun.

    An epoch of a few hundred slices may take a GPU less time than it takes to write SE-ResNet50 and AdamW's moments of
    it, 421 MB. Whatever it takes, the first epoch is saved, the last, and one in which a signal came.
    """

    def __init__(self, folder: Path, stop: StopOnSignal) -> None:
        super().__init__(
            folder, filename=LAST_CHECKPOINT.stem, save_on_train_epoch_end=True, enable_version_counter=False
        )
        self._stop, self._next_s = stop, 0.0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save, on all ranks or on none."""
        began_s = time.monotonic()
        due = began_s >= self._next_s or self._stop.stopping or _ends(trainer)
        if trainer.strategy.broadcast(due):
            super().on_train_epoch_end(trainer, pl_module)
            now_s = time.monotonic()
            self._next_s = now_s + min((now_s - began_s) * (1 / SHARE - 1), LONGEST_S)


def _ends(trainer: pl.Trainer) -> bool:
    """Whether the training ends with this epoch. Lightning's own answer, `fit_loop.done`, changes what is saved."""
    epochs = trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
    return trainer.should_stop or epochs >= (trainer.max_epochs or math.inf)


def checkpoints(folder: Path, stop: StopOnSignal, monitor: str | None, validate_every: int) -> list[pl.Callback]:
    """`last.ckpt`, and the weights that did best on the inner validation where there is one.

    Two callbacks: with one, Lightning writes `last.ckpt` only in epochs that gave a new best.
    """
    folder = folder / LAST_CHECKPOINT.parent
    last = LastCheckpoint(folder, stop)
    if monitor is None:
        return [last]
    best = RunCheckpoint(
        folder,
        filename=BEST_CHECKPOINT.stem,
        monitor=monitor,
        mode="max",
        save_weights_only=True,
        every_n_epochs=validate_every,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    return [best, last]
