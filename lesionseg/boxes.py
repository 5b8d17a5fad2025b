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


def bounds(mask: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest window that holds a boolean mask of any number of axes; None where it is empty."""
    spans = [np.flatnonzero(mask.any(tuple(i for i in range(mask.ndim) if i != axis))) for axis in range(mask.ndim)]
    return tuple(slice(int(span[0]), int(span[-1]) + 1) for span in spans) if len(spans[0]) else None


def liver_box(liver: np.ndarray) -> Box | None:
    """One square box around the liver (D, H, W) of a scan, the same on every slice; None without liver."""
    window = bounds(np.asarray(liver.any(0)))
    if window is None:
        return None
    rows, columns = window
    side = max(rows.stop - rows.start, columns.stop - columns.start) + 2 * LIVER_MARGIN_PX
    return Box((rows.start + rows.stop - side) // 2, (columns.start + columns.stop - side) // 2, side)


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
