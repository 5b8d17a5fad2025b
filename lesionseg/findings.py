"""Lesions of a scan → `Finding`: each measured in the axial plane, placed on the scan's own grid and in the patient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from lesionseg.measurements import longest_diameters
from lesionseg.scan import Scan, canonical_axes
from lesionseg.segmentation import Finding


def measure_findings(
    scan: Scan, lesion_ids: np.ndarray, types: Sequence[str], probabilities: Sequence[dict[str, float]]
) -> tuple[Finding, ...]:
    """Measure every lesion of a scan. Only the box of each lesion is read, so large scans are fast.

    Args:
        scan: its grid.
        lesion_ids: unsigned (D, H, W) on that grid, 1 … n, 0 elsewhere.
        types: `Finding.type` of lesion 1, 2, … n.
        probabilities: `Finding.probabilities` in the same order.

    Raises:
        ValueError: another shape than the scan's, an id without a voxel, or not as many ids as types.
    """
    if lesion_ids.shape != scan.hu.shape:
        raise ValueError(f"lesion_ids must be {scan.hu.shape}, got {lesion_ids.shape}")
    boxes = ndimage.find_objects(lesion_ids)
    if any(box is None for box in boxes):
        raise ValueError(f"every id from 1 to {len(boxes)} must have a voxel")
    return tuple(
        _measure(scan, lesion_ids[box] == i, box, i, name, shares)
        for i, (box, name, shares) in enumerate(zip(boxes, types, probabilities, strict=True), start=1)
    )


def _measure(
    scan: Scan, lesion: np.ndarray, box: tuple[slice, ...], number: int, name: str, probabilities: dict[str, float]
) -> Finding:
    """One lesion: boolean, in the window `box` of the scan."""
    order, _ = canonical_axes(scan.affine)
    start = np.array([span.start for span in box])
    axial = lesion.transpose(order)  # slice, row, column; whether an axis is flipped changes no figure
    areas = np.count_nonzero(axial, axis=(1, 2))
    voxels, area_px = int(areas.sum()), int(areas.max())
    plane, millilitres = _units(scan, order)
    pixels, millimetres = longest_diameters(axial, plane)
    values = scan.hu[box][lesion].astype(np.float64)
    first = int(start[order[0]])
    centroid = np.argwhere(lesion).mean(0) + start
    return Finding(
        id=number,
        type=name,
        probabilities=dict(probabilities),
        voxels=voxels,
        long_axis_px=pixels.long,
        short_axis_px=pixels.short,
        area_px=area_px,
        long_axis_mm=None if plane is None else millimetres.long,
        short_axis_mm=None if plane is None else millimetres.short,
        area_mm2=None if plane is None else area_px * plane[0] * plane[1],
        volume_ml=None if millilitres is None else voxels * millilitres,
        mean_hu=float(values.mean()),
        sd_hu=float(values.std()),
        centroid_mm=None if scan.affine is None else _point(scan.affine[:3] @ [*centroid, 1.0]),
        centroid_index=_point(centroid),
        slices=(first, first + len(areas) - 1),
        key_slice=first + int(areas.argmax()),
    )


def _units(scan: Scan, order: tuple[int, int, int]) -> tuple[tuple[float, float] | None, float | None]:
    """Pixel height and width of an axial slice in mm, and the volume of a voxel in ml; None: unknown or undefined."""
    if scan.spacing_mm is None:
        return None, None
    thickness, height, width = (scan.spacing_mm[axis] for axis in order)
    defined = scan.hu.shape[order[0]] > 1 and not math.isnan(thickness)
    return (height, width), thickness * height * width / 1000 if defined else None


def _point(values: np.ndarray) -> tuple[float, float, float]:
    x, y, z = map(float, values)
    return x, y, z
