"""The tables that a finished run leaves in its folder (`run.json`, `slices.csv`, `lesions.csv`): writing and reading."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd

from lesionseg.errors import InputError

RUN_FILE, SLICES_FILE, LESIONS_FILE = "run.json", "slices.csv", "lesions.csv"
FINISHED = "finished"

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
REFERENCE, FALSE_POSITIVE = "reference", "false_positive"

_REMEDY = "run this cell of the grid again"


@dataclass(frozen=True)
class RunRecord:
    """What a run says of itself in `run.json`.

    Attributes:
        schedule: name of the freeze schedule, the row of the table.
        title: the schedule's name for readers.
        fold: which fold was the test part.
        seed: seed of weights, order and augmentation.
        state: `finished`, or how far it got.
        commit: of the package's code.
        machine: kind of machine, without its name.
        config_sha256: of the resolved configuration of this run.
        manifest_sha256: of the manifest of the prepared data.
        encoder: name of the encoder.
        encoder_weights: what the encoder started from before any CT (`imagenet`); None: nothing.
        generated: the data come from `lesionseg phantom`.
        epochs: the budget, which must be equal in all rows.
        min_overlap: share of a lesion's area that finds it.
    """

    schedule: str
    title: str
    fold: int
    seed: int
    state: str
    commit: str
    machine: str
    config_sha256: str
    manifest_sha256: str
    encoder: str
    encoder_weights: str | None
    generated: bool
    epochs: int
    min_overlap: float


@dataclass(frozen=True, eq=False)
class RunResult:
    """A finished run: what it is, and its two tables (columns `SLICE_COLUMNS`, `LESION_COLUMNS`)."""

    folder: Path
    record: RunRecord
    slices: pd.DataFrame
    lesions: pd.DataFrame


def write_run(folder: Path, record: RunRecord) -> None:
    """Write `run.json`. Last of the three files: a folder with a finished `run.json` is complete."""
    write_text(folder / RUN_FILE, json.dumps(asdict(record), indent=2) + "\n")


def write_slices(folder: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write `slices.csv` from rows with the keys of `SLICE_COLUMNS`."""
    write_text(folder / SLICES_FILE, _to_csv(rows, SLICE_COLUMNS))


def write_lesions(folder: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write `lesions.csv` from rows with the keys of `LESION_COLUMNS`."""
    write_text(folder / LESIONS_FILE, _to_csv(rows, LESION_COLUMNS))


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all: to a sibling first, which then takes its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_record(folder: Path) -> RunRecord:
    """Read `run.json` of a run, finished or not; further keys are left aside.

    Raises:
        InputError: no such file, or it is not what `write_run` writes.
    """
    path = folder / RUN_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(path, expected="the record of a run", got=str(error), remedy=_REMEDY) from error
    names = [field.name for field in fields(RunRecord)]
    missing = [name for name in names if not isinstance(record, dict) or name not in record]
    if missing:
        raise InputError(path, expected=f"the keys {', '.join(names)}", got=f"no {', '.join(missing)}", remedy=_REMEDY)
    return RunRecord(**{name: record[name] for name in names})


def read_run(folder: Path) -> RunResult:
    """Read a finished run.

    Raises:
        InputError: a file is missing, the run has not finished, or a table is not what `write_slices` and
            `write_lesions` write: columns, types of values, each slice and figure once, the figures of `SLICE_FIGURES`
            on every slice, each lesion once and on one of the slices.
    """
    record = read_record(folder)
    if record.state != FINISHED:
        raise InputError(folder / RUN_FILE, expected=f"state {FINISHED}", got=record.state, remedy="let the run finish")
    slices = _read_csv(folder / SLICES_FILE, SLICE_COLUMNS)
    lesions = _read_csv(folder / LESIONS_FILE, LESION_COLUMNS)
    _check_slices(folder / SLICES_FILE, slices)
    _check_lesions(folder / LESIONS_FILE, lesions, slices)
    return RunResult(folder, record, slices, lesions)


def _to_csv(rows: Iterable[Mapping[str, object]], columns: dict[str, str]) -> str:
    rows = list(rows)
    wrong = next((set(row) ^ set(columns) for row in rows if set(row) != set(columns)), None)
    if wrong:
        raise ValueError(
            f"rows must have the keys {', '.join(columns)}; missing or unknown: {', '.join(sorted(wrong))}"
        )
    return pd.DataFrame(rows, columns=list(columns)).to_csv(index=False, lineterminator="\n")


def _read_csv(path: Path, columns: dict[str, str]) -> pd.DataFrame:
    texts = [name for name, kind in columns.items() if kind == "string"]
    numbers = {name: [""] for name, kind in columns.items() if kind == "float64"}  # an empty text is a text, not NaN
    try:
        frame = pd.read_csv(path, dtype=columns, keep_default_na=False, na_values=numbers, float_precision="round_trip")
    except (OSError, ValueError) as error:
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
    _refuse_rows(path, lesions, reference & ~lesions.found.isin([0, 1]), "found 0 or 1")
    _refuse_rows(path, lesions, reference == (lesions.type == ""), "a type for reference lesions and for no other")
    named = lesions.predicted_type != ""
    _refuse_rows(
        path, lesions, reference & (named != (lesions.found == 1)), "a predicted type where the lesion is found"
    )
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
