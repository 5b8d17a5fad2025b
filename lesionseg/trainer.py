"""Lightning's `Trainer`, whose limits are read as they are written, and which leaves idle callbacks alone."""

from collections.abc import Iterable
from typing import Any  # no postponed annotations: the command line would look them up in typing, see below

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Timer

from lesionseg.errors import InputError

#: Hooks of callbacks at every step.
STEP_HOOKS = (
    *(f"on_{stage}_batch_{end}" for stage in ("train", "validation", "test") for end in ("start", "end")),
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
)


class Trainer(pl.Trainer):
    """A trainer whose limits count batches where they are whole numbers, else are a fraction (1: one batch, 1.0: all).

    Which of the two a `1` on the command line is, depends on the first type that takes it. Lightning declares
    `Optional[Union[int, float]]`; for that, `typing` hands out whichever order of the two any package of the process
    has asked for first. In a process that had read data before it trained, a limit of 1 was the whole epoch.
    """

    def __init__(
        self,
        *,
        limit_train_batches: int | float = 1.0,
        limit_val_batches: int | float = 1.0,
        limit_test_batches: int | float = 1.0,
        limit_predict_batches: int | float = 1.0,
        overfit_batches: int | float = 0.0,
        gradient_clip_val: float | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(
            limit_train_batches=_unannounced(limit_train_batches),
            limit_val_batches=_unannounced(limit_val_batches),
            limit_test_batches=_unannounced(limit_test_batches),
            limit_predict_batches=_unannounced(limit_predict_batches),
            overfit_batches=overfit_batches,
            gradient_clip_val=gradient_clip_val,
            **settings,
        )
        _without_idle_hooks(self.callbacks)  # type: ignore[attr-defined]


def _without_idle_hooks(callbacks: Iterable[pl.Callback]) -> None:
    """Take the hooks of a step from callbacks that do nothing there.

    Lightning enters a context for each callback at each hook, with a name made for it, unless the hook is None. With
    the callbacks of a run that is a millisecond a step.
    """
    for callback in callbacks:
        for name in STEP_HOOKS:
            if getattr(type(callback), name) is getattr(pl.Callback, name) and name not in vars(callback):
                setattr(callback, name, None)


def refuse_limits(trainer: pl.Trainer, *, train: int, validation: int, test: int) -> None:
    """Refuse, before anything is trained, limits that leave nothing of so many batches, or that Lightning trips over.

    Raises:
        InputError: no batch to train on, or a share of the batches of training, validation or test that is less than
            one of them; validation after more batches than there are, or after every 0 epochs; a number of steps, with
            which Lightning loses count of the epochs of a run that goes on; a time, as a schedule needs all its epochs;
            steps of no batch; the same batches in every epoch, which the sampler does not have.
    """
    if trainer.max_steps != -1 and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        _refuse("max_steps", "-1, as schedules count epochs (trainer.max_epochs)", trainer.max_steps)
    if any(isinstance(each, Timer) for each in trainer.callbacks):  # type: ignore[attr-defined]
        _refuse(
            "max_time", "none, as the schedule needs its epochs (a signal saves, and the same command goes on)", "one"
        )
    if trainer.accumulate_grad_batches < 1:
        _refuse("accumulate_grad_batches", "1 or more", trainer.accumulate_grad_batches)
    if trainer.overfit_batches:  # type: ignore[attr-defined]
        _refuse("overfit_batches", "0, as every epoch has an order of its own", trainer.overfit_batches)  # type: ignore[attr-defined]
    shares = {"train": (train, trainer.limit_train_batches), "val": (validation, trainer.limit_val_batches),
              "test": (test, trainer.limit_test_batches)}  # fmt: skip
    for name, (batches, limit) in shares.items():
        if isinstance(limit, float) and batches and limit > 0 and not int(batches * limit):
            _refuse(f"limit_{name}_batches", f"a share that is one of {batches} batches at least", limit)
    trained = limited(train, trainer.limit_train_batches)
    if not trained:
        _refuse("limit_train_batches", "a batch to train on", f"{trainer.limit_train_batches} of {train}")
    every = trainer.check_val_every_n_epoch
    interval = getattr(trainer, "val_check_interval", None)  # there is none where the clock tells
    if every is not None and every < 1:
        _refuse("check_val_every_n_epoch", "1 or more", every)
    if isinstance(interval, int) and (interval < 1 or (every and trainer.limit_val_batches and interval > trained)):
        _refuse("val_check_interval", f"1 to {trained}, the batches of an epoch", interval)


def limited(batches: int, limit: int | float) -> int:
    """How many of so many batches a limit leaves."""
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def _refuse(name: str, expected: str, got: object) -> None:
    raise InputError(f"trainer.{name}", expected=expected, got=str(got), remedy="change it, or leave it out")


def _unannounced(limit: int | float) -> int | float | None:
    """None where it is all: the same to Lightning, which would tell of a 1.0 as if somebody had asked for it."""
    return None if isinstance(limit, float) and limit == 1 else limit
