"""`implant`: lesions of the phantom's appearance models in slices of real liver, with the slices' own noise and blur.

Where a lesion covers a slice, the slice's structure (what is smoother than noise: parenchyma, vessels) gives way to the
lesion, and its noise stays: `(1 - cover) * slice + cover * (lesion + noise)`, noise being the high-pass residual of the
slice at that very place. So grain and streaks go on across the border, which is blurred by the point spread that the
slice's noise tells (`host.point_spread_mm`).

A cyst has the HU of fluid. What takes up contrast medium is drawn for the mean liver of the phantom, then shifted by
how far the liver at hand is from it: its contrast to the liver around it is that of the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from lesionseg.boxes import bounds
from lesionseg.implant.host import Host, room_mm
from lesionseg.labels import LESION_IDS, LIVER, is_liver
from lesionseg.phantom.appearance import Contrast, draw_diameter_mm, draw_lesion
from lesionseg.phantom.lesion import Lesion, Patch, lesion_patch

#: Raised with every change that alters an implanted voxel.
IMPLANT_VERSION = 2
#: Mean liver of the phantom, which the HU of the appearance models belong to.
MODEL_LIVER_HU = 110.0
#: Types whose HU do not follow the liver's.
FLUID = frozenset({"cyst"})
#: The middle slice passes at most this share of the diameter from a lesion's centre, as in the phantom.
LEVEL_SHARE = 0.25
#: Cover below this is none: a step of about 1 HU.
LEAST_COVER = 0.01
#: A lesion shows at least this many pixels on the middle slice.
LEAST_PIXELS = 10
#: Lesions drawn until one fits; and of this many places where it does, that of least structure is taken.
TRIES, PLACES = 40, 8
#: Equal distances of pixels come out this far apart at most.
_ROUNDING_MM = 1e-6
#: What stands for an unknown spacing: a usual field of view over the longer side, and a usual slice.
USUAL_FOV_MM, USUAL_SLICE_MM = 380.0, 5.0


class Implanted(NamedTuple):
    """Slices with their new lesions: int16 HU (D, H, W), uint8 ids of `lesionseg.labels` (D, H, W)."""

    hu: np.ndarray
    labels: np.ndarray


def implant(
    rng: np.random.Generator,
    hu: np.ndarray,
    labels: np.ndarray,
    kinds: Sequence[str],
    spacing_mm: tuple[float, float, float] | None,
    *,
    middle: int = 0,
) -> Implanted | None:
    """Implant one lesion of each of `kinds` in turn; one that finds no room is left out.

    A lesion lies, with all that it changes, within the liver and apart from other lesions, on every one of the slices.

    Args:
        rng: decides everything.
        hu: int16 (D, H, W), a slice or a few neighbouring ones.
        labels: uint8 (D, H, W).
        kinds: keys of `LESION_IDS`.
        spacing_mm: along (D, H, W); usual numbers stand for unknown ones.
        middle: the slice that must show the lesions.

    Returns:
        copies with the lesions; None where not one found room.
    """
    inside = bounds(np.asarray(is_liver(labels).any(0)))
    if inside is None or not (labels == LIVER).any():
        return None
    window, known_mm = (slice(None), *inside), known_spacing(spacing_mm, hu.shape)
    host = Host.measure(hu[window], labels[window], known_mm)
    out = Implanted(np.array(hu), np.array(labels))
    for kind in kinds:
        placed = _place(rng, host, room_mm(out.labels[window], known_mm), kind, middle)
        if placed is not None:
            _paint(Implanted(out.hu[window], out.labels[window]), host, kind, *placed)
    return None if np.array_equal(out.labels, labels) else out


def known_spacing(spacing_mm: tuple[float, float, float] | None, shape: tuple[int, ...]) -> tuple[float, float, float]:
    """The spacing of a scan (D, H, W), with usual numbers for unknown ones."""
    if spacing_mm is None:
        pixel_mm = USUAL_FOV_MM / max(shape[1:])
        return USUAL_SLICE_MM, pixel_mm, pixel_mm
    thickness_mm, *plane_mm = spacing_mm
    return USUAL_SLICE_MM if math.isnan(thickness_mm) else thickness_mm, plane_mm[0], plane_mm[1]


Window = tuple[slice, slice, slice]


def _place(
    rng: np.random.Generator, host: Host, room: np.ndarray, kind: str, middle: int
) -> tuple[Patch, Window] | None:
    """A lesion of a type on the voxels of a window of the host, where it has room (H, W); None after many tries."""
    vessel_hu = MODEL_LIVER_HU + host.contrast.vessel_hu - host.contrast.liver_hu
    for _ in range(TRIES):
        diameter_mm = draw_diameter_mm(rng, kind)
        level_mm = middle * host.spacing_mm[0] + float(rng.uniform(-LEVEL_SHARE, LEVEL_SHARE)) * diameter_mm
        if diameter_mm > 3 * room.max():  # whatever its shape
            continue
        lesion = draw_lesion(rng, kind, center_mm=(level_mm, 0, 0), diameter_mm=diameter_mm,
                             contrast=Contrast(MODEL_LIVER_HU, vessel_hu))  # fmt: skip
        patch, center, reach_mm = _render(lesion, host)
        places = np.argwhere(room > reach_mm + _ROUNDING_MM)
        if len(places) and patch.mask[middle].sum() >= LEAST_PIXELS:
            corners = rng.choice(places, min(PLACES, len(places)), replace=False) - center
            windows = [_window(corner, patch.mask.shape) for corner in corners]
            seen = patch.cover >= LEAST_COVER
            return patch, min(windows, key=lambda window: float(host.structure[window][seen].std()))
    return None


def _render(lesion: Lesion, host: Host) -> tuple[Patch, tuple[int, int], float]:
    """A lesion on the voxels that it changes, its centre there (row, column), and how far from it they reach in mm."""
    plane_mm, reach_mm = np.array(host.spacing_mm[1:]), lesion.reach_mm + 2 * host.blur_mm
    half = np.ceil(reach_mm / plane_mm).astype(int)
    centered = replace(lesion, center_mm=(lesion.center_mm[0], *(half * plane_mm).tolist()))
    shape = len(host.hu), int(2 * half[0] + 1), int(2 * half[1] + 1)
    whole = lesion_patch(centered, shape, host.spacing_mm, blur_mm=host.blur_mm)
    changed = np.argwhere((whole.cover >= LEAST_COVER).any(0))
    if not len(changed):
        return whole, (0, 0), math.inf
    low, high = changed.min(0), changed.max(0) + 1
    patch = Patch(*(array[:, low[0] : high[0], low[1] : high[1]] for array in whole))
    center = int(half[0] - low[0]), int(half[1] - low[1])
    return patch, center, float(np.hypot(*((changed - half) * plane_mm).T).max())


def _window(corner: np.ndarray, shape: tuple[int, ...]) -> Window:
    top, left = corner.tolist()
    return slice(None), slice(top, top + shape[1]), slice(left, left + shape[2])


def _paint(out: Implanted, host: Host, kind: str, patch: Patch, window: Window) -> None:
    """Write a lesion into arrays on the grid of the host."""
    seen = patch.cover >= LEAST_COVER
    structure = host.structure[window]
    shift_hu = 0.0 if kind in FLUID else float(np.median(structure[seen])) - MODEL_LIVER_HU
    hu = patch.implant(host.hu[window], structure - shift_hu)
    out.hu[window][seen] = np.rint(hu[seen]).astype(np.int16)
    out.labels[window][patch.mask & seen] = LESION_IDS[kind]
