"""The trunk of the phantom: table, skin, fat, muscle, ribs, spine, lungs and heart, painted from back to front."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from lesionseg.phantom.geometry import Ellipsoid, Plane, Tube, WaveField, coverage, smooth_union


class Organ(IntEnum):
    """Ids of the organ map that the phantom keeps beside its HU."""

    AIR = 0
    FAT = 1
    MUSCLE = 2
    BONE = 3
    LUNG = 4
    HEART = 5
    AORTA = 6
    CAVA = 7
    KIDNEY = 8
    SPLEEN = 9
    STOMACH = 10
    BOWEL = 11
    PANCREAS = 12
    GALLBLADDER = 13
    LIVER = 14
    PORTAL_VEIN = 15
    HEPATIC_VEIN = 16
    LESION = 17


#: HU of what takes up no contrast medium. Bone 300…1000: cancellous to cortical.
AIR_HU, LUNG_HU, FAT_HU, MUSCLE_HU, SKIN_HU, CARTILAGE_HU = -1000.0, -860.0, -102.0, 60.0, 30.0, 120.0
CORTEX_HU, CANCELLOUS_HU, DISC_HU, CORD_HU, TABLE_HU = 720.0, 310.0, 85.0, 35.0, 20.0

#: Inner border of the trunk wall and its outer border without subcutaneous fat, as ellipses (y, x): centre, semi-axes.
CAVITY, WALL = ((-6.0, 0.0), (94.0, 131.0)), ((-3.0, 0.0), (107.0, 143.0))
VERTEBRA_PITCH_MM, DISC_MM, RIB_PITCH_MM, RIB_FALL_MM = 33.0, 6.0, 25.0, 130.0
WHOLE = (slice(None), slice(None))


@dataclass(frozen=True, eq=False)
class Trunk:
    """What is drawn for a patient about the trunk.

    Attributes:
        fat_mm: thickness of the subcutaneous fat at the flank.
        dome_mm: heights of the right and the left dome of the diaphragm.
        spine_shift_mm: height of a disc.
        rib_shift_mm: height at which the lowest rib meets the spine.
        strands: field that puts fat between the muscles and vessels into the fat.
        table_mm: distance of the table from the back.
    """

    fat_mm: float
    dome_mm: tuple[float, float]
    spine_shift_mm: float
    rib_shift_mm: float
    strands: WaveField
    table_mm: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Trunk:
        """Draw a patient: slim to obese."""
        return cls(
            fat_mm=float(np.clip(rng.lognormal(2.7, 0.4), 7, 30)),
            dome_mm=(float(rng.uniform(58, 68)), float(rng.uniform(46, 58))),
            spine_shift_mm=float(rng.uniform(0, VERTEBRA_PITCH_MM)),
            rib_shift_mm=float(rng.uniform(-22, 0)),
            strands=WaveField.draw(rng, scale=5.0, sd=1.0, waves=32),
            table_mm=float(rng.uniform(2, 8)),
        )

    @property
    def half_width_mm(self) -> float:
        """Half the width of the body, in model mm."""
        return WALL[1][1] + self.fat_mm

    @property
    def half_depth_mm(self) -> float:
        """Half the depth of the body, in model mm."""
        return WALL[1][0] + 0.75 * self.fat_mm

    @property
    def frame(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Lowest and highest y and x of the body with room for the warp, model mm."""
        middle, room = WALL[0][0] - 0.1 * self.fat_mm, 14.0
        y, x = self.half_depth_mm + room, self.half_width_mm + room
        return (middle - y, middle + y), (-x, x)

    def cavity_distance(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Signed distance to the inside of the trunk wall; the spine bulges into it."""
        inside = _oval(y, x, *CAVITY, 2.3)
        spine = _oval(y, x, (84.0, 0.0), (50.0, 44.0), 2.0)
        return -smooth_union(-inside, spine, 8.0)

    def diaphragm_distance(self, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Signed distance to the diaphragm, negative below it; two domes, low at the back and the sides."""
        right_y, left_y = np.where(y > -8, 66.0, 124.0), np.where(y > -2, 78.0, 124.0)
        right_x, left_x = np.where(x > -66, 116.0, 84.0), np.where(x < 62, 104.0, 88.0)
        right = self.dome_mm[0] - 50 * (((x + 66) / right_x) ** 2 + ((y + 8) / right_y) ** 2)
        left = self.dome_mm[1] - 50 * (((x - 62) / left_x) ** 2 + ((y + 2) / left_y) ** 2)
        return 0.75 * (z + smooth_union(-right, -left, 12.0))

    def table(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """HU round the patient, rows `y` (H,) and columns `x` (W,) in mm: air, and the two shells of the table."""
        hu = np.full((len(y), len(x)), AIR_HU, np.float32)
        depth = self.half_depth_mm + WALL[0][0] + self.table_mm + 6
        down, across = y[:, None], x[None]
        for offset, radius in ((0.0, 620.0), (22.0, 700.0)):
            shell = np.abs(np.hypot(down - depth - offset + radius, across) - radius) - 1.2
            share = coverage(np.maximum(shell, np.abs(across) - 195.0), float(x[1] - x[0]))
            hu += share * (TABLE_HU - hu)
        return hu

    def paint_wall(self, plane: Plane) -> None:
        """Skin, fat, muscles and ribs."""
        _, y, x = plane.points
        skin = _oval(y, x, (WALL[0][0] - 0.1 * self.fat_mm, 0.0), (self.half_depth_mm, self.half_width_mm), 2.3)
        strands = self.strands.grid(plane.height, plane.rows, plane.columns)
        fat = FAT_HU + 5 * strands + 55 * np.clip(strands - 2.1, 0, 1)
        plane.paint(WHOLE, skin, SKIN_HU, Organ.FAT)
        plane.paint(WHOLE, skin + 1.8, fat, Organ.FAT)
        course = np.arctan2(np.abs(x), y + 6) / np.pi  # 0 at the back, 1 at the front
        # Fat between the muscles: clefts at the back, a plane between the layers at the side.
        clefts = np.clip(1 - np.abs(strands + 0.2) / 0.16, 0, 1) * np.clip((y - 40) / 30, 0.1, 1)
        layers = np.clip(1.3 - np.abs(plane.cavity - 10.5 - strands), 0, 1) * (strands > -0.6) * (course > 0.25)
        muscle = MUSCLE_HU + 3 * strands - 75 * np.maximum(clefts, 0.8 * layers)
        plane.paint(WHOLE, self._muscle_distance(course, y, x), muscle, Organ.MUSCLE)
        plane.paint(WHOLE, plane.cavity, fat - 2, Organ.FAT)
        self._paint_ribs(plane, course)

    @staticmethod
    def _muscle_distance(course: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Outer border of the muscles: thin in the front's middle line and beside the recti, thick behind the side."""
        wall = _oval(y, x, *WALL, 2.3)
        front = np.clip(-y / 60, 0, 1)
        thin = 6.0 * np.exp(-((x / 7) ** 2)) + 4.5 * np.exp(-(((np.abs(x) - 74) / 9) ** 2))
        return wall + front * thin - 5.5 * np.exp(-(((course - 0.34) / 0.1) ** 2))

    def paint_spine(self, plane: Plane) -> None:
        """Vertebrae with cortex, discs, canal, laminae, transverse and spinous processes."""
        where = plane.window(((-1e4, 24.0, -52.0), (1e4, 106.0, 52.0)))
        if where is None:
            return
        z, y, x = plane.at(where)
        level = (z - self.spine_shift_mm) % VERTEBRA_PITCH_MM - VERTEBRA_PITCH_MM / 2  # 0 at the middle of a vertebra
        waist = 1.5 * np.cos(2 * np.pi * level / VERTEBRA_PITCH_MM)
        body = _oval(y, x, (47.0, 0.0), (16.0, 22.0), 2.4) + waist
        endplate = np.abs(level) - (VERTEBRA_PITCH_MM - DISC_MM) / 2
        arch = self._arch_distance(level, y, x)
        plane.paint(where, arch, CORTEX_HU - 100, Organ.BONE)
        plane.paint(where, arch + 2.4, CANCELLOUS_HU, Organ.BONE)
        plane.paint(where, body, DISC_HU, Organ.MUSCLE)
        bone = np.maximum(body, endplate)
        plane.paint(where, bone, CORTEX_HU, Organ.BONE)
        marrow = CANCELLOUS_HU + 25 * self.strands.at(3 * z, 3 * y, 3 * x)
        plane.paint(where, bone + 2.0, marrow, Organ.BONE)
        canal = _oval(y, x, (71.0, 0.0), (8.0, 10.0), 2.0)
        plane.paint(where, canal, FAT_HU + 40, Organ.FAT)
        plane.paint(where, canal + 2, CORD_HU, Organ.MUSCLE)

    def paint_chest(self, plane: Plane, blood_hu: float) -> None:
        """Lungs above the diaphragm, the heart in its fat between them, the gullet."""
        if not ((plane.diaphragm > -2) & (plane.cavity < 0)).any():
            return
        z, y, x = plane.points
        middle = Ellipsoid((92, -34, 10), (68, 64, 66)).distance(z, y, x)
        chest = np.maximum(np.maximum(plane.cavity + 1.5, -plane.diaphragm), -middle)
        strands = self.strands.grid(1.7 * plane.height, 1.7 * plane.rows, 1.7 * plane.columns)
        tissue = LUNG_HU + 30 * strands + 500 * np.clip(strands - 1.9, 0, 1)
        plane.paint(WHOLE, chest - 0.6, MUSCLE_HU, Organ.MUSCLE)
        plane.paint(WHOLE, chest + 0.6, tissue, Organ.LUNG)
        plane.paint_shape(Ellipsoid((98, -34, 18), (52, 50, 56), 0.5), 115.0, Organ.HEART)
        plane.paint_shape(Ellipsoid((98, -28, 38), (42, 24, 24), 0.5), blood_hu, Organ.HEART)
        plane.paint_shape(Ellipsoid((96, -46, -6), (40, 26, 28), 0.4), blood_hu, Organ.HEART)
        plane.paint_shape(Tube((130, 8, 16), (34, 4, 22), 8.0, 8.0), 50.0, Organ.STOMACH)

    def _paint_ribs(self, plane: Plane, course: np.ndarray) -> None:
        """Ribs fall from the spine to the front; the lowest two are short, the others end in cartilage."""
        z, cavity = plane.points[0], plane.cavity
        height = (z - self.rib_shift_mm + RIB_FALL_MM * course) / RIB_PITCH_MM
        number = np.round(height)
        offset = (height - number) * RIB_PITCH_MM
        rib = 4.2 * (np.sqrt(((cavity - 5.6) / 4.2) ** 2 + (offset / 6.5) ** 2) - 1)
        end = np.select([number < 0, number < 1, number < 2], [0.0, 0.38, 0.52], 0.72)
        bony = np.maximum(rib, 150 * (course - end))
        gristle = np.maximum(rib, np.maximum(100 * (course - 0.93), np.where(number < 2, 9.0, -9.0)))
        plane.paint(WHOLE, gristle, CARTILAGE_HU, Organ.MUSCLE)
        plane.paint(WHOLE, bony, CORTEX_HU, Organ.BONE)
        plane.paint(WHOLE, bony + 1.9, CANCELLOUS_HU, Organ.BONE)

    @staticmethod
    def _arch_distance(level: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Laminae, transverse processes and the spinous process of one vertebra; `level` counts from its middle."""
        side = np.abs(x)
        lamina = np.abs(np.hypot(y - 71, side) - 14) - 3.5
        lamina = np.maximum(lamina, np.abs(level) - 11)
        transverse = Tube((2, 68, 12), (-2, 78, 42), 5.0, 3.5).distance(level, y, side)
        spinous = np.maximum(np.maximum(side - 2.6, np.abs(y - 90) - 12), np.abs(level + 0.4 * (y - 84)) - 11)
        return np.minimum(np.minimum(lamina, transverse), spinous)


def _oval(
    y: np.ndarray, x: np.ndarray, center: tuple[float, float], semi: tuple[float, float], power: float
) -> np.ndarray:
    """Distance along the ray from the centre to a superellipse (y, x)."""
    dy, dx = y - center[0], x - center[1]
    level = (np.abs(dy / semi[0]) ** power + np.abs(dx / semi[1]) ** power) ** (1 / power)
    return np.hypot(dy, dx) * (1 - 1 / np.maximum(level, 1e-3))
