"""What became of each study of an input, and the table of it: `summary.csv`, to which a further call adds."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lesionseg.errors import InputError, printable
from lesionseg.studies import LABEL_MAP
from lesionseg.writing import write_text

SUMMARY = "summary.csv"
#: How a study may end.
Ending = Literal["segmented", "done already", "passed over", "refused", "failed"]
#: Of `summary.csv`, by `_COLUMNS`.
Row = dict[str, Any]

_SECONDS = ("read_s", "segment_s", "write_s")
_SHOWN = ("study", "ending", "slices", "lesions", "liver_ml", *_SECONDS)
_COLUMNS = (*_SHOWN, "liver", "model", "tta", "reason")


@dataclass(frozen=True)
class Outcome:
    """What became of a study.

    Attributes:
        study: its name.
        ending: see `Ending`.
        facts: slices, lesions, liver_ml, and what they are by: liver (given or predicted), model, tta; empty without a
            segmentation.
        seconds: read, segment, write; empty where it was not segmented now.
        reason: of what was not segmented, one line; names no file, as the path of one may name a patient.
        told: the same for the terminal, with the file; empty: as `reason`.
        warnings: what a reader should know of its segmentation, one sentence each.
        made: the temporary folder that holds its results until they are put in place; None: nothing was made.
    """

    study: str
    ending: Ending
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    told: str = ""
    warnings: tuple[str, ...] = ()
    made: Path | None = None

    @property
    def row(self) -> Row:
        """Its line of the summary, with the columns `_COLUMNS`."""
        seconds = {f"{name}_s": f"{value:.3f}" for name, value in self.seconds.items()}
        held = {"study": self.study, "ending": self.ending, **self.facts, **seconds, "reason": self.reason}
        return {name: "" if held.get(name) is None else held[name] for name in _COLUMNS}

    @property
    def line(self) -> str:
        """What the terminal is told of a study that was not segmented now."""
        told = self.told or self.reason
        return f"  {self.ending}{': ' * bool(told)}{told}"


def unsegmented(study: str, error: Exception) -> Outcome:
    """What an error makes of one study of several."""
    if isinstance(error, InputError):
        if error.code == LABEL_MAP:
            return Outcome(study, "passed over", reason=error.got)
        return Outcome(study, "refused", reason=error.brief, told=str(error))
    kind = type(error).__name__
    if isinstance(error, OSError | RuntimeError):
        told = printable(" ".join(f"{kind}: {error}".split()))
        reason = f"{kind}: {error.strerror or 'unknown'}" if isinstance(error, OSError) else told
        return Outcome(study, "failed", reason=reason, told=told)
    # A fault of the package; its text may quote a header, and so the patient.
    return Outcome(study, "failed", reason=f"{kind}; segment it alone with --debug to see where")


def beside_earlier(outcome: Outcome) -> Outcome:
    """An outcome without a segmentation, of a study whose folder holds one of earlier files."""
    note = "its folder holds an earlier result"
    told = [f"{text}; {note}" if text else "" for text in (outcome.reason, outcome.told)]
    return replace(outcome, reason=told[0], told=told[1])


def read_summary(path: Path) -> dict[str, Row]:
    """Rows of earlier calls by study; `InputError` for any other file, as one with columns of the user's."""
    if not path.exists():
        return {}
    try:
        header, *rows = csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))
    except (OSError, ValueError, csv.Error):
        header, rows = [], []
    if header != list(_COLUMNS) or any(len(row) != len(_COLUMNS) for row in rows):
        raise InputError(path, expected=f"none, or one with the columns {', '.join(_COLUMNS)} alone",
                         got="another file", remedy="move it away, or name another output folder",
                         code="output")  # fmt: skip
    return {row[0]: dict(zip(_COLUMNS, row, strict=True)) for row in rows}


def write_summary(path: Path, earlier: Mapping[str, Row], outcomes: Sequence[Outcome]) -> None:
    """Rows of earlier calls stay but for studies of this call; one that is done already took its time earlier."""
    rows = dict(earlier)
    for outcome in outcomes:
        before = earlier.get(outcome.study, {}) if outcome.ending == "done already" else {}
        took = {name: value for name, value in before.items() if name in _SECONDS}
        rows[outcome.study] = {**outcome.row, **took}
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[name] for name in sorted(rows))
    write_text(path, text.getvalue())


def summary_table(outcomes: Sequence[Outcome]) -> str:
    """The rows of `summary.csv` for the eye: aligned, without what is alike in one call and what has been told."""
    rows = [_SHOWN, *(tuple(str(outcome.row[name]) for name in _SHOWN) for outcome in outcomes)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_SHOWN))]
    aligned = (
        [cell.ljust(n) if i < 2 else cell.rjust(n) for i, (cell, n) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    )
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)
