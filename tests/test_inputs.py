"""What goes into a net and what comes back from it, against PIL and against arrays cut by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lesionseg.boxes import Box, crop, slice_box
from lesionseg.inputs import InputSpec, neighbours, paste, resize, resize_labels

SIZES = st.integers(1, 40)
BOXES = st.builds(Box, st.integers(-20, 30), st.integers(-20, 30), st.integers(1, 45))


def scores_of(classes: torch.Tensor, n: int) -> torch.Tensor:
    """Scores (n, S, S) of a net that is sure of `classes` (S, S)."""
    return torch.nn.functional.one_hot(classes.long(), n).permute(2, 0, 1).float()


def corners(classes: np.ndarray) -> np.ndarray:
    """Pixels that differ from a neighbour to the left or right, and from one above or below."""
    out = []
    for axis in (0, 1):
        change = np.diff(classes, axis=axis) != 0
        before = np.pad(change, [(1, 0) if i == axis else (0, 0) for i in (0, 1)])
        after = np.pad(change, [(0, 1) if i == axis else (0, 0) for i in (0, 1)])
        out.append(before | after)
    return out[0] & out[1]


@pytest.mark.parametrize(
    ("depth", "index", "expected"),
    [(1, 0, [0, 0, 0]), (2, 0, [0, 0, 1]), (2, 1, [0, 1, 1]), (5, 0, [0, 0, 1]), (5, 2, [1, 2, 3]), (5, 4, [3, 4, 4])],
)
def test_neighbours_repeat_the_edge_slice(depth, index, expected):
    volume = np.arange(depth, dtype=np.int16)[:, None, None] * np.ones((1, 2, 3), np.int16)
    assert neighbours(volume, index)[:, 0, 0].tolist() == expected


def test_normalize_is_that_of_the_reference_code():
    values = InputSpec(32, "slice").normalize(np.array([-2000, -200, 95, 130, 250, 3000], dtype=np.int16))
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, [-295 / 35, -295 / 35, 0, 1, 155 / 35, 155 / 35], rtol=1e-6)


def test_a_size_that_the_net_cannot_halve_is_refused():
    with pytest.raises(ValueError, match="multiple of 32"):
        InputSpec(100, "slice")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"low_hu": 250.0, "high_hu": -200.0}, "low_hu must be below high_hu, got 250.0 and -200.0"),
        ({"high_hu": float("inf")}, "low_hu must be below high_hu"),
        ({"low_hu": -float("inf")}, "low_hu must be below high_hu"),
        ({"low_hu": 5.0, "high_hu": 5.0}, "low_hu must be below high_hu"),
        ({"scale_hu": float("inf")}, "scale_hu above 0"),
        ({"low_hu": float("nan")}, "low_hu must be below high_hu"),
        ({"scale_hu": 0.0}, "scale_hu above 0"),
        ({"mean_hu": float("nan")}, "mean_hu must be finite"),
    ],
)
def test_a_window_that_is_none_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        InputSpec(96, "slice", **wrong)


def test_a_scale_below_one_is_a_scale():
    assert InputSpec(96, "slice", mean_hu=0.0, scale_hu=0.5).normalize(np.array([3])) == 6


@pytest.mark.parametrize("index", [1, 2, 3])
def test_neighbours_within_a_volume_are_not_copied(index):
    volume = np.zeros((5, 1, 1))
    assert np.shares_memory(neighbours(volume, index), volume)


def test_the_region_chooses_the_box():
    liver = Box(3, 4, 7)
    assert InputSpec(32, "liver").box(liver, 40, 50) == liver
    assert InputSpec(32, "liver").box(None, 5, 9) == slice_box(5, 9)
    assert InputSpec(32, "slice").box(liver, 40, 50) == slice_box(40, 50)


@settings(deadline=None)
@given(SIZES, SIZES, BOXES)
def test_crop_and_paste_move_each_pixel_to_its_place(height, width, box):
    image = np.arange(1, 2 * height * width + 1, dtype=np.int32).reshape(2, height, width)
    patch = crop(image, box, fill=-1)
    assert patch.shape == (2, box.side, box.side)
    assert patch.dtype == image.dtype
    padded = np.pad(image, ((0, 0), (80, 80), (80, 80)), constant_values=-1)
    top, left = box.top + 80, box.left + 80
    np.testing.assert_array_equal(patch, padded[:, top : top + box.side, left : left + box.side])

    back = paste(torch.from_numpy(patch), box, height, width).numpy()
    inside = np.zeros((height, width), bool)
    inside[max(box.top, 0) : max(box.top + box.side, 0), max(box.left, 0) : max(box.left + box.side, 0)] = True
    np.testing.assert_array_equal(back, np.where(inside, image, 0))


@settings(deadline=None)
@given(st.integers(1, 70), st.sampled_from([32, 64]), st.integers(0, 2**32 - 1))
def test_resize_is_that_of_pil(side, size, seed):
    image = np.random.default_rng(seed).normal(0, 4, (side, side)).astype(np.float32)
    ours = resize(torch.from_numpy(image)[None], size)[0].numpy()
    theirs = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(ours, np.asarray(theirs), rtol=0, atol=1e-4)
    if side == size:
        np.testing.assert_array_equal(ours, image)


def test_labels_are_taken_at_the_pixel_centre():
    labels = torch.arange(9).reshape(3, 3)
    assert resize_labels(labels, 1).tolist() == [[4]]
    assert resize_labels(labels, 6).tolist() == labels.repeat_interleave(2, 0).repeat_interleave(2, 1).tolist()
    assert resize_labels(labels, 3) is labels
    assert resize_labels(labels, 6).dtype == torch.int64


def test_image_and_labels_are_cut_alike():
    """A slice whose HU follow its labels gives an image whose values follow its target."""
    labels = np.random.default_rng(0).integers(0, 5, (30, 41)).astype(np.uint8)
    spec, box = InputSpec(32, "liver"), Box(-4, 7, 32)
    image = spec.encode(np.stack([labels.astype(np.int16) * 20] * 3), box)
    target = spec.encode_labels(labels, box)
    inside = crop(np.ones_like(labels), box, fill=0) > 0
    assert image.dtype == torch.float32
    assert target.dtype == torch.uint8
    np.testing.assert_array_equal(image[1].numpy()[inside], spec.normalize(target.numpy() * 20)[inside])
    assert np.unique(image.numpy()[:, ~inside]) == spec.normalize(np.array(spec.low_hu))
    assert not target.numpy()[~inside].any()


@settings(deadline=None)
@given(SIZES, SIZES, BOXES, st.sampled_from([32, 64]), st.integers(0, 2**32 - 1))
def test_masks_come_back_from_a_net_of_at_least_the_size_of_the_box(height, width, box, size, seed):
    """Noise, the hardest mask there is: each pixel a class of its own.

    Labels are exact through the nearest neighbour. Scores are exact at whole factors; at others, only a corner of a
    class can be lost, because the weight of a pixel's own row (and column) in the resized scores is above one half.
    """
    side = min(box.side, size)
    box, n = Box(box.top, box.left, side), 5
    labels = np.random.default_rng(seed).integers(0, n, (height, width)).astype(np.uint8)
    cut, spec = crop(labels, box, fill=0), InputSpec(size, "liver")
    target = spec.encode_labels(labels, box)
    np.testing.assert_array_equal(resize_labels(target, side).numpy(), cut)
    decoded = spec.decode(scores_of(target, n), box, height, width)
    assert decoded.dtype == torch.uint8
    expected = paste(torch.from_numpy(cut), box, height, width).numpy()
    free = np.zeros_like(cut) if size % side == 0 else corners(cut).astype(np.uint8)
    free = paste(torch.from_numpy(free), box, height, width).numpy() > 0
    np.testing.assert_array_equal(decoded.numpy()[~free], expected[~free])


def test_no_upward_resize_gives_a_pixel_less_than_half_of_its_row():
    """The reason for the statement above, for every box that a net of 96 pixels shows enlarged."""
    size = 96
    for side in range(1, size + 1):
        weights = resize_labels(torch.arange(side).expand(side, side), size)[0]  # which pixel each input pixel shows
        seen = torch.nn.functional.one_hot(weights, side).T.float()  # (side, size)
        own = torch.stack([resize(row.expand(1, size, size), side)[0, 0] for row in seen]).diagonal()
        assert own.min() > 0.5, side


@settings(max_examples=settings.default.max_examples // 4, deadline=None)
@given(st.integers(33, 110), st.floats(5, 6), st.integers(0, 2**32 - 1))
def test_a_lesion_stays_in_its_place_when_its_box_is_shrunk(side, radius, seed):
    """Centroids of discs, 5 to 6 network pixels in radius, come back a third of such a pixel away on average at most.

    The net sees one label of each `factor` x `factor` pixels. Where that is 2 x 2, it is no middle one: a fourth of a
    pixel. Otherwise what is left of the edge is chance, which evens out over many places; a single disc is never a
    pixel off.
    """
    size = 32
    factor, box = side / size, Box(0, 0, side)
    spec, errors = InputSpec(size, "liver"), []
    for centre in np.random.default_rng(seed).uniform(0.3, 0.7, (25, 2)) * side:
        disc = (np.hypot(*(np.indices((side, side)).T - centre).T) <= radius * factor).astype(np.uint8)
        back = spec.decode(scores_of(spec.encode_labels(disc, box), 2), box, side, side).numpy()
        errors.append((np.argwhere(back).mean(0) - np.argwhere(disc).mean(0)) / factor)
    assert np.abs(errors).max() < 1
    assert np.abs(np.mean(errors, axis=0)).max() < 1 / 3
