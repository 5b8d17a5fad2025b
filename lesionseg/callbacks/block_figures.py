"""`BlockFigures`: what each block of the net does in an epoch: rate, whether it trains, gradient, drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from lesionseg.callbacks.loggers import log_figures
from lesionseg.networks import blocks


class BlockFigures(pl.Callback):
    """Logs four figures of each block at the end of every epoch, and the phase of the schedule.

    - `lr/<block>`: learning rate, 0 while it is frozen.
    - `trains/<block>`: 1 where it trains.
    - `grad_norm/<block>`: L2 norm of the gradient of the epoch's last batch, over all processes and before any
      clipping; 0 while it is frozen. One batch, as a sum over all would wait for the device at every step.
    - `drift/<block>`: ‖w − w₀‖ / ‖w₀‖ over its parameters. w₀ are the weights that training started from: those of the
      pretraining, and the initial ones of what it does not hold (a new head). A run that goes on has the same w₀.
    - `phase`: from 0, one more whenever other blocks train than in the epoch before.
    """

    def __init__(self) -> None:
        self._gradients: dict[str, float] = {}
        self._phase, self._trained = 0, dict[str, bool]()

    def state_dict(self) -> dict[str, Any]:
        """Phase and what trained in it, so that a run that goes on counts on."""
        return {"phase": self._phase, "trained": self._trained}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Of a checkpoint."""
        self._phase, self._trained = state["phase"], state["trained"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Group the parameters by block and bring the start weights to their device."""
        found, start = blocks(pl_module.get_submodule("net")), pl_module.start_weights
        self._parameters = {name: [p for _, p in block.parameters] for name, block in found.items()}
        self._start = {
            name: [start[path].to(p.device) for path, p in block.parameters]  # type: ignore[index]
            for name, block in found.items()
        }

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Take the gradients of the last batch."""
        if trainer.is_last_batch:
            gradients = {name: [p.grad for p in own if p.grad is not None] for name, own in self._parameters.items()}
            self._gradients = _norms(gradients)

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the epoch; weights and gradients are the same on every process."""
        trains = {name: any(p.requires_grad for p in own) for name, own in self._parameters.items()}
        self._phase += bool(self._trained) and trains != self._trained
        self._trained = trains
        rates = {group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups}
        tables = {"lr": rates, "trains": trains, "grad_norm": self._gradients, "drift": self._drift()}
        figures = {f"{kind}/{name}": float(value) for kind, table in tables.items() for name, value in table.items()}
        log_figures(trainer, {"phase": float(self._phase), **figures})

    def _drift(self) -> dict[str, float]:
        moved = {
            name: [now - start for now, start in zip(own, self._start[name], strict=True)]
            for name, own in self._parameters.items()
        }
        lengths, start = _norms(moved), _norms(self._start)
        return {name: length / start[name] if start[name] else float("nan") for name, length in lengths.items()}


def _norms(tensors: Mapping[str, Sequence[Tensor]]) -> dict[str, float]:
    """L2 norm over all tensors of each block, 0 over none; waits for the device once."""
    held = {name: own for name, own in tensors.items() if own}
    if not held:
        return dict.fromkeys(tensors, 0.0)
    norms = torch.stack([torch.stack(torch._foreach_norm(list(own))).norm() for own in held.values()]).tolist()
    return dict.fromkeys(tensors, 0.0) | dict(zip(held, norms, strict=True))
