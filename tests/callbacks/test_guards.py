"""How a run ends before its time, on one rank and on two; that it goes on from there: tests/test_training.py."""

import math
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.multiprocessing import ProcessRaisedException
from torch.utils.data import DataLoader

from lesionseg.callbacks.guards import FiniteLoss, Interrupted, StopOnSignal
from lesionseg.callbacks.seeding import SeedEveryStep
from lesionseg.data.dataset import Batch, Place

STEPS = 6
CASES = ("case-a", "case-b", "case-c")


class Data(pl.LightningDataModule):
    """Batches that know their cases: of rank 0 always the first, of rank 1 the other two."""

    store = SimpleNamespace(records=[SimpleNamespace(case_id=case) for case in CASES])

    def train_dataloader(self):
        cases = [0] if self.trainer.global_rank == 0 else [2, 1, 2]
        batch = Batch(torch.ones(3, 1), torch.ones(3, 1), [], [], [Place(i, case, 0) for i, case in enumerate(cases)])
        return DataLoader([batch] * STEPS, batch_size=None)

    def val_dataloader(self):
        return self.train_dataloader()


class Task(pl.LightningModule):
    """Something happens before a step of one rank; what was drawn at each step is kept."""

    def __init__(self, act="", step=2, rank=0):
        super().__init__()
        self.net, self.act, self.at = nn.Linear(1, 1), act, (step, rank)
        self.draws, self.validated = [], 0

    def training_step(self, batch, batch_idx):
        self.draws.append(float(torch.rand(())))
        if "signal" in self.act and self.at == (batch_idx, self.global_rank):
            os.kill(os.getpid(), signal.SIGINT)
        spoilt = "spoil" in self.act and self.at == (batch_idx, self.global_rank)
        return self.net(batch.images).mean() * (math.nan if spoilt else 1.0)

    def validation_step(self, batch, batch_idx):
        self.validated += 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@contextmanager
def noted(trainer, pl_module):
    """Leaves a file that says after how many steps this rank ended, and why."""
    try:
        yield
    except (FloatingPointError, Interrupted) as end:
        text = f"{type(end).__name__}, {trainer.global_step} steps: {end}"
        Path(trainer.default_root_dir, f"rank-{trainer.global_rank}").write_text(text)
        raise


class NotedLoss(FiniteLoss):
    def on_before_backward(self, trainer, pl_module, loss):
        with noted(trainer, pl_module):
            super().on_before_backward(trainer, pl_module, loss)

    def check(self, trainer, pl_module):
        with noted(trainer, pl_module):
            super().check(trainer, pl_module)


class NotedSignal(StopOnSignal):
    def on_train_batch_end(self, trainer, pl_module, *rest):
        with noted(trainer, pl_module):
            super().on_train_batch_end(trainer, pl_module, *rest)


def fit(folder, task, *callbacks, **options):
    finite = NotedLoss()
    guards = [finite, NotedSignal(Path(folder, "last.ckpt"), finite)]
    trainer = pl.Trainer(
        accelerator="cpu", **{"devices": 1, "max_epochs": 1, "limit_val_batches": 0, **options},
        default_root_dir=folder, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, callbacks=[*guards, *callbacks],
    )  # fmt: skip
    trainer.fit(task, Data())
    return trainer


@pytest.mark.parametrize(("step", "steps"), [(2, 3), (STEPS - 1, STEPS)], ids=["by the next", "at the epoch's end"])
def test_a_loss_that_is_not_finite_is_told(tmp_path, step, steps):
    with pytest.raises(
        FloatingPointError, match="not finite in epoch 1 on cases case-a; the last checkpoint is intact"
    ):
        fit(tmp_path, Task("spoil", step))
    assert (tmp_path / "rank-0").read_text().startswith(f"FloatingPointError, {steps} steps: ")


def test_a_loss_that_is_not_finite_is_told_before_a_validation(tmp_path):
    task = Task("spoil", 2)
    with pytest.raises(FloatingPointError, match="not finite in epoch 1 on cases case-a"):
        fit(tmp_path, task, val_check_interval=3, limit_val_batches=1, num_sanity_val_steps=0)
    assert task.validated == 0


def test_a_loss_that_is_not_finite_is_told_before_a_signal_saves_what_it_has_made(tmp_path):
    with pytest.raises(FloatingPointError, match="not finite in epoch 1 on cases case-a"):
        fit(tmp_path, Task("spoil and signal"))
    assert not (tmp_path / "last.ckpt").exists()


def test_a_signal_saves_after_the_batch_and_stops(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted):
        fit(tmp_path, Task("signal"))
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("every", [{"check_val_every_n_epoch": 1}, {"check_val_every_n_epoch": None}])
def test_a_validation_in_the_midst_of_an_epoch_comes_before_the_end(tmp_path, every):
    """No run that goes on would make it up."""
    task = Task("signal")
    with pytest.raises(Interrupted):
        fit(tmp_path, task, val_check_interval=3, limit_val_batches=1, num_sanity_val_steps=0, **every)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4
    assert task.validated == 1


@pytest.mark.parametrize(
    ("settings", "steps", "validated"),
    [
        ({"val_check_interval": 1}, 4, 3),
        ({"val_check_interval": 2, "accumulate_grad_batches": 2}, 2, 1),
        ({"val_check_interval": 1, "check_val_every_n_epoch": 5}, 3, 0),
        ({"val_check_interval": 1, "limit_val_batches": 0}, 3, 0),
    ],
)
def test_it_waits_for_one_validation_alone(tmp_path, settings, steps, validated):
    task = Task("signal", step=0 if "accumulate_grad_batches" in settings else 2)
    with pytest.raises(Interrupted):
        fit(tmp_path, task, **{"limit_val_batches": 1, "num_sanity_val_steps": 0, **settings})
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == steps
    assert task.validated == validated


def test_without_a_signal_nothing_is_saved_and_the_signals_are_given_back(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert fit(tmp_path, Task()).global_step == STEPS
    assert list(tmp_path.iterdir()) == []
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_what_a_step_draws_follows_from_seed_epoch_and_step(tmp_path):
    first, again, other = Task(), Task(), Task()
    fit(tmp_path, first, SeedEveryStep(0), max_epochs=2)
    torch.rand(7)
    fit(tmp_path, again, SeedEveryStep(0), max_epochs=2)
    fit(tmp_path, other, SeedEveryStep(1), max_epochs=2)
    assert first.draws == again.draws
    assert len(set(first.draws + other.draws)) == 4 * STEPS


def end_on_two_ranks(folder):
    """In forked processes; see tests/callbacks/test_freezing.py."""
    for act in ("spoil", "signal"):
        strategy = DDPStrategy(start_method="fork", process_group_backend="gloo")
        Path(folder, act).mkdir()
        try:
            fit(Path(folder, act), Task(act, rank=1), devices=2, strategy=strategy)
        except ProcessRaisedException as error:  # of the rank that ended first
            print(error)


def test_what_happens_on_one_rank_ends_both(tmp_path):
    done = subprocess.run([sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        line = (tmp_path / "spoil" / f"rank-{rank}").read_text()
        assert line.startswith(
            "FloatingPointError, 3 steps: the loss is not finite in epoch 1 on cases case-b, case-c;"
        )
        assert (tmp_path / "signal" / f"rank-{rank}").read_text().startswith("Interrupted, 3 steps: ")
    assert torch.load(tmp_path / "signal" / "last.ckpt", weights_only=True)["global_step"] == 3


if __name__ == "__main__":
    end_on_two_ranks(sys.argv[1])
