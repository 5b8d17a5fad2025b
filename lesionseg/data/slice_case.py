"""The rows of one image in `slices.csv` → `Case`: image, lesion masks and liver brought onto one grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from pydicom.dataset import Dataset

from lesionseg.data.table import Row
from lesionseg.errors import InputError, some
from lesionseg.formats import is_nifti, read_scan
from lesionseg.formats.dicom import is_dicom, source_headers
from lesionseg.formats.dicom_seg_read import read_dicom_seg, segment_labels
from lesionseg.formats.nifti import check_same_grid, read_nifti, read_nifti_labels, stem
from lesionseg.formats.png import read_png_image, read_png_labels
from lesionseg.formats.voxels import to_labels
from lesionseg.labels import BACKGROUND, LESION_IDS, LIVER, NAMES, UNTYPED_LESION, is_lesion
from lesionseg.scan import Case, Scan, canonical_axes

#: The spacing of the table may differ this much from that of the image (rounding in the table).
SPACING_TOLERANCE = 0.01
#: Share of lesion pixels outside of the liver mask from which on the case carries a warning.
OUTSIDE_LIVER_SHARE = 0.05
#: Of a slice whose liver is lesion to a larger share, the mask is warned of: one of other values, most likely.
LIVER_FILLED_SHARE = 0.8
#: Of liver and lesion in a mask of LiTS.
_LITS_VALUES = {1, 2}


class PredictsLiver(Protocol):
    """Finds the liver in a scan whose table gives none; picklable."""

    @property
    def identity(self) -> str:
        """What decides the result besides the scan (the hash of the weights), so that a store notices another net."""
        ...

    def __call__(self, scan: Scan) -> np.ndarray:
        """The liver, bool (D, H, W)."""
        ...


def read_slice_case(
    rows: Sequence[Row], patient_id: str, values: Mapping[str, int], predict_liver: PredictsLiver | None
) -> Case:
    """Read one image with its masks.

    Lesion pixels outside of the liver belong to the liver; where they are more than 5 % the case carries a warning.
    A DICOM-SEG is a label map that its codes explain; a row with a lesion type takes all lesions in it for that type,
    and its liver is the liver of the image unless a liver mask says otherwise.

    Args:
        rows: one row with a label map, or rows with a lesion type and a binary mask each.
        patient_id: the patient as the source names it.
        values: value of each type (and of `liver`, where the map holds it) in a label map.
        predict_liver: None where a liver mask or the label map tells the liver.

    Raises:
        InputError: an image that is no axial slice, a mask on another grid or with other values, masks of two types
            that overlap, a spacing that contradicts the image, a DICOM-SEG without what the cell must tell.
    """
    first = rows[0]
    scan, warnings = _read_image(first)
    masks = [row.mask for row in rows] + ([first.liver_mask] if first.liver_mask else [])
    segs: dict[Path, np.ndarray] = {}
    for path in dict.fromkeys(filter(is_seg, masks)):
        segs[path], notes = _read_seg(path, first.image, scan)
        warnings += notes
    labels = _label_map(first, scan, segs, values) if first.lesion_type is None else _merged(rows, scan, segs)
    lesion = is_lesion(labels)
    liver = None
    if first.liver_mask is not None:
        liver = _liver(first.liver_mask, scan, segs, values)
        if not liver.any():
            remedy = "draw the liver, or leave the slice out"
            raise InputError(
                first.liver_mask, expected="a mask with liver", got="an empty mask", remedy=remedy, code="liver-empty"
            )
    elif predict_liver is not None:
        liver = predict_liver(scan)
    elif first.lesion_type is not None:
        liver = np.any([_liver(row.mask, scan, segs, values) for row in rows if holds_liver(row.mask)], axis=0)
    if liver is not None:
        outside = int(np.count_nonzero(lesion & ~liver)) / max(int(np.count_nonzero(lesion)), 1)
        if outside > OUTSIDE_LIVER_SHARE:
            warnings += (f"{outside:.0%} of the lesion pixels lie outside of the liver; they are counted to it",)
        filled = int(np.count_nonzero(lesion & liver)) / max(int(np.count_nonzero(liver)), 1)
        if filled > LIVER_FILLED_SHARE:
            warnings += (f"{filled:.0%} of the liver is lesion: does a value of the mask mean the liver? (--labels)",)
        labels[liver & ~lesion] = LIVER
    if any(_is_png(path) != _is_png(first.image) and any(map(is_nifti, (path, first.image))) for path in masks):
        warnings += ("NIfTI beside PNG, which has no orientation: PNG rows are taken as the second NIfTI axis",)
    if not is_nifti(first.image) and any(map(_is_png, masks)) and _is_turned(scan):
        warnings += ("PNG beside a DICOM slice turned in the patient: PNG rows are taken as the rows that are stored",)
    return Case(scan, labels, patient_id, liver_predicted=predict_liver is not None, warnings=warnings)


def _read_image(row: Row) -> tuple[Scan, tuple[str, ...]]:
    """The slice, with the spacing of the table where the image states none."""
    warnings: tuple[str, ...] = ()
    if _is_png(row.image) and row.window_hu is not None:
        scan = Scan(read_png_image(row.image, *row.window_hu), stem(row.image))
    elif is_nifti(row.image):
        scan, warnings = read_nifti(row.image)
    else:
        scan = read_scan(row.image)
    if len(scan.hu) != 1 or canonical_axes(scan.affine)[0][0] != 0:
        depth = f"{len(scan.hu)} slices" if len(scan.hu) != 1 else "a slice in another plane"
        remedy = "extract the slice that the mask was drawn on"
        raise InputError(row.image, expected="one axial slice", got=depth, remedy=remedy, code="not-a-slice")
    if row.spacing_mm is None:
        return scan, warnings
    if scan.spacing_mm is None:
        return replace(scan, spacing_mm=(float("nan"), *row.spacing_mm)), warnings
    if not np.allclose(row.spacing_mm, scan.spacing_mm[1:], rtol=SPACING_TOLERANCE, atol=0):
        raise InputError(
            row.where,
            expected="spacing_mm {:.4g} x {:.4g}, as the image states".format(*scan.spacing_mm[1:]),
            got="{:.4g} x {:.4g}".format(*row.spacing_mm),
            remedy="correct the cell or leave it empty",
            code="spacing",
        )
    return scan, warnings


def holds_liver(mask: Path) -> bool:
    """Whether a mask is a DICOM-SEG with a segment coded as liver; `InputError` where it cannot be used."""
    return is_seg(mask) and LIVER in segment_labels(mask)


def check_mask_format(path: Path) -> None:
    """Raise `InputError` unless a mask is a PNG or a NIfTI by its name, or DICOM by its content."""
    if not (_is_png(path) or is_nifti(path) or is_dicom(path)):
        got, remedy = path.suffix or "another file", "save the mask in one of these formats"
        raise InputError(path, expected="a DICOM-SEG, PNG or NIfTI", got=got, remedy=remedy, code="format")


def _read_mask(path: Path, scan: Scan) -> np.ndarray:
    """Values of a PNG or NIfTI mask on the grid of the scan, uint8 (1, H, W)."""
    if is_nifti(path):
        return read_nifti_labels(path, scan, range(256))
    check_mask_format(path)
    values = read_png_labels(path)
    check_same_grid(path, values.shape, scan.affine, scan)  # a PNG tells its shape alone
    return to_labels(values, values.shape, path, range(256))


def _read_seg(path: Path, image: Path, scan: Scan) -> tuple[np.ndarray, tuple[str, ...]]:
    """Label ids of a DICOM-SEG on the grid of the scan, uint8 (1, H, W), a lesion set over the liver; and warnings."""
    header = source_headers(image)[0] if is_dicom(image) else Dataset()
    segments = read_dicom_seg(path, scan, header.get("FrameOfReferenceUID"), header.get("SeriesInstanceUID"))
    labels = np.full(scan.hu.shape, BACKGROUND, dtype=np.uint8)
    for label, _, mask, _ in sorted(segments, key=lambda segment: segment.label):
        clash = mask & is_lesion(labels) & (labels != label)
        if clash.any():
            other = NAMES[int(labels[clash][0])]
            raise InputError(
                path,
                expected="segments of different types that do not overlap",
                got=f"{int(clash.sum())} pixels that are {NAMES[label]} and {other}",
                remedy="correct the segments",
                code="masks-overlap",
            )
        labels[mask] = label
    others = len(frozenset().union(*(segment.beyond for segment in segments)))
    if others and not labels.any():
        return labels, (f"the DICOM-SEG marks nothing on this slice, and {others} other slice{'s' * (others > 1)}",)
    return labels, ()


def _liver(path: Path, scan: Scan, segs: Mapping[Path, np.ndarray], values: Mapping[str, int]) -> np.ndarray:
    """The liver with the lesions in it, bool (1, H, W)."""
    if path not in segs:
        mask = _read_mask(path, scan)
        kinds = set(np.unique(mask[mask > 0]).tolist())
        if len(kinds) > 1 and not (kinds <= _LITS_VALUES or kinds <= {LIVER, *values.values()}):
            raise InputError(
                path,
                expected="a mask of the liver",
                got=f"the values {some(sorted(kinds), 8)}, as of organs, segments or blurred edges",
                remedy="save the liver as 1 and all else as 0",
                code="mask-values",
            )
        return mask > 0
    if not holds_liver(path):
        raise InputError(
            path,
            expected="a segment coded as liver",
            got="lesions alone",
            remedy="give a mask of the liver",
            code="no-liver",
        )
    return segs[path] > 0


def _label_map(row: Row, scan: Scan, segs: Mapping[Path, np.ndarray], values: Mapping[str, int]) -> np.ndarray:
    if row.mask in segs:
        return _coded(row, segs[row.mask])
    ids = {value: LIVER if name == "liver" else LESION_IDS[name] for name, value in values.items()}
    found = _read_mask(row.mask, scan)
    labels = to_labels(found, found.shape, row.mask, (BACKGROUND, *ids), renamed=ids)
    if row.others_typed and is_lesion(labels).any() and set(np.unique(found).tolist()) <= {0, 1}:
        raise InputError(
            row.where,
            expected="a lesion_type, as other rows of the table have",
            got="an empty cell beside a mask of ones",
            remedy="fill the cell, or leave the row out",
            code="lesion-type",
        )
    if row.liver_mask is not None:
        labels[labels == LIVER] = BACKGROUND  # as of a DICOM-SEG: the table names another
    return labels


def _coded(row: Row, labels: np.ndarray) -> np.ndarray:
    """Labels as the codes of a DICOM-SEG tell them; its liver only where the table names no other."""
    if np.any(labels == UNTYPED_LESION):
        raise InputError(
            row.mask,
            expected=f"lesions coded as {' or '.join(LESION_IDS)}",
            got="a lesion without type",
            remedy="correct the code of the segment, or give the row a lesion_type",
            code="lesion-type",
        )
    labels = labels.copy()
    if row.liver_mask is not None:
        labels[labels == LIVER] = BACKGROUND
    return labels


def _merged(rows: Sequence[Row], scan: Scan, segs: Mapping[Path, np.ndarray]) -> np.ndarray:
    labels = np.full(scan.hu.shape, BACKGROUND, dtype=np.uint8)
    for row in rows:
        values = is_lesion(segs[row.mask]) if row.mask in segs else _read_mask(row.mask, scan)
        kinds = np.unique(values[values > 0])
        if len(kinds) > 1:
            raise InputError(
                row.mask,
                expected="a binary mask for a row with lesion_type",
                got=f"values {some(kinds, 8)}",
                remedy="give one mask a type, or a label map without lesion_type",
                code="mask-values",
            )
        label = LESION_IDS[str(row.lesion_type)]
        clash = (values > 0) & (labels != BACKGROUND) & (labels != label)
        if clash.any():
            raise InputError(
                row.where,
                expected="masks of different types that do not overlap",
                got=f"{int(clash.sum())} pixels of {row.lesion_type} that another row of the image calls otherwise",
                remedy="correct one of the masks",
                code="masks-overlap",
            )
        labels[values > 0] = label
    return labels


def _is_turned(scan: Scan) -> bool:
    """Whether rows and columns of a slice run otherwise than to the left and the back, so that viewers may turn it."""
    order, flip = canonical_axes(scan.affine)
    return order != (0, 1, 2) or any(flip[1:])


def _is_png(path: Path) -> bool:
    return path.suffix.lower() == ".png"


def is_seg(path: Path) -> bool:
    """Whether a mask is read as DICOM-SEG: DICOM by content, of any name but those of the other formats."""
    return not _is_png(path) and not is_nifti(path) and is_dicom(path)
