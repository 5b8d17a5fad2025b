"""Limits of a trainer mean what is written, whatever else its process has met; callbacks are called as by Lightning."""

import typing
from typing import Optional, Union

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import LambdaCallback
from pytorch_lightning.cli import LightningArgumentParser
from pytorch_lightning.demos.boring_classes import BoringModel

from lesionseg.errors import InputError
from lesionseg.trainer import STEP_HOOKS, Trainer, refuse_limits


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
    ],
)
def test_limits_that_leave_something_are_taken(settings, batches):
    train, validation, test = batches
    refuse_limits(Trainer(accelerator="cpu", logger=False, **settings), train=train, validation=validation, test=test)


@pytest.mark.parametrize("settings", [{"max_steps": 1000}, {"max_steps": 0}, {"max_steps": 9, "max_epochs": 3}])
def test_a_number_of_steps_is_refused(settings):
    with pytest.raises(InputError, match=r"trainer.max_steps: expected -1, as schedules count epochs .*max_epochs"):
        refuse_limits(Trainer(accelerator="cpu", logger=False, **settings), train=3, validation=1, test=1)


def called(trainer_class):
    """The hooks of a step that were called in training, validation and test, by callbacks that have one each."""
    calls = []

    def noting(name):
        return lambda *args, **kwargs: calls.append(name)

    of_class = [type(f"Has_{name}", (pl.Callback,), {name: noting(f"{name} of a class")})() for name in STEP_HOOKS]
    of_object = [LambdaCallback(**{name: noting(f"{name} of an object")}) for name in STEP_HOOKS]
    trainer = trainer_class(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=2, limit_train_batches=2, limit_val_batches=1, limit_test_batches=1,
        callbacks=[*of_class, *of_object, pl.Callback()],
    )  # fmt: skip
    trainer.fit(BoringModel())
    trainer.test(BoringModel(), verbose=False)
    return trainer, calls


@pytest.mark.filterwarnings("ignore")
def test_hooks_of_a_step_are_called_as_lightning_calls_them_and_idle_ones_are_left_out():
    _, expected = called(pl.Trainer)
    trainer, calls = called(Trainer)
    assert calls == expected
    assert {call.split()[0] for call in calls} == set(STEP_HOOKS)
    idle = [[name for name in STEP_HOOKS if getattr(callback, name) is None] for callback in trainer.callbacks]
    assert sorted(map(len, idle)) == [len(STEP_HOOKS) - 1] * 2 * len(STEP_HOOKS) + [len(STEP_HOOKS)]


def test_these_are_all_hooks_of_a_step_but_those_of_prediction():
    declared = {name for name in vars(pl.Callback) if "_batch_" in name or "before_" in name or "after_" in name}
    assert declared - {"on_predict_batch_start", "on_predict_batch_end"} == set(STEP_HOOKS)
