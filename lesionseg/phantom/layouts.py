"""The public layouts that the phantom is written in: LiTS NIfTI pairs, and single DICOM CT slices with PNG masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid

#: Says in every file that no scanner made it: NIfTI `descrip`, DICOM Manufacturer.
MARK = "lesionseg phantom"
#: Stored values are HU plus this, unsigned, as most scanners write them.
STORED_OFFSET = 1024


def write_nifti(path: Path, array: np.ndarray, spacing_mm: tuple[float, float, float], first_mm: float) -> None:
    """Write an int16 volume (D, H, W) as LiTS does: array (W, H, D), i to the left, j to the back, k to the head.

    Args:
        path: ends in `.nii.gz`.
        array: D to the head, H to the back, W to the patient's left.
        spacing_mm: along (D, H, W).
        first_mm: height of the first slice.
    """
    depth_mm, row_mm, column_mm = spacing_mm
    _, height, width = array.shape
    affine = np.diag([-column_mm, -row_mm, depth_mm, 1.0])
    affine[:3, 3] = (width - 1) / 2 * column_mm, (height - 1) / 2 * row_mm, first_mm
    file = nib.Nifti1Image(np.ascontiguousarray(array.transpose(2, 1, 0).astype(np.int16)), affine)
    file.header.set_xyzt_units("mm")
    file.header["descrip"] = MARK
    file.set_qform(affine, code=1)
    file.set_sform(affine, code=1)
    nib.save(file, path)


#: What every slice of the phantom says alike.
_CT_TAGS: dict[str, Any] = {
    "SpecificCharacterSet": "ISO_IR 100",
    "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    "SOPClassUID": CTImageStorage,
    "StudyDate": "20000101",
    "StudyTime": "120000",
    "AccessionNumber": "",
    "Modality": "CT",
    "Manufacturer": MARK,
    "ReferringPhysicianName": "",
    "PatientBirthDate": "",
    "PatientSex": "",
    "BodyPartExamined": "ABDOMEN",
    "KVP": "120",
    "PatientPosition": "HFS",
    "StudyID": "1",
    "SeriesNumber": "1",
    "AcquisitionNumber": "1",
    "PositionReferenceIndicator": "",
    "ImageOrientationPatient": ["1", "0", "0", "0", "1", "0"],
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "BitsAllocated": 16,
    "BitsStored": 16,
    "HighBit": 15,
    "PixelRepresentation": 0,
    "RescaleIntercept": str(-STORED_OFFSET),
    "RescaleSlope": "1",
    "RescaleType": "HU",
    "WindowCenter": "70",
    "WindowWidth": "340",
}


def write_dicom(
    path: Path,
    hu: np.ndarray,
    spacing_mm: tuple[float, float, float],
    height_mm: float,
    *,
    patient_id: str,
    scanner: str,
    number: int,
    seed: int,
) -> None:
    """Write one slice (H, W) int16 HU as CT Image Storage, explicit VR little endian.

    Args:
        path: of the file.
        hu: at most 64,511 HU above −1024.
        spacing_mm: slice thickness, distance of rows, distance of columns.
        height_mm: of the slice, LPS z.
        patient_id: written as PatientID and PatientName; study, series and frame of reference follow from it.
        scanner: written as ManufacturerModelName.
        number: InstanceNumber, unique within the patient.
        seed: of the phantom; with patient and number it decides every UID.
    """

    def uid(*parts: object) -> UID:
        return generate_uid(entropy_srcs=[MARK, str(seed), patient_id, *map(str, parts)])

    rows, columns = hu.shape
    thickness_mm, row_mm, column_mm = spacing_mm
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = uid("instance", number)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    values = {
        **_CT_TAGS,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "ManufacturerModelName": scanner,
        "PatientName": patient_id,
        "PatientID": patient_id,
        "SliceThickness": _decimal(thickness_mm),
        "StudyInstanceUID": uid("study"),
        "SeriesInstanceUID": uid("series"),
        "FrameOfReferenceUID": uid("frame"),
        "InstanceNumber": str(number),
        "ImagePositionPatient": [
            _decimal(-(columns - 1) / 2 * column_mm),
            _decimal(-(rows - 1) / 2 * row_mm),
            _decimal(height_mm),
        ],
        "Rows": rows,
        "Columns": columns,
        "PixelSpacing": [_decimal(row_mm), _decimal(column_mm)],
    }
    for name, value in values.items():
        setattr(file, name, value)
    file.PixelData = (hu.astype(np.int32) + STORED_OFFSET).astype("<u2").tobytes()
    file.save_as(path, enforce_file_format=True)


def write_png(path: Path, mask: np.ndarray) -> None:
    """Write a mask (H, W) as 8-bit greyscale PNG with its integers as they are."""
    Image.fromarray(mask.astype(np.uint8), mode="L").save(path)


def _decimal(value: float) -> str:
    """A DICOM decimal string: at most 16 characters."""
    return f"{value:.6f}".rstrip("0").rstrip(".")
