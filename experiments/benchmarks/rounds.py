"""Ways measured in turn, and how the result is told: a median each, and each ratio with the interval of its median.

A benchmark hands `Row`s to `publish`, which prints them and writes the JSON that `joined_table.py` joins to one table.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.stats import quantile_test

from lesionseg.provenance import provenance

#: Of fewer there is no 95 % interval by order statistics.
LEAST_ROUNDS = 6


def seconds(way: Callable[[], object]) -> Callable[[], float]:
    """The way as one that tells how long it took."""

    def timed() -> float:
        begin = time.perf_counter()
        way()
        return time.perf_counter() - begin

    return timed


def rounds(ways: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """The figure of every way in every round, each in an order drawn anew, after one round that does not count.

    What makes the machine slow for a while so meets all ways alike, as does what one way leaves to the next (in the
    caches, say), and a ratio is one of the same round.
    """
    names, rng = list(ways), np.random.default_rng(0)
    for way in ways.values():
        way()
    figures: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repeats):
        for i in rng.permutation(len(names)):
            figures[names[i]].append(ways[names[i]]())
    return figures


@contextmanager
def left_out_if_missing(name: str, notes: list[str]) -> Iterator[None]:
    """Note, for `publish`, that a rival is not installed, so that the table does not pass over it in silence."""
    try:
        yield
    except ImportError as error:
        notes.append(f"left out: {name} ({error})")


@dataclass(frozen=True)
class Row:
    """A figure of ours beside one of a rival, of a limit that nothing can pass, or what a model of it says.

    Attributes:
        figure: what is measured.
        unit: of `ours` and `theirs`.
        ours: by round.
        other: what it is compared with.
        kind: `limit`, `model`, or `rival`, something a user could take in our place.
        theirs: by round; one number: counted, not measured.
        ratio: which quotient is told: `ours / other` or `other / ours`.
        least, most: bounds the ratio was meant to keep; None: none.
        most_high: the same for the upper end of its interval.
    """

    figure: str
    unit: str
    ours: Sequence[float]
    other: str
    kind: Literal["rival", "limit", "model"]
    theirs: Sequence[float]
    ratio: Literal["ours / other", "other / ours"] = "ours / other"
    least: float | None = None
    most: float | None = None
    most_high: float | None = None

    @property
    def ratios(self) -> list[float]:
        """The ratio of every round."""
        theirs = list(self.theirs) * (len(self.ours) if len(self.theirs) == 1 else 1)
        quotients = [a / b for a, b in zip(self.ours, theirs, strict=True)]
        return quotients if self.ratio == "ours / other" else [1 / quotient for quotient in quotients]

    def to_json(self) -> dict[str, Any]:
        """Plain data, with medians and interval."""
        low, high = interval(self.ratios)
        return {
            **asdict(self),
            "ours_median": statistics.median(self.ours),
            "theirs_median": statistics.median(self.theirs),
            "ratio_median": statistics.median(self.ratios),
            "ratio_low": low,
            "ratio_high": high,
            "rounds": len(self.ours),
        }


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the median by order statistics; of less than `LEAST_ROUNDS` values their range."""
    if len(values) < LEAST_ROUNDS:
        return min(values), max(values)
    low, high = quantile_test(values, p=0.5).confidence_interval(0.95)
    return float(low), float(high)


def publish(rows: Sequence[Row], output: Path, *, notes: Sequence[str] = (), **facts: Any) -> None:
    """Print the rows and the notes, lines below the table, and write them as JSON with what they were measured on."""
    told = [row.to_json() for row in rows]
    print(text(told), *notes, sep="\n")
    output.parent.mkdir(parents=True, exist_ok=True)
    content = {"rows": told, "notes": list(notes), **facts, **provenance()}
    output.write_text(json.dumps(content, indent=1, default=str) + "\n")


def text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `publish` as a Markdown table."""
    lines = ["| what | ours | | other | ratio | 95 % interval | rounds | wanted |", "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        signs = {"least": "≥", "most": "≤", "most_high": "upper end ≤"}
        bounds = [f"{sign} {row[name]:g}" for name, sign in signs.items() if row[name] is not None]
        span = f"{row['ratio_low']:.3g} to {row['ratio_high']:.3g}{' (range)' * (row['rounds'] < LEAST_ROUNDS)}"
        lines.append(
            f"| {row['figure']} | {row['ours_median']:.4g} {row['unit']} | {row['kind']}: {row['other']} "
            f"| {row['theirs_median']:.4g} {row['unit']} | {row['ratio_median']:.3g} ({row['ratio']}) "
            f"| {span} | {row['rounds']} | {', '.join(bounds) or '–'} |"
        )
    return "\n".join(lines)
