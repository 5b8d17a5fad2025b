"""What the manifest of a store says of each case: geometry, liver box, lesions, checksums; no name of the source."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

from lesionseg.boxes import LIVER_MARGIN_PX, Box, liver_box
from lesionseg.labels import LIVER, NAMES, is_lesion, is_liver
from lesionseg.measurements import FULL_CONNECTIVITY, longest_diameter
from lesionseg.scan import Case, array_checksum

#: A thickness that no slice states is NaN, which JSON does not know: there it is null.
if TYPE_CHECKING:
    Thickness = float
else:
    Thickness = float | None


class LesionRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One connected lesion of one type.

    Attributes:
        type: a name of `labels.NAMES`.
        voxels: its size.
        slices: first and last slice it is seen in.
        volume_ml: None where a spacing is unknown (also for a single slice that states no thickness).
        area_mm2: area on the slice where it is largest; None where the spacing is unknown.
        diameter_mm: longest diameter on that slice (see `longest_diameter`); None where the spacing is unknown.
    """

    type: str
    voxels: int
    slices: tuple[int, int]
    volume_ml: float | None
    area_mm2: float | None
    diameter_mm: float | None


class CaseRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """One case of a store. Ids are pseudonyms; arrays are in the orientation of `scan.to_canonical`.

    Attributes:
        spacing_mm: along (D, H, W); None: unknown. The first is NaN for a slice that states no thickness.
        affine: rows of the (4, 4) affine, array index → LPS mm; None: unknown.
        liver_box: `boxes.liver_box` of the liver with its lesions; None without liver.
        liver_slices: indices of slices that hold liver; `lesion_slices` the same for lesion.
        lesion_types: names of the lesion labels present, in the order of their ids.
        lesions: see `lesions_of`.
        source_checksum: of the bytes of the source files and all that decided how they were read.
        voxel_checksum: of shape and HU, so that the same scan is known again under another name.
        implanted_in: `voxel_checksum` of the scan that this slice is of, where its lesions are implanted (`Case`).
        study: pseudonym of the DICOM study; None: the source names none.
    """

    case_id: str
    patient_id: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[Thickness, float, float] | None
    affine: tuple[tuple[float, ...], ...] | None
    liver_box: Box | None
    liver_slices: tuple[int, ...]
    lesion_slices: tuple[int, ...]
    lesion_types: tuple[str, ...]
    lesions: tuple[LesionRecord, ...]
    liver_predicted: bool
    generated: bool
    warnings: tuple[str, ...]
    source_checksum: str
    voxel_checksum: str
    labels_checksum: str
    implanted_in: str | None = None
    study: str | None = None

    @property
    def pixel_mm(self) -> tuple[float, float] | None:
        """Spacing along (H, W); None: unknown."""
        return None if self.spacing_mm is None else self.spacing_mm[1:]

    @property
    def scans(self) -> frozenset[str]:
        """Hashes of the scans that a net has seen once it has seen this case: its own, and that it is made of."""
        return frozenset({self.voxel_checksum, self.implanted_in or self.voxel_checksum})

    def __post_init__(self) -> None:
        if self.spacing_mm is not None and self.spacing_mm[0] is None:
            msgspec.structs.force_setattr(self, "spacing_mm", (math.nan, *self.spacing_mm[1:]))
        numbers = chain(*(self.affine or ()), (self.spacing_mm or ())[1:])
        if not all(map(math.isfinite, numbers)):
            raise ValueError("a spacing or an affine that is not finite")
        depth, height, width = self.shape
        if depth < 1 or height < 1 or width < 1:
            raise ValueError(f"a shape of {self.shape}")
        for places in (self.liver_slices, self.lesion_slices):
            if places and not 0 <= min(places) <= max(places) < depth:
                raise ValueError(f"slices beyond the {depth} that there are")
        box = self.liver_box
        if box is not None and not 0 < box.side <= max(height, width) + 2 * LIVER_MARGIN_PX:
            raise ValueError(f"a {box} around the liver of slices of {height} x {width}")

    def to_json(self) -> bytes:
        """As JSON, in one line; the same record gives the same bytes."""
        return msgspec.json.encode(self, order="sorted")

    @classmethod
    def from_json(cls, text: bytes) -> CaseRecord:
        """The inverse of `to_json`; `ValueError` for anything else."""
        return msgspec.json.decode(text, type=cls)


def describe(
    case: Case,
    *,
    case_id: str,
    patient_id: str,
    source_checksum: str,
    study: str | None = None,
    warnings: tuple[str, ...] = (),
) -> CaseRecord:
    """Measure a case that is already canonical; `warnings` are those fit for the store (no source names)."""
    scan, labels = case.scan, case.labels
    depth, height, width = scan.hu.shape
    spacing_mm = None
    if scan.spacing_mm is not None:
        thickness, *plane = map(float, scan.spacing_mm)  # numpy's are no numbers to JSON
        spacing_mm = (thickness, plane[0], plane[1])
    highest = highest_of(labels)
    lesions = lesions_of(labels, highest, spacing_mm)
    return CaseRecord(
        case_id=case_id,
        patient_id=patient_id,
        shape=(depth, height, width),
        spacing_mm=spacing_mm,
        affine=None if scan.affine is None else tuple(tuple(float(x) for x in row) for row in scan.affine),
        liver_box=liver_box(is_liver(highest.along_d[None])),
        liver_slices=_places(is_liver(highest.of_slice)),
        lesion_slices=_places(is_lesion(highest.of_slice)),
        lesion_types=tuple(dict.fromkeys(lesion.type for lesion in lesions)),
        lesions=lesions,
        liver_predicted=case.liver_predicted,
        generated=scan.generated,
        warnings=warnings,
        source_checksum=source_checksum,
        voxel_checksum=array_checksum(scan.hu),
        labels_checksum=array_checksum(labels),
        implanted_in=case.implanted_in,
        study=study,
    )


def lesions_of(
    labels: np.ndarray, highest: Highest, spacing_mm: tuple[float, float, float] | None
) -> tuple[LesionRecord, ...]:
    """Lesions of a label map (D, H, W): connected components of one type; touching types are two lesions.

    Ordered by type, then by first voxel. `highest` is that of the map.
    """
    found: list[LesionRecord] = []
    around = _window(is_lesion(highest.of_slice), is_lesion(highest.along_d))
    for label, name in NAMES.items():
        if label <= LIVER:
            continue
        of_type = labels[around] == label
        lesions: dict[tuple[int, ...], LesionRecord] = {}  # by first voxel
        for island in islands(of_type):
            components, _ = ndimage.label(of_type[island], FULL_CONNECTIVITY)
            for i, box in enumerate(ndimage.find_objects(components), start=1):
                lesion = components[box] == i
                corner = [outer.start + inner.start for outer, inner in zip(island, box, strict=True)]
                first = np.add(corner, np.unravel_index(lesion.argmax(), lesion.shape))
                lesions[tuple(first)] = _measure(lesion, name, around[0].start + corner[0], spacing_mm)
        found += [lesions[first] for first in sorted(lesions)]
    return tuple(found)


def islands(mask: np.ndarray) -> Iterator[tuple[slice, ...]]:
    """Windows of a mask (D, H, W), none with an empty plane in it, that hold all of it, and each component whole.

    Searching them for components takes a fraction of the time and memory that their common box would.
    """
    waiting = [tuple(slice(0, n) for n in mask.shape)]
    while waiting:
        window = waiting.pop()
        for axis in range(mask.ndim):
            filled = mask[window].any(tuple(i for i in range(mask.ndim) if i != axis))
            edges = window[axis].start + np.flatnonzero(np.diff(filled, prepend=False, append=False))
            parts = [slice(start, stop) for start, stop in edges.reshape(-1, 2).tolist()]
            if parts != [window[axis]]:
                waiting += [(*window[:axis], part, *window[axis + 1 :]) for part in parts]
                break
        else:
            yield window


def _measure(
    lesion: np.ndarray, type_name: str, first: int, spacing_mm: tuple[float, float, float] | None
) -> LesionRecord:
    voxels, largest = int(lesion.sum()), lesion[lesion.sum((1, 2)).argmax()]
    volume = area = diameter = None
    if spacing_mm is not None:
        thickness, *plane = spacing_mm
        volume = None if math.isnan(thickness) else voxels * thickness * plane[0] * plane[1] / 1000
        area = float(largest.sum()) * plane[0] * plane[1]
        diameter = longest_diameter(largest, (plane[0], plane[1]))
    return LesionRecord(type_name, voxels, (first, first + len(lesion) - 1), volume, area, diameter)


class Highest(NamedTuple):
    """Highest label of each slice, (D,), and along D, (H, W): what holds liver or lesion, by one look at the volume."""

    of_slice: np.ndarray
    along_d: np.ndarray


def highest_of(labels: np.ndarray) -> Highest:
    """One look at a label map (D, H, W)."""
    along_d = np.zeros(labels.shape[1:], labels.dtype)
    of_slice = np.zeros(len(labels), labels.dtype)
    for i, plane in enumerate(labels):
        of_slice[i] = plane.max()
        np.maximum(along_d, plane, out=along_d)
    return Highest(of_slice, along_d)


def _window(of_slice: np.ndarray, along_d: np.ndarray) -> tuple[slice, slice, slice]:
    """The smallest window with all of a mask, by its slices (D,) and its shadow (H, W); of an empty one a voxel."""
    return _extent(of_slice), _extent(along_d.any(1)), _extent(along_d.any(0))


def _extent(mask: ArrayLike) -> slice:
    places = _places(mask) or (0,)
    return slice(places[0], places[-1] + 1)


def _places(mask: ArrayLike) -> tuple[int, ...]:
    return tuple(np.flatnonzero(mask).tolist())
