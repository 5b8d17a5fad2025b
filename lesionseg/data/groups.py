"""Which cases belong to one patient, and which are left out: the two tables that every door takes beside its files."""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from pathlib import Path

from lesionseg.errors import InputError, some


def read_table(table: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Read a CSV file with a header (UTF-8, comma).

    Returns:
        the column names, and each row that is not empty as its line in the file and its cells, stripped.

    Raises:
        InputError: missing, not text, without header, or a row with more or fewer cells than the header.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        got = "bytes that are no UTF-8"
        if not isinstance(error, UnicodeDecodeError):
            got = getattr(error, "strerror", str(error))
        raise InputError(
            table, expected="a readable CSV table in UTF-8", got=got, remedy="check the path and save it as CSV UTF-8",
            code="table-unreadable",
        ) from error  # fmt: skip
    lines = [(line, row) for line, row in lines if any(row)]
    if not lines:
        raise InputError(
            table, expected="a header and rows", got="an empty table", remedy="fill it", code="table-unreadable"
        )
    header = lines[0][1]
    if len(set(header)) < len(header):
        raise InputError(
            f"{table}:{lines[0][0]}", expected="each column once", got=", ".join(header),
            remedy="remove the doubled column", code="table-columns",
        )  # fmt: skip
    for line, row in lines[1:]:
        if len(row) != len(header):
            raise InputError(
                f"{table}:{line}", expected=f"{len(header)} cells, as in the header", got=f"{len(row)}",
                remedy="quote cells that hold a comma", code="table-columns",
            )  # fmt: skip
    return header, [(line, dict(zip(header, row, strict=True))) for line, row in lines[1:]]


def read_groups(table: Path | None, known: Collection[str]) -> dict[str, str]:
    """Read a table with columns `case,patient`: which patient each case is of. Without table: empty.

    Raises:
        InputError: other columns, an empty cell, a case that is not known or stands twice.
    """
    if table is None:
        return {}
    header, rows = read_table(table)
    if sorted(header) != ["case", "patient"]:
        raise InputError(
            table, expected="columns case,patient", got=",".join(header), remedy="name the columns so",
            code="groups",
        )  # fmt: skip
    patients: dict[str, str] = {}
    for line, row in rows:
        case, patient = row["case"], row["patient"]
        if case not in known or case in patients or not patient:
            got = f"{case} twice" if case in patients else f"{case} without patient" if case in known else case
            raise InputError(
                f"{table}:{line}", expected=f"each case once, with its patient (cases: {some(known, 3)})", got=got,
                remedy="correct the table of groups", code="groups",
            )  # fmt: skip
        patients[case] = patient
    return patients


def check_excluded(where: Path, exclude: Sequence[str], known: Collection[str]) -> None:
    """Raise `InputError` where a case to leave out does not exist: a typing error would let it in."""
    unknown = [case for case in exclude if case not in known]
    if unknown:
        raise InputError(
            where, expected=f"cases to leave out that exist (cases: {some(known, 3)})", got=some(unknown),
            remedy="correct the names given to exclude", code="exclude",
        )  # fmt: skip
