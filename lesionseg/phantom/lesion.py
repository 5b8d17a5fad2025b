"""A lesion in space: shape, border and look at any point, and its samples on the voxels of a scan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from lesionseg.phantom.geometry import Point, Points, WaveField

#: A lesion is sampled at least this finely within a voxel, mm.
SAMPLE_MM = 1.5


class Local(NamedTuple):
    """Points of a lesion in its own terms: position over the radius (three arrays), depth below the surface in mm."""

    position: Points
    depth_mm: np.ndarray


Look = Callable[[Local], np.ndarray]


@dataclass(frozen=True, eq=False)
class Lesion:
    """A lesion with its place.

    Attributes:
        kind: `cyst`, `hemangioma`, `metastasis` or `hcc`.
        center_mm: (z, y, x).
        diameter_mm: mean diameter.
        axes: (3, 3) matrix that maps mm from the centre to a ball of the mean radius (volume kept).
        surface: relative bumps of the radius, a field over unit directions.
        edge_mm: width of the border.
        look: HU inside.
    """

    kind: str
    center_mm: Point
    diameter_mm: float
    axes: np.ndarray
    surface: WaveField
    edge_mm: float
    look: Look

    @property
    def reach_mm(self) -> float:
        """No point farther from the centre than this is touched."""
        stretch = 1 / float(np.linalg.svd(self.axes, compute_uv=False).min())
        bumps = 1 + 2.5 * self.surface.amplitude * np.sqrt(len(self.surface.phases) / 2)
        return self.diameter_mm / 2 * stretch * bumps + self.edge_mm

    def render(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """HU and cover (0…1) at points in mm; the three arrays share one shape, and so do both results."""
        offset = [np.asarray(p, np.float32) - c for p, c in zip((z, y, x), self.center_mm, strict=True)]
        ball = [row[0] * offset[0] + row[1] * offset[1] + row[2] * offset[2] for row in self.axes.astype(np.float32)]
        distance = np.sqrt(ball[0] ** 2 + ball[1] ** 2 + ball[2] ** 2)
        unit = [b / np.maximum(distance, 1e-3) for b in ball]
        radius = self.diameter_mm / 2 * (1 + self.surface.at(*unit))
        depth = radius - distance
        share = np.clip(0.5 + depth / self.edge_mm, 0, 1)
        cover = share * share * (3 - 2 * share)
        position = (ball[0] / radius, ball[1] / radius, ball[2] / radius)
        return self.look(Local(position, depth)), cover


class Patch(NamedTuple):
    """A lesion on voxels: HU, cover (0…1) and mask (cover of at least one half), each (D, H, W)."""

    hu: np.ndarray
    cover: np.ndarray
    mask: np.ndarray

    def implant(self, scan_hu: np.ndarray, liver_hu: float | np.ndarray) -> np.ndarray:
        """Put the lesion in the place of the liver in a scan (D, H, W), float32: the noise of the scan stays.

        Args:
            scan_hu: the scan.
            liver_hu: the scan without its noise, a number or (D, H, W).
        """
        return scan_hu + self.cover * (self.hu - liver_hu)


def lesion_patch(
    lesion: Lesion, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], *, blur_mm: float
) -> Patch:
    """Sample a lesion on a grid whose first voxel's centre is the origin, with partial volume and in-plane blur.

    Args:
        lesion: with its centre in the coordinates of the grid, mm.
        shape: (D, H, W).
        spacing_mm: along (D, H, W).
        blur_mm: full width at half maximum of the scanner's point spread in the plane.
    """
    fine = tuple(max(1, round(s / SAMPLE_MM)) for s in spacing_mm)
    axes = [((np.arange(n * f) + 0.5) / f - 0.5) * s for n, f, s in zip(shape, fine, spacing_mm, strict=True)]
    hu, cover = lesion.render(*np.meshgrid(*axes, indexing="ij"))
    sigma = [0.0, *(blur_mm / 2.355 * f / s for f, s in zip(fine[1:], spacing_mm[1:], strict=True))]
    weighted, seen = ndimage.gaussian_filter(hu * cover, sigma), ndimage.gaussian_filter(cover, sigma)
    weighted, seen, sharp = (_block_mean(a, fine) for a in (weighted, seen, cover))
    return Patch(weighted / np.maximum(seen, 1e-6), seen, sharp >= 0.5)


def _block_mean(array: np.ndarray, factor: tuple[int, ...]) -> np.ndarray:
    d, h, w = (n // f for n, f in zip(array.shape, factor, strict=True))
    return array.reshape(d, factor[0], h, factor[1], w, factor[2]).mean((1, 3, 5))
