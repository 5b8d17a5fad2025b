"""Squares of a slice: that of a whole slice, the one around the liver, and what is cut out by it. Arrays only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

#: Added on every side of the liver before its box is taken, in pixels (reference code of arXiv 1907.13409).
LIVER_MARGIN_PX = 1


class Box(NamedTuple):
    """A square of a slice, in pixels; may reach over the border of the slice."""

    top: int
    left: int
    side: int


def slice_box(height: int, width: int) -> Box:
    """The smallest centred square that holds a whole slice of (height, width)."""
    side = max(height, width)
    return Box((height - side) // 2, (width - side) // 2, side)


def liver_box(liver: np.ndarray) -> Box | None:
    """One square box around the liver (D, H, W) of a scan, the same on every slice; None without liver."""
    rows, columns = np.flatnonzero(liver.any((0, 2))), np.flatnonzero(liver.any((0, 1)))
    if not len(rows):
        return None
    (top, bottom), (left, right) = (rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1)
    side = int(max(bottom - top, right - left)) + 2 * LIVER_MARGIN_PX
    return Box(int(top + bottom - side) // 2, int(left + right - side) // 2, side)


def crop(slices: np.ndarray, box: Box, fill: float) -> np.ndarray:
    """Cut a box out of (…, H, W), giving (…, side, side); what lies beyond the slice is `fill`."""
    height, width = slices.shape[-2:]
    out = np.full((*slices.shape[:-2], box.side, box.side), fill, dtype=slices.dtype)
    inside, place = overlap(box, height, width)
    out[(..., *place)] = slices[(..., *inside)]
    return out


def overlap(box: Box, height: int, width: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a box and a slice meet: as indices into the slice, and as indices into the box."""
    top, left = max(box.top, 0), max(box.left, 0)
    bottom, right = max(min(box.top + box.side, height), top), max(min(box.left + box.side, width), left)
    inside = (slice(top, bottom), slice(left, right))
    place = (slice(top - box.top, bottom - box.top), slice(left - box.left, right - box.left))
    return inside, place
