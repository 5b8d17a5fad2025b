"""Liver with correlated noise of a known point spread, for what is implanted in it."""

from collections.abc import Callable

import numpy as np
import pytest

from lesionseg.labels import LIVER, UNTYPED_LESION
from lesionseg.phantom.scanner import Scanner

LIVER_HU, NOISE_HU, SPACING_MM = 95, 14.0, (3.0, 0.8, 0.8)


@pytest.fixture(scope="session")
def slab() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Makes HU and labels (D, 160, 160): an elliptic liver in fat, a vein, noise, and a lesion if asked for."""

    def make(seed=0, depth=1, noise_hu=NOISE_HU, noise_peak_per_mm=0.2, liver_hu=LIVER_HU, lesion=False):
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:160, :160]
        labels = np.zeros((depth, 160, 160), np.uint8)
        labels[:, ((y - 80) / 70) ** 2 + ((x - 76) / 62) ** 2 < 1] = LIVER
        hu = np.where(labels == LIVER, float(liver_hu), -100.0)
        hu[:, (np.abs(y - x) < 3) & (labels[0] == LIVER)] = liver_hu + 55
        if lesion:
            labels[:, (y - 50) ** 2 + (x - 80) ** 2 < 15**2] = UNTYPED_LESION
            hu[labels == UNTYPED_LESION] = liver_hu - 50
        scanner = Scanner("made", SPACING_MM[0], noise_hu / 1.3, noise_peak_per_mm, 1.0, 350.0, 0.0)
        hu += scanner.noise(hu.shape, SPACING_MM[1], rng)
        return np.rint(hu).astype(np.int16), labels

    return make
