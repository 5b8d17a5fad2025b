"""What many cases cost, from what was measured of few: disk, prepare, setup, the start of an epoch, memory.

Usage: scaling.py FOLDER
    FOLDER: where `startup.py` and `prepare.py` left their JSON; gets scaling.md, which is also printed

Setup, order and memory grow along a line through the sizes that `startup.py` measured (least squares, in the number of
slices); prepare takes what `prepare.py` measured of a command's start, and of a slice of its side.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

#: Bytes of a voxel in a store: int16 HU and a uint8 label.
VOXEL_BYTES = 3
#: Slices of a volume of LiTS: 58,638 in 131 volumes.
LITS_SLICES = 448


class Line(NamedTuple):
    """What n slices cost: `start + slope * n`, in seconds or bytes."""

    start: float
    slope: float

    def at(self, slices: int) -> float:
        """The cost of so many."""
        return self.start + self.slope * slices


class Wish(NamedTuple):
    """A store of so many slices, the target whose growth tells of it, and what `prepare.py` calls a slice of it."""

    name: str
    slices: int
    kind: str
    prepared: str


WISHES = (
    Wish("10,000 volumes", 10_000 * LITS_SLICES, "liver", "volume_slice_s"),
    Wish("1,000,000 single slices", 1_000_000, "typed", "single_slice_s"),
)


def fitted(grown: list[dict], kind: str, figure: str, unit: float = 1.0) -> Line:
    """The line of a figure of `startup.py`, as a multiple of a unit.

    A volume costs by the case as well: measured ones have fewer slices than those of LiTS, so that the slope by slice
    is too much rather than too little.
    """
    points = [point for point in grown if point["kind"] == kind]
    slope, start = np.polyfit([point["slices"] for point in points], [point[figure] for point in points], 1)
    return Line(float(start) * unit, float(slope) * unit)


def lines_of(wish: Wish, prepared: dict, grown: list[dict]) -> dict[str, Line]:
    """The line of each column."""
    return {
        "disk": Line(0.0, prepared["side"] ** 2 * VOXEL_BYTES),
        "prepare, 2 cores": Line(prepared["grown"]["start_s"], prepared["grown"][wish.prepared]),
        "setup": fitted(grown, wish.kind, "setup_s"),
        "order of an epoch": fitted(grown, wish.kind, "order_s"),
        "memory of setup, a process": fitted(grown, wish.kind, "memory_mb", 1e6),
    }


def told(column: str, value: float) -> str:
    """A cost in a unit that suits it."""
    size = float(f"{abs(value):.3g}")  # as it is written: a hair below a unit is one of it
    if column == "disk" or column.startswith("memory"):
        units = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes"))
    else:
        units = ((3600.0, "h"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
    scale, name = next((unit for unit in units if size >= unit[0]), units[-1])
    return f"{value / scale:.3g} {name}"


def text(prepared: dict, grown: list[dict]) -> str:
    """What each wish costs and, below it, the formula of each column, as a Markdown table."""
    columns = list(lines_of(WISHES[0], prepared, grown))
    lines = [f"| store | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for wish in WISHES:
        costs = lines_of(wish, prepared, grown)
        cells = [told(column, line.at(wish.slices)) for column, line in costs.items()]
        lines.append(f"| {wish.name}, n = {wish.slices:,} | {' | '.join(cells)} |")
        cells = [
            (f"{told(column, line.start)} + " if line.start else "") + f"{told(column, line.slope)} x n"
            for column, line in costs.items()
        ]
        lines.append(f"| formula | {' | '.join(cells)} |")
    sizes = "; ".join(
        f"{', '.join(format(point['slices'], ',.0f') for point in grown if point['kind'] == wish.kind)} of "
        f"{wish.name.partition(' ')[2]}"
        for wish in WISHES
    )
    side = prepared["side"]
    return (
        f"{chr(10).join(lines)}\n\nn: slices of {side} x {side}. A formula is a straight line; where it begins below "
        f"zero, nothing does. Setup, order and memory measured at {sizes}.\n"
    )


def main() -> None:
    folder = Path(sys.argv[1])
    prepared, startup = (json.loads((folder / f"{name}.json").read_text()) for name in ("prepare", "startup"))
    found = text(prepared, startup["grown"])
    (folder / "scaling.md").write_text(found)
    print(found, end="")


if __name__ == "__main__":
    main()
