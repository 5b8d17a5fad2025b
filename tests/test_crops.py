"""Squares around lesions against scikit-image and by hand; crops against slicing and against the input of the net."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import label, regionprops

from lesionseg.boxes import Box
from lesionseg.crops import LEAST_SIDE_PX, MARGIN, SHIFT, ZOOM, cut, lesion_squares, on_input, shaken
from lesionseg.inputs import InputSpec
from lesionseg.lesions import components

OWNER = torch.zeros(1, dtype=torch.int64)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=40)
def test_squares_are_the_bounding_boxes_with_their_margin(seed):
    mask = np.random.default_rng(seed).random((20, 24)) < 0.2
    expected = []
    for region in regionprops(label(mask, connectivity=2)):
        top, left, bottom, right = region.bbox
        expected.append([(top + bottom) / 2, (left + right) / 2, max(bottom - top, right - left) * (1 + 2 * MARGIN)])
    found = lesion_squares(components(mask)[0]).tolist()
    assert sorted(found) == sorted(expected)


def test_a_slice_without_lesions_has_no_squares():
    assert lesion_squares(np.zeros((4, 4), np.int32)).shape == (0, 3)
    assert shaken(torch.zeros(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("box", [Box(0, 0, 128), Box(10, -20, 96), Box(30, 17, 75)])
def test_a_lesion_lies_on_the_input_where_its_square_says(box):
    """The input that `InputSpec` makes of the slice is the reference, to within a pixel of it."""
    spec, labels = InputSpec(96, "liver"), np.zeros((128, 128), np.uint8)
    labels[52:71, 33:47] = 1
    (square,) = on_input(lesion_squares(labels.astype(np.int32)), box, 96).tolist()
    rows, columns = np.nonzero(spec.encode_labels(labels, box).numpy())
    assert square[0] == pytest.approx((rows.min() + rows.max() + 1) / 2, abs=1)
    assert square[1] == pytest.approx((columns.min() + columns.max() + 1) / 2, abs=1)
    assert square[2] / (1 + 2 * MARGIN) == pytest.approx(rows.max() + 1 - rows.min(), abs=1.5)


def test_a_crop_of_its_own_size_is_a_part_of_the_image():
    images = torch.randn(3, 2, 64, 64)
    crops = cut(images, torch.tensor([2, 0]), torch.tensor([[20.0, 30, 32], [40, 17, 32]]), 32)
    torch.testing.assert_close(crops, torch.stack([images[2, :, 4:36, 14:46], images[0, :, 24:56, 1:33]]))


def test_a_crop_lies_in_its_place_in_every_precision():
    """A number in bfloat16 has eight bits: from 256 pixels on it is off by up to a pixel."""
    images = torch.rand(1, 1, 320, 320, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    owners, squares = torch.tensor([0]), torch.tensor([[283.5, 270.5, 17.0]])
    found = cut(images, owners, squares, 17)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, cut(images.float(), owners, squares, 17).to(torch.bfloat16), rtol=0, atol=0)
    images = torch.rand(1, 1, 320, 320, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = cut(images, owners, squares, 19)
    torch.testing.assert_close(found, cut(images, owners, squares.double(), 19), rtol=0, atol=1e-12)


def test_a_larger_square_is_averaged():
    images = torch.randn(1, 1, 64, 64)
    (crop,) = cut(images, OWNER, torch.tensor([[32.0, 32, 64]]), 32)
    torch.testing.assert_close(crop, images[0].unfold(1, 2, 2).unfold(2, 2, 2).mean((-2, -1)))


def test_squares_stay_inside_the_image_and_are_never_small():
    image = torch.arange(64.0).expand(1, 1, 64, 64)
    for column, side, low, high in ((2.0, 20.0, 0, 20), (63.0, 20.0, 44, 64), (30.0, 1.0, 22, 38), (50.0, 99.0, 0, 64)):
        crop = cut(image, OWNER, torch.tensor([[32.0, column, side]]), 32)[0, 0, 0]
        width = max(side, LEAST_SIDE_PX) if side < 64 else 64
        assert (high - low) == width
        expected = np.interp(low + (np.arange(32) + 0.5) * width / 32 - 0.5, np.arange(64), np.arange(64))
        np.testing.assert_allclose(crop.numpy(), expected, atol=1e-4)


def test_squares_are_shaken_within_their_bounds_and_by_the_seed():
    squares = torch.tensor([[50.0, 60, 20]]).repeat(2000, 1)
    torch.manual_seed(1)
    one = shaken(squares)
    torch.manual_seed(1)
    assert torch.equal(one, shaken(squares))
    low, high = one.min(0).values.tolist(), one.max(0).values.tolist()
    reach = [20 * SHIFT, 20 * SHIFT, 20 * ZOOM]
    for centre, change, least, most in zip([50, 60, 20], reach, low, high, strict=True):
        assert centre - change <= least < centre - 0.98 * change
        assert centre + 0.98 * change < most <= centre + change
