"""When `last.ckpt` is written: what that takes of a training's time, and what is saved whatever it takes."""

import contextlib
import os
import signal
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from lesionseg.callbacks import checkpoints
from lesionseg.callbacks.checkpoints import SHARE, LastCheckpoint, WholeCheckpoints
from lesionseg.callbacks.guards import FiniteLoss, Interrupted, StopOnSignal

BATCHES = 2


class Task(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.net(batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Clock(pl.Callback):
    """Stands still but for epochs and for saving, which take the seconds that they are given."""

    def __init__(self, epoch_s, act=lambda trainer: None):
        self.now_s, self.epoch_s, self.act = 0.0, epoch_s, act

    def on_train_epoch_start(self, trainer, pl_module):
        self.now_s += self.epoch_s[trainer.current_epoch]

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.act(trainer)


class SlowCheckpoints(WholeCheckpoints):
    """Takes its seconds and notes the epoch instead of writing it."""

    def __init__(self, folder, clock, save_s):
        super().__init__(folder, "f")
        self.clock, self.save_s, self.saved = clock, save_s, []

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        self.clock.now_s += self.save_s[checkpoint["epoch"]]
        self.saved.append(checkpoint["epoch"])


def epochs_saved(folder, epoch_s, save_s, act=lambda trainer: None):
    """Fit; the epochs that were saved, in order."""
    clock, stop = Clock(epoch_s, act), StopOnSignal(folder / "last.ckpt", FiniteLoss())
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=len(epoch_s), logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[clock, stop, LastCheckpoint(folder, stop)],
    )  # fmt: skip
    trainer.strategy.checkpoint_io = SlowCheckpoints(folder, clock, save_s)
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Interrupted):
        patch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
        trainer.fit(Task(), DataLoader(torch.ones(BATCHES, 1)))
    return trainer.strategy.checkpoint_io.saved


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 100), st.floats(0.01, 10)), min_size=1, max_size=12))
def test_saving_takes_its_share_of_the_time_at_most_and_nothing_is_left_out_for_less(tmp_path_factory, seconds):
    epoch_s, save_s = (list(column) for column in zip(*seconds, strict=True))
    saved = epochs_saved(tmp_path_factory.mktemp("run"), epoch_s, save_s)
    assert {0, len(seconds) - 1} <= set(saved)
    for epoch in range(1, len(seconds) - 1):
        last = max(e for e in saved if e < epoch)
        took = save_s[last]
        share = took / (took + sum(epoch_s[last + 1 : epoch + 1]))
        if share != pytest.approx(SHARE):
            assert (epoch in saved) == (share < SHARE)


def test_one_save_that_takes_long_does_not_keep_a_run_from_saving_for_hours(tmp_path):
    assert epochs_saved(tmp_path, [70.0] * 30, [1.0, 3600.0, *[1.0] * 28])[:4] == [0, 1, 10, 11]


def test_the_best_weights_are_written_with_the_next_last_checkpoint(tmp_path):
    writer = WholeCheckpoints(tmp_path, "f")
    best, last = tmp_path / "checkpoints" / "best.ckpt", tmp_path / "checkpoints" / "last.ckpt"
    for epoch in (1, 2):
        weights = torch.full((1,), epoch)
        writer.save_checkpoint({"epoch": epoch, "weights": weights}, best)
        weights += 100  # the net learns on
        assert not best.exists()
    writer.save_checkpoint({"epoch": 3}, last)
    assert torch.load(best, weights_only=True) == {"epoch": 2, "weights": torch.tensor([2]), "fingerprint": "f"}
    best.unlink()
    writer.save_checkpoint({"epoch": 4}, last)
    assert not best.exists()
    assert torch.load(last, weights_only=True)["epoch"] == 4
    mine = tmp_path / "mine" / "best.ckpt"  # of a callback of the user's
    writer.save_checkpoint({"epoch": 5}, mine)
    assert torch.load(mine, weights_only=True)["epoch"] == 5


def test_where_the_training_is_told_to_stop_its_end_is_saved(tmp_path):
    def stopped(trainer):
        trainer.should_stop = trainer.current_epoch == 3

    ten = [1.0] * 10
    assert epochs_saved(tmp_path, ten, ten) == [0, 9]
    assert epochs_saved(tmp_path, ten, ten, stopped) == [0, 3]


def test_an_epoch_in_whose_last_batch_a_signal_came_is_saved_before_the_run_stops(tmp_path):
    def interrupted(trainer):
        if trainer.current_epoch == 3 and trainer.is_last_batch:
            os.kill(os.getpid(), signal.SIGINT)

    assert epochs_saved(tmp_path, [1.0] * 10, [1.0] * 10, interrupted) == [0, 3]
