"""`Segmentation`: what the cascade finds in a scan, on the grid of the scan, with every lesion measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lesionseg.scan import Scan

#: Type of a lesion whose best type stays below the model's threshold; its label is `labels.UNTYPED_LESION`.
UNDETERMINED = "undetermined"
#: Said on everything a user receives.
RESEARCH_USE_ONLY = "Research use only. Not a medical device."


@dataclass(frozen=True)
class Finding:
    """One lesion: a connected component (all neighbours) of the lesion pixels, types merged.

    Sizes in mm are None where the spacing is unknown (`volume_ml` also for a slice of unknown thickness); those in
    pixels are always there. Diameters and areas are in the axial plane.

    Attributes:
        id: 1 … n, the largest lesion first; its voxels hold it in `Segmentation.lesion_ids`.
        type: a name of `labels.LESION_TYPES`, `undetermined`, or `lesion` where the model names no types.
        probabilities: of each type, in the order of the types, summing to 1; empty where the model names no types.
        voxels: its size.
        long_axis_mm: longest diameter on any slice (RECIST), with `short_axis_mm` the longest at right angles to it on
            the same slice.
        area_mm2: on the slice where it is largest.
        volume_ml: of a volume; None for a single slice.
        mean_hu: with `sd_hu` the grey values of its voxels.
        centroid_mm: mean position of its voxels, LPS patient coordinates (x, y, z); None: unknown orientation.
        centroid_index: the same as array index (d, h, w) on the grid of the scan.
        slices: first and last index along the scan's head-foot axis (`Segmentation.slice_axis`).
        key_slice: index of the slice where it is largest.
    """

    id: int
    type: str
    probabilities: dict[str, float]
    voxels: int
    long_axis_px: float
    short_axis_px: float
    area_px: int
    long_axis_mm: float | None
    short_axis_mm: float | None
    area_mm2: float | None
    volume_ml: float | None
    mean_hu: float
    sd_hu: float
    centroid_mm: tuple[float, float, float] | None
    centroid_index: tuple[float, float, float]
    slices: tuple[int, int]
    key_slice: int

    @property
    def probability(self) -> float | None:
        """Of the most probable type; None where the model names no types."""
        return max(self.probabilities.values(), default=None)


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What the cascade finds in a scan.

    Attributes:
        scan: what was segmented; all arrays lie on its grid.
        labels: uint8 (D, H, W), ids of `lesionseg.labels`.
        lesion_ids: uint16 (D, H, W), `Finding.id`, 0 elsewhere.
        findings: the lesions, the largest first.
        liver_ml: volume of the liver with its lesions; None for a single slice or unknown spacing.
        slice_axis: axis of the arrays that runs along the body.
        model: what the model says of itself (`Model.card`), plain JSON data.
        settings: how it was used (thresholds, tta, liver given), plain JSON data.
        warnings: what a reader should know, one sentence each.
        classes: names of the maps in `probabilities`.
        probabilities: float16 (K, D, H, W), mean over the nets, 0 where the lesion nets did not look; None: not asked.
        seconds: time spent in each step, by name.
    """

    scan: Scan
    labels: np.ndarray
    lesion_ids: np.ndarray
    findings: tuple[Finding, ...]
    liver_ml: float | None
    slice_axis: int
    model: dict[str, Any]
    settings: dict[str, Any]
    warnings: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    probabilities: np.ndarray | None = None
    seconds: dict[str, float] = field(default_factory=dict)
