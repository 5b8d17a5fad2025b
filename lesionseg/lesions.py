"""Lesions of one slice, arrays only: components, Dice, which reference lesions are found and how they are typed.

Class indices are those of a `labels.Target`: 0 background, 1 liver, 2 … 1 + n_types the lesion types.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from lesionseg.boxes import bounds
from lesionseg.labels import LIVER

#: Share of a reference lesion's area that a prediction must cover for the lesion to count as found.
MIN_OVERLAP = 0.25
#: Index of the first lesion class.
FIRST_TYPE = LIVER + 1

#: Kinds of lesions in the tables of a run: those of the reference, and predicted ones that touch none of these.
REFERENCE, FALSE_POSITIVE = "reference", "false_positive"

_NEIGHBOURS_8 = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class LesionMatch:
    """One reference lesion: a connected component (8-neighbourhood) of one type; touching types are two lesions.

    Attributes:
        type: class index in the reference.
        area_px: pixels of the lesion.
        overlap_px: those of them predicted as a lesion of any type.
        found: `overlap` reaches the stated share.
        predicted_type: class index of most of the overlapping pixels, the lower index in a tie; None when not found.
    """

    type: int
    area_px: int
    overlap_px: int
    found: bool
    predicted_type: int | None

    @property
    def overlap(self) -> float:
        """Share of the lesion's area that is predicted as a lesion of any type."""
        return self.overlap_px / self.area_px


@dataclass(frozen=True)
class FalsePositive:
    """A connected component (8-neighbourhood, types merged) of the prediction that holds no reference lesion pixel.

    A component that holds one such pixel is no false positive, even where it is too small to find the lesion.

    Attributes:
        predicted_type: class index of most of its pixels, the lower index in a tie.
        area_px: its pixels.
    """

    predicted_type: int
    area_px: int


@dataclass(frozen=True)
class Counts:
    """Pixels of a pair of masks, from which its Dice follows exactly."""

    both: int
    predicted: int
    reference: int

    @classmethod
    def of(cls, predicted: np.ndarray, reference: np.ndarray) -> Counts:
        """Of two boolean masks; `ValueError` where they have different shapes."""
        if predicted.shape != reference.shape:
            raise ValueError(f"masks must have one shape, got {predicted.shape} and {reference.shape}")
        return cls(*(int(np.count_nonzero(mask)) for mask in (predicted & reference, predicted, reference)))

    @property
    def dice(self) -> float:
        """2 |A ∩ B| / (|A| + |B|); both masks empty: NaN."""
        total = self.predicted + self.reference
        return 2 * self.both / total if total else math.nan


@dataclass(frozen=True)
class SliceFigures:
    """What one slice gives to the figures.

    Attributes:
        merged: pixel counts of lesion (all types merged) against everything else.
        types: pixel counts of each lesion type, in class order.
        lesions: the reference lesions, by type, then row by row.
        false_positives: predicted lesions where the reference has none, row by row.
    """

    merged: Counts
    types: tuple[Counts, ...]
    lesions: tuple[LesionMatch, ...]
    false_positives: tuple[FalsePositive, ...]

    @property
    def dice1(self) -> float:
        """Dice of lesion against everything else; NaN where neither reference nor prediction holds a lesion."""
        return self.merged.dice

    @property
    def dice_types(self) -> tuple[float, ...]:
        """Dice of each lesion type, in class order; NaN for a type that neither reference nor prediction holds."""
        return tuple(counts.dice for counts in self.types)

    @property
    def dice2(self) -> float:
        """Mean Dice over the lesion types that reference or prediction hold; NaN where there is none."""
        defined = [value for value in self.dice_types if not math.isnan(value)]
        return math.fsum(defined) / len(defined) if defined else math.nan


def components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Connected components of a mask (H, W) in the 8-neighbourhood: labels 1 … n (int32, 0 outside), and n."""
    labelled = np.empty(mask.shape, dtype=np.int32)
    n = ndimage.label(mask, structure=_NEIGHBOURS_8, output=labelled)
    return labelled, int(n)


def compare_slice(
    predicted: np.ndarray, reference: np.ndarray, n_types: int, min_overlap: float = MIN_OVERLAP
) -> SliceFigures:
    """Compare the predicted with the reference class indices of one slice, both (H, W).

    The definitions are this package's own; `min_overlap`, in (0, 1], is the share of a lesion's area that finds it.

    Raises:
        ValueError: the shapes differ, a class index is above 1 + n_types, or `min_overlap` is out of range.
    """
    if predicted.shape != reference.shape or predicted.ndim != 2:
        raise ValueError(f"both slices must be (H, W) alike, got {predicted.shape} and {reference.shape}")
    if not 0 < min_overlap <= 1:
        raise ValueError(f"min_overlap must lie in (0, 1], got {min_overlap}")
    n_classes = FIRST_TYPE + n_types
    window = _lesion_window(predicted, reference)
    predicted, reference = predicted[window].astype(np.intp), reference[window].astype(np.intp)
    if max(predicted.max(initial=0), reference.max(initial=0)) >= n_classes:
        raise ValueError(f"class indices must be below {n_classes}, got {max(predicted.max(), reference.max())}")
    table = _joint_counts(reference, predicted, n_classes, n_classes)
    return SliceFigures(
        merged=Counts(
            int(table[FIRST_TYPE:, FIRST_TYPE:].sum()), int(table[:, FIRST_TYPE:].sum()), int(table[FIRST_TYPE:].sum())
        ),
        types=tuple(
            Counts(int(table[i, i]), int(table[:, i].sum()), int(table[i].sum())) for i in range(FIRST_TYPE, n_classes)
        ),
        lesions=_match_lesions(predicted, reference, n_classes, min_overlap),
        false_positives=_false_positives(predicted, reference, n_classes),
    )


def type_probabilities(predicted: np.ndarray, reference: np.ndarray, types: np.ndarray) -> np.ndarray:
    """How probable each type is for each reference lesion, (n, n_types), lesions in the order of `compare_slice`.

    Args:
        predicted: class indices (H, W).
        reference: class indices (H, W).
        types: probabilities of the types (n_types, H, W).

    Returns:
        Mean over the lesion's pixels that are predicted as a lesion of any type; NaN where there is none.
    """
    window = _lesion_window(predicted, reference)
    found, types = predicted[window] >= FIRST_TYPE, types[(slice(None), *window)]
    rows = [np.zeros((0, len(types)))]
    for _, labelled, n in _reference_lesions(reference[window], FIRST_TYPE + len(types)):
        owner = labelled[found]
        sums = np.stack([np.bincount(owner, plane[found], minlength=n + 1)[1:] for plane in types], 1)
        with np.errstate(invalid="ignore"):
            rows.append(sums / np.bincount(owner, minlength=n + 1)[1:, None])
    return np.concatenate(rows)


def _match_lesions(
    predicted: np.ndarray, reference: np.ndarray, n_classes: int, min_overlap: float
) -> tuple[LesionMatch, ...]:
    matches = []
    for lesion_type, labelled, n in _reference_lesions(reference, n_classes):
        votes = _joint_counts(labelled, predicted, n + 1, n_classes)[1:]
        areas, overlaps = votes.sum(1), votes[:, FIRST_TYPE:].sum(1)
        majority = FIRST_TYPE + votes[:, FIRST_TYPE:].argmax(1)  # argmax takes the first, so the lower index in a tie
        for area, overlap, voted in zip(areas.tolist(), overlaps.tolist(), majority.tolist(), strict=True):
            found = overlap / area >= min_overlap
            matches.append(LesionMatch(lesion_type, area, overlap, found, voted if found else None))
    return tuple(matches)


def _reference_lesions(reference: np.ndarray, n_classes: int) -> Iterator[tuple[int, np.ndarray, int]]:
    """Type, `components` and their number, for each type that the slice holds."""
    for lesion_type in range(FIRST_TYPE, n_classes):
        mask = reference == lesion_type
        if mask.any():
            yield lesion_type, *components(mask)


def _false_positives(predicted: np.ndarray, reference: np.ndarray, n_classes: int) -> tuple[FalsePositive, ...]:
    labelled, n = components(predicted >= FIRST_TYPE)
    touched = np.zeros(n + 1, dtype=bool)
    touched[labelled[reference >= FIRST_TYPE]] = True
    votes = _joint_counts(labelled, predicted, n + 1, n_classes)[:, FIRST_TYPE:]
    wrong = np.flatnonzero(~touched[1:]) + 1
    return tuple(FalsePositive(FIRST_TYPE + int(votes[i].argmax()), int(votes[i].sum())) for i in wrong)


def _joint_counts(rows: np.ndarray, columns: np.ndarray, n_rows: int, n_columns: int) -> np.ndarray:
    """How many pixels have each pair of values: (n_rows, n_columns)."""
    flat = rows.ravel() * n_columns + columns.ravel()
    return np.bincount(flat, minlength=n_rows * n_columns).reshape(n_rows, n_columns)


def _lesion_window(predicted: np.ndarray, reference: np.ndarray) -> tuple[slice, ...]:
    """The smallest window with every lesion pixel of both: all that the figures depend on, and often a small part."""
    return bounds(np.maximum(predicted, reference) > LIVER) or (slice(0, 0), slice(0, 0))
