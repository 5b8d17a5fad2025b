"""What a run is refused for: callbacks, options or parts that do not fit it, test cases that its net has seen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
    WeightAveraging,
)
from pytorch_lightning.utilities import rank_zero_warn

from lesionseg.data.datamodule import LesionDataModule
from lesionseg.data.folds import Split
from lesionseg.errors import InputError, some
from lesionseg.runs import CONFIG_FILE, SPLIT_FILE, RunInfo, finished_run, left_by_fit
from lesionseg.schedules import FreezeSchedule


def with_training_cases(run: RunInfo, data: LesionDataModule, weights: Path | None) -> RunInfo:
    """The run with the voxel hashes of all that trains it, and the inner validation that its start has seen.

    Args:
        run: without them.
        data: set up.
        weights: run folder that the net starts from; None: none.

    Raises:
        InputError: a test case is among them.
    """
    start = frozenset(finished_run(weights).trained_on if weights else ())
    parts, scans = data.split, {case: record.scans for case, record in data.records.items()}
    seen = start.union(*(scans[case] for case in (*parts.train, *parts.validation)))
    if known := [case for case in parts.test if scans[case] & seen]:
        raise InputError(
            data.path,
            expected="test cases that the net never saw",
            got=f"{len(known)} that it was trained on ({some(known, 3)})",
            remedy="leave them out of the pretraining: lesionseg prepare lits --exclude",
        )
    if before := [case for case in parts.validation if scans[case] & start]:
        rank_zero_warn(
            f"{len(before)} of {len(parts.validation)} cases of the inner validation have trained the net that this "
            "one starts from: what it steers is too sure of itself, and no temperature is fitted on them; leave them "
            "out of the pretraining: lesionseg prepare lits --exclude"
        )
    return replace(run, trained_on=tuple(sorted(seen)), known_before=tuple(before))


def refuse_callbacks(callbacks: Iterable[pl.Callback]) -> None:
    """Raise `InputError` for callbacks of Lightning that a schedule, or a run that goes on, cannot stand beside."""
    reasons = {
        GradientAccumulationScheduler: "one that a run which goes on within an epoch would forget",
        StochasticWeightAveraging: "one that trains another number of epochs than the schedule is made for",
        WeightAveraging: "one whose weights a run that goes on after its last epoch would not test",
        BaseFinetuning: "one that freezes by itself",
        LearningRateFinder: "one whose rate the schedule sets back",
        BatchSizeFinder: "one that trains with another batch than the run says",
    }
    for callback in callbacks:
        for kind, reason in reasons.items():
            if isinstance(callback, kind):
                raise InputError("trainer.callbacks", expected="none that the schedule cannot stand beside",
                                 got=f"{type(callback).__name__}, {reason}", remedy="leave it out")  # fmt: skip


def refuse_trial_with_steps(fast_dev_run: bool | int, schedule: FreezeSchedule) -> None:
    """Raise `InputError` for a trial run, which has one epoch, of a schedule that needs more."""
    if not fast_dev_run:
        return
    try:
        schedule.check_epochs(1)
    except InputError as error:
        raise InputError("trainer.fast_dev_run", expected="a schedule of one epoch", got=error.expected,
                         remedy="leave it out, and set trainer.limit_train_batches to 1") from None  # fmt: skip


def refuse_other_options(folder: Path, run: RunInfo) -> None:
    """Raise `InputError` unless a run asked for is the finished one in its folder.

    Other options would write tables that are not this run's, of cases it may have seen in training.
    """
    if finished_run(folder).fingerprint != run.fingerprint:
        raise InputError(folder, expected="the options of its fit", got="others",
                         remedy=f"repeat those that {folder / CONFIG_FILE} lists")  # fmt: skip


def refuse_other_split(folder: Path, split: Split) -> None:
    """Raise `InputError` unless the parts of the data are those of the fit.

    Another version may have split the same patients in another way: it would test what it has learned from.
    """
    if left_by_fit(folder, SPLIT_FILE, Split.from_json) != split:
        raise InputError(folder / SPLIT_FILE, expected="the parts that this version makes of the store",
                         got="others", remedy="train the run again, in another folder")  # fmt: skip
