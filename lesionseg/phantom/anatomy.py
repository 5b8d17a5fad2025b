"""The body of a generated patient: a 3-D model in continuous coordinates, drawn from a seed and painted on any axial plane.

A reference body (z to the head, y to the back, x to the patient's left, mm; the liver lies between about −80 and 65 in z) is
scaled to the patient and bent by a smooth random warp, so that neighbouring planes always agree. HU are those of the
portal-venous phase: liver 100…120, blood pool 150…180, spleen about 120, renal parenchyma about 180, muscle 60, fat −100,
bone 300…1000 (Hounsfield units of organs in that phase: T. Kobayashi et al., AJR 2010;194:W65; M. Lamba et al.,
AJR 2014;203:W314). Livers with less (steatosis) are not drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lesionseg.phantom.geometry import Ellipsoid, Plane, Points, Shape, Tube, WaveField, chain, smooth_cut, smooth_union
from lesionseg.phantom.trunk import WHOLE, Organ, Trunk
from lesionseg.phantom.vessels import (
    AORTA,
    CAVA,
    HEPATIC_BRANCHES,
    HILUM,
    MESENTERIC,
    PORTAL_BRANCHES,
    PORTAL_TRUNK,
    RENAL,
    SPLENIC_VEIN,
    draw_tree,
)

#: Heights of the reference body between which its liver lies, with room for the warp.
LIVER_RANGE_MM = (-98.0, 72.0)
BILE_HU, CONTENT_HU, WALL_HU = 12.0, 25.0, 85.0


@dataclass(frozen=True)
class TissueHU:
    """HU of what takes up contrast medium, drawn for each scan. Ranges leave room for a scanner's offset of ±3 HU."""

    liver: float
    vessel: float
    spleen: float
    kidney: float
    pancreas: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> TissueHU:
        """Draw a scan; spleen and kidneys follow the blood pool."""
        liver, vessel = float(rng.uniform(104, 116)), float(rng.uniform(154, 176))
        spleen = 120 + 0.3 * (vessel - 165) + float(rng.normal(0, 3))
        kidney = 180 + 0.6 * (vessel - 165) + float(rng.normal(0, 4))
        return cls(liver, vessel, spleen, kidney, float(rng.uniform(88, 104)))


@dataclass(frozen=True, eq=False)
class Body:
    """One patient without lesions.

    Attributes:
        scale: size of the patient over the reference body along (z, y, x).
        warp: displacement along (z, y, x), model mm.
        tissue: HU of this scan.
        trunk: wall, spine, chest.
        organs: named shapes, model mm.
        portal, hepatic: liver veins.
        texture: fields of the parenchyma: HU.
    """

    scale: tuple[float, float, float]
    warp: tuple[WaveField, WaveField, WaveField]
    tissue: TissueHU
    trunk: Trunk
    organs: dict[str, tuple[Shape, ...]]
    portal: list[Tube]
    hepatic: list[Tube]
    texture: tuple[WaveField, WaveField]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Body:
        """Draw a patient."""
        height, size = rng.uniform(0.92, 1.06), rng.normal(1.0, 0.035)
        stretch = rng.normal(1.0, 0.02)
        return cls(
            scale=(float(height), float(size * stretch), float(size / stretch)),
            warp=tuple(WaveField.draw(rng, scale=45.0, sd=3.2) for _ in range(3)),  # type: ignore[arg-type]
            tissue=TissueHU.draw(rng),
            trunk=Trunk.draw(rng),
            organs=_draw_organs(rng),
            portal=draw_tree(rng, PORTAL_BRANCHES, HILUM),
            hepatic=draw_tree(rng, HEPATIC_BRANCHES, (43.0, 4.0, -22.0)),
            texture=(WaveField.draw(rng, scale=9.0, sd=1.6), WaveField.draw(rng, scale=2.2, sd=2.2, waves=32)),
        )

    @property
    def width_mm(self) -> float:
        """Width of the body from side to side."""
        return 2 * self.trunk.half_width_mm * self.scale[2]

    @property
    def liver_range_mm(self) -> tuple[float, float]:
        """Lowest and highest z that the liver may reach, patient mm."""
        return LIVER_RANGE_MM[0] * self.scale[0], LIVER_RANGE_MM[1] * self.scale[0]

    def model_points(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> Points:
        """Patient mm → model mm, for points of any one shape."""
        flat = tuple(np.asarray(p, np.float32) / s for p, s in zip((z, y, x), self.scale, strict=True))
        return tuple(p + w.at(*flat) for p, w in zip(flat, self.warp, strict=True))  # type: ignore[return-value]

    def plane(self, z: float, y: np.ndarray, x: np.ndarray) -> Plane:
        """An empty plane at height `z` over rows `y` and columns `x`, patient mm."""
        axes = (z / self.scale[0], (y / self.scale[1]).astype(np.float32), (x / self.scale[2]).astype(np.float32))
        straight = (axes[0], axes[1][:, None], axes[2][None])
        points = tuple(p + w.grid(*axes) for p, w in zip(straight, self.warp, strict=True))
        return Plane(y, x, axes, points)  # type: ignore[arg-type]

    def liver_distance_mm(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Signed distance of patient points (one shape) to the liver's surface, first order."""
        return self._liver(*self.model_points(z, y, x)) * min(self.scale)

    def cuts_liver(self, plane: Plane) -> bool:
        """Whether a plane holds a sample of liver."""
        return bool((self._liver(*plane.points) < 0).any())

    def paint(self, plane: Plane) -> None:
        """Paint the whole body without lesions."""
        z, y, x = plane.points
        self.trunk.paint_wall(plane, z, y, x)
        self._paint_retroperitoneum(plane)
        self.trunk.paint_spine(plane)
        self._paint_gut(plane, z, y, x)
        self.trunk.paint_chest(plane, z, y, x, self.tissue.vessel)
        self._paint_vessels(plane)
        self._paint_kidneys(plane)
        self._paint_spleen(plane)
        self._paint_liver(plane)

    def _paint_retroperitoneum(self, plane: Plane) -> None:
        for name in ("psoas", "crura"):
            for shape in self.organs[name]:
                plane.paint_shape(shape, 62.0, Organ.MUSCLE)

    def _paint_vessels(self, plane: Plane) -> None:
        blood = self.tissue.vessel
        for tube in (*MESENTERIC, *RENAL, *SPLENIC_VEIN, *PORTAL_TRUNK):
            plane.paint_shape(tube, blood, Organ.PORTAL_VEIN)
        for tube in CAVA:
            plane.paint_shape(tube, blood - 2, Organ.CAVA)
        for tube in AORTA:
            plane.paint_shape(tube, blood, Organ.AORTA)

    def _paint_gut(self, plane: Plane, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> None:
        """Pancreas, bowel with contents and gas, stomach with fluid and gas, gallbladder."""
        lobules = self.texture[1].grid(float(z.flat[0]), plane.y, plane.x)
        for shape in self.organs["pancreas"]:
            where = plane.window(shape.bounds())
            if where is not None:
                distance = shape.distance(*plane.at(where)) + 0.7 * lobules[where]
                plane.paint(where, distance, self.tissue.pancreas + 4 * lobules[where], Organ.PANCREAS)
        for name in ("small_bowel", "duodenum"):
            for shape in self.organs[name]:
                plane.paint_shape(shape, WALL_HU + 10, Organ.BOWEL)
        for name in ("small_bowel", "duodenum"):
            for tube in self.organs[name]:
                assert isinstance(tube, Tube)
                lumen = tube._replace(radius_start=tube.radius_start - 3.5, radius_end=tube.radius_end - 3.5)
                plane.paint_shape(lumen, CONTENT_HU + 12, Organ.BOWEL)
        self._paint_hollow(plane, "colon", 2.2, CONTENT_HU + 5 * lobules, gas=3.0)
        self._paint_hollow(plane, "stomach", 4.2, CONTENT_HU + 2 * lobules, gas=-16.0)
        for shape in self.organs["gallbladder"]:
            plane.paint_shape(shape, 70.0, Organ.GALLBLADDER)
            where = plane.window(shape.bounds())
            if where is not None:
                plane.paint(where, shape.distance(*plane.at(where)) + 1.6, BILE_HU, Organ.GALLBLADDER)

    def _paint_hollow(self, plane: Plane, name: str, wall_mm: float, content: np.ndarray, gas: float) -> None:
        """A hollow organ of several shapes joined: wall, contents, and gas in front of a level (the patient lies on the back).

        `gas` is the height of the level before the middle of each shape, in mm towards the back.
        """
        organ = Organ.STOMACH if name == "stomach" else Organ.BOWEL
        for inset, hu in ((0.0, WALL_HU), (wall_mm, content)):
            for shape in self.organs[name]:
                where = plane.window(shape.bounds())
                if where is not None:
                    value = hu if isinstance(hu, float) else hu[where]
                    plane.paint(where, shape.distance(*plane.at(where)) + inset, value, organ)
        for shape in self.organs[name]:
            where = plane.window(shape.bounds())
            if where is not None:
                low, high = shape.bounds()
                level = plane.y[where[0]][:, None] / self.scale[1] - ((low[1] + high[1]) / 2 + gas)
                plane.paint(where, np.maximum(shape.distance(*plane.at(where)) + wall_mm, level), -960.0, organ)

    def _paint_kidneys(self, plane: Plane) -> None:
        cortex = self.tissue.kidney + 8
        for shape in self.organs["kidneys"]:
            where = plane.window(shape.bounds())
            if where is None:
                continue
            z, y, x = plane.at(where)
            distance = self._kidney_distance(shape, z, y, x)
            plane.paint(where, distance, cortex, Organ.KIDNEY)
            # Pyramids: medulla in the inner half, in columns that alternate round the sinus.
            around = np.arctan2(y - shape.center[1], x - shape.center[2]) * 4 + z / 6
            medulla = np.maximum(distance + 7.5, 2.2 * np.cos(around))
            plane.paint(where, medulla, cortex - 24, Organ.KIDNEY)
            plane.paint(where, self._sinus_distance(shape, z, y, x), -75.0, Organ.FAT)

    def _paint_spleen(self, plane: Plane) -> None:
        (shape,) = self.organs["spleen"]
        where = plane.window(shape.bounds())
        if where is None:
            return
        z, y, x = plane.at(where)
        distance = np.maximum(shape.distance(z, y, x), self.trunk.cavity_distance(y, x) + 3.0)
        distance = np.maximum(distance, self.trunk.diaphragm_distance(z, y, x) + 2.5)
        for name in ("stomach", "kidneys"):
            for other in self.organs[name]:
                distance = smooth_cut(distance, other.distance(z, y, x) - 4.0, 4.0)
        share = plane.paint(where, distance, self.tissue.spleen, Organ.SPLEEN)
        plane.hu[where] += (share > 0.5) * 0.4 * self.texture[0].grid(0.0, plane.y[where[0]], plane.x[where[1]])

    def _paint_liver(self, plane: Plane) -> None:
        """Parenchyma, fissure, and the veins inside; keeps the share of liver in `plane.liver`."""
        where = plane.window((np.array([-110.0, -105.0, -140.0]), np.array([85.0, 100.0, 120.0])))
        if where is None:
            return
        z, y, x = plane.at(where)
        rows, columns = plane.y[where[0]], plane.x[where[1]]
        height = float(z.flat[0])
        parenchyma = self.tissue.liver + sum(field.grid(height, rows, columns) for field in self.texture)
        plane.liver[where] = plane.paint(where, self._liver(z, y, x), parenchyma, Organ.LIVER)
        for tubes, organ, hu in (
            (self.portal, Organ.PORTAL_VEIN, self.tissue.vessel),
            (self.hepatic, Organ.HEPATIC_VEIN, self.tissue.vessel - 4),
        ):
            for tube in tubes:
                plane.paint_shape(tube, hu, organ, within=plane.liver)

    def _liver(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Signed distance to the liver, model mm: two lobes, bounded by wall and diaphragm, pressed in by its neighbours."""
        right, left = self.organs["liver"]
        low = np.maximum(-z, 0)
        lobe = right.distance(z, y - 0.12 * low, x + 0.36 * low)
        distance = smooth_union(lobe, left.distance(z, y, x), 14.0)
        distance = smooth_cut(distance, -(self.trunk.cavity_distance(y, x) + 3.0), 6.0)
        distance = smooth_cut(distance, -(self.trunk.diaphragm_distance(z, y, x) + 2.0), 6.0)
        for name, gap_mm in (
            ("stomach", 2.5),
            ("kidneys", 4.0),
            ("gallbladder", 0.5),
            ("fissure", 0.0),
            ("hilum", 0.0),
        ):
            for other in self.organs[name]:
                distance = smooth_cut(distance, other.distance(z, y, x) - gap_mm, 5.0 if gap_mm > 1 else 2.0)
        for tube in CAVA[1:]:
            distance = np.maximum(distance, -(tube.distance(z, y, x) - 0.8))
        return distance

    @staticmethod
    def _kidney_distance(shape: Shape, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        return smooth_cut(shape.distance(z, y, x), Body._sinus_distance(shape, z, y, x), 3.0)

    @staticmethod
    def _sinus_distance(shape: Shape, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Fat of the renal sinus, open to the middle and the front."""
        assert isinstance(shape, Ellipsoid)
        cz, cy, cx = shape.center
        return Ellipsoid((cz, cy - 8, cx - 15 * float(np.sign(cx))), (24, 9, 15)).distance(z, y, x)


def _draw_organs(rng: np.random.Generator) -> dict[str, tuple[Shape, ...]]:
    """Shapes of the organs, each moved and scaled a little; model mm."""

    def blob(center: tuple[float, float, float], semi: tuple[float, float, float], turn: float = 0.0) -> Ellipsoid:
        moved, grown = np.array(center) + rng.normal(0, 2.5, 3), np.array(semi) * rng.normal(1, 0.05, 3)
        return Ellipsoid(tuple(moved.tolist()), tuple(grown.tolist()), turn)

    gallbladder = blob((-40, -46, -44), (25, 13, 13)) if rng.random() < 0.7 else None
    reach = float(rng.uniform(-14, 16))  # how far the left lobe reaches to the left
    stomach = (blob((20, -2, 60), (46, 40, 36), 0.35), blob((-24, -44, 34), (20, 20, 44), -0.25))
    return {
        "liver": (blob((-4, -2, -70), (82, 94, 84)), blob((12, -44, 2 + reach), (42, 32, 78), 0.12)),
        "spleen": (blob((12, 38, 112), (48, 46, 34), 0.35),),
        "kidneys": (blob((-44, 48, 62), (52, 29, 26)), blob((-60, 50, -62), (52, 29, 26))),
        "stomach": stomach,
        "gallbladder": () if gallbladder is None else (gallbladder,),
        "fissure": (Tube((-48, -62, 8), (14, -76, 4), 2.6, 1.6), Tube((-40, -88, 10), (10, -92, 6), 3.0, 1.6)),
        "hilum": (Ellipsoid((-14, -10, -16), (14, 9, 22)), Ellipsoid((-48, 2, 6), (34, 44, 48))),
        "pancreas": tuple(chain([(-52, -14, -26), (-36, -26, -2), (-24, -16, 34), (-8, 6, 76)], [13, 10, 9, 8])),
        "duodenum": tuple(chain([(-30, -34, -22), (-36, -18, -42), (-82, -8, -42), (-96, -4, 6)], [12, 12, 12, 11])),
        "psoas": tuple(Tube((-34, 56, 30 * side), (-160, 60, 50 * side), 4.0, 24.0) for side in (-1.0, 1.0)),
        "crura": tuple(Tube((44, 20, 10 + 14 * side), (-60, 34, 4 + 17 * side), 4.5, 5.5) for side in (-1.0, 1.0)),
        "colon": _draw_colon(rng),
        "small_bowel": _draw_small_bowel(rng),
    }


def _draw_colon(rng: np.random.Generator) -> tuple[Shape, ...]:
    """Ascending colon, hepatic flexure, transverse colon, splenic flexure, descending colon."""
    course = [
        (-170, 6, -104),
        (-92, -18, -98),
        (-84, -58, -64),
        (-78, -76, -10),
        (-62, -72, 48),
        (-30, -34, 98),
        (-60, 14, 112),
        (-170, 18, 106),
    ]
    moved = [tuple((np.array(p) + rng.normal(0, 5, 3)).tolist()) for p in course]
    return tuple(chain(moved, (rng.uniform(14, 21, len(course))).tolist()))


def _draw_small_bowel(rng: np.random.Generator) -> tuple[Shape, ...]:
    """Loops in the lower left, below the pancreas."""
    loops: list[Shape] = []
    for _ in range(9):
        start = np.array([rng.uniform(-130, -52), rng.uniform(-64, -8), rng.uniform(-34, 86)])
        middle = start + rng.normal(0, 18, 3)
        end = middle + rng.normal(0, 18, 3)
        radii = rng.uniform(9, 13, 3).tolist()
        loops += chain([tuple(p.tolist()) for p in (start, middle, end)], radii)
    return tuple(loops)
