"""Shapes of the phantom: smooth random fields, signed distances of ellipsoids and tubes, and a plane to paint on.

Points are (z, y, x) in mm: z to the head, y to the back, x to the patient's left. Distances are in mm, negative inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Window = tuple[slice, slice]
Points = tuple[np.ndarray, np.ndarray, np.ndarray]
Point = tuple[float, float, float]
Bounds = tuple[Point, Point]


@dataclass(frozen=True, eq=False)
class WaveField:
    """A smooth random function of space: a sum of plane waves, so that it is exact at any point and fast on a grid.

    With wave vectors drawn from a normal distribution it approximates a Gaussian random field with a Gaussian
    correlation of length `scale` (random Fourier features, Rahimi and Recht, NIPS 2007).

    Attributes:
        vectors: (K, 3) wave vectors along (z, y, x), radians per unit of length.
        phases: (K,) radians.
        amplitude: factor that gives the field its standard deviation.
    """

    vectors: np.ndarray
    phases: np.ndarray
    amplitude: float

    @classmethod
    def draw(cls, rng: np.random.Generator, *, scale: float, sd: float, waves: int = 24) -> WaveField:
        """Field with correlation length `scale` and standard deviation `sd`."""
        vectors = rng.normal(0, 1 / scale, (waves, 3)).astype(np.float32)
        return cls(vectors, rng.uniform(0, 2 * np.pi, waves).astype(np.float32), sd * float(np.sqrt(2 / waves)))

    def grid(self, z: float, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Values on the plane of `y` (H,) and `x` (W,) at height `z`: (H, W) float32."""
        down = y[:, None] * self.vectors[:, 1] + (z * self.vectors[:, 0] + self.phases)
        across = x[None] * self.vectors[:, 2:3]
        value = np.cos(down) @ np.cos(across) - np.sin(down) @ np.sin(across)
        return (self.amplitude * value).astype(np.float32)

    def at(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Values at points; the three arrays have one shape, which the result shares."""
        value = np.zeros(np.shape(z), np.float32)
        for (kz, ky, kx), phase in zip(self.vectors, self.phases, strict=True):
            value += np.cos(kz * z + ky * y + kx * x + phase)
        return self.amplitude * value


class Ellipsoid(NamedTuple):
    """Centre and semi-axes along (z, y, x) in mm; turned by `turn` radians in the axial plane."""

    center: Point
    semi: Point
    turn: float = 0.0

    def distance(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Signed distance, first order: exact at the surface, fair near it (I. Quilez, "ellipsoid SDF")."""
        cz, cy, cx = self.center
        dz, dy, dx = z - cz, y - cy, x - cx
        if self.turn:
            c, s = np.cos(self.turn), np.sin(self.turn)
            dy, dx = c * dy - s * dx, s * dy + c * dx
        a, b, c_ = (1 / np.square(self.semi)).tolist()
        zz, yy, xx = dz * dz, dy * dy, dx * dx
        level = np.sqrt(zz * a + yy * b + xx * c_)
        slope = np.sqrt(zz * (a * a) + yy * (b * b) + xx * (c_ * c_))
        return level * (level - 1) / np.maximum(slope, 1e-6)

    def bounds(self) -> Bounds:
        """Lowest and highest (z, y, x), any turn."""
        (cz, cy, cx), (sz, sy, sx) = self.center, self.semi
        if self.turn:
            sy = sx = max(sy, sx)
        return (cz - sz, cy - sy, cx - sx), (cz + sz, cy + sy, cx + sx)


class Tube(NamedTuple):
    """A tapered tube from `start` to `end`, (z, y, x) in mm, with round ends."""

    start: Point
    end: Point
    radius_start: float
    radius_end: float

    def distance(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Signed distance to the axis less the radius there."""
        (z0, y0, x0), (z1, y1, x1) = self.start, self.end
        az, ay, ax = z1 - z0, y1 - y0, x1 - x0
        dz, dy, dx = z - z0, y - y0, x - x0
        share = np.clip((dz * az + dy * ay + dx * ax) / (az * az + ay * ay + ax * ax + 1e-9), 0, 1)
        dz, dy, dx = dz - share * az, dy - share * ay, dx - share * ax
        radius = self.radius_start + share * (self.radius_end - self.radius_start)
        return np.sqrt(dz * dz + dy * dy + dx * dx) - radius

    def bounds(self) -> Bounds:
        """Lowest and highest (z, y, x)."""
        (z0, y0, x0), (z1, y1, x1), r = self.start, self.end, max(self.radius_start, self.radius_end)
        return (min(z0, z1) - r, min(y0, y1) - r, min(x0, x1) - r), (max(z0, z1) + r, max(y0, y1) + r, max(x0, x1) + r)


Shape = Ellipsoid | Tube


def chain(points: Sequence[Point], radii: Sequence[float]) -> list[Tube]:
    """Tubes through a row of points."""
    return [Tube(points[i], points[i + 1], radii[i], radii[i + 1]) for i in range(len(points) - 1)]


def smooth_union(a: np.ndarray, b: np.ndarray, width_mm: float) -> np.ndarray:
    """Signed distance of two shapes joined with a fillet (polynomial smooth minimum)."""
    blend = np.clip(0.5 + 0.5 * (b - a) / width_mm, 0, 1)
    return b + blend * (a - b) - width_mm * blend * (1 - blend)


def smooth_cut(a: np.ndarray, b: np.ndarray, width_mm: float) -> np.ndarray:
    """Signed distance of shape `a` without shape `b`, with a rounded edge."""
    return -smooth_union(-a, b, width_mm)


def coverage(distance: np.ndarray, width_mm: float) -> np.ndarray:
    """Share of a sample of width `width_mm` that lies inside: the partial volume of a flat border."""
    return np.clip(0.5 - distance / width_mm, 0, 1)


class Plane:
    """One thin axial plane of a patient, painted from the back to the front.

    Attributes:
        y: (H,), rows in mm of the patient.
        x: (W,), columns in mm of the patient.
        height: of the plane in the body model, without its warp.
        rows: (H,), likewise.
        columns: (W,), likewise.
        points: the samples in the coordinates of the body model, bent by its warp: three arrays (H, W).
        cavity: signed distance to the inside of the trunk wall, (H, W).
        diaphragm: signed distance to the diaphragm, negative below it, (H, W).
        edge_mm: width of the partial volume at a border.
        hu: (H, W) float32.
        organ: (H, W) uint8.
        liver: (H, W) float32, share of liver.
    """

    def __init__(
        self,
        y: np.ndarray,
        x: np.ndarray,
        height: float,
        rows: np.ndarray,
        columns: np.ndarray,
        points: Points,
        cavity: np.ndarray,
        diaphragm: np.ndarray,
    ) -> None:
        self.y, self.x = y, x
        self.height, self.rows, self.columns = height, rows, columns
        self.points, self.cavity, self.diaphragm = points, cavity, diaphragm
        self.edge_mm = float(x[1] - x[0])
        self.hu = np.full((len(y), len(x)), -1000, np.float32)
        self.organ = np.zeros((len(y), len(x)), np.uint8)
        self.liver = np.zeros((len(y), len(x)), np.float32)
        straight = (height, rows[:, None], columns[None])
        self._reach = [float(np.abs(bent - flat).max()) + 2 for bent, flat in zip(points, straight, strict=True)]

    def window(self, bounds: Bounds) -> Window | None:
        """Rows and columns that may touch a box of the body model; None where the plane misses it."""
        low, high = bounds
        reach_z, reach_y, reach_x = self._reach
        if not low[0] - reach_z < self.height < high[0] + reach_z:
            return None
        top, bottom = np.searchsorted(self.rows, (low[1] - reach_y, high[1] + reach_y)).tolist()
        left, right = np.searchsorted(self.columns, (low[2] - reach_x, high[2] + reach_x)).tolist()
        if top >= bottom or left >= right:
            return None
        return slice(top, bottom), slice(left, right)

    def at(self, where: Window) -> Points:
        """Model coordinates inside a window."""
        z, y, x = self.points
        return z[where], y[where], x[where]

    def paint(
        self, where: Window, distance: np.ndarray, hu: float | np.ndarray, organ: int, within: np.ndarray | None = None
    ) -> np.ndarray:
        """Cover what lies inside `distance` with `hu`; `within` limits the cover. Returns the share covered."""
        share = coverage(distance, self.edge_mm)
        if within is not None:
            share = share * within
        under = self.hu[where]
        under += share * (hu - under)
        self.organ[where][share > 0.5] = organ
        return share

    def paint_shape(self, shape: Shape, hu: float, organ: int, within: np.ndarray | None = None) -> None:
        """Paint one ellipsoid or tube of the body model; `within` is (H, W)."""
        where = self.window(shape.bounds())
        if where is not None:
            clip = None if within is None else within[where]
            self.paint(where, shape.distance(*self.at(where)), hu, organ, clip)
