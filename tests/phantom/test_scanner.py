import numpy as np
import pytest

from lesionseg.phantom.appearance import DIFFICULTY
from lesionseg.phantom.scanner import LITS_SCANNERS, SLICE_SCANNERS, noise_level

PIXEL_MM = 2.8


@pytest.mark.parametrize("scanner", LITS_SCANNERS + SLICE_SCANNERS, ids=lambda scanner: scanner.name)
def test_noise_has_its_level_and_the_spectrum_of_a_ramp(scanner):
    noise = scanner.noise((24, 128, 128), PIXEL_MM, np.random.default_rng(0))
    assert noise.std() == pytest.approx(scanner.noise_hu * DIFFICULTY.noise_scale, rel=0.01)
    power = (np.abs(np.fft.fft2(noise)) ** 2).mean(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(128, PIXEL_MM), np.fft.fftfreq(128, PIXEL_MM)))
    peak = min(scanner.noise_peak_per_mm, 0.3 / PIXEL_MM)

    def band(low, high):
        return power[(frequency >= low) & (frequency < high)].mean()

    middle = band(0.8 * peak, 1.2 * peak)
    assert band(0, 0.1 * peak) < 0.2 * middle  # no drift of the mean: the ramp takes the lowest frequencies
    assert band(2.2 * peak, 3 * peak) < 0.5 * middle


def test_noise_of_one_slice_and_its_neighbours():
    noise = LITS_SCANNERS[0].noise((40, 64, 64), PIXEL_MM, np.random.default_rng(0))
    flat = noise.reshape(40, -1)
    near = np.mean([np.corrcoef(flat[i], flat[i + 1])[0, 1] for i in range(39)])
    far = np.mean([np.corrcoef(flat[i], flat[i + 2])[0, 1] for i in range(38)])
    assert 0.1 < near < 0.3
    assert abs(far) < 0.05
    assert LITS_SCANNERS[0].noise((1, 64, 64), PIXEL_MM, np.random.default_rng(0)).shape == (1, 64, 64)


def test_acquisition_averages_samples_and_adds_the_offset():
    scanner = SLICE_SCANNERS[0]
    ideal = np.full((6, 128, 128), 60.0, np.float32)
    hu = scanner.acquire(ideal, 2, 350.0, np.random.default_rng(0))
    assert hu.shape == (6, 64, 64)
    assert hu.dtype == np.int16
    assert hu.mean() == pytest.approx(60 + scanner.offset_hu, abs=0.5)


def test_blur_softens_an_edge_and_keeps_the_mean():
    scanner = SLICE_SCANNERS[1]
    ideal = np.zeros((1, 512, 512), np.float32)
    ideal[:, :, 256:] = 1000
    step = scanner.acquire(ideal, 1, 380.0, np.random.default_rng(0))[0].mean(0)
    rise = np.interp([100, 500, 900], step[240:272], np.arange(240, 272))
    assert rise[1] == pytest.approx(255.5, abs=0.15)
    # 10 to 90 % of a Gaussian edge is 1.088 times its full width at half maximum.
    assert (rise[2] - rise[0]) * 380 / 512 == pytest.approx(1.088 * scanner.psf_mm, rel=0.3)


def test_noise_is_lower_in_air():
    hu = np.full((1, 96, 96), -1000, np.float32)
    hu[:, 24:72, 16:80] = 60
    level = noise_level(hu)
    assert level[0, 2, 2] < 0.5 < 0.9 < level[0, 48, 48] <= 1.1


def test_field_of_view_holds_the_patient():
    for scanner in LITS_SCANNERS + SLICE_SCANNERS:
        assert scanner.fov_mm(300.0) == scanner.least_fov_mm
        assert scanner.fov_mm(420.0) > 420.0
