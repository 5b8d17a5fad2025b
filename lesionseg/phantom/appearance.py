"""The look of each lesion type in portal-venous CT, as functions of place: for the phantom and for implants in real CT.

Nothing here knows the phantom's anatomy. A lesion is drawn with `draw_lesion` from its type, its diameter and the HU of
liver and vessels in that scan; `lesion.py` then gives its HU and cover at any point or on the voxels of a scan.

- **cyst**: 0…20 HU, homogeneous, sharp, round to oval [1, 2].
- **hemangioma**: discontinuous nodules at the border, as dense as that scan's vessels, with partial centripetal fill;
  well-defined; a share of those under 15 mm is homogeneously bright [3, 4, 5, 6].
- **metastasis**: 40…90 HU, ill-defined, a continuous rim, a denser centre in half of the solid ones; some are necrotic
  (then as dark as a cyst can be) [7, 8].
- **hcc** (hepatocellular carcinoma; LiTS-like volumes only): washed out below the liver, mosaic, a thin capsule in most
  [9, 10].

Sources:
1. K. J. Mortelé, P. R. Ros, Cystic focal liver lesions in the adult, RadioGraphics 2001;21:895.
2. K. M. Horton et al., CT and MR imaging of benign hepatic and biliary tumors, RadioGraphics 1999;19:431.
3. D. F. Leslie et al., AJR 1995;165:1403: nodules under 1 cm, as dense as the aorta in 62 % of hemangiomas and in no
   hypervascular metastasis.
4. D. F. Leslie et al., AJR 1995;164:625: density, nodular shape and discontinuity tell hemangiomas from metastases on
   single-phase CT, "a significant and frequently encountered diagnostic challenge": here too the hardest pair.
5. V. Vilgrain et al., RadioGraphics 2000;20:379: small ones may fill rapidly; large ones are heterogeneous.
6. Contrast enhancement of hepatic hemangiomas on multiphase MDCT, AJR 2010, doi 10.2214/AJR.09.3324: most nodules are
   uneven and only 14…26 % match a vessel in the portal-venous phase. The phantom keeps to the classic description (3)
   with a spread of 4 HU: here real hemangiomas are less uniform.
7. Computed tomographic appearance of colorectal hepatic metastases, Ann Acad Med Singap 2003;32:191 (74 lesions,
   portal-venous phase): rim in 73 %, enhancing in 84 %, denser centre in 51 %.
8. G. T. Sica et al., CT and MR imaging of hepatic metastases, AJR 2000;174:691.
9. J. H. Lee et al., Br J Radiol 2012;85:e573 (243 hepatocellular carcinomas).
10. E. Chartampilas et al., Cancers 2022;14:3997: washout, capsule appearance in about 80 %, mosaic architecture.

Diameters are log-normal. Their medians, spreads and limits, like the widths of borders, are chosen to be plausible and
are fitted to no series.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lesionseg.phantom.geometry import Point, WaveField
from lesionseg.phantom.lesion import Lesion, Local, Look

Range = tuple[float, float]


@dataclass(frozen=True)
class Difficulty:
    """Everything that was tuned, in one place; set on the row `baseline` alone, never changed for another row's sake.

    Attributes:
        diameter_scale: factor on all median diameters.
        noise_scale: factor on the noise of every scanner.
        blur_scale: factor on the point spread of every scanner.
        flash_share: share of hemangiomas under 15 mm that are homogeneously bright.
        nodule_radius: radius of a hemangioma's nodules over the lesion's radius.
        nodule_count: least and most nodules.
        hemangioma_core_hu: what contrast medium has not reached; overlaps the metastases.
        metastasis_core_hu: solid part.
        metastasis_rim_hu: how much denser the rim is than the core.
        metastasis_edge_mm: width of the border.
        necrotic_share: share of metastases over 15 mm with a necrotic core.
    """

    diameter_scale: float = 0.9
    noise_scale: float = 1.3
    blur_scale: float = 1.0
    flash_share: float = 0.4
    nodule_radius: Range = (0.26, 0.44)
    nodule_count: tuple[int, int] = (3, 6)
    hemangioma_core_hu: Range = (48.0, 80.0)
    metastasis_core_hu: Range = (46.0, 78.0)
    metastasis_rim_hu: Range = (6.0, 34.0)
    metastasis_edge_mm: Range = (3.0, 6.0)
    necrotic_share: float = 0.25


DIFFICULTY = Difficulty()

#: Median, log-sd, least and largest diameter in mm.
DIAMETERS_MM: dict[str, tuple[float, float, float, float]] = {
    "cyst": (15.0, 0.45, 7.0, 55.0),
    "hemangioma": (20.0, 0.45, 8.0, 60.0),
    "metastasis": (19.0, 0.45, 8.0, 60.0),
    "hcc": (32.0, 0.45, 12.0, 85.0),
}
#: Under this diameter a hemangioma may be homogeneously bright (5).
FLASH_BELOW_MM = 15.0
#: Over this diameter a metastasis may be necrotic (7, 8).
NECROSIS_ABOVE_MM = 15.0


@dataclass(frozen=True)
class Contrast:
    """HU of one scan that a lesion's look depends on."""

    liver_hu: float
    vessel_hu: float


def draw_diameter_mm(rng: np.random.Generator, kind: str) -> float:
    """Draw a diameter for a lesion type."""
    median, spread, least, largest = DIAMETERS_MM[kind]
    return float(np.clip(DIFFICULTY.diameter_scale * rng.lognormal(np.log(median), spread), least, largest))


def draw_lesion(
    rng: np.random.Generator,
    kind: str,
    *,
    center_mm: Point,
    diameter_mm: float,
    contrast: Contrast,
) -> Lesion:
    """Draw a lesion of a type, a place and a size for one scan."""
    look, edge_mm, bumps, stretch = _DRAWERS[kind](rng, diameter_mm, contrast)
    surface = WaveField.draw(rng, scale=0.45, sd=bumps, waves=16)
    return Lesion(kind, center_mm, diameter_mm, _draw_axes(rng, stretch), surface, edge_mm, look)


def _draw_axes(rng: np.random.Generator, stretch: float) -> np.ndarray:
    """A random ellipsoid as a matrix: rotation, then the semi-axes over the radius, volume kept."""
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    semi = np.exp(rng.uniform(-stretch, stretch, 3))
    return (turn / (semi / np.cbrt(semi.prod()))[:, None]).astype(np.float32)


Drawn = tuple[Look, float, float, float]


def _draw_cyst(rng: np.random.Generator, diameter_mm: float, contrast: Contrast) -> Drawn:
    fluid = float(rng.uniform(2, 18))

    def look(local: Local) -> np.ndarray:
        return np.full(local.depth_mm.shape, fluid, np.float32)

    return look, 0.8, 0.03, 0.12


def _draw_hemangioma(rng: np.random.Generator, diameter_mm: float, contrast: Contrast) -> Drawn:
    bright = contrast.vessel_hu + float(rng.normal(0, 4))
    core = float(rng.uniform(*DIFFICULTY.hemangioma_core_hu))
    flash = diameter_mm < FLASH_BELOW_MM and rng.random() < DIFFICULTY.flash_share
    count = int(rng.integers(DIFFICULTY.nodule_count[0], DIFFICULTY.nodule_count[1] + 1))
    centers, sizes = _draw_nodules(rng, count, DIFFICULTY.nodule_radius)
    sizes = sizes * rng.uniform(1.0, 1.3)  # how far the filling has gone
    texture = WaveField.draw(rng, scale=0.3, sd=4.0)

    def look(local: Local) -> np.ndarray:
        """HU, float32, at each place of the lesion: of the vessels throughout, or in nodules around a darker core."""
        if flash:
            return np.full(local.depth_mm.shape, bright, np.float32)
        field = np.zeros(local.depth_mm.shape, np.float32)
        for (cz, cy, cx), size in zip(centers, sizes, strict=True):
            z, y, x = local.position
            field += np.exp(-((z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2) / (size * size))
        filled = np.clip((field - 0.2) / 0.35, 0, 1)
        return core + texture.at(*local.position) + filled * (bright - core)

    return look, 1.5, 0.07, 0.2


def _draw_nodules(rng: np.random.Generator, count: int, radius: Range) -> tuple[np.ndarray, np.ndarray]:
    """Centres (K, 3) just below the surface of the unit ball, kept apart so that gaps remain; radii (K,)."""
    directions = rng.normal(size=(12 * count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    chosen = [directions[0]]
    for direction in directions[1:]:
        if len(chosen) < count and max(float(direction @ other) for other in chosen) < 0.55:
            chosen.append(direction)
    sizes = rng.uniform(*radius, len(chosen))
    return np.array(chosen) * (1 - 0.6 * sizes[:, None]), sizes


def _draw_metastasis(rng: np.random.Generator, diameter_mm: float, contrast: Contrast) -> Drawn:
    core = float(rng.uniform(*DIFFICULTY.metastasis_core_hu))
    rim = min(core + float(rng.uniform(*DIFFICULTY.metastasis_rim_hu)), 100.0)
    necrotic = diameter_mm > NECROSIS_ABOVE_MM and rng.random() < DIFFICULTY.necrotic_share
    if necrotic:
        core = float(rng.uniform(14, 38))
    dense_center = 0.0 if necrotic or rng.random() > 0.5 else float(rng.uniform(6, 20))
    rim_mm = float(rng.uniform(2.0, 4.0)) + 0.04 * diameter_mm
    texture = WaveField.draw(rng, scale=0.2, sd=4.0)
    uneven = WaveField.draw(rng, scale=0.6, sd=0.18)

    def look(local: Local) -> np.ndarray:
        z, y, x = local.position
        center = np.exp(-(z * z + y * y + x * x) / 0.12)
        # The rim is continuous: its strength varies round the lesion and never falls to the core's.
        strength = np.clip(1 + uneven.at(z, y, x), 0.6, 1.2) * np.clip(2.2 - 2 * local.depth_mm / rim_mm, 0, 1)
        return core + texture.at(z, y, x) + dense_center * center + strength * (rim - core)

    return look, float(rng.uniform(*DIFFICULTY.metastasis_edge_mm)), 0.10, 0.25


def _draw_hcc(rng: np.random.Generator, diameter_mm: float, contrast: Contrast) -> Drawn:
    base = contrast.liver_hu - float(rng.uniform(14, 34))
    capsule = contrast.liver_hu + float(rng.uniform(4, 18)) if rng.random() < 0.8 else base
    mosaic = WaveField.draw(rng, scale=0.13, sd=9.0, waves=32)
    necrosis = WaveField.draw(rng, scale=0.4, sd=1.0)
    level = float(rng.uniform(1.0, 2.4))

    def look(local: Local) -> np.ndarray:
        hu = base + mosaic.at(*local.position)
        hu += np.clip((necrosis.at(*local.position) - level) * 2, 0, 1) * (35 - hu)
        return np.where(local.depth_mm < 2.4, capsule, hu).astype(np.float32)

    return look, 1.8, 0.08, 0.2


_DRAWERS: dict[str, Callable[[np.random.Generator, float, Contrast], Drawn]] = {
    "cyst": _draw_cyst,
    "hemangioma": _draw_hemangioma,
    "metastasis": _draw_metastasis,
    "hcc": _draw_hcc,
}
