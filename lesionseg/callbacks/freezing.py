"""`StagedFreezing`: applies a freeze schedule to the blocks of a network while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only
from torch import nn
from torch.optim import Optimizer

from lesionseg.errors import InputError
from lesionseg.networks import Block, blocks
from lesionseg.runs import write_text
from lesionseg.schedules import FreezeSchedule, ResolvedSchedule


class StagedFreezing(pl.Callback):
    """Freezes and thaws the blocks of `pl_module.net` as the schedule says, from the current epoch alone.

    It has no state of its own: what trains is set again from the epoch at the start of training, of every epoch and of
    every batch, so that a resumed run, wherever it was interrupted, has the right blocks frozen. Nothing is frozen
    before the strategy has wrapped the network, as distributed training never synchronises what was frozen by then.

    A frozen block gets no gradient, no weight decay and no running statistics; its optimizer state is dropped, so that
    it thaws without stale momentum. The optimizer needs the groups of `networks.parameter_groups`.

    Args:
        trains: block → when it trains; see `lesionseg.schedules`.
    """

    def __init__(self, trains: dict[str, Any]) -> None:
        self.schedule = FreezeSchedule.parse(trains)
        self._resolved: ResolvedSchedule
        self._blocks: dict[str, Block]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Resolve the schedule for this network and number of epochs, print it and leave it in the run folder.

        Raises:
            InputError: the schedule does not fit the network, the number of epochs or the optimizer.
        """
        self._blocks = blocks(pl_module.get_submodule("net"))
        self._resolved = self.schedule.resolve(trainer.max_epochs or 0, list(self._blocks))
        _check_optimizer(trainer, self._blocks)
        rank_zero_info(f"freeze schedule (● trains, ○ frozen)\n{self._resolved.table()}")
        _save(self._resolved, Path(trainer.default_root_dir))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set what trains; the only hook before the first batch when training resumes within an epoch."""
        self._apply(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set what trains in this epoch."""
        self._apply(trainer, pl_module)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        """Set it again: anything may have called `train()` since."""
        self._apply(trainer, pl_module)

    def _apply(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Bring every block into the state of the current epoch; does nothing where it is there already."""
        optimizer = trainer.optimizers[0]
        rates = self._resolved.state(trainer.current_epoch)
        changed = False
        for group in optimizer.param_groups:
            block, rate = self._blocks[group["name"]], rates[group["name"]]
            group["lr"] = group["base_lr"] * rate
            if rate == 0:
                changed |= _freeze(block, optimizer)
            else:
                changed |= _thaw(block)
        if changed and _is_compiled(pl_module):
            # Older torch uses a compiled graph again although other blocks were frozen in it (pytorch #139476).
            torch._dynamo.reset()


@rank_zero_only
def _save(schedule: ResolvedSchedule, folder: Path) -> None:
    """Leave `schedule.json` in the run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "schedule.json", schedule.to_json())


def _freeze(block: Block, optimizer: Optimizer) -> bool:
    """Stop all learning of a block; whether it did learn before."""
    for module in block.modules:
        module.training = False
    learning = [parameter for _, parameter in block.parameters if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
        parameter.grad = None  # a gradient of zeros would still let weight decay and momentum move the weights
    dropped = sum(optimizer.state.pop(parameter, None) is not None for parameter in learning)
    if dropped:
        rank_zero_info(f"{block.name} freezes; optimizer state of {dropped} parameters dropped")
    return bool(learning)


def _thaw(block: Block) -> bool:
    """Let a block learn; whether it was frozen before."""
    frozen = [parameter for _, parameter in block.parameters if not parameter.requires_grad]
    if not frozen:
        return False
    for parameter in frozen:
        parameter.requires_grad_(True)
    for module in block.modules:
        module.training = True
    rank_zero_info(f"{block.name} thaws")
    return True


def _is_compiled(module: nn.Module) -> bool:
    return any(part._compiled_call_impl is not None for part in module.modules())


def _check_optimizer(trainer: pl.Trainer, expected: Mapping[str, Block]) -> None:
    """Refuse an optimizer without a named group for each block, or one whose rates something else moves too."""
    names = [group.get("name", "unnamed") for optimizer in trainer.optimizers for group in optimizer.param_groups]
    remedy = "give the optimizer networks.parameter_groups(net, lr, weight_decay)"
    if len(trainer.optimizers) != 1 or names != list(expected):
        got = f"{len(trainer.optimizers)} optimizers with the groups {', '.join(names)}"
        wanted = f"one optimizer with the groups {', '.join(expected)}"
        raise InputError("optimizer", expected=wanted, got=got, remedy=remedy)
    if trainer.lr_scheduler_configs:
        got = type(trainer.lr_scheduler_configs[0].scheduler).__name__
        wanted = "learning rates set by the freeze schedule alone"
        raise InputError("optimizer", expected=wanted, got=got, remedy="return the optimizer without a scheduler")
