"""Scanners of the phantom: what turns an ideal image into CT numbers (blur, sampling, correlated noise, calibration).

Noise of filtered back-projection is not white: its power rises with frequency as the ramp filter does and falls where
the kernel cuts off (S. J. Riederer, N. J. Pelc, D. A. Chesler, Phys Med Biol 1978;23:446; M. F. Kijewski, P. F. Judy,
Phys Med Biol 1987;32:565). The coarse pixels of the default phantom cannot show a kernel's whole band, so the peak is
held below their Nyquist frequency.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from lesionseg.phantom.appearance import DIFFICULTY

#: Share of the noise of one slice that the next slice repeats (overlap of helical reconstruction).
SLICE_CORRELATION = 0.2
#: Width of the body over the width of the field of view, at most.
FILL = 0.93


@dataclass(frozen=True)
class Scanner:
    """One scanner with its abdominal protocol.

    Attributes:
        name: written as ManufacturerModelName.
        thickness_mm: of a slice, and the distance of slices.
        noise_hu: standard deviation at the centre of a body at 128 px, before `DIFFICULTY.noise_scale`.
        noise_peak_per_mm: frequency at which the noise power peaks.
        psf_mm: full width at half maximum of the point spread in the plane.
        least_fov_mm: field of view; larger patients get a larger one.
        offset_hu: error of calibration.
    """

    name: str
    thickness_mm: float
    noise_hu: float
    noise_peak_per_mm: float
    psf_mm: float
    least_fov_mm: float
    offset_hu: float

    def fov_mm(self, width_mm: float) -> float:
        """Side of the square field of view for a patient of a width."""
        return max(self.least_fov_mm, width_mm / FILL)

    def acquire(self, ideal_hu: np.ndarray, factor: int, fov_mm: float, rng: np.random.Generator) -> np.ndarray:
        """Ideal HU on samples `factor` times finer than pixels, (D, H·factor, W·factor) → int16 HU (D, H, W)."""
        depth, rows, columns = ideal_hu.shape
        sigma = DIFFICULTY.blur_scale * self.psf_mm / 2.355 / (fov_mm / columns)
        blurred = ndimage.gaussian_filter(ideal_hu, (0, sigma, sigma), truncate=3.0)
        pixels = blurred.reshape(depth, rows // factor, factor, columns // factor, factor).mean((2, 4))
        noise = self.noise(pixels.shape, fov_mm / pixels.shape[2], rng) * noise_level(pixels)
        return np.clip(np.rint(pixels + noise + self.offset_hu), -1024, 3071).astype(np.int16)

    def noise(self, shape: tuple[int, ...], pixel_mm: float, rng: np.random.Generator) -> np.ndarray:
        """Correlated noise (D, H, W): power ∝ f · exp(−(f / f₀)² / 2) in the plane."""
        depth, height, width = shape
        frequency = np.hypot(np.fft.fftfreq(height, pixel_mm)[:, None], np.fft.rfftfreq(width, pixel_mm)[None])
        peak = min(self.noise_peak_per_mm, 0.3 / pixel_mm)
        spectrum = np.sqrt(frequency * np.exp(-0.5 * (frequency / peak) ** 2))
        white = rng.standard_normal((depth + 1, height, width)).astype(np.float32)
        noise = np.fft.irfft2(np.fft.rfft2(white) * spectrum, s=(height, width))
        share = np.sqrt(1 - SLICE_CORRELATION**2)
        noise = share * noise[1:] + SLICE_CORRELATION * noise[:-1]
        return DIFFICULTY.noise_scale * self.noise_hu * noise / noise.std()


def noise_level(hu: np.ndarray) -> np.ndarray:
    """How noise varies over a slice (D, H, W): least in air, about 1 where the rays pass most tissue."""
    tissue = ndimage.uniform_filter((hu > -300).astype(np.float32), (0, hu.shape[1] // 3, hu.shape[2] // 3))
    return np.clip(0.35 + 0.75 * tissue, 0.35, 1.1)


#: LiTS-like volumes: two scanners, thick slices.
LITS_SCANNERS = (
    Scanner("Phantom L1", 5.0, 11.0, 0.14, 1.2, 360.0, -2.0),
    Scanner("Phantom L2", 4.0, 13.0, 0.17, 1.0, 340.0, 1.0),
)
#: Single slices for fine-tuning: three other scanners, thinner slices, more noise.
SLICE_SCANNERS = (
    Scanner("Phantom S1", 2.5, 18.0, 0.20, 0.9, 350.0, 2.0),
    Scanner("Phantom S2", 3.0, 16.0, 0.16, 1.3, 380.0, -1.0),
    Scanner("Phantom S3", 5.0, 13.0, 0.18, 1.0, 340.0, 3.0),
)
