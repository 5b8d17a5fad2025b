"""`LossParts`: the terms of a loss, each for itself (Dice and cross-entropy, say), as the loss computes them anyway."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lesionseg.data.dataset import Batch


class LossParts(pl.Callback):
    """Logs `train/loss_<part>`, the mean over the epoch, for each part of `pl_module.loss` where it has two or more.

    A part is a module without modules of its own; its name is the last of its path. Values are unweighted. Nothing is
    computed again: they are read where the loss computes them.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}
        self._hooks: list[RemovableHandle] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen to the parts."""
        for path, module in pl_module.get_submodule("loss").named_modules():
            if path and next(module.children(), None) is None:
                self._hooks.append(module.register_forward_hook(self._listener(path.rpartition(".")[2])))

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        """Forget the last batch."""
        self._values = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Log as the loss itself is logged."""
        if len(self._values) < 2:
            return
        parts = {f"train/loss_{name}": torch.stack(values).mean() for name, values in self._values.items()}
        pl_module.log_dict(parts, on_step=False, on_epoch=True, batch_size=len(batch.images), sync_dist=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen no longer."""
        while self._hooks:
            self._hooks.pop().remove()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Listen no longer."""
        self.on_train_end(trainer, pl_module)

    def _listener(self, name: str) -> Any:
        def note(module: nn.Module, inputs: tuple[Tensor, ...], value: Tensor) -> None:
            self._values.setdefault(name, []).append(value.detach())

        return note
