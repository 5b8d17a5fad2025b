"""The organs of the phantom beside the liver: their shapes, drawn for a patient, and how they are painted.

Points are (z, y, x) in mm of the body model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lesionseg.phantom.geometry import (
    Ellipsoid,
    Plane,
    Point,
    Tube,
    WaveField,
    chain,
    coverage,
    smooth_cut,
    smooth_union,
)
from lesionseg.phantom.trunk import Organ

BILE_HU, BOWEL_WALL_HU, GAS_HU, SINUS_HU, PSOAS_HU = 12.0, 88.0, -960.0, -75.0, 62.0
#: Share of patients who still have a gallbladder, and share whose stomach holds oral contrast medium.
GALLBLADDER_SHARE, ORAL_CONTRAST_SHARE = 0.75, 0.15


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
        liver, vessel = float(rng.uniform(104, 116)), float(rng.uniform(155, 175))
        spleen = 120 + 0.3 * (vessel - 165) + float(rng.normal(0, 2.5))
        kidney = 182 + 0.6 * (vessel - 165) + float(rng.normal(0, 4))
        return cls(liver, vessel, spleen, kidney, float(rng.uniform(88, 104)))


@dataclass(frozen=True)
class Contents:
    """What stomach and colon hold: HU, and the height of the gas level over the middle of the organ, mm to the back."""

    stomach_hu: float
    stomach_gas_mm: float
    colon_hu: float
    colon_gas_mm: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Contents:
        """Draw a patient: water, food or oral contrast medium; little or much gas."""
        oral = rng.random() < ORAL_CONTRAST_SHARE
        stomach = float(rng.uniform(180, 320) if oral else rng.uniform(8, 50))
        return cls(stomach, float(rng.uniform(-34, -6)), float(rng.uniform(10, 60)), float(rng.uniform(-16, 6)))


@dataclass(frozen=True, eq=False)
class Organs:
    """Shapes of one patient."""

    right_lobe: Ellipsoid
    left_lobe: Ellipsoid
    spleen: Ellipsoid
    kidneys: tuple[Ellipsoid, Ellipsoid]
    stomach: tuple[Ellipsoid, Ellipsoid]
    gallbladder: tuple[Ellipsoid, ...]
    pancreas: list[Tube]
    duodenum: list[Tube]
    small_bowel: list[Tube]
    colon: list[Tube]
    contents: Contents
    folds: WaveField

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Organs:
        """Draw a patient: every organ moved and scaled a little."""
        gallbladder = (_blob(rng, (-46, -46, -38), (26, 14, 13), 2.5),) if rng.random() < GALLBLADDER_SHARE else ()
        reach = float(rng.uniform(-26, 20))  # how far the left lobe reaches to the left
        return cls(
            right_lobe=_blob(rng, (-4, -2, -70), (82, 94, 84), 2.5),
            left_lobe=_blob(rng, (12, -44, 2 + reach), (42, 31, 78), 2.5, 0.12),
            spleen=_blob(rng, (2, 34, 108), (54, 52, 38), 3.5, 0.3),
            kidneys=(_blob(rng, (-44, 46, 62), (52, 29, 26), 2.5), _blob(rng, (-60, 48, -60), (52, 29, 26), 2.5)),
            stomach=(
                _blob(rng, (20, 0, 58), (46, rng.uniform(32, 44), rng.uniform(24, 34)), 4.0, rng.uniform(0.2, 0.9)),
                _blob(rng, (-24, -42, 32), (18, 17, 44), 3.0, -0.25),
            ),
            gallbladder=gallbladder,
            pancreas=chain([(-52, -14, -26), (-36, -26, -2), (-24, -14, 34), (-8, 10, 74)], [13, 10, 9, 8]),
            duodenum=chain([(-30, -34, -22), (-36, -18, -42), (-82, -8, -42), (-96, -4, 6)], [12, 12, 12, 11]),
            small_bowel=_draw_small_bowel(rng),
            colon=_draw_colon(rng),
            contents=Contents.draw(rng),
            folds=WaveField.draw(rng, scale=7.0, sd=1.0),
        )


def paint_muscles(plane: Plane) -> None:
    """Psoas beside the spine, crura of the diaphragm beside the aorta."""
    for side in (-1.0, 1.0):
        plane.paint_shape(Tube((-34, 56, 30 * side), (-160, 60, 50 * side), 4.0, 24.0), PSOAS_HU, Organ.MUSCLE)
        plane.paint_shape(Tube((44, 22, 12 + 13 * side), (-60, 34, 5 + 16 * side), 4.5, 5.0), PSOAS_HU, Organ.MUSCLE)


def paint_gut(plane: Plane, organs: Organs, pancreas_hu: float) -> None:
    """Pancreas, small bowel, colon and stomach with contents and gas, gallbladder."""
    folds = organs.folds.grid(plane.height, plane.rows, plane.columns)
    for tube in organs.pancreas:
        where = plane.window(tube.bounds())
        if where is not None:
            distance = tube.distance(*plane.at(where)) + 1.2 * folds[where]
            plane.paint(where, distance, pancreas_hu + 4 * folds[where], Organ.PANCREAS)
    room = coverage(plane.cavity + 3, plane.edge_mm)
    for tube in (*organs.small_bowel, *organs.duodenum):
        plane.paint_shape(tube, BOWEL_WALL_HU + 12, Organ.BOWEL, within=room)
    for tube in (*organs.small_bowel, *organs.duodenum):
        lumen = tube._replace(radius_start=tube.radius_start - 4, radius_end=tube.radius_end - 4)
        plane.paint_shape(lumen, organs.contents.colon_hu + 10, Organ.BOWEL, within=room)
    _paint_colon(plane, organs, folds)
    _paint_stomach(plane, organs, folds)
    for shape in organs.gallbladder:
        plane.paint_shape(shape, 75.0, Organ.GALLBLADDER)
        inside = shape._replace(semi=_point(np.array(shape.semi) - 1.6))
        plane.paint_shape(inside, BILE_HU, Organ.GALLBLADDER)


def _paint_colon(plane: Plane, organs: Organs, folds: np.ndarray) -> None:
    """Wall, mottled stool, gas in front of its level (the patient lies on the back)."""
    for inset in (0.0, 2.2):
        for tube in organs.colon:
            where = plane.window(tube.bounds())
            if where is None:
                continue
            z, y, x = plane.at(where)
            distance = np.maximum(tube.distance(z, y, x) + 1.5 * folds[where], plane.cavity[where] + 3) + inset
            if inset == 0:
                plane.paint(where, distance, BOWEL_WALL_HU, Organ.BOWEL)
                continue
            stool = organs.contents.colon_hu + 14 * folds[where] - 300 * np.clip(np.abs(folds[where]) - 1.6, 0, 1)
            plane.paint(where, distance, stool, Organ.BOWEL)
            level = y - (tube.start[1] + tube.end[1]) / 2 - organs.contents.colon_gas_mm
            plane.paint(where, np.maximum(distance, level), GAS_HU, Organ.BOWEL)


def _paint_stomach(plane: Plane, organs: Organs, folds: np.ndarray) -> None:
    """Wall with folds, contents, gas in front of one level for the whole stomach."""
    body, antrum = organs.stomach
    (low, high), (other_low, other_high) = body.bounds(), antrum.bounds()
    margin = 4.0  # folds and the fillet reach over the two ellipsoids
    bounds = np.minimum(low, other_low) - margin, np.maximum(high, other_high) + margin
    where = plane.window((_point(bounds[0]), _point(bounds[1])))
    if where is None:
        return
    z, y, x = plane.at(where)
    outer = stomach_distance(organs, z, y, x) + 1.2 * folds[where]
    inner = outer + 4.0 + 1.4 * folds[where]
    plane.paint(where, outer, BOWEL_WALL_HU, Organ.STOMACH)
    plane.paint(where, inner, organs.contents.stomach_hu + 5 * folds[where], Organ.STOMACH)
    level = y - body.center[1] - organs.contents.stomach_gas_mm
    plane.paint(where, np.maximum(inner, level), GAS_HU, Organ.STOMACH)


def stomach_distance(organs: Organs, z: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Signed distance to the stomach, body and antrum joined."""
    body, antrum = organs.stomach
    return smooth_union(body.distance(z, y, x), antrum.distance(z, y, x), 10.0)


def paint_kidneys(plane: Plane, organs: Organs, kidney_hu: float) -> None:
    """Cortex, pyramids a little less dense, fat of the sinus."""
    for shape in organs.kidneys:
        where = plane.window(shape.bounds())
        if where is None:
            continue
        z, y, x = plane.at(where)
        cz, cy, cx = shape.center
        # The sinus opens to the middle and the front.
        sinus = Ellipsoid((cz, cy - 8, cx - 15 * float(np.sign(cx))), (24, 8, 15)).distance(z, y, x)
        distance = smooth_cut(shape.distance(z, y, x), sinus, 3.0)
        plane.paint(where, distance, kidney_hu + 5, Organ.KIDNEY)
        columns = 4 * np.cos(4 * np.arctan2(y - cy, x - cx) + z / 7) + 2 * organs.folds.at(z, y, x)
        pyramids = np.clip(-np.maximum(distance + 7.0, columns) / 4, 0, 1)
        plane.hu[where] -= 18 * pyramids
        plane.paint(where, sinus, SINUS_HU, Organ.FAT)


def paint_spleen(plane: Plane, organs: Organs, spleen_hu: float) -> None:
    """Against wall and diaphragm, hollowed by stomach and kidney."""
    where = plane.window(organs.spleen.bounds())
    if where is None:
        return
    z, y, x = plane.at(where)
    distance = np.maximum(organs.spleen.distance(z, y, x), plane.cavity[where] + 2.5)
    distance = np.maximum(distance, plane.diaphragm[where] + 1.5)
    distance = smooth_cut(distance, stomach_distance(organs, z, y, x) - 4.0, 5.0)
    distance = smooth_cut(distance, organs.kidneys[0].distance(z, y, x) - 5.0, 5.0)
    plane.paint(where, distance, spleen_hu, Organ.SPLEEN)


def _blob(rng: np.random.Generator, center: Point, semi: Point, move_mm: float, turn: float = 0.0) -> Ellipsoid:
    moved, grown = np.array(center) + rng.normal(0, move_mm, 3), np.array(semi) * rng.normal(1, 0.07, 3)
    return Ellipsoid(_point(moved), _point(grown), turn)


def _point(values: np.ndarray) -> Point:
    z, y, x = values.tolist()
    return z, y, x


def _draw_colon(rng: np.random.Generator) -> list[Tube]:
    """Ascending colon, hepatic flexure, transverse colon, splenic flexure, descending colon."""
    course = [
        (-170, 6, -104),
        (-92, -18, -98),
        (-84, -58, -64),
        (-80, -74, -10),
        (-64, -70, 48),
        (-36, -34, 98),
        (-60, 14, 112),
        (-170, 18, 106),
    ]
    moved = [_point(np.array(point) + rng.normal(0, 5, 3)) for point in course]
    return chain(moved, rng.uniform(13, 20, len(course)).tolist())


def _draw_small_bowel(rng: np.random.Generator) -> list[Tube]:
    """Loops below the pancreas, more to the left."""
    loops: list[Tube] = []
    for _ in range(12):
        start = np.array([rng.uniform(-130, -50), rng.uniform(-60, -6), rng.uniform(-34, 88)])
        middle = start + rng.normal(0, 17, 3)
        end = middle + rng.normal(0, 17, 3)
        loops += chain([_point(start), _point(middle), _point(end)], rng.uniform(10, 14, 3).tolist())
    return loops
