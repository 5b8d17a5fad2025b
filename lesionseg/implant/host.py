"""`Host`: what an implant takes from the slices it goes into: HU of liver and vessels, noise, point spread, room."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage

from lesionseg.labels import LIVER, is_lesion
from lesionseg.phantom.appearance import Contrast

#: What is smoother than this (sd of a Gaussian) is structure and gives way to a lesion; the rest is noise and stays.
#: In the liver of six public CT, of 11 to 35 HU noise, at least 97 % of it stays.
STRUCTURE_MM = 3.0
#: Smoothing (sd) before vessels are looked for, and the share of the liver that is called the brightest.
VESSEL_MM, BRIGHTEST = 1.5, 0.005
#: Vessels are this much denser than the liver, whatever little of them a slice shows (phantom: 39 to 71 HU).
VESSEL_CONTRAST_HU = (35.0, 70.0)
#: An implant keeps this far from the lesions that are there.
LESION_GAP_MM = 4.0
#: Point spread (full width at half maximum) where a slice shows too little liver to measure it.
USUAL_BLUR_MM = 1.2
#: A measured point spread outside of these is an accident of few pixels.
BLUR_LIMITS_MM = (0.5, 3.0)
#: Windows whose noise is analysed: side and step in pixels, and the least number.
_WINDOW, _STEP, _LEAST_WINDOWS = 32, 16, 3
#: Band of frequencies that the point spread is fitted in: from 1/mm, to a share of the Nyquist frequency.
_BAND = (0.2, 0.9)
#: Full width at half maximum of a Gaussian over its sd.
_FWHM = 2.355


@dataclass(frozen=True, eq=False)
class Host:
    """Neighbouring slices of one scan that can take lesions.

    Attributes:
        hu: float32 (D, H, W).
        structure: float32 (D, H, W), the liver without its noise; means nothing outside of the liver.
        spacing_mm: along (D, H, W), all known.
        contrast: HU of liver and vessels.
        blur_mm: full width at half maximum of the point spread in the plane.
    """

    hu: np.ndarray
    structure: np.ndarray
    spacing_mm: tuple[float, float, float]
    contrast: Contrast
    blur_mm: float

    @classmethod
    def measure(cls, hu: np.ndarray, labels: np.ndarray, spacing_mm: tuple[float, float, float]) -> Host:
        """Measure slices: HU (D, H, W), labels of the same shape with some liver free of lesion."""
        hu, free = hu.astype(np.float32), labels == LIVER
        structure = smooth_within(hu, free, STRUCTURE_MM, spacing_mm)
        liver_hu = float(np.median(hu[free]))
        brightest = float(np.quantile(smooth_within(hu, free, VESSEL_MM, spacing_mm)[free], 1 - BRIGHTEST))
        contrast = Contrast(liver_hu, liver_hu + float(np.clip(brightest - liver_hu, *VESSEL_CONTRAST_HU)))
        return cls(hu, structure, spacing_mm, contrast, point_spread_mm(hu - structure, free, spacing_mm))


def smooth_within(
    hu: np.ndarray, mask: np.ndarray, sigma_mm: float, spacing_mm: tuple[float, float, float]
) -> np.ndarray:
    """Gaussian smoothing of each slice (D, H, W) that takes nothing from outside the mask (normalised convolution)."""
    sigma = (0.0, sigma_mm / spacing_mm[1], sigma_mm / spacing_mm[2])
    weight = ndimage.gaussian_filter(mask.astype(np.float32), sigma)
    return ndimage.gaussian_filter(np.where(mask, hu, 0).astype(np.float32), sigma) / np.maximum(weight, 1e-6)


def room_mm(labels: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """How far, in mm, a lesion centred at each pixel (H, W) may reach, given labels (D, H, W); 0 or less: not at all.

    On every slice it stays in the liver and `LESION_GAP_MM` away from other lesions.
    """
    plane = spacing_mm[1:]
    liver = np.pad((labels >= LIVER).all(0), 1)  # nothing may leave the slice either
    room = ndimage.distance_transform_edt(liver, plane)[1:-1, 1:-1]
    lesion = is_lesion(labels).any(0)
    if lesion.any():
        room = np.minimum(room, ndimage.distance_transform_edt(~lesion, plane) - LESION_GAP_MM)
    return room


def point_spread_mm(noise: np.ndarray, mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> float:
    """Full width at half maximum of the point spread in the plane, from the noise (D, H, W) within a mask.

    The noise power of filtered back-projection is f · MTF(f)² (S. J. Riederer et al., Phys Med Biol 1978;23:446), so
    for a Gaussian point spread of sd s the logarithm of power over f falls as −4π²s²f². `USUAL_BLUR_MM` where fewer
    than three windows lie within the mask.
    """
    power = [p for slice_, inside in zip(noise, mask, strict=True) for p in _window_powers(slice_, inside)]
    if len(power) < _LEAST_WINDOWS:
        return USUAL_BLUR_MM
    down_mm, across_mm = spacing_mm[1:]
    f = np.hypot(np.fft.fftfreq(_WINDOW, down_mm)[:, None], np.fft.rfftfreq(_WINDOW, across_mm)[None])
    band = (f > _BAND[0]) & (f < _BAND[1] * 0.5 / max(down_mm, across_mm))
    if band.sum() < _WINDOW:  # pixels too coarse to show it
        return USUAL_BLUR_MM
    fall = -np.polyfit(f[band] ** 2, np.log(np.median(power, axis=0)[band] / f[band]), 1)[0]
    return float(np.clip(_FWHM * np.sqrt(max(fall, 0)) / (2 * np.pi), *BLUR_LIMITS_MM))


def _window_powers(noise: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Power spectra (N, S, S // 2 + 1) of the windows of a slice (H, W) that lie within a mask."""
    if min(noise.shape) < _WINDOW:
        return np.empty((0, _WINDOW, _WINDOW // 2 + 1))
    steps = (slice(None, None, _STEP), slice(None, None, _STEP))
    whole = sliding_window_view(inside, (_WINDOW, _WINDOW))[steps].all((2, 3))
    windows = sliding_window_view(noise, (_WINDOW, _WINDOW))[steps][whole]
    taper = np.hanning(_WINDOW)[:, None] * np.hanning(_WINDOW)
    return np.abs(np.fft.rfft2((windows - windows.mean((1, 2), keepdims=True)) * taper)) ** 2
