"""`slices.csv` → checked rows. Every fault is an `InputError` that names file and line; all are found in one pass."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from lesionseg.data.groups import read_table
from lesionseg.errors import InputError
from lesionseg.labels import LESION_TYPES

T = TypeVar("T")

REQUIRED = ("patient_id", "image", "mask")
OPTIONAL = ("lesion_type", "liver_mask", "spacing_mm", "window_low_hu", "window_high_hu")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        where: table and line, for messages.
        image_name: the image as the table gives it.
        spacing_mm: distance of neighbouring rows and of neighbouring columns.
        window_hu: what black and white of a PNG stand for.
        others_typed: rows of the table have a lesion type.
    """

    where: str
    patient_id: str
    image_name: str
    image: Path
    mask: Path
    lesion_type: str | None
    liver_mask: Path | None
    spacing_mm: tuple[float, float] | None
    window_hu: tuple[float, float] | None
    others_typed: bool = False


def read_rows(table: Path) -> tuple[list[Row], list[InputError]]:
    """Read the table: the rows without fault, and the first fault of each other row.

    Paths are relative to the folder of the table. Columns of other names are passed over, unless they look like a known
    one misspelt, or hold what a known one would that is missing.
    """
    try:
        header, lines = read_table(table)
        _check_columns(table, header)
        _check_strays(table, header, lines)
    except InputError as error:
        return [], [error]
    rows, problems = [], []
    for line, cells in lines:
        try:
            rows.append(_row(table.parent, f"{table}:{line}", cells))
        except InputError as error:
            problems.append(error)
    if not lines:
        problems.append(_wrong(str(table), "at least one slice", "a header alone", "list the slices", "table-columns"))
    typed = any(row.lesion_type for row in rows)
    return [replace(row, others_typed=typed) for row in rows], problems


def _check_columns(table: Path, header: Sequence[str]) -> None:
    missing = [name for name in REQUIRED if name not in header]
    known = (*REQUIRED, *OPTIONAL)
    misspelt = [name for name in header if name not in known and difflib.get_close_matches(name.lower(), known, 1, 0.8)]
    if missing or misspelt:
        raise _wrong(
            str(table),
            f"columns {','.join(REQUIRED)} and optionally {','.join(OPTIONAL)}",
            f"no {', '.join(missing)} in {','.join(header)}" if missing else ", ".join(misspelt),
            "correct the header",
            "table-columns",
        )


def _check_strays(table: Path, header: Sequence[str], lines: Sequence[tuple[int, dict[str, str]]]) -> None:
    """Raise `InputError` where a column of another name holds what `lesion_type` or `liver_mask` would tell."""
    for name in header:
        cells = {row[name] for _, row in lines} - {""}
        if name in (*REQUIRED, *OPTIONAL):
            continue
        if any(cell.lower() in LESION_TYPES for cell in cells):
            known = "lesion_type"
        elif "liver" in name.lower() and any(os.path.isfile(table.parent / cell) for cell in cells):
            known = "liver_mask"
        else:
            continue
        if known not in header:
            raise _wrong(str(table), f"the column {known}", f"its cells in {name}", f"name it {known}, or remove it",
                         "table-columns")  # fmt: skip


def _row(folder: Path, where: str, cells: dict[str, str]) -> Row:
    for name in REQUIRED:
        if not cells[name]:
            raise _wrong(where, f"a value for {name}", "an empty cell", "fill it", "table-cell")
    row = Row(
        where,
        cells["patient_id"],
        cells["image"],
        _file(folder, where, cells["image"]),
        _file(folder, where, cells["mask"]),
        _optional(cells, "lesion_type", lambda text: _lesion_type(where, text)),
        _optional(cells, "liver_mask", lambda text: _file(folder, where, text)),
        _optional(cells, "spacing_mm", lambda text: _spacing(where, text)),
        _window(where, cells.get("window_low_hu", ""), cells.get("window_high_hu", "")),
    )
    if row.image.suffix.lower() == ".png" and row.window_hu is None:
        expected, remedy = (
            "window_low_hu and window_high_hu for a PNG",
            "give the window it was saved with, or the DICOM",
        )
        raise _wrong(where, expected, "none", remedy, "window")
    return row


def _optional(cells: dict[str, str], name: str, convert: Callable[[str], T]) -> T | None:
    text = cells.get(name, "")
    return convert(text) if text else None


def _file(folder: Path, where: str, text: str) -> Path:
    path = folder / text
    if not os.path.isfile(path):  # Path.is_file raises where a name is too long
        expected = "an existing file (paths are relative to the table)"
        raise _wrong(where, expected, text, "correct the path or add the file", "missing-file")
    return path


def _lesion_type(where: str, text: str) -> str:
    if text.lower() not in LESION_TYPES:
        expected = f"lesion_type {' or '.join(LESION_TYPES)}"
        raise _wrong(where, expected, text, "correct the type, or leave the row out", "lesion-type")
    return text.lower()


def _number(where: str, name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise _wrong(where, f"a number for {name}", text or "an empty cell", "correct the cell", "table-cell")
    return number


def _spacing(where: str, text: str) -> tuple[float, float]:
    """`0.75`, or rows and columns apart as `0.75 x 0.8` or `0.75;0.8`; a comma may be one of decimals."""
    parts = [_number(where, "spacing_mm", part.strip()) for part in re.split(r"[;x×]", text)]
    if len(parts) > 2 or min(parts) <= 0:
        expected = "spacing_mm as one positive number, or two (between rows x between columns)"
        raise _wrong(where, expected, text, "correct the cell", "spacing")
    return parts[0], parts[-1]


def _window(where: str, low: str, high: str) -> tuple[float, float] | None:
    if not low and not high:
        return None
    window = _number(where, "window_low_hu", low), _number(where, "window_high_hu", high)
    if window[0] >= window[1]:
        expected = "window_low_hu below window_high_hu"
        raise _wrong(where, expected, f"{low} and {high}", "exchange or correct them", "window")
    return window


def _wrong(where: str, expected: str, got: str, remedy: str, code: str) -> InputError:
    return InputError(where, expected=expected, got=got, remedy=remedy, code=code)
