import numpy as np
import pytest

from lesionseg.phantom.geometry import Ellipsoid, Tube, WaveField, coverage, smooth_cut, smooth_union


def test_field_is_the_same_on_a_grid_and_at_points():
    field = WaveField.draw(np.random.default_rng(0), scale=20.0, sd=3.0)
    y, x = np.linspace(-80, 80, 33).astype(np.float32), np.linspace(-90, 70, 41).astype(np.float32)
    grid = field.grid(12.5, y, x)
    points = np.meshgrid(np.float32(12.5), y, x, indexing="ij")
    assert np.allclose(grid, field.at(*points)[0], atol=2e-3)


def test_field_has_its_standard_deviation_and_correlation_length():
    y = np.linspace(-4000, 4000, 160).astype(np.float32)
    fields = [WaveField.draw(np.random.default_rng(seed), scale=20.0, sd=3.0, waves=64) for seed in range(8)]
    values = np.concatenate([field.grid(0.0, y, y).ravel() for field in fields])
    assert values.std() == pytest.approx(3.0, rel=0.05)
    shifted = np.concatenate([field.grid(0.0, y + 20, y).ravel() for field in fields])
    # A Gaussian correlation of length 20 leaves exp(−1/2) at 20.
    assert np.corrcoef(values, shifted)[0, 1] == pytest.approx(np.exp(-0.5), abs=0.12)


def test_distance_of_a_ball_and_a_tube_by_hand():
    ball = Ellipsoid((0, 0, 0), (10, 10, 10))
    assert ball.distance(np.array(0.0), np.array(14.0), np.array(0.0)) == pytest.approx(4)
    assert ball.distance(np.array(0.0), np.array(0.0), np.array(7.0)) == pytest.approx(-3)
    tube = Tube((0, 0, 0), (0, 0, 100), 4, 2)
    assert tube.distance(np.array(0.0), np.array(10.0), np.array(50.0)) == pytest.approx(7)
    assert tube.distance(np.array(0.0), np.array(0.0), np.array(103.0)) == pytest.approx(1)


@pytest.mark.parametrize("shape", [Ellipsoid((3, -4, 5), (20, 8, 14), 0.7), Tube((0, 5, -9), (14, -8, 20), 6, 3)])
def test_bounds_hold_the_shape(shape):
    low, high = np.array(shape.bounds())
    points = np.random.default_rng(0).uniform(low - 20, high + 20, (20000, 3))
    within = points[shape.distance(*points.T) < 0]
    assert len(within) > 100
    assert (within >= low).all()
    assert (within <= high).all()


def test_union_and_cut_agree_with_sets_away_from_the_fillet():
    a, b = np.array([-20.0, -20.0, 20.0, 20.0]), np.array([-20.0, 20.0, -20.0, 20.0])
    assert np.array_equal(smooth_union(a, b, 5.0) < 0, (a < 0) | (b < 0))
    assert np.array_equal(smooth_cut(a, b, 5.0) < 0, (a < 0) & ~(b < 0))


def test_coverage_is_the_share_of_a_sample():
    assert coverage(np.array([-3.0, -0.5, 0.0, 0.5, 3.0]), 2.0).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
