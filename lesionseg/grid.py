"""`Grid`: the finished runs of a comparison, `<schedule>/fold<k>-seed<s>`, refused where rows are not comparable."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pandas as pd

from lesionseg.errors import InputError
from lesionseg.labels import TARGETS
from lesionseg.results import REFERENCE, RunResult, read_run
from lesionseg.runs import RUN_FILE, RunInfo

#: What every run of a comparison must share, with what it means.
SHARED = {
    "store_sha256": "prepared data",
    "folds": "number of folds",
    "epochs": "budget in epochs",
    "encoder": "encoder",
    "target": "target",
    "config_sha256": "configuration besides schedule, fold and seed",
}
#: What every run of a row must share, and all rows that have any: `baseline` has no LiTS weights, `from_scratch` none.
SHARED_STARTS = {"encoder_weights": "weights of the encoder", "weights_sha256": "pretrained weights"}

_CELL = re.compile(r"fold(0|[1-9]\d*)-seed(0|[1-9]\d*)")
_OWN_ROOT = "keep runs of another kind in a folder of their own, or run these cells again"


@dataclass(frozen=True, eq=False)
class Grid:
    """Comparable runs: every schedule has each fold with each seed, the same ones, tested on the same slices.

    Attributes:
        root: their folder.
        runs: ordered by schedule name, fold and seed.
    """

    root: Path
    runs: tuple[RunResult, ...]

    @property
    def schedules(self) -> list[str]:
        """Names of the rows, sorted."""
        return sorted({run.info.name for run in self.runs})

    @property
    def folds(self) -> list[int]:
        """Folds that were run, sorted."""
        return sorted({run.info.fold for run in self.runs})

    @property
    def seeds(self) -> list[int]:
        """Seeds that were run, sorted."""
        return sorted({run.info.seed for run in self.runs})

    @property
    def patients(self) -> list[str]:
        """Every test patient, sorted."""
        return sorted({patient for run in self.runs for patient in run.slices.patient_id.unique()})

    @property
    def patient_folds(self) -> list[int]:
        """The fold in which each of `patients` is tested."""
        fold = {patient: run.info.fold for run in self.runs for patient in run.slices.patient_id.unique()}
        return [fold[patient] for patient in self.patients]

    @property
    def lesion_types(self) -> tuple[str, ...]:
        """Names of the lesion types, in class order."""
        return TARGETS[self.runs[0].info.target].lesion_types

    def tables(self, schedule: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Slices and lesions of all runs of one schedule, with columns `fold` and `seed`."""
        runs = [run for run in self.runs if run.info.name == schedule]
        slices = [run.slices.assign(fold=run.info.fold, seed=run.info.seed) for run in runs]
        lesions = [run.lesions.assign(fold=run.info.fold, seed=run.info.seed) for run in runs]
        return pd.concat(slices, ignore_index=True), pd.concat(lesions, ignore_index=True)


def read_grid(root: Path, wanted: Callable[[str, int, int], bool] | None = None) -> Grid:
    """Read the runs below `root`.

    Args:
        root: folder of the runs, `<schedule>/fold<k>-seed<s>`.
        wanted: which of them, by schedule, fold and seed; None: all.

    Raises:
        InputError: there are none; cells are unfinished or missing (all are listed); a run lies in the folder of
            another; runs without a test part; the runs differ in what `SHARED` and `SHARED_STARTS` name, or in the
            slices and lesions of a fold; a patient is tested in two folds; a lesion type is none of the target's.
    """
    cells = {folder: _cell(folder) for folder in sorted(root.glob("*/fold*-seed*")) if _CELL.fullmatch(folder.name)}
    if wanted is not None:
        cells = {folder: cell for folder, cell in cells.items() if wanted(*cell)}
    if not cells:
        raise InputError(
            root, expected="runs in <schedule>/fold<k>-seed<s>", got="none", remedy="make finetune, or name its folder"
        )
    _refuse_unfinished(root, cells)
    if any(RunInfo.read(folder).folds == 1 for folder in cells):
        raise InputError(root, expected="runs that were tested", got="folds = 1, which leaves no test part",
                         remedy="set FOLDS to 2 or more; `make export SCHEDULE=name` needs no comparison")  # fmt: skip
    runs = sorted((read_run(folder) for folder in cells), key=lambda run: (run.info.name, run.info.fold, run.info.seed))
    for run in runs:
        _refuse_misplaced(run, cells[run.folder])
    _refuse_mixed(root, runs)
    _refuse_other_tests(runs)
    return Grid(root, tuple(runs))


def _cell(folder: Path) -> tuple[str, int, int]:
    """Schedule, fold and seed, as the path of a run says."""
    match = _CELL.fullmatch(folder.name)
    assert match is not None
    return folder.parent.name, int(match[1]), int(match[2])


def _refuse_unfinished(root: Path, cells: dict[Path, tuple[str, int, int]]) -> None:
    missing = [folder for folder in cells if not (folder / RUN_FILE).exists()]
    missing += [folder for folder in cells if folder not in missing and RunInfo.read(folder).state != "finished"]
    every = set(product({fold for _, fold, _ in cells.values()}, {seed for *_, seed in cells.values()}))
    for schedule in {cell[0] for cell in cells.values()}:
        there = {(fold, seed) for name, fold, seed in cells.values() if name == schedule}
        missing += [root / schedule / f"fold{fold}-seed{seed}" for fold, seed in every - there]
    if missing:
        names = ", ".join(sorted(str(folder.relative_to(root)) for folder in missing))
        raise InputError(
            root,
            expected="every cell finished, every fold with every seed in every row",
            got=f"{len(missing)} unfinished or missing: {names}",
            remedy="let the grid continue (make finetune), or move an incomplete row away",
        )


def _refuse_misplaced(run: RunResult, cell: tuple[str, int, int]) -> None:
    info = run.info
    if (info.name, info.fold, info.seed) != cell:
        raise InputError(
            run.folder,
            expected=f"the run {cell[0]}, fold {cell[1]}, seed {cell[2]}",
            got=f"a copy or renamed folder of {info.name}, fold {info.fold}, seed {info.seed}",
            remedy="remove it and run this cell",
        )
    types = TARGETS[info.target].lesion_types
    unknown = sorted({*run.lesions.type, *run.lesions.predicted_type} - {"", *types})
    if unknown:
        raise InputError(
            run.folder,
            expected=f"lesion types {', '.join(types)}",
            got=", ".join(unknown),
            remedy="run this cell again",
        )


def _refuse_mixed(root: Path, runs: list[RunResult]) -> None:
    for field, meaning in SHARED.items():
        _refuse_two(root, meaning, [(getattr(run.info, field), run) for run in runs])
    for field, meaning in SHARED_STARTS.items():
        starts = [(getattr(run.info, field), run) for run in runs]
        _refuse_two(root, meaning, [start for start in starts if start[0] is not None])
        for row in {run.info.name for run in runs}:
            _refuse_two(root, f"{meaning} in every fold and seed", [s for s in starts if s[1].info.name == row])
    for row in sorted({run.info.name for run in runs}):
        settings = [(run.info.row_sha256, run) for run in runs if run.info.name == row]
        _refuse_two(root, f"settings, fold and seed apart, of {row}", settings)


def _refuse_two(root: Path, meaning: str, values: Sequence[tuple[object, RunResult]]) -> None:
    first = dict(reversed(values))  # the first run with each value
    if len(first) > 1:
        got = ", ".join(f"{str(value)[:12]} in {run.folder.relative_to(root)}" for value, run in first.items())
        raise InputError(root, expected=f"the same {meaning} in every run", got=got, remedy=_OWN_ROOT)


def _refuse_other_tests(runs: list[RunResult]) -> None:
    """The runs of one fold must be tested on the same slices and lesions, and no patient in two folds."""
    first: dict[int, RunResult] = {}
    home: dict[str, RunResult] = {}
    for run in runs:
        other = first.setdefault(run.info.fold, run)
        if _tested(run) != _tested(other):
            raise InputError(
                run.folder,
                expected=f"the test patients, slices and reference lesions of {other.folder}",
                got="others",
                remedy=_OWN_ROOT,
            )
        for patient in run.slices.patient_id.unique():
            if home.setdefault(patient, run).info.fold != run.info.fold:
                raise InputError(
                    run.folder,
                    expected="each patient in the test part of one fold",
                    got=f"{patient} here and in {home[patient].folder}",
                    remedy=_OWN_ROOT,
                )


def _tested(run: RunResult) -> tuple[set[tuple], set[tuple]]:
    reference = run.lesions[run.lesions.kind == REFERENCE]
    slices = run.slices[["patient_id", "case_id", "slice"]]
    lesions = reference[["lesion_id", "case_id", "slice", "type", "area_px"]]
    return set(slices.itertuples(index=False, name=None)), set(lesions.itertuples(index=False, name=None))
