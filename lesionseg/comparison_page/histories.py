"""`History`: how the runs of one schedule went, epoch by epoch: mean over folds and seeds, with the spread."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lesionseg.errors import InputError
from lesionseg.results import RunResult
from lesionseg.runs import METRICS_FILE, SCHEDULE_FILE

#: A schedule of more is a broken file.
_MOST_EPOCHS = 100_000
#: What is read of `metrics.csv`; a run that did not log one of them has a page without it.
LOSSES = {"train/loss": "loss", "train/loss_dice": "Dice part", "train/loss_cross_entropy": "cross-entropy part"}
FIGURES = {"val/dice1": "Dice1", "val/dice2": "Dice2", "val/accuracy_all": "accuracy_all"}


@dataclass(frozen=True, eq=False)
class History:
    """The runs of one schedule.

    Attributes:
        curves: figure of `LOSSES` or `FIGURES` → mean, least and greatest value (columns `mean, low, high`) over the
            runs, by epoch (index, from 0); figures that no run logged are missing.
        trains: share of the runs in which a block trains, epochs × blocks from the input on; empty: unknown.
        drift: mean of ‖w − w₀‖ / ‖w₀‖ over the runs, epochs × blocks; empty: not logged.
        logs: how many of the runs left `metrics.csv`.
    """

    curves: dict[str, pd.DataFrame]
    trains: pd.DataFrame
    drift: pd.DataFrame
    logs: int

    @property
    def marks(self) -> list[int]:
        """Epochs before which other blocks begin or cease to train, in any of the runs."""
        changed = (self.trains != self.trains.shift()).any(axis=1)
        return [int(epoch) for epoch in self.trains.index[changed]][1:]


def read_history(runs: Sequence[RunResult]) -> History:
    """Read what the runs of one schedule logged; a file that is not there is left out."""
    logs = [log for run in runs if (log := _read(run.folder / METRICS_FILE)) is not None]
    names = [*LOSSES, *FIGURES]
    curves = {name: _spread([log[name] for log in logs if name in log]) for name in names}
    order = _block_order(runs[0].folder)
    trains = _mean([_blocks(log, "trains", order) for log in logs])
    return History(
        curves={name: curve for name, curve in curves.items() if len(curve)},
        trains=trains if len(trains) else _mean([_planned(run.folder) for run in runs]),
        drift=_mean([_blocks(log, "drift", order) for log in logs]),
        logs=len(logs),
    )


def _read(path: Path) -> pd.DataFrame | None:
    """`metrics.csv` with one row an epoch: the last value that each column has in it."""
    if not path.exists():
        return None
    try:
        return pd.read_csv(path).apply(pd.to_numeric).groupby("epoch").last()
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise _unreadable(path, "figures by epoch, all numbers", error) from error


def _unreadable(path: Path, expected: str, error: Exception) -> InputError:
    got = " ".join(f"{type(error).__name__} ({error})".split())
    return InputError(path, expected=expected, got=got, remedy="remove it, and the page goes without; or train again")


def _spread(columns: Sequence[pd.Series]) -> pd.DataFrame:
    if not columns:
        return pd.DataFrame(columns=["mean", "low", "high"])
    values = pd.concat(columns, axis=1).dropna(how="all")
    return pd.DataFrame({"mean": values.mean(axis=1), "low": values.min(axis=1), "high": values.max(axis=1)})


def _blocks(log: pd.DataFrame, kind: str, order: Sequence[str]) -> pd.DataFrame:
    """The columns `<kind>/<block>` of a log, blocks in this order, others after them."""
    table = log[[name for name in log if str(name).startswith(f"{kind}/")]].dropna(how="all")
    table.columns = [str(name).removeprefix(f"{kind}/") for name in table.columns]
    known = [name for name in order if name in table]
    return table[[*known, *(name for name in table if name not in known)]]


def _mean(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    held = [table for table in tables if table.size]
    if not held:
        return pd.DataFrame()
    return pd.concat(held).groupby(level=0).mean()[held[0].columns]


def _steps(folder: Path) -> list[dict]:
    """Steps of the schedule that a run resolved; empty without one."""
    path = folder / SCHEDULE_FILE
    if not path.exists():
        return []
    try:
        steps = json.loads(path.read_text())["steps"]
        for step in steps:
            if not 0 < len(range(step["start"], step["stop"])) <= _MOST_EPOCHS:
                raise ValueError(f"epochs {step['start']} to {step['stop']}")
            step["rates"] = {name: float(rate) for name, rate in step["rates"].items()}
        return steps
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _unreadable(path, "the steps of a schedule", error) from error


def _block_order(folder: Path) -> list[str]:
    """Blocks from the input on, as the run's schedule names them."""
    return [name for step in _steps(folder)[:1] for name in step["rates"]]


def _planned(folder: Path) -> pd.DataFrame:
    """What trains in each epoch by the schedule that the run resolved; empty without one."""
    rows = {
        epoch: {name: float(rate > 0) for name, rate in step["rates"].items()}
        for step in _steps(folder)
        for epoch in range(step["start"], step["stop"])
    }
    return pd.DataFrame.from_dict(rows, orient="index")
