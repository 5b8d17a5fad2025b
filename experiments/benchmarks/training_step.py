"""A step of training in a run as it is, against a bare PyTorch loop with the same net, optimizer, loss and batches.

Usage: training_step.py [--epochs N] [--slices N] [--paper-epochs N] [--output JSON]

Both train in one process, an epoch of one after an epoch of the other; which is first alternates. They start from the
same weights, and where arithmetic is deterministic (on a CPU) they must end with the same ones: what the run does more
is logging, guards and schedule. An epoch runs from its first hook to its last batch; validation, checkpoint and tables
are left out, as a bare loop has none. One row has all that a run does until its next epoch begins: the logs of an
epoch, and its checkpoint.

Waiting for data is the time in `next()` of the loader. Without workers that is all the reading and augmenting of the
samples, and no other work goes on meanwhile. What that costs is told by an epoch of the run without workers beside one
of a bare loop with one worker.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from fine_tuning import command, fit, phantom_store
from pytorch_lightning.profilers import Profiler
from rounds import Row, publish

from lesionseg.networks import parameter_groups


@dataclass
class Epochs:
    """Seconds of each epoch, until the next one begins, and of waiting for data in it; all have as many steps."""

    seconds: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)
    steps: int = 0

    def milliseconds(self) -> list[float]:
        """Of a step, the mean of each epoch but the first."""
        return [1000 * each / self.steps for each in self.seconds[1:]]

    def waits(self) -> float:
        """Share of the time that waits for data."""
        return sum(self.waiting[1:]) / sum(self.seconds[1:])


class Waiting(Profiler):
    """The seconds in which the trainer has waited for its loader."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = self._began = 0.0

    def start(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self._began = time.perf_counter()

    def stop(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self.seconds += time.perf_counter() - self._began


class BareLoop:
    """The loop that anyone would write: batches to the device, forward, backward, step."""

    def __init__(self, trainer: pl.Trainer, task: pl.LightningModule, compiled: bool, workers: int | None) -> None:
        self.device, self.context = task.device, _precision(trainer)
        self.net, self.loss = copy.deepcopy(task.net), copy.deepcopy(task.loss)
        if compiled:
            self.net.compile()
        groups = parameter_groups(self.net, task.lr, task.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, fused=True if self.device.type == "cpu" else None)
        data = copy.copy(trainer.datamodule)
        data.num_workers = data.num_workers if workers is None else workers
        self.loader = data.train_dataloader()
        self.epochs = Epochs(steps=int(trainer.num_training_batches))

    def epoch(self, number: int) -> None:
        """Train for an epoch."""
        begin, waiting = now(self.device), 0.0
        self.net.train()
        self.loader.batch_sampler.set_epoch(number)
        batches = iter(self.loader)
        for _ in range(self.epochs.steps):
            asked = time.perf_counter()
            batch = next(batches)
            waiting += time.perf_counter() - asked
            images = batch.images.to(self.device, non_blocking=True)
            targets = batch.targets.to(self.device, non_blocking=True)
            with self.context:
                loss = self.loss(self.net(images), targets[:, None])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.epochs.waiting.append(waiting)
        self.epochs.seconds.append(now(self.device) - begin)


class Beside(pl.Callback):
    """Trains a bare loop beside the run, and times both."""

    def __init__(self, compiled: bool = False, workers: int | None = None) -> None:
        self.compiled, self.workers = compiled, workers
        self.waiting, self.epochs = Waiting(), Epochs()
        self.bare: BareLoop
        self.same = False
        self._began: float | None = None
        self._aside = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.profiler = self.waiting  # its default looks at nothing, at the same calls
        self.bare = BareLoop(trainer, pl_module, self.compiled, self.workers)
        self.epochs.steps = self.bare.epochs.steps

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close(pl_module)
        if trainer.current_epoch % 2 == 0:
            self.bare.epoch(trainer.current_epoch)
        self.waiting.seconds = self._aside = 0.0
        self._began = now(pl_module.device)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self._began is not None
        self.epochs.seconds.append(now(pl_module.device) - self._began)
        self.epochs.waiting.append(self.waiting.seconds)
        if trainer.current_epoch % 2:
            begin = now(pl_module.device)
            self.bare.epoch(trainer.current_epoch)
            self._aside = now(pl_module.device) - begin

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._close(pl_module)
        ours, theirs = pl_module.net.state_dict(), self.bare.net.state_dict()
        self.same = all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())

    def _close(self, pl_module: pl.LightningModule) -> None:
        """The epoch that began last is over, its logs and its checkpoint written."""
        if self._began is not None:
            self.epochs.whole.append(now(pl_module.device) - self._began - self._aside)


def now(device: torch.device) -> float:
    """The time once the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _precision(trainer: pl.Trainer) -> AbstractContextManager[Any]:
    """What the trainer's own steps run under."""
    half = {"bf16-mixed": torch.bfloat16}
    if trainer.precision not in half:
        return nullcontext()
    return torch.autocast(trainer.strategy.root_device.type, half[trainer.precision], cache_enabled=False)


def beside(
    store: Path,
    epochs: int,
    *options: str,
    profile: str = "phantom",
    compiled: bool = False,
    workers: int | None = None,
) -> Beside:
    """Train a run beside a bare loop, which may have another number of workers; no validation, no test."""
    with tempfile.TemporaryDirectory() as folder:
        pair, run = Beside(compiled, workers), Path(folder) / "run"
        short = ["--trainer.max_epochs", str(epochs), "--data.inner_validation", "0", "--data.folds", "1"]
        fit(command(store, run, *short, *options, profile=profile), pair)
    return pair


def rows(pair: Beside, what: str) -> list[Row]:
    """A step against one of the bare loop, and the time that waits for data against all of it."""
    ours, bare = pair.epochs, pair.bare.epochs
    print(f"{what}, {ours.steps} steps an epoch: weights as the bare loop's in the end: {pair.same}; waiting for data: "
          f"{ours.waits():.1%} of the time, the bare loop {bare.waits():.1%}")  # fmt: skip
    step, waiting = f"step, {what}", f"waiting for data in an epoch, {what}"
    return [
        Row(step, "ms", ours.milliseconds(), "bare PyTorch loop", "rival", bare.milliseconds(),
            most=1.03, most_high=1.05),
        Row(f"epoch with its logs and checkpoint, {what}", "s", ours.whole[1:], "bare loop, without", "rival",
            bare.seconds[1:]),
        Row(waiting, "s", ours.waiting[1:], "all of the epoch", "limit", ours.seconds[1:], most=0.02),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=41, help="of the phantom's net; the first does not count")
    parser.add_argument("--slices", type=int, default=160)
    parser.add_argument(
        "--worker-epochs", type=int, default=13, help="of the phantom's net beside a loop with a worker"
    )
    parser.add_argument("--paper-epochs", type=int, default=7, help="of SE-ResNet50, 8 steps of 2 slices each")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark/training_step.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = phantom_store(Path(folder), options.slices)
        found = rows(beside(store, options.epochs), "phantom net, no workers")
        helped = beside(store, options.worker_epochs, workers=1)
        ours, theirs = helped.epochs.seconds[1:], helped.bare.epochs.seconds[1:]
        found.append(Row("epoch, phantom net, no workers", "s", ours, "bare loop, 1 worker", "rival", theirs))
        short = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--data.batch_size", "2"]
        paper = beside(store, options.paper_epochs, *short, "--trainer.limit_train_batches", "8", profile="paper")
        found += rows(paper, "SE-ResNet50 at 320 pixels, 4 workers")
    publish(found, options.output, threads=torch.get_num_threads())


if __name__ == "__main__":
    main()
