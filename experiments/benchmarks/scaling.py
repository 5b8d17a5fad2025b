"""What many cases cost, from what was measured of few: disk, prepare, setup, the start of an epoch, memory.

Usage: scaling.py FOLDER
    FOLDER: where `startup.py` and `prepare.py` left their JSON

Setup, order and memory grow along a line through the sizes that `startup.py` measured (least squares, in the number of
cases, and of slices where those are many a case); prepare takes what `prepare.py` measured of a slice of 512 x 512.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

#: Bytes of a voxel in a store: int16 HU and a uint8 label.
VOXEL_BYTES = 3
SIDE = 512
#: Slices of a volume of LiTS: 58,638 in 131 volumes.
LITS_SLICES = 448


class Wish(NamedTuple):
    """A store of so many cases of so many slices, and the target whose growth tells of it."""

    name: str
    cases: int
    slices: int
    kind: str


WISHES = (
    Wish("10,000 volumes", 10_000, LITS_SLICES, "liver"),
    Wish("1,000,000 slices", 1_000_000, 1, "typed"),
)


def line(grown: list[dict], figure: str, wish: Wish) -> tuple[float, float, float]:
    """Start and slope by case of a figure, and its value at the wish.

    A volume costs by its slices as well: measured ones have fewer, so their slope is taken as one by slice where they
    are volumes, which is too much rather than too little.
    """
    points = [point for point in grown if point["kind"] == wish.kind]
    by = "slices" if wish.kind == "liver" else "cases"
    slope, start = np.polyfit([point[by] for point in points], [point[figure] for point in points], 1)
    number = wish.cases * (wish.slices if by == "slices" else 1)
    return float(start), float(slope), float(start + slope * number)


def main() -> None:
    folder = Path(sys.argv[1])
    grown = json.loads((folder / "startup.json").read_text())["grown"]
    prepared = json.loads((folder / "prepare.json").read_text())
    slice_s = 1 / (statistics.median(prepared["rows"][0]["ours"]) * prepared["slices"])
    columns = ("store", "disk", "prepare, 2 cores", "setup", "order of an epoch", "memory of a process")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for wish in WISHES:
        slices = wish.cases * wish.slices
        setup, order, memory = (line(grown, figure, wish)[2] for figure in ("setup_s", "order_s", "memory_mb"))
        disk = slices * SIDE * SIDE * VOXEL_BYTES / 1e12
        print(f"| {wish.name} of {SIDE} x {SIDE} | {disk:.2f} TB | {slices * slice_s / 3600:.1f} h | {setup:.0f} s "
              f"| {order:.2f} s | {memory / 1000:.2f} GB |")  # fmt: skip
    for kind, by in (("typed", "case of one slice"), ("liver", "slice of a volume")):
        wish = next(wish for wish in WISHES if wish.kind == kind)
        told = [f"{name} {line(grown, figure, wish)[1] * 1e6:.3g} {unit}" for name, figure, unit in
                (("setup", "setup_s", "µs"), ("order", "order_s", "µs"), ("memory", "memory_mb", "bytes"))]  # fmt: skip
        print(f"a {by}: {', '.join(told)}")


if __name__ == "__main__":
    main()
