"""`fit`, `validate` and `test`: one run by `RunCLI`, and how it ends."""

from __future__ import annotations

import logging
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.exceptions import SIGTERMException

from lesionseg.callbacks.guards import Interrupted
from lesionseg.device import gpu_works
from lesionseg.errors import InputError, input_error_in
from lesionseg.ranks import count_from_zero, leave, told_elsewhere
from lesionseg.run_cli import RunCLI, RunIsDone

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

#: How Lightning begins what it says on every start, whatever the run.
_SMALL_TALK = re.compile(
    r"(\[rank: \d+\] )?"
    "(Seed set|GPU available|TPU available|💡|`Trainer.fit` stopped|Restor|You are using a CUDA)"
)
#: Who says it, and what is warned of whatever the run.
_TALKATIVE = ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.seed")
_NO_WARNING = ("The number of training batches", "The '.*_dataloader' does not have many workers", "isinstance",
               "Total length of `list`", "Experiment logs directory", "Checkpoint directory",
               "You're resuming from a checkpoint that ended before",
               "It is recommended to use `self.log", "The `srun` command is available")  # fmt: skip


def run(args: list[str]) -> int:
    """Run `fit`, `validate` or `test`; returns the exit status.

    Raises:
        ChildProcessError: a process that reads slices was killed.
    """
    with _command_line(args), _quiet():
        return _run(args)


def _run(args: list[str]) -> int:
    gpu_works()
    count_from_zero()
    try:
        with ExitStack() as ending:
            RunCLI(args, ending)
    except RunIsDone as done:
        rank_zero_info(f"{done} is done already")
    except (Interrupted, FloatingPointError) as error:
        if told_elsewhere():
            leave(0)
            return 0
        if isinstance(error, Interrupted):
            raise KeyboardInterrupt from None
        raise
    except torch.OutOfMemoryError as error:
        raise InputError("data.batch_size", expected="a step that fits into the memory of the GPU",
                         got=str(error).partition(". ")[0],
                         remedy="lower it, or take --trainer.precision bf16-mixed" if args[0] == "fit" else
                         "free it of other programs, or give --trainer.accelerator cpu") from error  # fmt: skip
    except ValueError as error:
        if not str(error).startswith("Expected more than 1 value per channel when training"):
            raise
        got = str(error).partition("got ")[2]
        raise InputError("data.batch_size", expected="several values of each feature, as batch norm needs",
                         got=f"one slice, or one crop, with features of one pixel ({got})",
                         remedy="raise it, or data.input.size_px, or take another encoder") from error  # fmt: skip
    except RuntimeError as error:
        if (wrong := input_error_in(str(error))) is not None:  # torch makes such of what a process that reads raises
            raise wrong from None
        if not _of_a_killed_reader(error):
            raise
        # Whatever child ends next, torch's handler would raise this again, wherever Python is.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        what = "a process that reads the slices was killed, perhaps for want of memory"
        raise ChildProcessError(f"{what}; the same command continues; data.num_workers says how many") from error
    except SystemExit as end:
        outside = isinstance(end.__context__, KeyboardInterrupt) or isinstance(end, SIGTERMException)
        if outside:  # interrupted outside of training, or twice
            raise KeyboardInterrupt from None
        raise
    return 0


def _of_a_killed_reader(error: BaseException | None) -> bool:
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker")


def _unraisable(told: UnraisableHookArgs) -> None:
    """Say nothing of a killed reader where Python cannot raise it: torch raises it again at the next batch."""
    if not _of_a_killed_reader(told.exc_value):
        sys.__unraisablehook__(told)


@contextmanager
def _command_line(args: list[str]) -> Iterator[None]:
    """Lightning starts the other ranks with the command line of this one."""
    before = sys.argv
    sys.argv = [before[0], *args]
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Lightning, W&B and torch say that a user of this package can do nothing about."""
    hook, loggers = sys.unraisablehook, [logging.getLogger(name) for name in _TALKATIVE]
    with warnings.catch_warnings():
        for message in _NO_WARNING:
            warnings.filterwarnings("ignore", message=f".*{message}")
        for logger in loggers:
            logger.addFilter(_worth_saying)
        sys.unraisablehook = _unraisable
        try:
            yield
        finally:
            sys.unraisablehook = hook
            for logger in loggers:
                logger.removeFilter(_worth_saying)


def _worth_saying(record: logging.LogRecord) -> bool:
    return not _SMALL_TALK.match(record.getMessage())
