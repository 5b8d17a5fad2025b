"""Lesions of two masks matched, arrays only: in 3-D, a slice being a volume with D = 1.

A lesion is a connected component (all neighbours) of the lesion voxels, types merged. Two ways to count:

- at an IoU: predicted and reference lesions are paired one to one where their intersection over union reaches the
  share; of all ways to pair them, the one with the most pairs, then with the largest sum of IoU;
- at any overlap: a reference lesion is found where one of its voxels is predicted as lesion, and a predicted lesion is
  right where it holds a voxel of a reference lesion; one may find, or be found by, several.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from lesionseg.measurements import FULL_CONNECTIVITY

#: IoU from which two lesions are one: above it no lesion has two partners (panoptic quality, arXiv 1801.00868).
MIN_IOU = 0.5


@dataclass(frozen=True)
class LesionCounts:
    """Lesions of one scan, or of many added up.

    Attributes:
        found: reference lesions that are found, of `reference`.
        right: predicted lesions that are right, of `predicted`; equal to `found` where lesions are paired.
    """

    found: int
    reference: int
    right: int
    predicted: int


@dataclass(frozen=True, eq=False)
class Overlaps:
    """How many voxels the lesions of two masks share.

    Attributes:
        shared: (P, R), voxels that predicted lesion p + 1 and reference lesion r + 1 have in common.
        predicted: (P,), voxels of each predicted lesion.
        reference: (R,), voxels of each reference lesion.
    """

    shared: np.ndarray
    predicted: np.ndarray
    reference: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """(P, R), intersection over union, float64."""
        return self.shared / (self.predicted[:, None] + self.reference - self.shared)

    def pairs(self, min_iou: float = MIN_IOU) -> dict[int, int]:
        """Predicted lesion → reference lesion, by id, paired one to one where their IoU is at least `min_iou` (> 0)."""
        if not 0 < min_iou <= 1:
            raise ValueError(f"min_iou must lie in (0, 1], got {min_iou}")
        iou = self.iou
        near = iou >= min_iou
        value = np.where(near, 1 + iou / (1 + min(iou.shape)), 0.0)  # one pair more outweighs all IoU
        return {int(p) + 1: int(r) + 1 for p, r in zip(*linear_sum_assignment(-value), strict=True) if near[p, r]}

    def counts_at_iou(self, min_iou: float = MIN_IOU) -> LesionCounts:
        """Lesions paired one to one, see `pairs`."""
        n = len(self.pairs(min_iou))
        return LesionCounts(n, len(self.reference), n, len(self.predicted))

    def counts_at_any_overlap(self) -> LesionCounts:
        """Lesions that share a voxel with any of the other mask."""
        touching = self.shared > 0
        found, right = np.count_nonzero(touching.any(0)), np.count_nonzero(touching.any(1))
        return LesionCounts(int(found), len(self.reference), int(right), len(self.predicted))


def number_lesions(mask: np.ndarray) -> np.ndarray:
    """Ids 1, 2, … (int32, 0 outside) of the lesions of a mask (D, H, W), by first voxel."""
    ids = np.empty(mask.shape, dtype=np.int32)
    ndimage.label(mask, structure=FULL_CONNECTIVITY, output=ids)
    return ids


def match(predicted_ids: np.ndarray, reference_ids: np.ndarray) -> Overlaps:
    """Overlaps of numbered lesions, ids 1 … n and 0 elsewhere, (D, H, W) each.

    Raises:
        ValueError: the shapes differ, or an id has no voxel.
    """
    if predicted_ids.shape != reference_ids.shape:
        raise ValueError(f"both must have one shape, got {predicted_ids.shape} and {reference_ids.shape}")
    lesion = (predicted_ids > 0) | (reference_ids > 0)
    p, r = predicted_ids[lesion].astype(np.int64), reference_ids[lesion].astype(np.int64)
    rows, columns = int(p.max(initial=0)) + 1, int(r.max(initial=0)) + 1
    table = np.bincount(p * columns + r, minlength=rows * columns).reshape(rows, columns)
    found = Overlaps(table[1:, 1:], table[1:].sum(1), table[:, 1:].sum(0))
    if not (found.predicted.all() and found.reference.all()):
        raise ValueError("every id from 1 to the largest must have a voxel")
    return found
