"""Vessels of the phantom as tapered tubes: portal and hepatic veins branching in the liver, and the great vessels.

Points are (z, y, x) in mm of the body model. Courses follow the usual anatomy: the portal vein divides at the hilum
into a right (anterior and posterior) and a left branch; three hepatic veins meet at the vena cava below the diaphragm
(C. Couinaud, Le foie, Masson 1957).
"""

from __future__ import annotations

import numpy as np

from lesionseg.phantom.geometry import Point, Tube, chain

#: Where the portal vein divides, and where the hepatic veins meet the vena cava.
HILUM: Point = (-8, -8, -22)
HEPATIC_ROOT: Point = (43, 4, -22)

#: Main branches: points and radii in mm; each bears random side branches.
PORTAL_BRANCHES: tuple[tuple[tuple[Point, ...], tuple[float, ...]], ...] = (
    ((HILUM, (-5, -4, -46), (4, -26, -70), (16, -44, -86)), (6.0, 5.0, 3.4, 1.8)),
    (((-5, -4, -46), (-8, 18, -78), (2, 38, -102)), (4.6, 3.4, 1.8)),
    (((-8, 18, -78), (-30, 26, -92), (-52, 24, -104)), (3.2, 2.4, 1.4)),
    (((-5, -4, -46), (-24, -24, -76), (-46, -30, -96)), (3.6, 2.6, 1.4)),
    ((HILUM, (2, -26, -8), (10, -38, 6), (16, -44, 32), (18, -38, 62)), (5.2, 4.4, 3.8, 2.4, 1.2)),
    (((10, -38, 6), (2, -56, 22), (-6, -66, 40)), (3.2, 2.2, 1.2)),
    (((10, -38, 6), (8, -58, -14), (4, -74, -30)), (3.0, 2.0, 1.2)),
)
HEPATIC_BRANCHES: tuple[tuple[tuple[Point, ...], tuple[float, ...]], ...] = (
    (((43, 4, -22), (37, 14, -54), (22, 24, -92), (0, 26, -118)), (5.0, 4.2, 2.8, 1.2)),
    (((43, 2, -22), (35, -22, -36), (18, -48, -50), (-10, -60, -58)), (4.6, 3.8, 2.6, 1.2)),
    (((43, 0, -20), (36, -24, -2), (27, -44, 24), (20, -48, 52)), (4.2, 3.4, 2.2, 1.0)),
)


def draw_tree(
    rng: np.random.Generator, branches: tuple[tuple[tuple[Point, ...], tuple[float, ...]], ...], root: Point
) -> list[Tube]:
    """A liver tree: the main branches, moved a little, with side branches that lead away from `root`."""
    tubes: list[Tube] = []
    for points, radii in branches:
        moved = [points[0], *(tuple((np.array(p) + rng.normal(0, 3.5, 3)).tolist()) for p in points[1:])]
        gauge = float(rng.uniform(0.85, 1.1))
        for tube in chain(moved, [gauge * r for r in radii]):
            tubes += [tube, *_side_branches(rng, tube, np.array(root), levels=2)]
    return tubes


def _side_branches(rng: np.random.Generator, parent: Tube, root: np.ndarray, levels: int) -> list[Tube]:
    """One or two thinner branches of a tube, and theirs."""
    tubes: list[Tube] = []
    for _ in range(rng.integers(1, 3)):
        share = rng.uniform(0.3, 1.0)
        start = (1 - share) * np.array(parent.start) + share * np.array(parent.end)
        radius = 0.62 * ((1 - share) * parent.radius_start + share * parent.radius_end)
        if radius < 0.7:
            continue
        outward = start - root
        along = np.array(parent.end) - np.array(parent.start)
        heading = _unit(outward) * 0.6 + _unit(along) * 0.5 + rng.normal(0, 0.6, 3)
        middle = start + _unit(heading) * rng.uniform(10, 20)
        end = middle + _unit(heading + rng.normal(0, 0.45, 3)) * rng.uniform(10, 22)
        bent = chain([tuple(start.tolist()), tuple(middle.tolist()), tuple(end.tolist())], [radius, 0.8 * radius, 0.5])
        tubes += bent
        if levels > 1:
            tubes += _side_branches(rng, bent[0], root, levels - 1)
    return tubes


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-6)


#: Outside the liver: aorta, vena cava, portal and splenic vein, mesenteric and renal vessels.
AORTA = chain([(130, 30, 20), (40, 22, 14), (-40, 20, 12), (-160, 26, 8)], [12, 11.5, 10, 8.5])
CAVA = chain(
    [(-160, 28, -22), (-60, 18, -24), (-10, 14, -26), (30, 8, -23), (52, -6, -18), (64, -14, -14)],
    [10, 10.5, 11, 11.5, 12.5, 13],
)
PORTAL_TRUNK = chain([(-34, -10, 0), (-22, -9, -10), HILUM], [6.2, 6.8, 6.6])
SPLENIC_VEIN = chain([(-34, -10, 0), (-26, -4, 30), (-14, 22, 62), (0, 30, 88)], [4.6, 4.4, 4.0, 3.4])
MESENTERIC = chain([(-34, -10, 0), (-70, -22, -2), (-150, -30, -6)], [5.4, 5.0, 4.2]) + chain(
    [(-26, 8, 12), (-42, -10, 14), (-150, -26, 10)], [3.4, 3.6, 3.0]
)
RENAL = chain([(-44, 16, -20), (-46, 9, 10), (-46, 30, 44)], [3.8, 3.8, 4.2]) + chain(
    [(-52, 20, -26), (-56, 36, -46)], [4.2, 4.0]
)
