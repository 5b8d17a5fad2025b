"""Squares of a slice against their definitions."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lesionseg.boxes import LIVER_MARGIN_PX, Box, crop, liver_box, slice_box

SIZES = st.integers(1, 40)
BOXES = st.builds(Box, st.integers(-60, 60), st.integers(-60, 60), st.integers(1, 45))


@settings(deadline=None)
@given(SIZES, SIZES)
def test_slice_box_is_the_smallest_centred_square(height, width):
    box = slice_box(height, width)
    assert box.side == max(height, width)
    for start, length in ((box.top, height), (box.left, width)):
        before, after = -start, start + box.side - length
        assert before >= 0
        assert after >= 0
        assert abs(before - after) <= 1
        assert isinstance(start, int)


@settings(deadline=None)
@given(st.data(), st.integers(1, 3), SIZES, SIZES)
def test_liver_box_holds_the_liver_of_all_slices_with_its_margin(data, depth, height, width):
    voxels = st.tuples(st.integers(0, depth - 1), st.integers(0, height - 1), st.integers(0, width - 1))
    chosen = np.array(data.draw(st.lists(voxels, min_size=1, max_size=4)))
    liver = np.zeros((depth, height, width), bool)
    liver[tuple(chosen.T)] = True
    box, (rows, columns) = liver_box(liver), chosen.T[1:]
    assert box.top <= rows.min() - LIVER_MARGIN_PX
    assert box.left <= columns.min() - LIVER_MARGIN_PX
    assert box.top + box.side > rows.max() + LIVER_MARGIN_PX
    assert box.left + box.side > columns.max() + LIVER_MARGIN_PX
    assert box.side == max(np.ptp(rows), np.ptp(columns)) + 1 + 2 * LIVER_MARGIN_PX
    assert all(isinstance(value, int) for value in box)


def test_no_liver_no_box():
    assert liver_box(np.zeros((2, 4, 4), bool)) is None


@settings(deadline=None)
@given(st.integers(1, 3), SIZES, SIZES, BOXES)
def test_crop_cuts_out_of_a_slice_that_goes_on_for_ever(depth, height, width, box):
    slices = np.arange(depth * height * width, dtype=np.int16).reshape(depth, height, width)
    beyond = 60 + 45  # farther than any box reaches
    padded = np.pad(slices, ((0, 0), (beyond, beyond), (beyond, beyond)), constant_values=-7)
    top, left = box.top + beyond, box.left + beyond
    cut = crop(slices, box, fill=-7)
    np.testing.assert_array_equal(cut, padded[:, top : top + box.side, left : left + box.side])
    assert cut.dtype == slices.dtype
    np.testing.assert_array_equal(crop(slices[0], box, fill=-7), cut[0])
