"""Files of the outside world, reading beside writing; `read_scan` tells them apart."""

from __future__ import annotations

from pathlib import Path

from lesionseg.errors import InputError
from lesionseg.formats.nifti import read_nifti
from lesionseg.scan import Scan


def is_nifti(path: Path) -> bool:
    """Whether a file means to be NIfTI, by its name."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def read_scan(path: Path, *, strict: bool = False, series: str | None = None) -> Scan:
    """Read a CT from a NIfTI file, a DICOM file or a folder of DICOM files.

    Args:
        path: `.nii`, `.nii.gz`, DICOM of any name, or a folder.
        strict: refuse a scan whose spacing and orientation are unknown.
        series: which DICOM series of a folder, by (the end of) its UID, where it holds several.

    Raises:
        InputError: nothing there, another format, or a scan that cannot be read rightly (see the reader of the format).
    """
    # Not above: whoever imports a format runs this file, and NIfTI needs no highdicom.
    from lesionseg.formats.dicom import is_dicom, read_dicom_file, read_dicom_series

    if path.is_dir():
        return read_dicom_series(path, series)
    if not path.is_file():
        raise InputError(
            path,
            expected="a NIfTI file, a DICOM file or a folder of DICOM files",
            got="nothing of that name",
            remedy="check the path",
            code="missing-file",
        )
    if is_nifti(path):
        return read_nifti(path, strict=strict)[0]
    if is_dicom(path):
        return read_dicom_file(path)
    if path.suffix.lower() == ".png":
        got, remedy = "a PNG, which holds no Hounsfield units", "give the original CT, or list the PNG with its window "
        remedy += "(window_low_hu, window_high_hu) in a slices.csv and prepare that"
    else:
        got, remedy = "another format", "convert the CT to NIfTI (.nii.gz) or give the DICOM files"
    raise InputError(
        path,
        expected="a NIfTI file, a DICOM file or a folder of DICOM files",
        got=got,
        remedy=remedy,
        code="format",
    )
