"""Measures of a lesion, arrays only: diameters of a mask on a slice.

A mask is what its pixels' edge midpoints span, so that a single pixel is one pixel wide (as skimage's
`feret_diameter_max`). Both diameters are those of its convex hull: a ruler laid over a lesion crosses its notches.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist, squareform

#: All neighbours of a voxel count as touching it; with D = 1 this is the 8-neighbourhood of a slice.
FULL_CONNECTIVITY = np.ones((3, 3, 3), dtype=bool)

#: Diameters that differ by less than this share of their length are equally long: rounding must not choose.
_TIE = 1e-9


class Diameters(NamedTuple):
    """Of a mask on a slice, in the unit of the spacing.

    Attributes:
        long: largest distance of two points of the hull.
        short: longest chord of the hull at right angles to `long`; of equally long ones the one that makes it largest.
    """

    long: float
    short: float


def outline(mask: np.ndarray) -> np.ndarray:
    """Corners of the convex hull of a mask (H, W) that is not empty, in order around it: (n, 2), pixels (h, w)."""
    rows = np.flatnonzero(mask.any(1))
    left = mask[rows].argmax(1)
    right = mask.shape[1] - 1 - mask[rows, ::-1].argmax(1)
    ends = np.concatenate([np.stack([rows, left], 1), np.stack([rows, right], 1)])  # the hull needs no other pixels
    steps = np.array([(0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5)])
    points = (ends[:, None] + steps).reshape(-1, 2)
    return points[ConvexHull(points).vertices]


def longest_diameter(mask: np.ndarray, spacing_mm: tuple[float, float]) -> float:
    """Longest distance in mm across a mask (H, W): its largest Feret diameter; 0.0 for an empty mask."""
    return float(pdist(outline(mask) * spacing_mm).max()) if mask.any() else 0.0


def diameters(corners: np.ndarray, spacing: tuple[float, float]) -> Diameters:
    """Long and short axis of the hull whose `outline` is given.

    The longest diameter and the longest one at right angles to it are those of the WHO criteria (Miller et al.,
    Cancer 47:207, 1981), by RECIST 1.1 (Eisenhauer et al., Eur J Cancer 45:228, 2009) the long and the short axis.
    """
    points = corners * spacing
    distances = squareform(pdist(points))
    longest = distances.max()
    pairs = np.argwhere(np.triu(distances) >= longest * (1 - _TIE))
    return Diameters(float(longest), max(_chord(points, start, end) for start, end in pairs))


def longest_diameters(mask: np.ndarray, spacing: tuple[float, float] | None = None) -> tuple[Diameters, Diameters]:
    """The diameters in pixels and in mm on the slices of a mask (D, H, W) where the long axis is longest.

    `spacing` in mm along (H, W); None: both are in pixels. Of slices with equally long axes the one with the longer
    short axis counts.

    Raises:
        ValueError: the mask is empty.
    """
    hulls = [outline(plane) for plane in mask if plane.any()]
    pixels, millimetres = ([diameters(hull, unit) for hull in hulls] for unit in ((1.0, 1.0), spacing or (1.0, 1.0)))
    return _largest(pixels), _largest(millimetres)


def _chord(points: np.ndarray, start: int, end: int) -> float:
    """Longest chord of a convex polygon (n, 2) at right angles to its diameter from corner `start` to corner `end`.

    All else lies strictly between the two ends of a diameter, so each of the two ways around from one to the other
    leads steadily along it; the distance between them is concave and largest at a corner.
    """
    axis = (points[end] - points[start]) / np.linalg.norm(points[end] - points[start])
    turned = np.roll((points - points[start]) @ np.array([axis, (-axis[1], axis[0])]).T, -start, axis=0)
    far = (end - start) % len(points)
    there, back = turned[: far + 1], np.concatenate([turned[far:], turned[:1]])[::-1]
    across = np.interp(turned[:, 0], *there.T) - np.interp(turned[:, 0], *back.T)
    return float(np.abs(across).max())


def _largest(found: list[Diameters]) -> Diameters:
    longest = max(item.long for item in found)
    return max((item for item in found if item.long >= longest * (1 - _TIE)), key=lambda item: item.short)
