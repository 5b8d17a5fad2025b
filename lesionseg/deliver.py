"""What a user receives for one study: files in the formats asked for, all in one folder."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from lesionseg.errors import InputError, some
from lesionseg.formats import is_nifti
from lesionseg.formats.dicom import source_headers
from lesionseg.formats.dicom_seg import write_dicom_seg
from lesionseg.formats.dicom_seg_read import read_dicom_seg
from lesionseg.formats.dicom_sr import write_dicom_sr
from lesionseg.formats.lesion_table import write_lesions_csv, write_lesions_json
from lesionseg.formats.nifti import read_nifti_labels
from lesionseg.formats.nifti_write import write_color_table, write_nifti_labels, write_nifti_maps
from lesionseg.labels import LIVER, NAMES
from lesionseg.report import write_report
from lesionseg.scan import Scan
from lesionseg.segmentation import Segmentation
from lesionseg.studies import Study

#: What can be asked for.
FORMATS = ("nifti", "dicom-seg", "dicom-sr", "csv", "json", "html")
#: Refer to DICOM instances, so that NIfTI input cannot have them.
DICOM_FORMATS = ("dicom-seg", "dicom-sr")
SEG, REPORT = "segmentation.dcm", "report.sr.dcm"


def formats_of(study: Study, wanted: Collection[str] | None) -> tuple[str, ...]:
    """The formats to write for a study: those wanted, or all that fit it. `InputError`: one that does not fit."""
    fitting = tuple(name for name in FORMATS if study.dicom or name not in DICOM_FORMATS)
    if wrong := " and ".join(sorted(set(wanted or ()) - set(fitting))):
        raise InputError(study.path, expected=f"DICOM input for {wrong}", got="NIfTI",
                         remedy=f"leave {wrong} out of --formats")  # fmt: skip
    return tuple(name for name in fitting if wanted is None or name in wanted)


def deliver(segmentation: Segmentation, study: Study, folder: Path, wanted: Collection[str] | None) -> Segmentation:
    """Write a segmentation of a study into a folder, which exists.

    Args:
        segmentation: where it holds probabilities, one map a class is written as well.
        study: what was segmented.
        folder: takes the files.
        wanted: from `FORMATS`; None: all that fit, where headers that no SEG or SR can refer to (blanked UIDs) cost
            these two alone, and give a warning. The SR refers to the SEG, which is written with it.

    Returns:
        the segmentation with all warnings.

    Raises:
        InputError: see `formats_of` and the writers.
    """
    formats = formats_of(study, wanted)
    if set(formats) & set(DICOM_FORMATS):
        try:
            remarks = _write_dicom(segmentation, study, folder, report="dicom-sr" in formats)
        except InputError as error:
            if wanted is not None:
                raise
            remarks = (f"No DICOM-SEG and no DICOM SR: {error.brief}.",)
            for name in (SEG, REPORT):
                (folder / name).unlink(missing_ok=True)
        segmentation = replace(segmentation, warnings=(*segmentation.warnings, *remarks))
    like, affine = (None if study.dicom else study.path), segmentation.scan.affine
    if "nifti" in formats:
        write_nifti_labels(folder / "segmentation.nii.gz", segmentation.labels, affine, like=like)
        write_color_table(folder / "segmentation.ctbl")
    if segmentation.probabilities is not None:
        write_nifti_maps(folder, segmentation.probabilities, segmentation.classes, affine, like=like)
    if "csv" in formats:
        write_lesions_csv(folder / "lesions.csv", segmentation)
    if "json" in formats:
        write_lesions_json(folder / "lesions.json", segmentation)
    if "html" in formats:
        write_report(folder / "report.html", segmentation, title=study.name)
    return segmentation


def _write_dicom(segmentation: Segmentation, study: Study, folder: Path, *, report: bool) -> tuple[str, ...]:
    sources = _sources(study)
    seg = write_dicom_seg(folder / SEG, segmentation, sources)
    if report:
        write_dicom_sr(folder / REPORT, segmentation, sources, seg)
    return () if seg is not None else ("Nothing was outlined, so there is no DICOM-SEG.",)


def _sources(study: Study) -> list[Dataset]:
    return source_headers(study.path, study.series, study.files)


def read_liver_mask(path: Path, scan: Scan, study: Study) -> np.ndarray:
    """A liver on the grid of a scan, boolean (D, H, W), lesions in it included.

    Args:
        path: NIfTI (one value besides 0, or ids of `lesionseg.labels`, LiTS masks among them), or a DICOM-SEG with a
            segment of the liver.
        scan: whose grid the mask must have.
        study: where the scan was read.

    Raises:
        InputError: unreadable, another grid, values or segments without a liver, or an empty mask.
    """
    liver = _nifti_liver(path, scan) if is_nifti(path) else _seg_liver(path, scan, study)
    if not liver.any():
        raise _no_liver(path, "an empty mask")
    return liver


def _nifti_liver(path: Path, scan: Scan) -> np.ndarray:
    labels = read_nifti_labels(path, scan, range(256))
    values = np.flatnonzero(np.bincount(labels.ravel(), minlength=256)[1:]) + 1
    if len(values) > 1 and (LIVER not in values or max(values) > max(NAMES)):
        raise _no_liver(path, f"the values {some(values, 8)}")
    return labels > 0


def _seg_liver(path: Path, scan: Scan, study: Study) -> np.ndarray:
    frame = _sources(study)[0].get("FrameOfReferenceUID") if study.dicom else None
    segments = read_dicom_seg(path, scan, frame)
    if LIVER not in (segment.label for segment in segments):
        raise _no_liver(path, "segments of lesions alone" if segments else "no segment")
    return np.any([segment.mask for segment in segments], axis=0)


def _no_liver(path: Path, got: str) -> InputError:
    expected = f"a mask of the liver: one value besides 0, or {LIVER} and those of lesions up to {max(NAMES)}"
    return InputError(path, expected=expected, got=got, remedy="give a mask of the liver alone", code="liver-mask")
