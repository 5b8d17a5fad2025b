"""`StagedFreezing`: applies a freeze schedule to the blocks of a network while it trains."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from lesionseg.errors import InputError
from lesionseg.networks import Block, blocks
from lesionseg.pacing import Clock, Plateau
from lesionseg.runs import SCHEDULE_FILE
from lesionseg.schedules import FreezeSchedule, ResolvedSchedule
from lesionseg.writing import write_text


class StagedFreezing(pl.Callback):
    """Freezes and thaws the blocks of `pl_module.net` as the schedule says, and sets their learning rates.

    What trains, and at what rate, is a function of epoch and batch, set again at the start of training, of every epoch
    and of every batch, so that a resumed run, wherever it was interrupted, has the right blocks frozen. Its only state
    is the validation figures in which a plateau is looked for. Nothing is frozen before the strategy has wrapped the
    network, as distributed training never synchronises what was frozen by then.

    A frozen block gets no gradient, no weight decay and no running statistics; its optimizer state is dropped, so that
    it thaws without stale momentum. The optimizer needs the groups of `networks.parameter_groups`.

    Args:
        trains: block → when it trains; see `lesionseg.schedules`.
        clock: how a block's rate follows its age since it thawed; None: the rates of `trains`, constant.
        plateau: when a step of the schedule comes before its time, which then is the latest; None: never. It looks at
            `pl_module.monitor`, the figure of the inner validation by which the best checkpoint is kept.
    """

    def __init__(self, trains: dict[str, Any], clock: Clock | None = None, plateau: Plateau | None = None) -> None:
        self.schedule, self.clock, self.plateau = FreezeSchedule.parse(trains), clock, plateau
        self._latest: ResolvedSchedule
        self._resolved: ResolvedSchedule
        self._blocks: dict[str, Block]
        self._figures: dict[int, float] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget the figures of an earlier training; those of a checkpoint come after this."""
        self._figures = {}

    def state_dict(self) -> dict[str, Any]:
        """Figure of the inner validation by epoch, where a plateau is looked for."""
        return {"figures": self._figures} if self.plateau else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the figures of a checkpoint."""
        self._figures = dict(state_dict["figures"])

    def check(self, epochs: int, block_names: Sequence[str], validates: bool, random: Collection[str]) -> None:
        """Refuse, before anything is trained, what does not fit; say what can hardly be meant.

        Args:
            epochs: of the training.
            block_names: of the net.
            validates: there is an inner validation.
            random: names of the blocks that start from random numbers.

        Raises:
            InputError: the schedule does not fit the blocks or the epochs, or no validation shows a plateau.
        """
        first = self.schedule.resolve(epochs, block_names).steps[0]
        frozen = [name for name, rate in first.rates.items() if not rate and name in random]
        if frozen:
            rank_zero_warn(
                f"{', '.join(frozen)} begin frozen with random weights, as there are none to start from: name those of "
                "a pretraining (model.init_args.weights), or encoder_weights; a new head must train"
            )
        if self.plateau and not validates:
            raise InputError("schedule.plateau", expected="an inner validation to look for it in", got="none",
                             remedy="set data.inner_validation to 0.2, or leave the plateau out")  # fmt: skip

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Resolve the schedule for this network and number of epochs, print it and leave it in the run folder.

        Raises:
            InputError: the schedule does not fit the network, the number of epochs or the optimizer.
        """
        self._blocks = blocks(pl_module.get_submodule("net"))
        self._latest = self._resolved = self.schedule.resolve(trainer.max_epochs or 0, list(self._blocks))
        _check_optimizer(trainer, self._blocks)
        rank_zero_info(f"freeze schedule (● trains, ○ frozen)\n{self._latest.table()}")
        _save(self._latest, Path(trainer.default_root_dir))
        self._hasten(trainer)  # here, as a run that goes on after its last epoch comes to no other hook

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set what trains; the only hook before the first batch when training resumes within an epoch."""
        self._apply(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set what trains in this epoch."""
        self._apply(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set it again: anything may have called `train()` since."""
        self._apply(trainer, pl_module, batch_idx)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look for a plateau; the next step of the schedule begins with the next epoch where there is one."""
        if self.plateau and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            figure = trainer.callback_metrics[pl_module.monitor]  # type: ignore[index]
            self._figures[trainer.current_epoch] = _over_ranks(trainer, figure)
            self._hasten(trainer)

    def _hasten(self, trainer: pl.Trainer) -> None:
        """Bring steps forward as the figures say; the run folder always holds what happened."""
        schedule = self.plateau.hasten(self._latest, self._figures) if self.plateau else self._latest
        if schedule != self._resolved:
            self._resolved = schedule
            rank_zero_info(f"freeze schedule, steps brought forward by a plateau\n{schedule.table()}")
            _save(schedule, Path(trainer.default_root_dir))

    def _apply(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: int = 0) -> None:
        """Bring every block into the state of the current step; does nothing where it is there already."""
        optimizer, epoch = trainer.optimizers[0], trainer.current_epoch
        rates = self._resolved.state(epoch)
        if self.clock:
            rates = self.clock.rates(self._resolved, epoch, batch, int(trainer.num_training_batches))
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
    write_text(folder / SCHEDULE_FILE, schedule.to_json())


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


def _over_ranks(trainer: pl.Trainer, figure: Tensor) -> float:
    """One figure for all ranks: their mean, as the first rank has it, so that all of them decide alike."""
    # A figure that is logged may lie on the CPU, and NCCL reduces only what lies on the device, and in place.
    own = figure.detach().to(trainer.strategy.root_device, copy=True)
    mean = trainer.strategy.reduce(own, reduce_op="mean")
    return float(trainer.strategy.broadcast(float(mean)))


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
