"""Generated patients: lesions of a mix placed in the liver of a body, and their slices as a scanner sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lesionseg.phantom.anatomy import Body
from lesionseg.phantom.appearance import Contrast, draw_diameter_mm, draw_lesion
from lesionseg.phantom.geometry import Plane
from lesionseg.phantom.lesion import Lesion
from lesionseg.phantom.scanner import Scanner
from lesionseg.phantom.trunk import Organ

#: Distance of the ideal planes painted within a slice, in mm; at least two make a slice.
PLANE_DISTANCE_MM = 2.5
#: Pixels wider than this are painted with two samples a side.
FINE_PIXEL_MM = 1.5
#: Least gap between two lesions, mm.
LESION_GAP_MM = 4.0
#: Share of lesions that touch or cut the liver's capsule.
SUBCAPSULAR_SHARE = 0.25


@dataclass(frozen=True, eq=False)
class Patient:
    """A body with its lesions."""

    body: Body
    lesions: tuple[Lesion, ...]


@dataclass(frozen=True, eq=False)
class Imaged:
    """Slices of a patient.

    Attributes:
        hu: int16 (D, H, W).
        liver: bool (D, H, W), lesions included.
        lesion: uint8 (D, H, W); 1 + index of the lesion in `Patient.lesions`, 0 elsewhere.
        organ: uint8 (D, H, W), ids of `Organ`, in the last plane of each slice.
        spacing_mm: along (D, H, W).
    """

    hu: np.ndarray
    liver: np.ndarray
    lesion: np.ndarray
    organ: np.ndarray
    spacing_mm: tuple[float, float, float]


def draw_patient(rng: np.random.Generator, kinds: Sequence[str]) -> Patient:
    """Draw a body and place a lesion of each of `kinds` in its liver; one that finds no room is left out."""
    body = Body.draw(rng)
    contrast = Contrast(body.tissue.liver, body.tissue.vessel)
    lesions: list[Lesion] = []
    sized = sorted(((draw_diameter_mm(rng, kind), kind) for kind in kinds), reverse=True)
    for diameter, kind in sized:
        center = _find_place(rng, body, diameter, lesions)
        if center is not None:
            lesions.append(draw_lesion(rng, kind, center_mm=center, diameter_mm=diameter, contrast=contrast))
    return Patient(body, tuple(lesions))


def image(patient: Patient, scanner: Scanner, heights_mm: np.ndarray, size: int, rng: np.random.Generator) -> Imaged:
    """Slices of `size`² pixels centred at heights (D,), as the scanner gives them."""
    fov = scanner.fov_mm(patient.body.width_mm)
    factor = 2 if fov / size > FINE_PIXEL_MM else 1
    across = ((np.arange(size * factor) + 0.5) / (size * factor) - 0.5) * fov
    count = max(2, round(scanner.thickness_mm / PLANE_DISTANCE_MM))
    steps = ((np.arange(count) + 0.5) / count - 0.5) * scanner.thickness_mm
    background = patient.body.trunk.table(across, across)
    slices = [_paint_slice(patient, float(height) + steps, across, factor, background) for height in heights_mm]
    ideal, liver, lesion, organ = (np.stack(part) for part in zip(*slices, strict=True))
    hu = scanner.acquire(ideal, factor, fov, rng)
    return Imaged(hu, liver, lesion, organ, (scanner.thickness_mm, fov / size, fov / size))


def _paint_slice(
    patient: Patient, heights_mm: np.ndarray, across: np.ndarray, factor: int, background: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The mean of the planes of one slice: ideal HU on samples; liver, lesion and organ on pixels."""
    body = patient.body
    rows, columns = (slice(*np.searchsorted(across, span)) for span in body.frame_mm())
    hu, liver = background * len(heights_mm), np.zeros_like(background)
    lesions = [np.zeros_like(background) for _ in patient.lesions]
    organ = np.zeros(background.shape, np.uint8)
    for height in heights_mm:
        plane = body.plane(float(height), across[rows], across[columns])
        plane.hu[:] = background[rows, columns]
        body.paint(plane)
        for index, cover in _paint_lesions(patient.lesions, plane, float(height)):
            lesions[index][rows, columns] += cover
        hu[rows, columns] += plane.hu - background[rows, columns]
        liver[rows, columns] += plane.liver
        organ[rows, columns] = plane.organ
    half = len(heights_mm) / 2
    inside = _pixels(liver, factor) >= half
    label = np.zeros(inside.shape, np.uint8)
    for index, cover in enumerate(lesions):
        label[_pixels(cover, factor) >= half] = index + 1
    return hu / len(heights_mm), inside, label * inside, organ[factor // 2 :: factor, factor // 2 :: factor]


def _paint_lesions(lesions: tuple[Lesion, ...], plane: Plane, height: float) -> list[tuple[int, np.ndarray]]:
    """Paint the lesions that a plane cuts; index and cover (H, W) of each."""
    covers = []
    for index, lesion in enumerate(lesions):
        reach = lesion.reach_mm
        if abs(height - lesion.center_mm[0]) > reach:
            continue
        rows = slice(*np.searchsorted(plane.y, (lesion.center_mm[1] - reach, lesion.center_mm[1] + reach)))
        columns = slice(*np.searchsorted(plane.x, (lesion.center_mm[2] - reach, lesion.center_mm[2] + reach)))
        y, x = np.meshgrid(plane.y[rows], plane.x[columns], indexing="ij")
        hu, cover = lesion.render(np.full_like(y, height), y, x)
        cover = cover * plane.liver[rows, columns]
        plane.hu[rows, columns] += cover * (hu - plane.hu[rows, columns])
        plane.organ[rows, columns][cover > 0.5] = Organ.LESION
        whole = np.zeros_like(plane.liver)
        whole[rows, columns] = cover
        covers.append((index, whole))
    return covers


def _pixels(samples: np.ndarray, factor: int) -> np.ndarray:
    """Mean over the samples of each pixel."""
    h, w = samples.shape
    return samples.reshape(h // factor, factor, w // factor, factor).mean((1, 3))


def _find_place(
    rng: np.random.Generator, body: Body, diameter_mm: float, others: list[Lesion]
) -> tuple[float, float, float] | None:
    """A centre within the liver, clear of other lesions; some near the capsule. None after many tries."""
    points = rng.uniform(*body.liver_box_mm, (1500, 3)).astype(np.float32)
    depth = -body.liver_distance_mm(points[:, 0], points[:, 1], points[:, 2])
    radius = diameter_mm / 2
    shallow, deep = (0.35 * radius, 0.95 * radius) if rng.random() < SUBCAPSULAR_SHARE else (1.15 * radius + 1, np.inf)
    fits = (depth > shallow) & (depth < deep)
    for other in others:
        apart = np.linalg.norm(points - np.array(other.center_mm, np.float32), axis=1)
        fits &= apart > radius + other.diameter_mm / 2 + LESION_GAP_MM
    if not fits.any():
        return None
    z, y, x = points[np.flatnonzero(fits)[0]].tolist()
    return z, y, x


def liver_span_mm(body: Body) -> tuple[float, float]:
    """Lowest and highest z of the liver, found on planes 2 mm apart with samples every 4 mm."""
    across = np.arange(-170, 170, 4.0)
    low, high = body.liver_box_mm
    inside = [z for z in np.arange(low[0], high[0], 2.0) if body.cuts_liver(body.plane(float(z), across, across))]
    return float(inside[0]), float(inside[-1])
