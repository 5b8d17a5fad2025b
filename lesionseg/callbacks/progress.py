"""`TimeLeft`: after its first epoch, a run says how long it will take, and the grid it is a part of."""

from __future__ import annotations

import re
import sys
import time

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_info

from lesionseg.errors import InputError


class TimeLeft(pl.Callback):
    """Prints the time left once the first epoch of this process is done.

    Args:
        cell: `4/15@2` for the fourth of fifteen cells of a grid, two of them side by side; None: a single run.
    """

    def __init__(self, cell: str | None = None) -> None:
        match = re.fullmatch(r"(\d+)/(\d+)@(\d+)", "1/1@1" if cell is None else cell)
        self.cell, self.cells, self.parallel = (int(part) for part in match.groups()) if match else (0, 0, 0)
        if not 1 <= self.cell <= self.cells or not self.parallel:
            raise InputError("--cell", expected="number/total@side-by-side", got=repr(cell), remedy="e.g. 4/15@2")
        self._start: float | None = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        if self._start is None:
            self._start = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say it, once."""
        if not self._start:
            return
        assert trainer.max_epochs is not None
        epoch, self._start = time.monotonic() - self._start, 0.0
        run = epoch * (trainer.max_epochs - trainer.current_epoch - 1)
        text = f"epoch {trainer.current_epoch + 1} took {epoch:.1f} s; this run: about {_clock(run)} left"
        if self.cells > 1:
            later = (self.cells - self.cell) / self.parallel * epoch * trainer.max_epochs
            text = f"cell {self.cell} of {self.cells}: {text}, the grid: at most about {_clock(run + later)}"
        rank_zero_info(text)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d} h" if minutes >= 60 else f"{minutes}:{rest:02d} min"


def progress_bar(wanted: bool | None = None) -> list[pl.Callback]:
    """A progress bar where someone looks at a terminal, and none otherwise, or where none is wanted."""
    from pytorch_lightning.callbacks import RichProgressBar

    return [RichProgressBar(leave=False)] if wanted is not False and sys.stderr.isatty() else []
