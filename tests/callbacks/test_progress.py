"""What a run says of the time it will take."""

import logging
import sys

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import RichProgressBar
from torch import nn
from torch.utils.data import DataLoader

from lesionseg.callbacks.progress import TimeLeft, progress_bar
from lesionseg.errors import InputError

LOGGER = logging.getLogger("pytorch_lightning.utilities.rank_zero")


class Task(pl.LightningModule):
    """Each of its batches takes a minute of the clock."""

    def __init__(self, clock):
        super().__init__()
        self.net, self.clock = nn.Linear(1, 1), clock

    def training_step(self, batch, batch_idx):
        self.clock[0] += 60
        return self.net(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.fixture
def said(monkeypatch):
    """What a run of some epochs says, on a clock that moves by its batches alone."""
    clock, lines = [1000.0], []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    LOGGER.addHandler(handler)
    monkeypatch.setattr("lesionseg.callbacks.progress.time.monotonic", lambda: clock[0])

    def run(cell, epochs, batches):
        trainer = pl.Trainer(
            accelerator="cpu", devices=1, max_epochs=epochs, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[TimeLeft(cell)],
        )  # fmt: skip
        trainer.fit(Task(clock), DataLoader(torch.zeros(batches, 1)))
        return [line for line in lines if " took " in line]

    yield run
    LOGGER.removeHandler(handler)


@pytest.mark.parametrize(
    ("cell", "epochs", "batches", "line"),
    [
        (None, 4, 2, "epoch 1 took 120.0 s; this run: about 6:00 min left"),
        ("1/1@1", 1, 1, "epoch 1 took 60.0 s; this run: about 0:00 min left"),
        (None, 62, 1, "epoch 1 took 60.0 s; this run: about 1:01 h left"),
        # 3 min are left of this run; 11 of 15 cells come later, two at a time, 4 min each
        ("4/15@2", 4, 1, "cell 4 of 15: epoch 1 took 60.0 s; this run: about 3:00 min left, "
                         "the grid: at most about 25:00 min"),
        ("15/15@2", 4, 1, "cell 15 of 15: epoch 1 took 60.0 s; this run: about 3:00 min left, "
                          "the grid: at most about 3:00 min"),
    ],
)  # fmt: skip
def test_the_time_left_is_said_once_after_the_first_epoch(said, cell, epochs, batches, line):
    assert said(cell, epochs, batches) == [line]


@pytest.mark.parametrize("cell", ["", "4", "4/15", "four/15@2", "4/15@2 ", "-1/15@2", "0/15@2", "16/15@2", "1/2@0"])
def test_a_cell_that_does_not_parse_is_refused(cell):
    with pytest.raises(InputError, match="--cell: expected number/total@side-by-side"):
        TimeLeft(cell)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_progress_bar_is_drawn_on_a_terminal_only(monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert [type(bar) for bar in progress_bar()] == [RichProgressBar] * terminal
    assert progress_bar(False) == []
