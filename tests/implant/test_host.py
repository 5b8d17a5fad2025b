"""What is measured of the slices that take a lesion, beside what is known of how they were made."""

import numpy as np
import pytest
from scipy import ndimage

from lesionseg.implant.host import LESION_GAP_MM, USUAL_BLUR_MM, Host, point_spread_mm, room_mm, smooth_within
from lesionseg.phantom.scanner import Scanner

SPACING_MM = (3.0, 0.8, 0.8)


@pytest.mark.parametrize("peak_per_mm", [0.13, 0.2, 0.3])
def test_the_point_spread_is_told_by_the_noise(peak_per_mm):
    """Noise of power f · exp(−(f / f₀)² / 2) is that of a Gaussian point spread of sd 1 / (2π f₀ √2)."""
    scanner = Scanner("made", 3.0, 15.0, peak_per_mm, 1.0, 350.0, 0.0)
    noise = scanner.noise((1, 200, 200), 0.8, np.random.default_rng(0))
    known = 2.355 / (2 * np.pi * peak_per_mm * np.sqrt(2))
    found = point_spread_mm(noise, np.ones(noise.shape, bool), SPACING_MM)
    assert found == pytest.approx(known, rel=0.06)


def test_the_point_spread_is_a_usual_one_where_little_liver_shows_it():
    noise = np.random.default_rng(0).normal(size=(1, 60, 60))
    assert point_spread_mm(noise, np.zeros(noise.shape, bool), SPACING_MM) == USUAL_BLUR_MM
    assert point_spread_mm(noise[:, :20, :20], np.ones((1, 20, 20), bool), SPACING_MM) == USUAL_BLUR_MM


def test_liver_and_vessels_are_measured_through_the_noise(slab):
    host = Host.measure(*slab(liver_hu=95), SPACING_MM)
    assert host.contrast.liver_hu == pytest.approx(95, abs=2)
    assert host.contrast.vessel_hu == pytest.approx(95 + 55, abs=20)
    assert host.blur_mm == pytest.approx(2.355 / (2 * np.pi * 0.2 * np.sqrt(2)), rel=0.15)


def test_structure_holds_the_veins_and_leaves_the_noise(slab):
    hu, labels = slab()
    host = Host.measure(hu, labels, SPACING_MM)
    still = ndimage.binary_erosion(labels[0] == 1, iterations=6) & ~ndimage.binary_dilation(host.structure[0] > 108)
    noise = (host.hu - host.structure)[0]
    assert noise[still].std() == pytest.approx(14, rel=0.1)
    assert abs(noise[still].mean()) < 1.5
    assert host.structure[0, 60, 60] > 110  # on a vein


def test_smoothing_takes_nothing_from_outside(slab):
    hu, labels = slab(noise_hu=0)
    inside = labels == 1
    smooth = smooth_within(hu.astype(np.float32), inside, 3.0, SPACING_MM)
    assert smooth[inside].min() > 94  # fat of −100 HU lies next to it


def test_room_is_the_distance_to_whatever_must_stay(slab):
    """Beside an independent search over all pixels."""
    _, labels = slab(depth=2, lesion=True)
    labels[1, :60] = 0  # the next slice holds less liver
    room = room_mm(labels, SPACING_MM)
    outside = np.argwhere(np.pad((labels == 0).any(0), 1, constant_values=True)) - 1
    lesion = np.argwhere((labels > 1).any(0))
    for place in np.random.default_rng(0).integers(0, 160, (60, 2)):
        wanted = min(
            np.linalg.norm((outside - place) * 0.8, axis=1).min(),
            np.linalg.norm((lesion - place) * 0.8, axis=1).min() - LESION_GAP_MM,
        )
        assert room[tuple(place)] == pytest.approx(wanted)


def test_a_lesion_stays_within_the_slice_where_the_liver_reaches_its_edge():
    assert room_mm(np.ones((1, 40, 40), np.uint8), SPACING_MM).max() == pytest.approx(20 * 0.8)
