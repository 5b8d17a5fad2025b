"""DICOM-SEG of any tool → masks on the grid of a scan.

Each frame is placed by its position in the patient. (Highdicom's `get_volume` and `match_geometry` do not compare
frames of reference, allow for no rounding, and hold all frames in memory.)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID, SegmentationStorage

from lesionseg.errors import some
from lesionseg.formats.dicom import read_dataset, refused
from lesionseg.formats.dicom_checks import fault, word
from lesionseg.formats.dicom_grid import COSINE_ROUNDING
from lesionseg.labels import CODES, LIVER
from lesionseg.scan import GEOMETRY_TOLERANCE_VOXELS, Scan

#: Frames closer than this lie on one slice.
_SAME_MM = 0.01
#: A SEG may be drawn on slices this many times as far apart as those of the scan (rounding in what files state).
_MOST_STEPS = 1.5
_REMEDY = "save the segmentation again"
_OTHER = "give the SEG that was drawn on this image"
#: Younger than the table of pydicom 3.0.
_LABEL_MAP, _LABEL_MAP_NAME = "1.2.840.10008.5.1.4.1.1.66.7", "Label Map Segmentation Storage"
_TAKE_OUT = "correct the codes, or take these segments out"
#: Regions, in SNOMED CT, whose lesions may be those of the liver: the liver, its parts, and what it is a part of.
_LIVER_REGIONS = [
    *codes.cid7170.concepts.values(),  # Couinaud segments
    *(Code(value, "SCT", "") for value in (
        CODES[LIVER].value, "181268008", "48521005", "69842003",  # liver, entire liver, right and left lobe
        "303270005",  # liver and biliary structure
        "818981001", "113345001", "52731004", "80581009",  # abdomen, its structure, its cavity, upper abdomen
        "50519007", "86367003",  # right and left upper quadrant
        "818982008", "416949008", "818987002",  # abdomen and pelvis, and or, their cavity
        "416550000", "416775004",  # chest and abdomen; and pelvis
        "416152001", "416319003",  # the same with the neck
        "38266002",  # entire body
    )),
]  # fmt: skip


class Segment(NamedTuple):
    """A segment on the grid of a scan: its id in `lesionseg.labels`, its own name, and where it is, bool (D, H, W).

    And the slices beyond the scan that it marks, by the positions of their first pixels (mm, rounded).
    """

    label: int
    name: str
    mask: np.ndarray
    beyond: frozenset[tuple[float, ...]] = frozenset()


class _Frame(NamedTuple):
    """Segment number; in the patient (mm) the first pixel and the steps from row to row and column to column; distance
    of the slices as stated (0: not stated).
    """

    segment: int
    position: np.ndarray
    row_step: np.ndarray
    column_step: np.ndarray
    slice_step_mm: float


def read_dicom_seg(
    path: Path, scan: Scan, frame_of_reference: str | None = None, series: str | None = None
) -> list[Segment]:
    """Read the segments of a BINARY DICOM-SEG that are coded as liver or lesion, on the grid of a scan.

    A slice without a frame is background. Frames beyond the scan are passed over, so that the SEG of a series serves a
    single slice of it. A retired SNOMED code (scheme SRT) stands for the one that replaced it.

    Args:
        path: as lesionseg, dcmqi, 3D Slicer or highdicom write it.
        scan: whose place in the patient must be known.
        frame_of_reference: UID of the scan's, where it is known.
        series: likewise; None: the SEG may name any.

    Returns:
        one a segment, in the order of the file.

    Raises:
        InputError: no SEG, FRACTIONAL, compressed or malformed; a code that is neither liver nor lesion; a frame that
            is no slice of the scan (corners within 0.1 voxel, rounded cosines apart); another frame of reference, or
            another study where one of the two is not known; another series; every frame beyond the scan, unless the
            frames of reference are known to be one.
    """
    if scan.affine is None:
        got, remedy = "an image that does not say so", "give the image as DICOM or NIfTI"
        raise fault(path, "an image whose place in the patient is known", got, remedy, "mask-geometry")
    with refused(path, "a readable DICOM-SEG", remedy=_REMEDY):
        dataset = read_dataset(path)
        described = _described(path, dataset)
        known = bool(frame_of_reference and dataset.get("FrameOfReferenceUID"))
        if known and dataset.FrameOfReferenceUID != frame_of_reference:
            raise fault(path, "the frame of reference of its image", "another", _OTHER, "mask-geometry")
        if not known and scan.study and dataset.get("StudyInstanceUID") not in (None, "", scan.study):
            raise fault(path, "the study of its image", "another", _OTHER, "seg-source")
        named = {item.get("SeriesInstanceUID") for item in dataset.get("ReferencedSeriesSequence") or ()} - {None, ""}
        if series and named and series not in named:
            raise fault(path, "the series of its image", "another", _OTHER, "seg-source")
        frames = _frames(dataset)
        grid = _grid(path, scan, frames)
        masks = {number: np.zeros(scan.hu.shape, dtype=bool) for number in described}
        beyond: dict[int, list[tuple[float, ...]]] = {number: [] for number in described}
        inside = False
        for index, frame in enumerate(frames):
            target = _plane(path, masks[frame.segment], grid, frame, (int(dataset.Rows), int(dataset.Columns)))
            pixels = _pixels(dataset, index)
            if target is not None:
                inside = True
                target |= pixels
            elif pixels.any():
                beyond[frame.segment].append(tuple(np.round(frame.position, 1).tolist()))
    if not inside and not known:
        raise fault(path, "a frame on its image", f"{len(frames)} frames, all of other slices", _OTHER, "mask-geometry")
    return [Segment(label, name, masks[n], frozenset(beyond[n])) for n, (label, name) in described.items()]


def segment_labels(path: Path) -> set[int]:
    """Label ids of the segments of a DICOM-SEG, from its header alone; `InputError` as in `read_dicom_seg`."""
    with refused(path, "a readable DICOM-SEG", remedy=_REMEDY):
        return {label for label, _ in _described(path, read_dataset(path, stop_before_pixels=True)).values()}


def _described(path: Path, dataset: Dataset) -> dict[int, tuple[int, str]]:
    """Label id and name of each segment, by its number, of a SEG that can be read."""
    if dataset.SOPClassUID != SegmentationStorage:
        got, remedy = f"class {_class_name(dataset.SOPClassUID)}", "save the mask as BINARY DICOM-SEG, NIfTI or PNG"
        raise fault(path, "a DICOM-SEG (Segmentation Storage)", got, remedy, "format")
    if dataset.SegmentationType != "BINARY" or dataset.BitsAllocated != 1:
        got, remedy = word(dataset.SegmentationType), "save it as BINARY, cut at a threshold if it holds probabilities"
        if got == "BINARY":
            got, remedy = f"{word(dataset.BitsAllocated)} bits a pixel", _REMEDY
        raise fault(path, "a BINARY DICOM-SEG, of 1 bit a pixel", got, remedy, "seg-type")
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated or not syntax.is_little_endian:
        raise fault(path, "an uncompressed DICOM-SEG", word(syntax.keyword), "save it uncompressed", "transfer-syntax")
    known = {label: Code(code.value, "SCT", code.meaning) for label, code in CODES.items()}
    numbers = [int(item.SegmentNumber) for item in dataset.SegmentSequence]
    if len(set(numbers)) < len(numbers):
        raise fault(path, "segments of different numbers", "a number twice", _REMEDY, "seg-number")
    found, unknown, elsewhere = {}, [], []
    for number, item in zip(numbers, dataset.SegmentSequence, strict=True):
        kind, name = _code(item.SegmentedPropertyTypeCodeSequence[0]), str(item.get("SegmentLabel", ""))
        label = next((label for label, other in known.items() if other == kind), None)  # equal: SRT and SCT as well
        if label is None:
            unknown.append(_told(name, kind))
            continue
        found[number] = (label, name)
        if label != LIVER:
            elsewhere += [_told(name, region, "region ") for region in _regions(item) if region not in _LIVER_REGIONS]
    if unknown:
        expected = "segments coded as " + " or ".join(f"{code.meaning} (SCT {code.value})" for code in known.values())
        raise fault(path, expected, some(unknown, 8), _TAKE_OUT, "seg-code")
    if elsewhere:
        expected = f"lesions whose region is the liver (SCT {CODES[LIVER].value}), a part of it, or the abdomen"
        raise fault(path, expected, some(elsewhere, 8), _TAKE_OUT, "seg-region")
    return found


def _class_name(uid: UID) -> str:
    return _LABEL_MAP_NAME if uid == _LABEL_MAP else uid.name if uid.name != uid else word(uid)


def _code(item: Dataset) -> Code:
    return Code(str(item.get("CodeValue")), str(item.get("CodingSchemeDesignator")), "")


def _regions(segment: Dataset) -> list[Code]:
    """The regions that a segment states; of what modifies its type those alone that are structures of the body."""
    kind = segment.SegmentedPropertyTypeCodeSequence[0]
    modifiers = map(_code, kind.get("SegmentedPropertyTypeModifierCodeSequence") or ())
    stated = [segment.get(name) or () for name in ("AnatomicRegionSequence", "PrimaryAnatomicStructureSequence")]
    return [*map(_code, chain(*stated)), *(code for code in modifiers if code in codes.cid7192)]


def _told(name: str, code: Code, what: str = "") -> str:
    return f"{_shown(name)} ({what}{word(code.scheme_designator)} {word(code.value)})"


def _shown(name: str) -> str:
    """The name of a segment as a message may quote it."""
    return name if re.fullmatch(r"[\w .,:+/-]{1,64}", name, re.ASCII) else "malformed"


def _frames(dataset: Dataset) -> list[_Frame]:
    shared, frames = dataset.SharedFunctionalGroupsSequence[0], dataset.PerFrameFunctionalGroupsSequence
    if len(frames) != int(dataset.NumberOfFrames):
        raise ValueError("frames without a place")
    found = []
    for own in frames:
        identity, position, orientation, measures = (
            (own if f"{name}Sequence" in own else shared)[f"{name}Sequence"][0]
            for name in ("SegmentIdentification", "PlanePosition", "PlaneOrientation", "PixelMeasures")
        )
        cosines = np.array(orientation.ImageOrientationPatient, dtype=float).reshape(2, 3)
        rows, columns = cosines / np.linalg.norm(cosines, axis=1, keepdims=True)
        between_rows, between_columns = map(float, measures.PixelSpacing)
        place = np.array(position.ImagePositionPatient, dtype=float)
        number = int(identity.ReferencedSegmentNumber)
        step_mm = abs(float(measures.get("SpacingBetweenSlices") or 0))
        found.append(_Frame(number, place, columns * between_rows, rows * between_columns, step_mm))
    return found


def _grid(path: Path, scan: Scan, frames: Sequence[_Frame]) -> np.ndarray:
    """The affine of the scan; that of a single slice steps as the frames do, since thickness is not distance.

    Raises:
        InputError: the frames were drawn on slices further apart than the scan's, most of which they would leave empty.
    """
    grid, step_mm = np.array(scan.affine), _step_mm(frames)
    if step_mm is None:
        return grid
    if len(scan.hu) == 1:
        grid[:3, 0] *= step_mm / np.linalg.norm(grid[:3, 0])
        return grid
    normal = np.cross(frames[0].row_step, frames[0].column_step)
    across = int(np.abs(normal @ grid[:3, :3] / np.linalg.norm(grid[:3, :3], axis=0)).argmax())
    own_mm = float(np.linalg.norm(grid[:3, across]))
    if step_mm > _MOST_STEPS * own_mm:
        expected = f"a segmentation of slices {own_mm:.4g} mm apart"
        raise fault(path, expected, f"slices {step_mm:.4g} mm apart", _OTHER, "mask-geometry")
    return grid


def _step_mm(frames: Sequence[_Frame]) -> float | None:
    """Distance of the slices that the frames were drawn on: the least that is stated or seen; None: none is stated."""
    normal = np.cross(frames[0].row_step, frames[0].column_step)
    seen = np.diff(np.sort([frame.position @ normal for frame in frames])) / np.linalg.norm(normal)
    stated = [frame.slice_step_mm for frame in frames if frame.slice_step_mm]
    return float(min([*stated, *seen[seen > _SAME_MM]])) if stated else None


def _plane(path: Path, mask: np.ndarray, grid: np.ndarray, frame: _Frame, shape: tuple[int, int]) -> np.ndarray | None:
    """The slice of a mask (D, H, W) that a frame is: a view turned as the frame (rows, columns); None: beyond the mask.

    The slices of the frames may lie along any axis of the scan, and rows and columns run in any direction.
    """
    to_index = np.linalg.inv(grid[:3, :3])
    steps = _steps(grid, np.stack([frame.row_step, frame.column_step], axis=1))
    rows, columns = (int(axis) for axis in np.abs(steps).argmax(0))
    if rows == columns or (mask.shape[rows], mask.shape[columns]) != shape:
        expected = f"slices of an image of {mask.shape} voxels (D, H, W)"
        raise fault(path, expected, "frames of {} x {} pixels".format(*shape), _OTHER, "mask-shape")
    ends = np.array([[0, 0, 1, 1], [0, 1, 0, 1]])  # of rows and of columns, at the four corners
    last = np.array(shape)[:, None] - 1
    corners = (to_index @ (frame.position - grid[:3, 3]))[:, None] + steps @ (ends * last)
    across = 3 - rows - columns
    flipped = steps[[rows, columns], [0, 1]] < 0
    slice_index = int(np.rint(corners[across].mean()))
    on_grid = np.full_like(corners, slice_index)
    on_grid[[rows, columns]] = np.where(flipped[:, None], 1 - ends, ends) * last
    parallel = np.ptp(corners[across]) <= 2 * GEOMETRY_TOLERANCE_VOXELS
    if parallel and not 0 <= slice_index < mask.shape[across]:
        return None
    distance = np.abs(corners - on_grid).max()
    if not distance <= GEOMETRY_TOLERANCE_VOXELS:
        expected = f"frames that are slices of its image (corners within {GEOMETRY_TOLERANCE_VOXELS} voxel)"
        got = f"corners {distance:.3g} voxels apart (shifted, tilted or resampled)"
        raise fault(path, expected, got, _OTHER, "mask-geometry")
    view = mask[(slice(None),) * across + (slice_index,)]
    return np.flip(view.T if rows > columns else view, tuple(np.flatnonzero(flipped).tolist()))


def _steps(grid: np.ndarray, steps_mm: np.ndarray) -> np.ndarray:
    """Steps in the patient, (3, 2) in mm, in voxels; along the axes of the grid where only rounded cosines differ."""
    lengths, spacing = np.linalg.norm(steps_mm, axis=0), np.linalg.norm(grid[:3, :3], axis=0)[:, None]
    cosines = (grid[:3, :3].T / spacing) @ (steps_mm / lengths)
    if np.abs(cosines - np.rint(cosines)).max() <= 3 * COSINE_ROUNDING:
        return np.rint(cosines) * lengths / spacing
    return np.linalg.solve(grid[:3, :3], steps_mm)


def _pixels(dataset: Dataset, index: int) -> np.ndarray:
    """One frame, bool (H, W). Frames follow each other bit by bit, so that one may begin within a byte."""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    start = index * rows * columns
    stop = start + rows * columns
    packed = np.frombuffer(dataset.PixelData[start // 8 : -(-stop // 8)], dtype=np.uint8)
    bits = np.unpackbits(packed, bitorder="little")[start % 8 :][: stop - start]
    return bits.reshape(rows, columns).astype(bool)
