"""What `last.ckpt` costs a fine-tuning whose epochs are short, as a GPU's: as it is, and with one after every epoch.

Usage: saving.py [--repeats N] [--epochs N] [--output JSON]

SE-ResNet50 at 64 pixels, three steps an epoch: about a second on a CPU, which is what a GPU may take for an epoch of a
few hundred slices of 320. The rival saves after every epoch, as Lightning's `ModelCheckpoint` does by default.
The time is that of training, whole runs in turn; the share that saving has of it is printed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytorch_lightning as pl
from fine_tuning import command, fit, phantom_store
from rounds import Row, publish, rounds

from lesionseg.callbacks import checkpoints
from lesionseg.callbacks.checkpoints import SHARE, WholeCheckpoints

OPTIONS = ("--data.input.size_px", "64", "--data.inner_validation", "0", "--data.folds", "1", "--data.num_workers", "1",
           "--trainer.limit_train_batches", "3", "--trainer.accelerator", "cpu", "--trainer.devices", "1")  # fmt: skip


class TimedCheckpoints(WholeCheckpoints):
    """Counts the checkpoints, and the seconds that they take."""

    saves, seconds = 0, 0.0

    def save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        began = time.perf_counter()
        super().save_checkpoint(*arguments, **options)
        self.saves, self.seconds = self.saves + 1, self.seconds + time.perf_counter() - began


class Timed(pl.Callback):
    """Seconds of a training, beside its checkpoints."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.strategy.checkpoint_io = self.saving = TimedCheckpoints()
        self._began = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds = time.perf_counter() - self._began


def train(store: Path, epochs: int, share: float) -> Timed:
    """A whole run in which saving may take this share of the time."""
    timed = Timed()
    with tempfile.TemporaryDirectory() as folder, patch.object(checkpoints, "SHARE", share):
        words = ("--trainer.max_epochs", str(epochs), *OPTIONS)
        fit(command(store, Path(folder) / "run", *words, profile="paper"), timed)
    return timed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark/saving.json"))
    options = parser.parse_args()
    done: dict[str, list[Timed]] = {"ours": [], "each": []}

    def way(name: str, share: float) -> float:
        done[name].append(train(store, options.epochs, share))
        return done[name][-1].seconds

    with tempfile.TemporaryDirectory() as folder:
        store = phantom_store(Path(folder), 40)
        ways = {"ours": lambda: way("ours", SHARE), "each": lambda: way("each", 1.0)}
        found = rounds(ways, options.repeats)
    what = f"training of {options.epochs} epochs of about a second, SE-ResNet50"
    shares = {name: statistics.median(run.saving.seconds / run.seconds for run in runs) for name, runs in done.items()}
    often = statistics.median(run.saving.saves for run in done["ours"])
    note = f"{what}: {often:g} checkpoints take {shares['ours']:.1%} of the time, one an epoch {shares['each']:.1%}"
    row = Row(what, "s", found["ours"], "last.ckpt after every epoch", "rival", found["each"], "other / ours", least=1)
    publish([row], options.output, notes=[note])


if __name__ == "__main__":
    main()
