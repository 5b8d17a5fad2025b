"""`LostRanks`: a training on many ranks ends, and says why, when one of them is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies.launchers import _SubprocessScriptLauncher

from lesionseg.errors import first_sentence
from lesionseg.ranks import joined_by_nccl, leave, told_elsewhere

#: How often a rank looks whether what started it is still there.
LOOK_EVERY_S = 1.0
#: How long a rank that has lost the others waits to be ended by what started it, which may know better what happened.
GRACE_S = 5.0


class LostRanks(pl.Callback):
    """Ends this process with one line on stderr and status 1 once a rank is lost; the last checkpoint stays.

    The ranks left would wait in the next collective operation: with gloo until it fails at once, with NCCL up to
    `ranks.TIMEOUT`. So the first rank waits for those that Lightning let it start, and ends all when one ends wrongly;
    the others (and those of torchrun and srun) look whether what started them is still there. torchrun and `srun
    --kill-on-bad-exit` end those that they have started.
    """

    def __init__(self) -> None:
        self._at_work, self._watches = threading.Event(), False
        self._previous: dict[int, signal.Handlers | object] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Watch from now on."""
        self.watch(trainer)

    def watch(self, trainer: pl.Trainer) -> None:
        """Watch from now on, where there is more than one rank: ranks wait for each other before `setup`, too."""
        if trainer.world_size == 1:
            return
        self._at_work.set()
        if not self._watches:
            self._watches = True
            launcher = trainer.strategy.launcher
            processes = launcher.procs if isinstance(launcher, _SubprocessScriptLauncher) else []
            if processes:
                _dismiss_lightnings_observer()
            for rank, process in enumerate(processes, 1):
                _in_background(self._wait_for, process, f"rank {rank} of {trainer.world_size}", processes)
            if not processes:
                _in_background(self._look_after, os.getppid(), trainer)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take SIGTERM and SIGUSR1 for Ctrl-C, as `StopOnSignal` has it in a training alone.

        Lightning's handler of SIGTERM tells the other ranks by a collective, which those that got no signal, or another
        number of them, never enter; SIGUSR1 would end the process without a word.
        """
        for number in (signal.SIGTERM, signal.SIGUSR1):
            self._previous.setdefault(number, signal.signal(number, _interrupt))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same, outside of a training."""
        if trainer.state.fn == "validate":
            self.on_test_start(trainer, pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Training or test is over: ranks may end one by one."""
        self._at_work.clear()
        self._give_back()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Tell an error of this rank, which is raised, from the loss of another, which ends here.

        So does an interrupt where NCCL joins the ranks: Lightning would first wait for what the GPU has to do, and that
        for the other ranks, each of which the interrupt may have met at another place.
        """
        self._give_back()
        if trainer.world_size > 1 and isinstance(exception, KeyboardInterrupt | SystemExit) and joined_by_nccl():
            self._interrupted(trainer)
        if trainer.world_size == 1 or not _of_the_group(exception):
            self._at_work.clear()
            return
        what = f"rank {trainer.global_rank} of {trainer.world_size} has lost another one ({first_sentence(exception)})"
        # In place of Lightning's handler, which would broadcast it to ranks that are gone. torchrun sends it when the
        # machine it met the others at is gone, and then says nothing of a lost rank, nor how to go on.
        signal.signal(signal.SIGTERM, lambda *_: _end(what))
        time.sleep(GRACE_S)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # or it would be told twice
        _end(what)

    def _give_back(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}

    def _interrupted(self, trainer: pl.Trainer) -> None:
        launcher = trainer.strategy.launcher
        for process in launcher.procs if isinstance(launcher, _SubprocessScriptLauncher) else []:
            process.kill()
        if told_elsewhere():
            leave(0)
        print("lesionseg: interrupted; the same command continues", file=sys.stderr)
        leave(130)

    def _wait_for(self, process: subprocess.Popen, rank: str, processes: Sequence[subprocess.Popen]) -> None:
        status = process.wait()
        if not status:
            return
        if status > 0:
            time.sleep(LOOK_EVERY_S)  # an error of all ranks: the first one says what it is
        self._at_work.wait()
        for each in processes:
            each.kill()
        how = f"was killed ({signal.Signals(-status).name})" if status < 0 else f"has ended with status {status}"
        _end(f"{rank} {how}")

    def _look_after(self, parent: int, trainer: pl.Trainer) -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_EVERY_S)
        self._at_work.wait()
        _end(f"what had started rank {trainer.global_rank} of {trainer.world_size} is gone, as if killed")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _dismiss_lightnings_observer() -> None:
    """Leave the ranks to `LostRanks`: Lightning's thread looks every 5 s, and kills this process in its own words."""
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            thread._child_processes = []  # type: ignore[attr-defined]  # its next look finds all ended, and is its last


def _in_background(function: object, *args: object) -> None:
    threading.Thread(target=function, args=args, daemon=True).start()  # type: ignore[arg-type]


def _of_the_group(error: BaseException) -> bool:
    """Whether the process group has failed: gloo and NCCL may raise a plain RuntimeError, which names them."""
    names = ("gloo", "NCCL")
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(name in str(error) for name in names)
    )


def _end(what: str) -> None:
    """One line, then the end of this process: its main thread may be waiting where no signal reaches it."""
    line = f"lesionseg: failed: {what}; the same command continues from the last checkpoint"
    print(line, file=sys.stderr, flush=True)
    os._exit(1)
