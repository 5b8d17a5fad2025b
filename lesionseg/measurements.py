"""Measures of a lesion, arrays only: diameters, area, volume, grey values."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import pdist

#: All neighbours of a voxel count as touching it; with D = 1 this is the 8-neighbourhood of a slice.
FULL_CONNECTIVITY = np.ones((3, 3, 3), dtype=bool)


def longest_diameter(mask: np.ndarray, spacing_mm: tuple[float, float]) -> float:
    """Longest distance in mm across a mask (H, W): its largest Feret diameter.

    Measured between the midpoints of pixel edges, so that a single pixel is one pixel wide (as skimage's
    `feret_diameter_max`). 0.0 for an empty mask.
    """
    pixels = np.argwhere(mask)
    steps = np.array([(0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5)])
    points = (pixels[:, None] + steps).reshape(-1, 2) * np.asarray(spacing_mm)
    if not len(points):
        return 0.0
    with suppress(QhullError):  # too flat for the tolerance of Qhull: all points are compared
        points = points[ConvexHull(points).vertices]
    return float(pdist(points).max())
