"""DICOM CT → `Scan`: a folder with one series, a single slice, or an enhanced multi-frame file.

Pixels are read by highdicom, their place by `dicom_grid`. What a CT must not have is refused by `dicom_checks` first.
Messages name files, positions and attributes, and never what an attribute says of the patient.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from pydicom import config as pydicom_config
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from lesionseg.errors import InputError
from lesionseg.folders import files_below
from lesionseg.formats.dicom_checks import (
    ENHANCED,
    Slice,
    check_enhanced,
    check_series,
    choose_series,
)
from lesionseg.formats.dicom_decode import decompress
from lesionseg.formats.dicom_grid import affine_of, axes_of, frame_places, order_of
from lesionseg.formats.nifti import check_affine, stem
from lesionseg.formats.voxels import to_int16
from lesionseg.scan import Scan, spacing_of

#: The `Manufacturer` in files that `lesionseg phantom` writes.
PHANTOM_MARK = "lesionseg phantom"
#: What pixels become that `PixelPaddingValue` marks as outside of the reconstruction: air.
PADDING_HU = -1024
#: What may be tissue is never taken for padding: files rewritten in signed HU keep the 0 of their original, say.
TISSUE_HU = (-500, 500)
#: How highdicom makes Hounsfield units of stored values: by the rescale alone.
_TO_HU: dict[str, Any] = {
    "dtype": np.float32,
    "apply_real_world_transform": False,
    "apply_modality_transform": True,
    "apply_presentation_lut": False,
}
#: Names that mean to be DICOM: such a file is not skipped when it cannot be read.
SUFFIXES = (".dcm", ".dicom", ".ima")
_REMEDY = "export the series again, uncompressed if it was compressed"


def is_dicom(path: Path) -> bool:
    """Whether a file looks like DICOM: the prefix at byte 128, or (old files) a data set that starts at once."""
    with path.open("rb") as file:
        head = file.read(132)
    return head[128:] == b"DICM" or head[:4] in (b"\x08\0\0\0", b"\x08\0\x01\0", b"\x08\0\x05\0", b"\x08\0\x08\0")


def read_dicom_series(folder: Path, series: str | None = None, files: Sequence[Path] | None = None) -> Scan:
    """Read the CT series that a folder holds, sub-folders included.

    Files that are not DICOM, DICOMDIR, and series that are no CT beside one that is are passed over.

    Args:
        folder: the files may have any names, in any order.
        series: SeriesInstanceUID or the end of it; needed only where the folder holds several CT series.
        files: the files to look at; None: all below the folder.

    Returns:
        the scan in the order of its positions; pixels marked as padding are `PADDING_HU`.

    Raises:
        InputError: no CT series, or several and none named; files without pixels; slices of different patients,
            studies, sizes or orientations; originals and derived images mixed; pixels that are not Hounsfield units
            (rescale missing, MONOCHROME1, colour); gantry tilt, gaps, doubles, uneven distances; undecodable pixels.
    """
    with refused(folder, "a readable CT series"):
        chosen = choose_series(folder, _read_headers(folder, files), series)
        if chosen[0].dataset.SOPClassUID in ENHANCED and len(chosen) == 1:
            return read_dicom_file(chosen[0].path)
        return _stack(folder, [Slice(item.path, read_dataset(item.path)) for item in chosen])


def read_dicom_file(path: Path) -> Scan:
    """Read a single slice (D = 1) or all frames of an enhanced CT. See `read_dicom_series` for what is refused.

    The slice thickness stands for the first spacing of a single slice (NaN where the file states none; its affine then
    steps 1 mm).
    """
    with refused(path, "a readable DICOM file"):
        dataset = read_dataset(path)
        if dataset.SOPClassUID in ENHANCED:
            return _read_enhanced(path, dataset)
        return _stack(path, [Slice(path, dataset)])


def source_headers(path: Path, series: str | None = None, files: Sequence[Path] | None = None) -> list[Dataset]:
    """The headers, without pixels, of the files that `read_scan` makes its scan of, in the order of its slices.

    Args:
        path: a DICOM file, or a folder.
        series: as `read_dicom_series` takes it.
        files: likewise.

    Returns:
        one data set a slice; of an enhanced CT the one that holds all.

    Raises:
        InputError: no DICOM file; no CT series, or several and none named.
    """
    with refused(path, "readable DICOM headers"):
        if path.is_dir():
            slices = choose_series(path, _read_headers(path, files), series)
        else:
            slices = [Slice(path, read_dataset(path, stop_before_pixels=True))]
        return [item.dataset for item in (_in_order(slices) if len(slices) > 1 else slices)]


def _in_order(slices: Sequence[Slice]) -> list[Slice]:
    return [slices[i] for i in order_of([item.dataset for item in slices])]


def _stack(where: Path, slices: Sequence[Slice]) -> Scan:
    check_series(where, slices)
    datasets = [item.dataset for item in _in_order(slices)]
    affine, cosines = affine_of(datasets), axes_of(datasets)[1:].ravel().tolist()
    for dataset in datasets:  # checked above, but highdicom wants more of a single slice
        dataset.ImageOrientationPatient = cosines
        dataset.FrameOfReferenceUID = datasets[0].get("FrameOfReferenceUID") or datasets[0].SeriesInstanceUID
    with refused(where, "CT slices whose pixels can be decoded", with_message=True):
        decompress(slices)
        hu = to_int16(map(_taken_hu, datasets), (len(datasets), datasets[0].Rows, datasets[0].Columns), where)
    return _scan(where, hu, affine, datasets[0], datasets[0])


def _taken_hu(dataset: Dataset) -> np.ndarray:
    """HU (H, W), float32, of a slice, from which its pixels are taken: a long series is in memory only once."""
    plane = hd.get_volume_from_series([dataset], **_TO_HU).array[0]
    _fill_padding(plane, dataset, dataset)
    del dataset.PixelData
    return plane


def _read_enhanced(path: Path, dataset: Dataset) -> Scan:
    check_enhanced(path, dataset)
    places = frame_places(dataset)
    order = order_of(places)
    with refused(path, "an enhanced CT whose frames can be decoded", with_message=True):
        decompress([Slice(path, dataset)])
        frames = hd.Image.from_dataset(dataset, copy=False).get_frames(**_TO_HU)
    _fill_padding(frames, dataset, places[0])
    hu = to_int16((frames[i] for i in order), frames.shape, path)
    return _scan(path, hu, affine_of([places[i] for i in order]), dataset, places[0])


def _scan(where: Path, hu: np.ndarray, affine: np.ndarray, dataset: Dataset, first: Dataset) -> Scan:
    """The scan of these voxels; `first` states the thickness of its first slice, which counts where it is alone."""
    spacing_mm = spacing_of(affine)
    if len(hu) == 1:
        thickness_mm = abs(float(first.get("SliceThickness") or "nan"))  # some writers give it a direction
        affine[:, 0] *= (1.0 if np.isnan(thickness_mm) else thickness_mm) / spacing_mm[0]
        spacing_mm = (thickness_mm, *spacing_mm[1:])
    check_affine(affine, where)
    name = where.name if where.is_dir() else stem(where)
    generated, study = dataset.get("Manufacturer") == PHANTOM_MARK, str(dataset.get("StudyInstanceUID") or "")
    return Scan(hu, name, spacing_mm, affine, generated, study or None)


def _fill_padding(hu: np.ndarray, dataset: Dataset, rescale: Dataset) -> None:
    """Make HU of any shape air where PixelPaddingValue (…RangeLimit) marks the stored value as no measurement.

    But for values that may be tissue.
    """
    value, limit = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if value in (None, ""):
        return
    ends = [int(value), int(value if limit in (None, "") else limit)]
    half = 1 << (dataset.BitsAllocated - 1)
    if dataset.PixelRepresentation == 1:  # some writers give the bits of a negative value as an unsigned number
        ends = [end - 2 * half if end >= half else end for end in ends]
    low, high = sorted(end * float(rescale.RescaleSlope) + float(rescale.RescaleIntercept) for end in ends)
    if low < TISSUE_HU[1] and high > TISSUE_HU[0]:
        return
    margin = float(rescale.RescaleSlope) / 2
    hu[(hu > low - margin) & (hu < high + margin)] = PADDING_HU


def _read_headers(folder: Path, files: Sequence[Path] | None) -> list[Slice]:
    """Every DICOM file below a folder, without pixels. A file named as DICOM that cannot be read is an error."""
    found = []
    for path in files_below(folder) if files is None else sorted(files):
        if path.name.upper() == "DICOMDIR":
            continue
        if is_dicom(path):
            found.append(Slice(path, read_dataset(path, stop_before_pixels=True)))
        elif path.suffix.lower() in SUFFIXES:
            raise InputError(
                path,
                expected="a DICOM file, as its name says",
                got="an empty file" if not path.stat().st_size else "something else",
                remedy="copy the file again, or take it out of the folder if it is not part of the series",
                code="unreadable",
            )
    return found


def read_dataset(path: Path, **how: Any) -> Dataset:
    """A DICOM file, with or without file header; `how` goes to pydicom. `InputError`: not readable, no class."""
    with refused(path, "a readable DICOM file"):
        dataset = pydicom.dcmread(path, force=True, **how)
        if "TransferSyntaxUID" not in dataset.file_meta:  # a data set without file header: as pydicom found it written
            implicit, little = dataset.original_encoding
            syntax = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else syntax
        if "SOPClassUID" not in dataset:
            raise ValueError("no SOPClassUID")  # becomes the InputError of this block
        return dataset


@contextmanager
def refused(where: Path, expected: str, *, remedy: str = _REMEDY, with_message: bool = False) -> Iterator[None]:
    """Turn whatever pydicom, highdicom and the decoders raise into `InputError`, and keep their warnings quiet.

    A warning of theirs, or the text of an exception, may quote an attribute, and so the patient's name. The text is
    passed on only where it speaks of pixels and positions (`with_message`). Blocks may be nested; the inner one tells.
    """
    logger = logging.getLogger("pydicom")
    level = logger.level
    try:
        with warnings.catch_warnings(), pydicom_config.disable_value_validation():
            warnings.simplefilter("ignore")
            logger.setLevel(logging.CRITICAL)
            yield
    except InputError:
        raise
    except Exception as error:  # malformed bytes surface as almost any exception type
        raise InputError(
            where,
            expected=expected,
            got=str(error) if with_message and str(error) else f"malformed content ({type(error).__name__})",
            remedy=remedy,
            code="unreadable",
        ) from error
    finally:
        logger.setLevel(level)
