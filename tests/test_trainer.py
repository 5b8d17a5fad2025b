"""Limits of a trainer mean what is written, whatever else its process has met."""

import typing
from typing import Optional, Union

import pytest
import pytorch_lightning as pl
from pytorch_lightning.cli import LightningArgumentParser

from lesionseg.trainer import Trainer, refuse_limits


@pytest.fixture
def float_first():
    """A process in which somebody has asked for the union of both with the float first."""
    for forget in typing._cleanups:
        forget()
    Optional[Union[float, int]]  # noqa: UP007, UP045 (typing keeps it)


def read(trainer_class, *words):
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_lightning_class_args(trainer_class, "trainer")
    return parser.parse_args([word.replace("--", "--trainer.") for word in words]).trainer


LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches", "overfit_batches")


@pytest.mark.parametrize("name", LIMITS)
def test_1_is_a_batch_and_1_0_is_all_of_them(float_first, name):
    assert isinstance(read(Trainer, f"--{name}", "1")[name], int)
    assert isinstance(read(Trainer, f"--{name}", "1.0")[name], float)
    assert isinstance(getattr(Trainer(accelerator="cpu", logger=False, **{name: 1}), name), int)


def test_as_lightning_declares_them_they_would_not(float_first):
    class Declared(pl.Trainer):
        def __init__(self, *, limit_train_batches: Optional[Union[int, float]] = None, **settings):  # noqa: UP007, UP045
            super().__init__(limit_train_batches=limit_train_batches, **settings)

    assert isinstance(read(Declared, "--limit_train_batches", "1").limit_train_batches, float)


@pytest.mark.parametrize("written", ["1", "1.0"])
def test_a_bound_of_gradients_is_one_number(float_first, written):
    assert str(read(Trainer, "--gradient_clip_val", written).gradient_clip_val) == "1.0"


def test_what_nobody_limits_is_all_and_is_not_announced(caplog):
    trainer = Trainer(accelerator="cpu", logger=False)
    assert [getattr(trainer, name) for name in LIMITS] == [1.0, 1.0, 1.0, 1.0, 0.0]
    assert "was configured" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "batches"),
    [
        ({"val_check_interval": "00:00:01:00"}, (3, 1, 1)),
        ({"val_check_interval": 10, "limit_val_batches": 0}, (3, 1, 1)),
        ({"val_check_interval": 10, "check_val_every_n_epoch": None}, (3, 1, 1)),
        ({"val_check_interval": 0.5}, (3, 1, 1)),
        ({"limit_val_batches": 0, "limit_test_batches": 0.0}, (3, 4, 5)),
        ({"limit_test_batches": 0.1}, (3, 0, 0)),
        ({"fast_dev_run": True}, (1, 1, 1)),
        ({"overfit_batches": 1}, (3, 1, 1)),
    ],
)
def test_limits_that_leave_something_are_taken(settings, batches):
    train, validation, test = batches
    refuse_limits(Trainer(accelerator="cpu", logger=False, **settings), train=train, validation=validation, test=test)
