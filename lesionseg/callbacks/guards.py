"""Callbacks that end a run in order: on a signal, and on a loss or weights that are not finite."""

from __future__ import annotations

import math
import signal
import time
from pathlib import Path
from types import FrameType

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from lesionseg.data.dataset import Batch, Place
from lesionseg.ranks import OnAnyRank, of_all_ranks

#: Signals that end a run in order: Ctrl-C, the end of a job, and what clusters often send some time before that.
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
#: So long, more of them are the same one: what reaches all processes of a job comes again from `make` or `torchrun`.
ONE_SIGNAL_S = 1.0


class Interrupted(Exception):  # noqa: N818 (nothing went wrong)
    """The run was stopped by a signal after its checkpoint was written; the same command continues it."""


class StopOnSignal(pl.Callback):
    """After a signal of `ENDING`: finish the batch, save `last.ckpt`, end. Another signal later ends at once.

    After the last batch of an epoch, its validation and its checkpoint come first. Where several batches make a step
    (`accumulate_grad_batches`), it ends with a step: gradients are no part of a checkpoint. Where a validation follows
    (`val_check_interval`), it ends with the next step: no run that goes on would make it up.

    A run that is continued from such a checkpoint gives the same weights as one that was never stopped.

    Args:
        checkpoint: `last.ckpt`.
        finite: looks at loss and weights before they are saved.

    Attributes:
        stopping: a signal came to any rank before the end of the epoch, which is to be saved.
    """

    def __init__(self, checkpoint: Path, finite: FiniteLoss) -> None:
        self.checkpoint, self.finite = checkpoint, finite
        self.stopping = False
        self._waits = False
        self._received: int | None = None
        self._received_s = 0.0
        self._previous: dict[int, signal.Handlers | object] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the signals while training runs."""
        self._previous = {number: signal.signal(number, self._note) for number in ENDING}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: Batch, batch_idx: int
    ) -> None:
        """Save and stop, on every rank, once a signal has come to any of them."""
        within_a_step = (batch_idx + 1) % trainer.accumulate_grad_batches
        if not (trainer.is_last_batch or within_a_step) and self._stops(trainer):
            if not self._waits and _validates_now(trainer, batch_idx):
                self._waits = True  # once: a validation may follow every step
                return
            self.finite.check(trainer, pl_module)
            trainer.save_checkpoint(self.checkpoint, weights_only=False)
            raise Interrupted

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Before the checkpoints, which Lightning has at the end of the callbacks: tell that one is needed."""
        self.stopping = self._stops(trainer)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop where a signal came at the end of the last epoch, whose checkpoint is written by now."""
        if self.stopping:
            raise Interrupted

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the signals back; stop where one came at the end of the training."""
        self._restore()
        if self._stops(trainer):
            raise Interrupted

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._restore()

    def _stops(self, trainer: pl.Trainer) -> bool:
        return bool(OnAnyRank(trainer, self._received is not None))

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._received is None:
            self._received, self._received_s = number, now
            rank_zero_info(f"{signal.Signals(number).name}: saving after this batch; once more to stop at once")
        elif now - self._received_s > ONE_SIGNAL_S:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}


def _validates_now(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether Lightning validates after this batch, in the midst of an epoch."""
    batches, epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch
    if not (trainer.enable_validation and isinstance(batches, int)):  # None: the clock tells
        return False
    if epochs is None:
        return (trainer.fit_loop.total_batch_idx + 1) % batches == 0
    return (trainer.current_epoch + 1) % epochs == 0 and (batch_idx + 1) % batches == 0


class FiniteLoss(pl.Callback):
    """Ends a run whose loss or weights are not finite before they are saved or tested, and names the cases.

    A loss is looked at when the next one is there, so that no step waits for the device; it may have reached the
    weights by then, but no checkpoint of the run's own. A loss that is finite can have gradients that are not, so that
    the weights are looked at too, before they are saved.
    """

    def __init__(self) -> None:
        self._places: list[Place] = []
        self._last: tuple[OnAnyRank, Tensor, list[Place]] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Know of no loss."""
        self._last = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Remember whose batch it is."""
        self._places = batch.places

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Look at this loss, and raise FloatingPointError on every rank for the one before."""
        self._refuse_last(trainer)
        wrong = ~loss.detach().isfinite()
        self._last = OnAnyRank(trainer, wrong), wrong, self._places

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raise FloatingPointError on every rank for the last loss."""
        self._refuse_last(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """As `check`, before the checkpoint of the epoch."""
        self.check(trainer, pl_module)

    def check(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raise FloatingPointError on every rank where the last loss, or a weight of the net, is not finite."""
        self._refuse_last(trainer)
        weights = [each.detach() for each in pl_module.get_submodule("net").parameters() if each.numel()]
        largest = torch.nn.utils.get_total_norm(weights, norm_type=math.inf)
        if OnAnyRank(trainer, ~largest.isfinite()):
            raise FloatingPointError(
                f"a weight is not finite in epoch {trainer.current_epoch + 1}, as a gradient was not; "
                "the last checkpoint is intact; lower model.lr, or set trainer.gradient_clip_val"
            )

    def _refuse_last(self, trainer: pl.Trainer) -> None:
        last, self._last = self._last, None
        if last is None:
            return
        on_any, wrong, places = last
        if not on_any:
            return
        records = trainer.datamodule.store.records  # type: ignore[attr-defined]
        own = {records[place.case].case_id for place in places} if wrong else set()
        cases = ", ".join(sorted(set().union(*of_all_ranks(own))))
        raise FloatingPointError(
            f"the loss is not finite in epoch {trainer.current_epoch + 1} on cases {cases}; "
            "the last checkpoint is intact; look at these cases with `lesionseg check`, or lower model.lr"
        )
