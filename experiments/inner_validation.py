"""The rows of a comparison by the figures of their inner validation, best first: to choose one before its test is read.

Usage: inner_validation.py RUNS
    RUNS: what `make finetune` left, e.g. runs/phantom/finetune

Figures are those of the last validation, so of the weights tested or nearly so, pooled over folds and seeds; the order
is that of accuracy_all. No patient of an inner validation is tested in the same fold.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from lesionseg.errors import InputError
from lesionseg.grid import read_grid
from lesionseg.runs import METRICS_FILE

#: Figure → its number of slices or lesions, as `metrics.csv` has them.
FIGURES = {
    "val/accuracy_all": "val/lesions_n",
    "val/success_rate": "val/lesions_n",
    "val/dice1": "val/dice1_n",
    "val/dice2": "val/dice2_n",
    "val/false_positives_per_slice": "val/slices_n",
}


def table(runs: Path) -> pd.DataFrame:
    """One row a schedule, best accuracy_all first; columns: the figures without `val/`, and `lesions`.

    Raises:
        InputError: runs that cannot be compared, or one without its log, or whose inner validation is none or holds no
            lesion.
    """
    logs = []
    for run in read_grid(runs).runs:
        log = _log(run.folder / METRICS_FILE)
        if missing := sorted({*FIGURES, *FIGURES.values()} - set(log)):
            expected, remedy = "figures of an inner validation", "run it with data.inner_validation above 0"
            raise InputError(run.folder / METRICS_FILE, expected=expected, got=f"no {missing[0]}", remedy=remedy)
        validated = log[[*FIGURES, *set(FIGURES.values())]].dropna()
        if validated.empty:
            expected, remedy = "an inner validation with lesions", "set another data.split_seed"
            raise InputError(run.folder / METRICS_FILE, expected=expected, got="none", remedy=remedy)
        logs.append({"schedule": run.info.name, **validated.iloc[-1]})
    last = pd.DataFrame(logs)
    sums = pd.DataFrame({name: last[name] * last[n] for name, n in FIGURES.items()}).groupby(last.schedule).sum()
    counts = last.groupby("schedule")[list(set(FIGURES.values()))].sum()
    pooled = pd.DataFrame({name.removeprefix("val/"): sums[name] / counts[n] for name, n in FIGURES.items()})
    pooled["lesions"] = counts["val/lesions_n"].astype(int)
    return pooled.sort_values("accuracy_all", ascending=False)


def _log(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(path, expected="the log of the run", got=type(error).__name__,
                         remedy="train it again") from error  # fmt: skip


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(table(Path(sys.argv[1])).round(3).to_string())
    except InputError as error:
        print(f"lesionseg: wrong input: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
