"""NIfTI files → `Scan` and label maps. Arrays are turned from (i, j, k) to (D, H, W), affines from RAS to LPS."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, cast

import nibabel as nib
import numpy as np
from isal import igzip
from nibabel.volumeutils import apply_read_scaling

from lesionseg.errors import InputError
from lesionseg.formats.voxels import to_int16, to_labels
from lesionseg.scan import GEOMETRY_TOLERANCE_VOXELS, Scan, grid_distance_voxels, spacing_of

#: The `descrip` field of the header in files that `lesionseg phantom` writes.
PHANTOM_MARK = "lesionseg phantom"
#: Cosine between two array axes from which on the grid counts as sheared.
SHEAR_TOLERANCE = 1e-3
#: Voxel spacings outside this range are no CT but a broken header, in mm.
SPACING_RANGE_MM = (0.01, 100.0)
#: More voxels than this are a broken header: four thousand slices of 1024 x 1024.
MAX_VOXELS = 2**32

#: Patient coordinates as NIfTI counts them → as DICOM does, and back.
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
#: Affines (RAS) that libraries write when nobody set one: nibabel's identity, and ITK's identity in LPS.
_UNSET = (np.eye(4), RAS_TO_LPS)


def read_nifti(path: Path, *, strict: bool = False) -> tuple[Scan, tuple[str, ...]]:
    """Read a CT in Hounsfield units from `.nii` or `.nii.gz`.

    A header without orientation, or with the identity as affine (LiTS volumes 28 to 47), leaves spacing and affine
    unknown and gives one warning; with `strict` it is refused.

    Returns:
        the scan, HU rounded to int16 (D, H, W), and the warnings (none or one).

    Raises:
        InputError: unreadable or truncated; not 3-D (one frame of a fourth axis, or a missing third, is put right);
            sform and qform differ; affine singular or sheared; values not finite or beyond int16.
    """
    with _opened(path) as volume:
        hu = to_int16(volume.planes, volume.shape, path, volume.affine)
    affine, generated = volume.affine, volume.generated
    warnings: tuple[str, ...] = ()
    if affine is None:
        if strict:
            raise InputError(
                path,
                expected="a header that gives spacing and orientation",
                got="none, or an identity affine",
                remedy="write the true affine into the file, or leave strict mode",
                code="unknown-geometry",
            )
        warnings = (
            "the header gives no spacing and orientation (no or identity affine); both are unknown, and the scan is "
            "kept out of every figure in mm",
        )
    spacing_mm = None if affine is None else spacing_of(affine)
    if volume.is_plane and spacing_mm is not None:
        spacing_mm = (math.nan, *spacing_mm[1:])  # a header of two axes states no thickness
    return Scan(hu, stem(path), spacing_mm, affine, generated), warnings


def read_nifti_labels(
    path: Path, scan: Scan, allowed: Collection[int], renamed: Mapping[int, int] | None = None
) -> np.ndarray:
    """Read a label map that lies on the grid of `scan`.

    Args:
        path: `.nii` or `.nii.gz`; integers, or floats with integral values.
        scan: where its geometry is unknown, only the shape is compared.
        allowed: the label values (0…255) that may occur.
        renamed: value → what it becomes; the others stay.

    Returns:
        uint8 (D, H, W).

    Raises:
        InputError: unreadable; another shape or grid than the scan's (corners more than 0.1 voxel apart); a value that
            is not allowed.
    """
    with _opened(path) as volume:
        check_same_grid(path, volume.shape, volume.affine, scan)
        return to_labels(volume.planes, volume.shape, path, allowed, scan.affine, renamed)


def check_same_grid(path: Path, shape: tuple[int, ...], affine: np.ndarray | None, scan: Scan) -> None:
    """Raise `InputError` unless a mask of this shape (D, H, W) and affine lies on the grid of the scan."""
    if shape != scan.hu.shape:
        raise InputError(
            path,
            expected=f"the shape of its image, {scan.hu.shape} (D, H, W)",
            got=f"{shape}",
            remedy="give the mask that was drawn on this image",
            code="mask-shape",
        )
    if scan.affine is None:
        return
    if affine is None:
        raise InputError(
            path,
            expected="the affine of its image",
            got="no or an identity affine, so the axes of mask and image cannot be matched",
            remedy="save the mask with the affine of the image",
            code="mask-geometry",
        )
    distance = grid_distance_voxels(scan.affine, affine, shape)
    if distance > GEOMETRY_TOLERANCE_VOXELS:
        raise InputError(
            path,
            expected=f"the grid of its image (corners within {GEOMETRY_TOLERANCE_VOXELS} voxel)",
            got=f"corners {distance:.3g} voxels apart (flipped, shifted or resampled)",
            remedy="resample the mask onto the image, or write the right affine",
            code="mask-geometry",
        )


def stem(path: Path) -> str:
    """File name without `.nii`, `.nii.gz` or another last suffix."""
    return path.name.removesuffix(".gz").removesuffix(".nii") if ".nii" in path.suffixes else path.stem


def check_affine(affine: np.ndarray, path: Path) -> None:
    """Raise `InputError` unless the affine is finite, regular and its axes stand at right angles."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or lengths.min() < SPACING_RANGE_MM[0] or lengths.max() > SPACING_RANGE_MM[1]:
        got = "voxel spacing " + " x ".join(f"{length:.4g}" for length in lengths) + " mm"
    else:
        direction = affine[:3, :3] / lengths
        cosine = float(np.abs(direction.T @ direction - np.eye(3)).max())
        if cosine <= SHEAR_TOLERANCE:
            return
        got = f"two axes with a cosine of {cosine:.3g} between them"
    raise InputError(
        path,
        expected="an affine with axes at right angles and spacings of {} to {} mm".format(*SPACING_RANGE_MM),
        got=got,
        remedy="resample the image to a regular grid, or correct its header",
        code="affine",
    )


def read_nifti_header(path: Path) -> nib.Nifti1Header:
    """The header of a NIfTI file (a `Nifti2Header` of version 2), packed or not; `InputError`: unreadable."""
    with _readable(path), _open(path) as stream:
        return _image(stream).header


class _Volume(NamedTuple):
    """A file whose header is read and whose voxels are not yet.

    Attributes:
        shape: (D, H, W).
        affine: LPS, of the turned array; None: the header gives none or the identity.
        generated: by `lesionseg phantom`.
        is_plane: the file has two axes.
        planes: D slices (H, W) in their own or, where the header scales them, float type; each takes the place of the
            one before. The last one comes before the end of the file is read and its checksum seen.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray | None
    generated: bool
    is_plane: bool
    planes: Iterator[np.ndarray]


@contextmanager
def _opened(path: Path) -> Iterator[_Volume]:
    with _readable(path), _open(path) as stream:
        image = _image(stream)
        shape = _shape(image, path)
        affine = _affine(image.header, shape, path)
        generated = bytes(image.header["descrip"]).rstrip(b"\0") == PHANTOM_MARK.encode()
        yield _Volume(shape, affine, generated, len(image.shape) == 2, _planes(image, stream, shape))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn whatever malformed bytes raise into `InputError`."""
    try:
        with np.errstate(all="ignore"):  # a broken header also makes numpy warn (overflow in casts)
            yield
    except InputError:
        raise
    except Exception as error:  # nibabel, gzip and zlib answer malformed bytes with a dozen kinds of exception
        said = error.strerror if isinstance(error, OSError) else None  # its whole text repeats the path
        if path.is_file() and not path.stat().st_size:
            said = "an empty file"
        raise InputError(
            path,
            expected="a readable NIfTI file",
            got=said or f"{type(error).__name__}: {error}",
            remedy="copy or export the file again",
            code="unreadable",
        ) from error


def _image(stream: io.BufferedIOBase) -> nib.Nifti1Image | nib.Nifti2Image:
    version_2 = stream.read(4) in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")  # size of the header: 540
    stream.seek(0)
    return (nib.Nifti2Image if version_2 else nib.Nifti1Image).from_stream(stream)


@contextmanager
def _open(path: Path) -> Iterator[io.BufferedIOBase]:
    """The bytes of the file, unpacked where they are gzip, whatever the name says."""
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if not packed:
            yield raw
            return
        with igzip.IGzipFile(fileobj=raw) as unpacked:  # twice as fast as zlib
            yield unpacked


def _shape(image: nib.Nifti1Image | nib.Nifti2Image, path: Path) -> tuple[int, int, int]:
    """(D, H, W) of the turned array."""
    shape = image.shape
    readable = len(shape) >= 2 and all(n == 1 for n in shape[3:]) and 0 < np.prod(shape, dtype=float) <= MAX_VOXELS
    if not readable:
        raise InputError(
            path,
            expected="one 3-D volume (or one 2-D slice)",
            got=f"an array of {' x '.join(map(str, shape))}",
            remedy="split the series into its volumes",
            code="dimensions",
        )
    if image.get_data_dtype().kind not in "iuf":
        raise InputError(
            path,
            expected="one real number per voxel",
            got=f"voxels of type {image.get_data_dtype()}",
            remedy="export the CT as integers or floats",
            code="dtype",
        )
    width, height, depth = (*shape, 1)[:3]
    return depth, height, width


def _planes(
    image: nib.Nifti1Image | nib.Nifti2Image, stream: io.BufferedIOBase, shape: tuple[int, int, int]
) -> Iterator[np.ndarray]:
    """See `_Volume`. A slice is unpacked, checked and converted while it lies in the cache of the processor."""
    proxy = cast(nib.arrayproxy.ArrayProxy, image.dataobj)
    scaled = (proxy.slope, proxy.inter) != (1.0, 0.0)
    slope, intercept = np.asanyarray(proxy.slope), np.asanyarray(proxy.inter)
    plane = np.empty(shape[1:], proxy.dtype)
    stream.seek(proxy.offset)
    for _ in range(shape[0]):
        if stream.readinto(plane.data.cast("B")) != plane.nbytes:
            raise EOFError("the file ends before its last voxel")
        yield apply_read_scaling(plane, slope, intercept).astype(np.float32) if scaled else plane
    while stream.read(1 << 20):  # to the end, where gzip keeps its checksum
        pass


def _affine(header: nib.Nifti1Header, shape: tuple[int, ...], path: Path) -> np.ndarray | None:
    """LPS affine of the turned array; None where the header gives none or the identity."""
    sform, _ = header.get_sform(coded=True)
    qform, _ = header.get_qform(coded=True)
    ras = qform if sform is None else sform
    if ras is None:
        return None
    _check_units(header, path)
    affine = RAS_TO_LPS @ ras[:, [2, 1, 0, 3]]
    check_affine(affine, path)
    if sform is not None and qform is not None:
        distance = grid_distance_voxels(sform, qform, shape[::-1])
        if not distance <= GEOMETRY_TOLERANCE_VOXELS:
            raise InputError(
                path,
                expected=f"sform and qform that agree (corners within {GEOMETRY_TOLERANCE_VOXELS} voxel)",
                got=f"corners {distance:.3g} voxels apart",
                remedy="find out which one is right and write it into both",
                code="sform-qform",
            )
    return None if any(np.allclose(ras, unset, rtol=0, atol=1e-6) for unset in _UNSET) else affine


def _check_units(header: nib.Nifti1Header, path: Path) -> None:
    unit = header.get_xyzt_units()[0]
    if unit not in ("mm", "unknown"):
        raise InputError(
            path,
            expected="an affine in mm",
            got=f"units of {unit}",
            remedy="write the affine in mm",
            code="units",
        )
