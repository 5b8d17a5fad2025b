"""`LossParts`: the terms of a loss, each for itself (Dice and cross-entropy, say), as the loss computes them anyway."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lesionseg.callbacks.loggers import log_figures
from lesionseg.epoch_means import EpochMeans
from lesionseg.ranks import over_ranks


class LossParts(pl.Callback):
    """Logs `train/loss_<part>`, the mean over the epoch, for each part of `pl_module.loss` where it has two or more.

    A part is a module without modules of its own; its name is the last of its path. Values are as the part
    gives them: with its class weights, without the part's own weight in the sum. Nothing is
    computed again: they are read where the loss computes them.
    """

    def __init__(self) -> None:
        self._parts = EpochMeans()
        self._hooks: list[RemovableHandle] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen to the parts."""
        for path, module in pl_module.get_submodule("loss").named_modules():
            if path and next(module.children(), None) is None:
                self._hooks.append(module.register_forward_hook(self._listener(path.rpartition(".")[2])))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin anew."""
        self._parts = EpochMeans()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the means over the batches, which are all of one size, and over the processes."""
        parts = self._parts.means()
        if len(parts) > 1:
            means = over_ranks(trainer, parts)
            log_figures(trainer, {f"train/loss_{name}": float(mean) for name, mean in means.items()})

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The parts of an epoch in its midst."""
        checkpoint["loss_parts"] = self._parts.state(trainer)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on with those of the epoch."""
        self._parts = EpochMeans(checkpoint["loss_parts"])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen no longer."""
        while self._hooks:
            self._hooks.pop().remove()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Listen no longer."""
        self.on_train_end(trainer, pl_module)

    def _listener(self, name: str) -> Any:
        def note(module: nn.Module, inputs: tuple[Tensor, ...], value: Tensor) -> None:
            self._parts.note(name, value)

        return note
