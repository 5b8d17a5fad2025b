"""A callback that ends `lesionseg fit` after its first step, and says when that was and what memory it took."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytorch_lightning as pl


class FirstBatch(pl.Callback):
    """Prints `FIRST`, the seconds since `began` (of `time.time`) and the peak of memory in MB."""

    def __init__(self, began: float) -> None:
        self.began = began

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs, batch, batch_idx: int
    ) -> None:
        """End the process once the weights have moved, past everything that ends with it."""
        print(f"FIRST {time.time() - self.began} {peak_mb()}", flush=True)
        os._exit(0)


def peak_mb() -> float:
    """The most memory that this process has held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return int(peak) * 1024 / 1e6  # what Linux calls kB are 1024 bytes
