"""The body of a generated patient: a 3-D model in continuous coordinates, painted on any axial plane.

A reference body (z to the head, y to the back, x to the patient's left, mm; its liver lies between −85 and 65 in z) is
scaled to the patient and bent by a smooth random warp, so that neighbouring planes always agree. HU are those of the
portal-venous phase: liver 100…120, blood pool 150…180, spleen about 120, kidney about 180, muscle 60, fat −100,
bone 300…1000, lung −860. Fatty livers, which would be darker, are not drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lesionseg.phantom.geometry import (
    Bounds,
    Ellipsoid,
    Plane,
    Points,
    Shape,
    Tube,
    WaveField,
    smooth_cut,
    smooth_union,
)
from lesionseg.phantom.organs import (
    Organs,
    TissueHU,
    paint_gut,
    paint_kidneys,
    paint_muscles,
    paint_spleen,
    stomach_distance,
)
from lesionseg.phantom.trunk import Organ, Trunk
from lesionseg.phantom.vessels import (
    AORTA,
    CAVA,
    HEPATIC_BRANCHES,
    HEPATIC_ROOT,
    HILUM,
    MESENTERIC,
    PORTAL_BRANCHES,
    PORTAL_TRUNK,
    RENAL,
    SPLENIC_VEIN,
    draw_tree,
)

#: Box of the reference body that holds the liver, with room for the warp.
LIVER_BOX: Bounds = (-106.0, -106.0, -140.0), (78.0, 102.0, 122.0)
#: Fat of the porta hepatis, and the hollow of the liver's lower face over pancreas and duodenum.
PORTA, HOLLOW = Ellipsoid((-17, -10, -14), (11, 7, 19)), Ellipsoid((-48, 2, 6), (34, 44, 48))
#: Fissure of the round ligament, and the notch where the falciform ligament leaves the surface.
FISSURE = Tube((-48, -62, 8), (12, -78, 4), 2.8, 1.4), Tube((-40, -90, 10), (8, -94, 6), 3.0, 1.6)


@dataclass(frozen=True, eq=False)
class Body:
    """One patient without lesions.

    Attributes:
        scale: size of the patient over the reference body along (z, y, x).
        warp: displacement along (z, y, x), model mm.
        tissue: HU of this scan.
        trunk: wall, spine, chest.
        organs: shapes of the other organs and of the liver's lobes.
        portal: veins of the liver.
        hepatic: veins of the liver.
        texture: fields of the parenchyma, HU.
    """

    scale: tuple[float, float, float]
    warp: tuple[WaveField, ...]
    tissue: TissueHU
    trunk: Trunk
    organs: Organs
    portal: list[Tube]
    hepatic: list[Tube]
    texture: tuple[WaveField, ...]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Body:
        """Draw a patient."""
        height, size, stretch = rng.uniform(0.92, 1.06), rng.normal(1.0, 0.035), rng.normal(1.0, 0.02)
        return cls(
            scale=(float(height), float(size * stretch), float(size / stretch)),
            warp=tuple(WaveField.draw(rng, scale=42.0, sd=3.2) for _ in range(3)),
            tissue=TissueHU.draw(rng),
            trunk=Trunk.draw(rng),
            organs=Organs.draw(rng),
            portal=draw_tree(rng, PORTAL_BRANCHES, HILUM),
            hepatic=draw_tree(rng, HEPATIC_BRANCHES, HEPATIC_ROOT),
            texture=(WaveField.draw(rng, scale=9.0, sd=1.6), WaveField.draw(rng, scale=2.2, sd=2.0, waves=32)),
        )

    @property
    def width_mm(self) -> float:
        """Width of the body from side to side."""
        return 2 * self.trunk.half_width_mm * self.scale[2]

    @property
    def liver_box_mm(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest (z, y, x) that the liver may reach, patient mm."""
        low, high = LIVER_BOX
        scale = np.array(self.scale)
        return np.array(low) * scale, np.array(high) * scale

    def frame_mm(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Lowest and highest y and x that the body may reach, patient mm."""
        (top, bottom), (left, right) = self.trunk.frame
        return (top * self.scale[1], bottom * self.scale[1]), (left * self.scale[2], right * self.scale[2])

    def plane(self, z: float, y: np.ndarray, x: np.ndarray) -> Plane:
        """An empty plane at height `z` over rows `y` and columns `x`, patient mm."""
        height = z / self.scale[0]
        rows, columns = (y / self.scale[1]).astype(np.float32), (x / self.scale[2]).astype(np.float32)
        straight = (np.float32(height), rows[:, None], columns[None])
        pz, py, px = (p + w.grid(height, rows, columns) for p, w in zip(straight, self.warp, strict=True))
        cavity, diaphragm = self.trunk.cavity_distance(py, px), self.trunk.diaphragm_distance(pz, py, px)
        return Plane(y, x, height, rows, columns, (pz, py, px), cavity, diaphragm)

    def liver_distance_mm(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Signed distance of patient points (arrays of one shape) to the liver's surface, first order."""
        flat = [np.asarray(p, np.float32) / s for p, s in zip((z, y, x), self.scale, strict=True)]
        pz, py, px = (p + w.at(*flat) for p, w in zip(flat, self.warp, strict=True))
        cavity, diaphragm = self.trunk.cavity_distance(py, px), self.trunk.diaphragm_distance(pz, py, px)
        return self._liver((pz, py, px), cavity, diaphragm) * min(self.scale)

    def cuts_liver(self, plane: Plane) -> bool:
        """Whether a plane holds a sample of liver."""
        return bool((self._liver(plane.points, plane.cavity, plane.diaphragm) < 0).any())

    def paint(self, plane: Plane) -> None:
        """Paint the whole body without lesions, from the back to the front."""
        self.trunk.paint_wall(plane)
        paint_muscles(plane)
        self.trunk.paint_spine(plane)
        for tube in (*MESENTERIC, *RENAL, *SPLENIC_VEIN):
            plane.paint_shape(tube, self.tissue.vessel, Organ.PORTAL_VEIN)
        paint_gut(plane, self.organs, self.tissue.pancreas)
        self.trunk.paint_chest(plane, self.tissue.vessel)
        paint_kidneys(plane, self.organs, self.tissue.kidney)
        paint_spleen(plane, self.organs, self.tissue.spleen)
        for tube in PORTAL_TRUNK:
            plane.paint_shape(tube, self.tissue.vessel, Organ.PORTAL_VEIN)
        self._paint_liver(plane)
        for tube in AORTA:
            plane.paint_shape(tube, self.tissue.vessel, Organ.AORTA)
        for tube in CAVA:
            where = plane.window(tube.bounds())
            if where is not None:
                share = plane.paint(where, tube.distance(*plane.at(where)), self.tissue.vessel - 2, Organ.CAVA)
                plane.liver[where] *= 1 - share

    def _paint_liver(self, plane: Plane) -> None:
        """Parenchyma and the veins inside; keeps the share of liver in `plane.liver`."""
        where = plane.window(LIVER_BOX)
        if where is None:
            return
        rows, columns = plane.rows[where[0]], plane.columns[where[1]]
        parenchyma = self.tissue.liver + sum(field.grid(plane.height, rows, columns) for field in self.texture)
        distance = self._liver(plane.at(where), plane.cavity[where], plane.diaphragm[where])
        plane.liver[where] = plane.paint(where, distance, parenchyma, Organ.LIVER)
        for tube in self.portal:
            plane.paint_shape(tube, self.tissue.vessel, Organ.PORTAL_VEIN, within=plane.liver)
        for tube in self.hepatic:
            plane.paint_shape(tube, self.tissue.vessel - 4, Organ.HEPATIC_VEIN, within=plane.liver)

    def _liver(self, points: Points, cavity: np.ndarray, diaphragm: np.ndarray) -> np.ndarray:
        """Signed distance to the liver, model mm: two lobes within wall and diaphragm, dented by neighbours."""
        z, y, x = points
        low = np.maximum(-z, 0)  # the lower right lobe runs to the side and the back
        lobe = self.organs.right_lobe.distance(z, y - 0.12 * low, x + 0.36 * low)
        distance = smooth_union(lobe, self.organs.left_lobe.distance(z, y, x), 14.0)
        distance = np.maximum(smooth_cut(distance, -(cavity + 2.5), 6.0), diaphragm + 0.6)
        near = _Near(float(z.min()), float(z.max()))
        if near.any_of(self.organs.stomach):
            distance = smooth_cut(distance, stomach_distance(self.organs, z, y, x) - 2.5, 5.0)
        kidney = self.organs.kidneys[1]
        if near.any_of([kidney]):  # open to the back and the middle, where fat surrounds the kidney
            _, cy, cx = kidney.center
            along = np.maximum((y - cy) + (x - cx), 0) / 2
            distance = smooth_cut(distance, kidney.distance(z, y - along, x - along) - 4.0, 5.0)
        for hollow in (*self.organs.gallbladder, PORTA, HOLLOW):  # open downwards
            if near.below(hollow):
                distance = smooth_cut(distance, hollow.distance(np.maximum(z, hollow.center[0]), y, x), 3.0)
        for fissure in FISSURE:
            if near.any_of([fissure]):
                distance = smooth_cut(distance, fissure.distance(z, y, x), 2.0)
        return distance


class _Near(NamedTuple):
    """Heights of the points in hand: what lies far above or below them cannot dent the liver there."""

    low: float
    high: float
    reach_mm: float = 8.0

    def any_of(self, shapes: Sequence[Shape]) -> bool:
        """Whether one of the shapes reaches the points' heights."""
        spans = [shape.bounds() for shape in shapes]
        return any(low[0] - self.reach_mm < self.high and self.low < high[0] + self.reach_mm for low, high in spans)

    def below(self, shape: Shape) -> bool:
        """The same for a shape that is open downwards."""
        return self.low < shape.bounds()[1][0] + self.reach_mm
