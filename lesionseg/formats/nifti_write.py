"""Label maps and class probabilities → NIfTI on the grid of the input, and their colours for 3D Slicer."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np

from lesionseg.formats.nifti import RAS_TO_LPS, read_nifti_header
from lesionseg.labels import BACKGROUND, COLORS, NAMES
from lesionseg.segmentation import RESEARCH_USE_ONLY
from lesionseg.writing import whole, write_text

#: 512 x 512 x 600 labels take 0.8 s and 1.3 MB; level 4 takes 1.9 s for 0.8 MB, and 9 takes 6.9 s for 0.4 MB.
_GZIP_LEVEL = 3
#: What places a voxel in the patient, besides the first four of `pixdim`.
_GEOMETRY = (
    *("xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)


def write_nifti_labels(path: Path, labels: np.ndarray, affine: np.ndarray | None, *, like: Path | None = None) -> None:
    """Write a label map on the grid of the input as `.nii.gz` (or `.nii`), whole or not at all.

    Equal input gives equal bytes. The header says nothing of the patient: of `like` its geometry is copied alone.

    Args:
        path: the file.
        labels: uint8 (D, H, W), ids of `lesionseg.labels`, on the grid of the scan.
        affine: of the scan (LPS); becomes sform and qform. Both are left unset where it is None.
        like: the NIfTI file the scan was read from; the label map then has its axes, sform, qform, codes and units to
            the bit, and `affine` is not used. A fourth axis (one frame) is dropped, a missing third stays so. Of
            version 2, which ITK and so 3D Slicer cannot open, version 1 is made and float64 rounded to float32.

    Raises:
        InputError: `like` cannot be read.
        ValueError: the array is not uint8, or does not have the shape of `like`.
    """
    if labels.dtype != np.uint8:
        raise ValueError(f"labels must be uint8, got {labels.dtype}")
    header = _header(labels.shape, np.dtype(np.uint8), affine, like)
    header.set_intent("label")
    _write(path, header, labels)


def write_nifti_maps(
    folder: Path, maps: np.ndarray, classes: Sequence[str], affine: np.ndarray | None, *, like: Path | None = None
) -> list[Path]:
    """Write class probabilities, one 3-D file `probability_<class>.nii.gz` a class, each whole or not at all.

    One file a class, because 3D Slicer and ITK-SNAP take a fourth axis for time; float32, because it holds float16 to
    the bit and no viewer has to apply a scale. Affine and `like` as in `write_nifti_labels`.

    Args:
        folder: where the files go.
        maps: float (K, D, H, W), on the grid of the scan.
        classes: names of the K maps; letters, digits and underscores.
        affine: of the scan.
        like: the NIfTI file the scan was read from.

    Returns:
        the files, in the order of the classes.
    """
    if len(maps) != len(classes) or not all(name.isidentifier() for name in classes):
        raise ValueError(f"{len(maps)} maps need as many names that can be part of a file name, got {list(classes)}")
    header = _header(maps.shape[1:], np.dtype("<f4"), affine, like)
    paths = [folder / f"probability_{name}.nii.gz" for name in classes]
    for path, values in zip(paths, maps, strict=True):
        _write(path, header, values)
    return paths


def write_color_table(path: Path) -> None:
    """Write names and colours of the labels as a colour table of 3D Slicer (`.ctbl`).

    A line a label: id, name without spaces, red, green, blue, opacity (0…255); `vtkMRMLColorTableStorageNode` of
    Slicer reads and writes it so. Ids between the first and the last may not be left out, or Slicer shows them black.
    """
    lines = [f"# Color table file {path.name}", f"# {len(NAMES)} values"]
    for label, name in NAMES.items():
        color = (0, 0, 0, 0) if label == BACKGROUND else (*COLORS[label], 255)
        lines.append(" ".join(map(str, (label, name.replace(" ", "_"), *color))))
    write_text(path, "\n".join(lines) + "\n")


def _header(shape: Sequence[int], dtype: np.dtype, affine: np.ndarray | None, like: Path | None) -> nib.Nifti1Header:
    """A header for an array (D, H, W) of this type, which NIfTI counts as (i, j, k) = (W, H, D)."""
    header = nib.Nifti1Header(endianness="<")
    if like is None:
        header.set_data_shape(shape[::-1])
        if affine is not None:
            ras = RAS_TO_LPS @ affine[:, [2, 1, 0, 3]]
            header.set_xyzt_units("mm")
            header.set_qform(ras, code="scanner")
            header.set_sform(ras, code="scanner")
    else:
        source = read_nifti_header(like)
        axes = source.get_data_shape()[:3]
        if (*axes, 1)[:3] != tuple(shape[::-1]):
            raise ValueError(f"an array (D, H, W) {tuple(shape)} does not lie on the grid {axes} (i, j, k) of {like}")
        header.set_data_shape(axes)
        header["pixdim"][:4] = source["pixdim"][:4]
        for field in _GEOMETRY:
            header[field] = source[field]
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    header["magic"], header["vox_offset"] = header.single_magic, header.single_vox_offset
    header["descrip"] = RESEARCH_USE_ONLY
    return header


def _packed(file: BinaryIO) -> gzip.GzipFile:
    """The name and the time that gzip would keep are left empty."""
    return gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0)


def _write(path: Path, header: nib.Nifti1Header, planes: Iterable[np.ndarray]) -> None:
    """Header and slices (H, W), one by one: an array (D, H, W) in C order is (i, j, k) in the order of NIfTI."""
    packing = _packed if path.suffix == ".gz" else nullcontext
    with whole(path) as part, part.open("wb") as file, packing(file) as packed:
        packed.write(header.binaryblock + bytes(4))  # no header extensions
        for plane in planes:
            packed.write(np.ascontiguousarray(plane, dtype=header.get_data_dtype()).data)
