import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from scipy.optimize import linprog
from scipy.spatial import ConvexHull
from skimage.measure import regionprops

from lesionseg.measurements import Diameters, diameters, longest_diameter, longest_diameters, outline

SPACINGS = [(1.0, 1.0), (0.5, 2.0), (0.7, 0.7)]
masks = hnp.arrays(bool, st.tuples(st.integers(1, 8), st.integers(1, 8)))


def edge_midpoints(mask, spacing):
    steps = ((0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5))
    return np.array([((h + dh) * spacing[0], (w + dw) * spacing[1]) for h, w in np.argwhere(mask) for dh, dw in steps])


def longest_chord(points, direction):
    """The longest segment of a direction in the hull of points, as a linear programme: start (2), length."""
    *normal, offset = ConvexHull(points).equations.T
    normal = np.stack(normal, 1)
    inside = np.concatenate([np.c_[normal, np.zeros(len(normal))], np.c_[normal, normal @ direction]])
    found = linprog([0, 0, -1], inside, np.tile(-offset, 2), bounds=[(None, None), (None, None), (0, None)])
    return found.x[2]


def reference_diameters(mask, spacing):
    """Over all pairs of edge midpoints, and the chord at right angles by linear programming."""
    points = edge_midpoints(mask, spacing)
    apart = np.linalg.norm(points[:, None] - points, axis=2)
    longest = apart.max()
    short = 0.0
    for a, b in np.argwhere(np.triu(apart) > longest * (1 - 1e-9)):
        across = (points[b] - points[a])[::-1] * (1, -1) / apart[a, b]
        short = max(short, longest_chord(points, across))
    return longest, short


def random_masks(n, seed=0):
    """Blobs, rings, lines, crumbs: smoothed noise of many grains, cut at many levels."""
    generator = np.random.default_rng(seed)
    found = []
    while len(found) < n:
        noise = generator.normal(size=generator.integers(3, 40, 2))
        mask = ndimage.gaussian_filter(noise, generator.uniform(0, 4)) > np.quantile(noise, generator.uniform(0.3, 0.9))
        if mask.any():
            found.append(mask)
    return found


@given(masks, st.sampled_from(SPACINGS))
@settings(max_examples=100, deadline=None)
def test_longest_diameter_is_that_of_all_pairs(mask, spacing_mm):
    points = edge_midpoints(mask, spacing_mm).reshape(-1, 1, 2)
    longest = np.linalg.norm(points - points[:, 0], axis=2).max(initial=0)
    assert longest_diameter(mask, spacing_mm) == pytest.approx(longest)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_both_axes_are_those_of_a_slow_reference(spacing):
    for mask in random_masks(30, seed=int(10 * sum(spacing))):
        small = mask[:12, :12]
        if small.any():
            assert diameters(outline(small), spacing) == pytest.approx(reference_diameters(small, spacing))


def test_200_random_masks_agree_with_scikit_image():
    """Its diameter is that of a hull of whole pixels, which now and then holds a pixel that the mask's own does not."""
    equal = 0
    for mask in random_masks(200):
        (region,) = regionprops(mask.astype(np.uint8))
        own, theirs = longest_diameter(mask, (1.0, 1.0)), region.feret_diameter_max
        assert longest_diameter(region.image_convex, (1.0, 1.0)) == pytest.approx(theirs)
        assert own <= theirs + 1e-9
        assert own > theirs - 1
        equal += math.isclose(own, theirs)
    assert equal >= 180


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["#"], (1, 1)),
        (["###"], (3, 1)),
        (["#", "#"], (2, 1)),
        (["#.", ".#"], (math.sqrt(5), None)),
        (["..#..", "..#..", "#####", "..#..", "..#.."], (5, 5)),
        (["#####", "#...#", "#####"], (math.hypot(5, 2), None)),
    ],
)
def test_axes_of_shapes_measured_by_hand(rows, expected):
    found = diameters(outline(np.array([[c == "#" for c in row] for row in rows])), (1.0, 1.0))
    assert found.long == pytest.approx(expected[0])
    if expected[1]:
        assert found.short == pytest.approx(expected[1])


def test_no_turn_of_a_mask_changes_its_axes():
    for mask in random_masks(40, seed=7):
        base = diameters(outline(mask), (1.0, 1.0))
        for turned in (mask.T, mask[::-1], mask[:, ::-1], np.rot90(mask)):
            assert diameters(outline(turned), (1.0, 1.0)) == pytest.approx(base)


def test_axes_of_a_disc_and_an_ellipse_are_those_of_geometry():
    h, w = np.mgrid[-60:61, -60:61]
    assert diameters(outline(np.hypot(h, w) <= 50), (0.5, 0.5)) == pytest.approx((50.5, 50.5), rel=0.01)
    assert diameters(outline(np.hypot(h / 20, w / 50) <= 1), (1.0, 1.0)) == pytest.approx((101, 41), rel=0.01)


def test_of_many_slices_the_one_with_the_longest_axis_counts_and_of_equals_the_fuller():
    volume = np.zeros((4, 9, 9), dtype=bool)
    volume[0, 2, 1:6] = True
    volume[1, 2:7, 2] = True
    volume[1, 4, 3] = True  # as long as the first, and fuller
    pixels, millimetres = longest_diameters(volume, (1.0, 2.0))
    assert pixels == diameters(outline(volume[1]), (1.0, 1.0))
    assert millimetres == diameters(outline(volume[0]), (1.0, 2.0)) == Diameters(10.0, 1.0)
    assert longest_diameters(volume) == (pixels, pixels)


def test_an_empty_mask_has_no_axes():
    assert longest_diameter(np.zeros((3, 3), dtype=bool), (1.0, 1.0)) == 0.0
    with pytest.raises(ValueError, match="empty"):
        longest_diameters(np.zeros((2, 3, 3), dtype=bool))
