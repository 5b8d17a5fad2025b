"""The tables that a finished run leaves in its folder: writing all, reading and checking those of a lesion net."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lesionseg.errors import InputError
from lesionseg.lesions import FALSE_POSITIVE, MIN_OVERLAP, REFERENCE
from lesionseg.runs import CASES_FILE, LESIONS_FILE, SLICES_FILE, RunInfo, finished_run
from lesionseg.writing import write_text

#: Columns of `cases.csv`, one row per case.
CASE_COLUMNS: dict[str, str] = {"case_id": "string", "patient_id": "string", "liver_dice": "float64"}

#: Columns of `slices.csv`, one row per slice and figure; an empty `value`: the figure is not defined on this slice.
SLICE_COLUMNS: dict[str, str] = {
    "case_id": "string",
    "patient_id": "string",
    "slice": "int64",
    "figure": "string",
    "value": "float64",
}
#: Figures that `slices.csv` must hold for every slice; others may stand beside them.
SLICE_FIGURES = ("dice1", "dice2", "false_positives")

#: Columns of `lesions.csv`: reference lesions and false positives. Types are names. Empty: `type` of a false positive,
#: `predicted_type` of a reference lesion that was missed, `area_mm2` where the spacing is unknown.
LESION_COLUMNS: dict[str, str] = {
    "lesion_id": "string",
    "case_id": "string",
    "patient_id": "string",
    "slice": "int64",
    "kind": "string",
    "type": "string",
    "area_px": "int64",
    "area_mm2": "float64",
    "overlap": "float64",
    "found": "int64",
    "predicted_type": "string",
}
#: Stands for the predicted type of a reference lesion that was not found, wherever types are counted.
MISSED = "missed"

_REMEDY = "write it again: lesionseg test --config config.yaml of that run"


@dataclass(frozen=True, eq=False)
class RunResult:
    """A finished run: what it is, and its two tables (columns `SLICE_COLUMNS`, `LESION_COLUMNS`)."""

    folder: Path
    info: RunInfo
    slices: pd.DataFrame
    lesions: pd.DataFrame


def write_cases(folder: Path, table: pd.DataFrame) -> None:
    """Write `cases.csv`, whole or not at all; the table has the columns `CASE_COLUMNS`."""
    write_text(folder / CASES_FILE, _to_csv(table, CASE_COLUMNS))


def write_slices(folder: Path, table: pd.DataFrame) -> None:
    """Write `slices.csv`, whole or not at all; the table has the columns `SLICE_COLUMNS`."""
    write_text(folder / SLICES_FILE, _to_csv(table, SLICE_COLUMNS))


def write_lesions(folder: Path, table: pd.DataFrame) -> None:
    """Write `lesions.csv`, whole or not at all; the table has the columns `LESION_COLUMNS`."""
    write_text(folder / LESIONS_FILE, _to_csv(table, LESION_COLUMNS))


def read_run(folder: Path) -> RunResult:
    """Read a finished run.

    Raises:
        InputError: a file is missing, the run has not finished, or a table is not what `write_slices` and
            `write_lesions` write: columns, types of values, each slice and figure once, the figures of `SLICE_FIGURES`
            on every slice, each lesion once and on one of the slices, found by the definition of `lesions.py`.
    """
    info = finished_run(folder)
    slices = _read_csv(folder / SLICES_FILE, SLICE_COLUMNS)
    lesions = _read_csv(folder / LESIONS_FILE, LESION_COLUMNS)
    _check_slices(folder / SLICES_FILE, slices)
    _check_lesions(folder / LESIONS_FILE, lesions, slices)
    return RunResult(folder, info, slices, lesions)


def worst_lesions(table: pd.DataFrame) -> pd.DataFrame:
    """The reference lesions of a lesion table that were missed or wrongly typed, the largest first.

    Size is the area in mm², or in pixels where a spacing is unknown.
    """
    wrong = table[(table.kind == REFERENCE) & (table.predicted_type != table.type)]
    size = "area_px" if wrong.area_mm2.isna().any() else "area_mm2"
    return wrong.sort_values([size, "lesion_id"], ascending=[False, True])


def _to_csv(table: pd.DataFrame, columns: dict[str, str]) -> str:
    if set(table.columns) != set(columns):
        raise ValueError(f"the columns must be {', '.join(columns)}, got {', '.join(map(str, table.columns))}")
    return table[list(columns)].to_csv(index=False, lineterminator="\n")


def _read_csv(path: Path, columns: dict[str, str]) -> pd.DataFrame:
    texts = [name for name, kind in columns.items() if kind == "string"]
    numbers = {name: [""] for name, kind in columns.items() if kind == "float64"}  # an empty text is a text, not NaN
    try:
        frame = pd.read_csv(path, dtype=columns, keep_default_na=False, na_values=numbers, float_precision="round_trip")
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(path, expected="a results table", got=str(error), remedy=_REMEDY) from error
    if list(frame.columns) != list(columns):
        got = ", ".join(map(str, frame.columns))
        raise InputError(path, expected=f"the columns {', '.join(columns)}", got=got, remedy=_REMEDY)
    return frame.astype(dict.fromkeys(texts, object))


def _check_slices(path: Path, slices: pd.DataFrame) -> None:
    key = ["case_id", "slice"]
    _refuse_rows(path, slices, slices.duplicated([*key, "figure"]), "each slice and figure once")
    _refuse_rows(path, slices, slices.patient_id == "", "a patient on every row")
    for figure in SLICE_FIGURES:
        has = slices[slices.figure == figure].set_index(key).index
        every = pd.MultiIndex.from_frame(slices[key])
        _refuse_rows(path, slices, ~every.isin(has), f"figure {figure} on every slice")
    of_case = slices.groupby("case_id").patient_id.transform("nunique")
    _refuse_rows(path, slices, of_case > 1, "one patient per case")


def _check_lesions(path: Path, lesions: pd.DataFrame, slices: pd.DataFrame) -> None:
    key = ["case_id", "patient_id", "slice"]
    reference = lesions.kind == REFERENCE
    _refuse_rows(
        path, lesions, ~lesions.kind.isin([REFERENCE, FALSE_POSITIVE]), f"kind {REFERENCE} or {FALSE_POSITIVE}"
    )
    _refuse_rows(path, lesions, lesions.duplicated(["lesion_id"]), "each lesion once")
    known = pd.MultiIndex.from_frame(slices[key])
    _refuse_rows(path, lesions, ~pd.MultiIndex.from_frame(lesions[key]).isin(known), f"slices of {SLICES_FILE}")
    found = (lesions.overlap >= MIN_OVERLAP).astype(int)
    _refuse_rows(
        path, lesions, reference & (lesions.found != found), f"found where the overlap is {MIN_OVERLAP} or more"
    )
    _refuse_rows(path, lesions, reference == (lesions.type == ""), "a type for reference lesions and for no other")
    typed = (lesions.found == 1) | ~reference
    _refuse_rows(path, lesions, typed == (lesions.predicted_type == ""), "a predicted type unless the lesion is missed")
    counted = lesions[~reference].groupby(["case_id", "slice"]).size()
    stated = slices[slices.figure == "false_positives"].set_index(["case_id", "slice"]).value
    wrong = stated.ne(counted.reindex(stated.index, fill_value=0))
    if wrong.any():
        case, number = stated.index[wrong.to_numpy()][0]
        raise InputError(
            path,
            expected=f"as many false positives as {SLICES_FILE} states",
            got=f"{case} slice {number}",
            remedy=_REMEDY,
        )


def _refuse_rows(path: Path, frame: pd.DataFrame, wrong: pd.Series | np.ndarray, expected: str) -> None:
    """Raise `InputError` that names the first row (as the line of the file) where `wrong` holds."""
    if wrong.any():
        first = int(np.asarray(wrong).argmax())
        got = f"line {first + 2}: {','.join(map(str, frame.iloc[first]))}"
        raise InputError(path, expected=expected, got=got, remedy=_REMEDY)
