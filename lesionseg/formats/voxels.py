"""Values of any numeric type → Hounsfield units and labels, slice by slice: no second volume, whatever the type."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np

from lesionseg.errors import InputError, some
from lesionseg.scan import empty

#: Fractions no further from 0 are normalised: to 0…1 or −1…1, by mean and deviation, or HU by the thousand.
MOST_NORMALISED = 50


def to_int16(
    planes: Iterable[np.ndarray], shape: tuple[int, ...], path: Path, affine: np.ndarray | None = None
) -> np.ndarray:
    """Hounsfield units → rounded int16 (D, H, W).

    Args:
        planes: D slices (H, W).
        shape: (D, H, W).
        path: what the error names.
        affine: for which `scan.empty` lays the array out; None: in the order of its axes.

    Raises:
        InputError: values that are not finite, do not fit, or are those of a normalised image.
    """
    out, broken, low, high, fractions = empty(shape, np.int16, affine), 0, np.inf, -np.inf, False
    for plane, rounded in zip(planes, out, strict=True):
        nearest = plane
        if plane.dtype.kind == "f":
            nearest = np.rint(plane)
            broken += plane.size - int(np.count_nonzero(np.isfinite(plane)))
            fractions = fractions or bool(np.any(nearest != plane))
        if not np.can_cast(plane.dtype, np.int16):
            low, high = min(low, plane.min()), max(high, plane.max())
        with np.errstate(invalid="ignore"):  # what does not fit is refused below
            rounded[:] = nearest.astype(np.int16, copy=False)
    if broken:
        got = f"{broken} voxel{'s that are' if broken > 1 else ' that is'} NaN or infinite"
    elif low < -32768 or high > 32767:
        got = f"values from {low:.6g} to {high:.6g}"
    elif fractions and max(abs(low), abs(high)) < MOST_NORMALISED:
        got = f"fractions from {low:.3g} to {high:.3g}, as of a normalised image"
    else:
        return out
    raise InputError(
        path,
        expected="Hounsfield units (finite, within int16)",
        got=got,
        remedy="export the CT again in Hounsfield units",
        code="hu",
    )


def to_labels(
    planes: Iterable[np.ndarray],
    shape: tuple[int, ...],
    path: Path,
    allowed: Collection[int],
    affine: np.ndarray | None = None,
    renamed: Mapping[int, int] | None = None,
) -> np.ndarray:
    """Label values → uint8 (D, H, W).

    Args:
        planes: D slices (H, W).
        shape: (D, H, W).
        path: what the error names.
        allowed: the values (0…255) that may occur.
        affine: for which `scan.empty` lays the array out; None: in the order of its axes.
        renamed: value → what it becomes; the others stay.

    Raises:
        InputError: a value that is not whole, does not fit or is not allowed.
    """
    out, whole, known, wrong = empty(shape, np.uint8, affine), True, set(allowed), set[int]()
    for plane, labels in zip(planes, out, strict=True):
        low, high = plane.min(), plane.max()
        if not (low >= 0 and high <= 255) or (plane.dtype.kind == "f" and np.any(plane != np.rint(plane))):
            whole = False  # also where a value is NaN
            continue
        labels[:] = plane
        if not known.issuperset(range(int(low), int(high) + 1)):
            wrong.update(set(np.unique(labels).tolist()) - known)
        for value, new in (renamed or {}).items():
            if low <= value <= high:
                labels[plane == value] = new
    if whole and not wrong:
        return out
    raise InputError(
        path,
        expected="label values " + ", ".join(map(str, sorted(known))),
        got=f"the value {some(sorted(wrong), 8)}" if whole else "values that are not whole numbers from 0 to 255",
        remedy="correct the mask or name its values",
        code="mask-values",
    )
