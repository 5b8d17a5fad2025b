"""CT and labels of a segmentation → two small NIfTI files for a page: liver box, canonical axes, 8 bits."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from lesionseg.boxes import bounds
from lesionseg.figures import MARGIN, WINDOW_HU, window
from lesionseg.formats.nifti import RAS_TO_LPS
from lesionseg.scan import Scan, canonical, canonical_affine, canonical_axes
from lesionseg.segmentation import RESEARCH_USE_ONLY, Segmentation

#: More voxels than this are a burden on the memory of a graphics card, which takes them at four bytes and twice.
MAX_VOXELS = 40_000_000
_HU_PER_GREY = (WINDOW_HU[1] - WINDOW_HU[0]) / 255

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Cut:
    """The part of a scan that a page shows, in canonical axes (`scan.canonical`).

    Attributes:
        start: first voxel of the part in the canonical scan (D, H, W).
        shape: voxels of the part, before they are thinned out.
        factors: so many voxels along each axis become one.
    """

    start: Triple
    shape: Triple
    factors: Triple = (1, 1, 1)

    @property
    def thinned(self) -> Triple:
        """Voxels that the page holds."""
        d, h, w = (math.ceil(n / factor) for n, factor in zip(self.shape, self.factors, strict=True))
        return d, h, w

    @property
    def window(self) -> tuple[slice, slice, slice]:
        """The part as an index into a canonical array."""
        d, h, w = (slice(start, start + n) for start, n in zip(self.start, self.shape, strict=True))
        return d, h, w

    @property
    def placed(self) -> np.ndarray:
        """(4, 4), index in the part as the page holds it → index in the canonical scan, of voxel centres."""
        factors = np.array(self.factors)
        matrix = np.diag([*factors, 1.0])
        matrix[:3, 3] = np.array(self.start) + (factors - 1) / 2
        return matrix

    def index_of(self, voxel: Iterable[int]) -> Triple:
        """The voxel of the page that holds a voxel of the canonical scan."""
        d, h, w = ((v - first) // factor for v, first, factor in zip(voxel, self.start, self.factors, strict=True))
        return d, h, w


@dataclass(frozen=True, eq=False)
class Volumes:
    """What a page holds of a scan.

    Attributes:
        cut: which part.
        ras: (4, 4), voxel (i, j, k) of both files → mm, RAS as in NIfTI; where the orientation is unknown i is taken to
            run to the left and j to the back, and an unknown spacing is 1.
        ct: gzip NIfTI, uint8 with slope and intercept to HU, clipped to `figures.WINDOW_HU`.
        labels: gzip NIfTI, uint8, ids of `lesionseg.labels`.
    """

    cut: Cut
    ras: np.ndarray
    ct: bytes
    labels: bytes


def embed(segmentation: Segmentation, room_bytes: int) -> Volumes:
    """The liver box of a scan with a margin (all of it where there is no liver), thinned out until it fits.

    Args:
        segmentation: its arrays are only read.
        room_bytes: that both files together may take as base64.
    """
    scan = segmentation.scan
    hu, labels = canonical(scan.hu, scan.affine), canonical(segmentation.labels, scan.affine)
    spacing = _canonical_spacing(scan)
    cut = _liver_cut(labels)
    while True:
        while math.prod(cut.thinned) > MAX_VOXELS:
            cut = _coarser(cut, spacing)
        ras = _ras(scan, cut, spacing)
        found = Volumes(
            cut,
            ras,
            _nifti(_grey_slices(hu[cut.window], cut), cut, ras, (_HU_PER_GREY, WINDOW_HU[0])),
            _nifti(_label_slices(labels[cut.window], cut), cut, ras, (1, 0)),
        )
        if base64_length(found.ct) + base64_length(found.labels) <= room_bytes or max(cut.thinned) == 1:
            return found
        cut = _coarser(cut, spacing)


def base64_length(data: bytes) -> int:
    """Characters that data takes as base64."""
    return 4 * math.ceil(len(data) / 3)


def _liver_cut(labels: np.ndarray) -> Cut:
    """The box of all labels of a canonical array with a margin on each side; all of it where there are none."""
    window = bounds(labels > 0)
    if window is None:
        return Cut((0, 0, 0), labels.shape)
    start, shape = [], []
    for span, length in zip(window, labels.shape, strict=True):
        margin = math.ceil(MARGIN * (span.stop - span.start))
        first = max(span.start - margin, 0)
        start.append(first)
        shape.append(min(span.stop + margin, length) - first)
    return Cut((start[0], start[1], start[2]), (shape[0], shape[1], shape[2]))


def _coarser(cut: Cut, spacing: tuple[float, float, float]) -> Cut:
    """The cut with one factor more, along the axis whose voxels are the smallest (of equal ones, within the slice)."""
    able = [axis for axis in (2, 1, 0) if cut.thinned[axis] > 1]
    axis = min(able, key=lambda i: spacing[i] * cut.factors[i])
    factors = [factor + (i == axis) for i, factor in enumerate(cut.factors)]
    return Cut(cut.start, cut.shape, (factors[0], factors[1], factors[2]))


def _canonical_spacing(scan: Scan) -> tuple[float, float, float]:
    """Along the canonical axes, in mm; 1 where it is unknown."""
    if scan.spacing_mm is None:
        return 1.0, 1.0, 1.0
    order, _ = canonical_axes(scan.affine)
    d, h, w = (1.0 if math.isnan(scan.spacing_mm[axis]) else scan.spacing_mm[axis] for axis in order)
    return d, h, w


def _ras(scan: Scan, cut: Cut, spacing: tuple[float, float, float]) -> np.ndarray:
    """`Volumes.ras`."""
    if scan.affine is None:
        lps = np.diag([0.0, 0.0, 0.0, 1.0])
        lps[[2, 1, 0], [0, 1, 2]] = spacing
    else:
        lps = canonical_affine(scan.affine, scan.hu.shape)
    return RAS_TO_LPS @ (lps @ cut.placed)[:, [2, 1, 0, 3]]


def _grey_slices(hu: np.ndarray, cut: Cut) -> Iterator[np.ndarray]:
    """Slices (H, W) of grey values, uint8, of HU (D, H, W): the mean of the voxels that become one."""
    for blocks in _blocks(hu, cut):
        yield np.rint(255 * window(blocks).mean((0, 2, 4))).astype(np.uint8)


def _label_slices(labels: np.ndarray, cut: Cut) -> Iterator[np.ndarray]:
    """Slices (H, W) of label ids (D, H, W), the highest of the voxels that become one: no lesion is lost."""
    return (blocks.max((0, 2, 4)) for blocks in _blocks(labels, cut))


def _blocks(array: np.ndarray, cut: Cut) -> Iterator[np.ndarray]:
    """For each slice of the page, the voxels that become it: (slices, H, rows, W, columns); the border is repeated."""
    down, tall, wide = cut.factors
    _, height, width = cut.thinned
    for first in range(0, len(array), down):
        slab = array[first : first + down]
        if slab.shape[1:] != (height * tall, width * wide):
            slab = np.pad(slab, ((0, 0), (0, -slab.shape[1] % tall), (0, -slab.shape[2] % wide)), mode="edge")
        yield slab.reshape(len(slab), height, tall, width, wide)


def _nifti(slices: Iterable[np.ndarray], cut: Cut, ras: np.ndarray, scale: tuple[float, float]) -> bytes:
    """A gzip NIfTI of slices (H, W), uint8; equal input gives equal bytes."""
    header = nib.Nifti1Header(endianness="<")
    header.set_data_shape(cut.thinned[::-1])
    header.set_data_dtype(np.uint8)
    header.set_xyzt_units("mm")
    header.set_qform(ras, code="scanner")
    header.set_sform(ras, code="scanner")
    header.set_slope_inter(*scale)
    header["cal_min"], header["cal_max"] = WINDOW_HU if scale[1] else (0, 0)
    header["magic"], header["vox_offset"] = header.single_magic, header.single_vox_offset
    header["descrip"] = RESEARCH_USE_ONLY
    planes = b"".join(np.ascontiguousarray(plane).tobytes() for plane in slices)
    return _gzip(header.binaryblock + bytes(4) + planes)


def _gzip(data: bytes) -> bytes:
    """Noise repeats nothing but grey values: looking for runs alone gives the same size in a third of the time."""
    packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16, strategy=zlib.Z_RLE)
    return packer.compress(data) + packer.flush()
