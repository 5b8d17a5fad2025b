"""`Scan` (CT in Hounsfield units with its geometry) and `Case` (scan and labels). A 2-D slice is a scan with D = 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xxhash

#: Corners of scan and mask may lie this many voxels apart before the two count as different grids.
GEOMETRY_TOLERANCE_VOXELS = 0.1
#: The least that a CT measures: lower values are padding outside of the reconstruction.
LEAST_HU = -1024


@dataclass(frozen=True, eq=False)
class Scan:
    """One CT.

    Attributes:
        hu: Hounsfield units, int16, (D, H, W).
        scan_id: the name the source gives it (a file stem); may identify a patient, so it never leaves `prepare`.
        spacing_mm: distance of neighbouring voxel centres along (D, H, W); None: unknown. The first is NaN for a single
            slice that states no thickness.
        affine: (4, 4) float64, array index (d, h, w, 1) → patient position in mm, LPS as in DICOM; None: unknown.
        generated: made by `lesionseg phantom`, not by a scanner.
        study: StudyInstanceUID, where the source is DICOM and states one; like the name, it never leaves `prepare`.
    """

    hu: np.ndarray
    scan_id: str
    spacing_mm: tuple[float, float, float] | None = None
    affine: np.ndarray | None = None
    generated: bool = False
    study: str | None = None

    def __post_init__(self) -> None:
        if self.hu.ndim != 3 or self.hu.dtype != np.int16:
            raise ValueError(f"hu must be int16 (D, H, W), got {self.hu.dtype} with shape {self.hu.shape}")


@dataclass(frozen=True, eq=False)
class Case:
    """A scan with its reference.

    Attributes:
        scan: the CT.
        labels: uint8 (D, H, W), ids of `lesionseg.labels` on the grid of the scan.
        patient_id: the patient as the source names it.
        liver_predicted: the liver in `labels` comes from a network, not from a reader.
        warnings: what a user should know of this case, one sentence each.
        implanted_in: `voxel_checksum` of the stored scan that the slice is of, where its lesions are implanted; None:
            the lesions are the patient's own.
    """

    scan: Scan
    labels: np.ndarray
    patient_id: str
    liver_predicted: bool = False
    warnings: tuple[str, ...] = ()
    implanted_in: str | None = None

    def __post_init__(self) -> None:
        if self.labels.shape != self.scan.hu.shape or self.labels.dtype != np.uint8:
            raise ValueError(
                f"labels must be uint8 {self.scan.hu.shape}, got {self.labels.dtype} with shape {self.labels.shape}"
            )


@dataclass(frozen=True)
class CaseSource:
    """A case not read yet: what a door lists, so that `prepare` can skip, parallelise and resume.

    Attributes:
        source_id: unique within its set (LiTS: `volume-12`; slices: the image path as the table gives it).
        patient_id: the patient as the source names it.
        files: every file the case is made of.
        read: reads them; raises `InputError`. Picklable (a `functools.partial` of a module function).
        options: what besides the files decides the result (label map, window, liver net), as text.
        pseudonymous: `patient_id` is a pseudonym already, as it comes from a store, and is kept.
    """

    source_id: str
    patient_id: str
    files: tuple[Path, ...]
    read: Callable[[], Case]
    options: str = ""
    pseudonymous: bool = False


def holds_fat_or_air(hu: np.ndarray) -> bool:
    """Whether a voxel (D, H, W) lies below 0 HU and is no padding; where none does, values are no Hounsfield units.

    Padding is what lies below the least that a CT measures, and that value itself, which readers fill in for it.
    """
    return any(bool(((plane < 0) & (plane > LEAST_HU)).any()) for plane in hu)


def spacing_of(affine: np.ndarray) -> tuple[float, float, float]:
    """Voxel spacing in mm along (D, H, W): the column lengths of the affine."""
    d, h, w = np.linalg.norm(affine[:3, :3], axis=0)
    return float(d), float(h), float(w)


def canonical_axes(affine: np.ndarray | None) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """How to turn an array so that D runs to the head, H to the back, W to the patient's left (radiological view).

    Returns:
        order and flip: `np.flip(array.transpose(order), axes where flip)`. Identity where the orientation is unknown.
    """
    if affine is None:
        return (0, 1, 2), (False, False, False)
    direction = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    wanted = (2, 1, 0)  # patient axis (0 L, 1 P, 2 S in LPS) along D, H, W
    best = max(_permutations(), key=lambda order: sum(abs(direction[wanted[i], order[i]]) for i in range(3)))
    flip = tuple(bool(direction[wanted[i], best[i]] < 0) for i in range(3))
    return best, (flip[0], flip[1], flip[2])


def canonical(array: np.ndarray, affine: np.ndarray | None) -> np.ndarray:
    """A view of an array on the grid of a scan (D, H, W), turned by `canonical_axes`."""
    order, flip = canonical_axes(affine)
    return np.flip(array.transpose(order), tuple(i for i in range(3) if flip[i]))


def from_canonical(array: np.ndarray, affine: np.ndarray | None) -> np.ndarray:
    """The inverse of `canonical`: a view on the grid of the scan."""
    order, flip = canonical_axes(affine)
    return np.flip(array, tuple(i for i in range(3) if flip[i])).transpose(np.argsort(order))


def empty(shape: tuple[int, ...], dtype: type, affine: np.ndarray | None) -> np.ndarray:
    """An array (D, H, W) to fill, laid out so that `canonical` of it is contiguous: turning it later copies nothing."""
    order, _ = canonical_axes(affine)
    return from_canonical(np.empty([shape[axis] for axis in order], dtype), affine)


def canonical_affine(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(4, 4), index in the view that `canonical` gives of a (D, H, W) of this shape → what the affine maps to."""
    order, flip = canonical_axes(affine)
    turn = np.zeros((4, 4))  # canonical index → index in the source array
    turn[3, 3] = 1
    for i, (axis, flipped) in enumerate(zip(order, flip, strict=True)):
        turn[axis, i] = -1 if flipped else 1
        turn[axis, 3] = shape[axis] - 1 if flipped else 0
    return affine @ turn


def to_canonical(case: Case) -> Case:
    """The case with its arrays turned by `canonical_axes`; the affine follows, so patient positions stay the same.

    Nothing is copied where the arrays are laid out by `empty`, as the reader of NIfTI does.
    """
    scan = case.scan
    if scan.affine is None:
        return case
    order, _ = canonical_axes(scan.affine)
    affine = canonical_affine(scan.affine, scan.hu.shape)
    old = scan.spacing_mm
    spacing = None if old is None else (old[order[0]], old[order[1]], old[order[2]])
    hu = np.ascontiguousarray(canonical(scan.hu, scan.affine))
    labels = np.ascontiguousarray(canonical(case.labels, scan.affine))
    return replace(case, scan=replace(scan, hu=hu, affine=affine, spacing_mm=spacing), labels=labels)


def array_checksum(array: np.ndarray) -> str:
    """XXH3 (128 bits) of shape and values (little-endian, C order): tells damage and equal scans, not forgery."""
    digest = xxhash.xxh3_128(repr(tuple(array.shape)).encode())
    for part in array:  # slice by slice, so that a mapped volume is never copied whole
        digest.update(np.ascontiguousarray(part, dtype=part.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


def grid_distance_voxels(a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> float:
    """Largest distance, in voxels of `a`, between the places that two affines give the corners of a grid (D, H, W)."""
    corners = np.array([[d, h, w, 1] for d in (0, shape[0] - 1) for h in (0, shape[1] - 1) for w in (0, shape[2] - 1)])
    return float(np.abs(np.linalg.solve(a, b @ corners.T) - corners.T).max())


def _permutations() -> list[tuple[int, int, int]]:
    return [(a, b, 3 - a - b) for a in range(3) for b in range(3) if a != b]
