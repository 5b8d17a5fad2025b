"""What checkpoints cost a fine-tuning whose epochs are short, as a GPU's: as they are, and after every epoch.

Usage: saving.py [--repeats N] [--epochs N] [--output JSON]

SE-ResNet50 at 64 pixels, three steps an epoch and a validation: about a second on a CPU, which is what a GPU may take
for an epoch of a few hundred slices of 320. The rival writes last.ckpt after every epoch, as Lightning does by default,
and with it best.ckpt where there is a new one; by our own writer. The time is that of training, whole runs in turn. The
share that saving has of it is printed: in runs as short as these the first and last save are more than a twentieth.
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

OPTIONS = ("--data.input.size_px", "64", "--data.folds", "1", "--data.num_workers", "1",
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
        trainer.strategy.checkpoint_io = self.saving = TimedCheckpoints(Path(trainer.default_root_dir), "")
        self._began = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds = time.perf_counter() - self._began


def train(store: Path, epochs: int, share: float, profile: str = "paper") -> Timed:
    """A whole run in which saving may take this share of the time."""
    timed = Timed()
    with tempfile.TemporaryDirectory() as folder, patch.object(checkpoints, "SHARE", share):
        words = ("--trainer.max_epochs", str(epochs), *OPTIONS)
        fit(command(store, Path(folder) / "run", *words, profile=profile), timed)
    return timed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=40)
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
    note = f"{what}: saving takes {shares['ours']:.1%} of the time, after every epoch {shares['each']:.1%}"
    row = Row(what, "s", found["ours"], "saved after every epoch", "rival", found["each"], "other / ours", least=1)
    publish([row], options.output, notes=[note])


if __name__ == "__main__":
    main()
