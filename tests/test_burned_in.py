"""Pictures with burned-in outlines, against masks whose border is known."""

import io

import numpy as np
from PIL import Image
from scipy import ndimage

from lesionseg.boxes import Box
from lesionseg.burned_in import SIDE_PX, outlined, png, side_by_side
from lesionseg.figures import window
from lesionseg.labels import COLORS, LESION_IDS, LIVER


def labelled(side=SIDE_PX):
    labels = np.zeros((side, side), np.uint8)
    labels[side // 8 : -side // 8, side // 8 : -side // 8] = LIVER
    labels[side // 4 : side // 2, side // 4 : side // 2] = LESION_IDS["metastasis"]
    return labels


def test_outlines_lie_on_the_border_inside_of_each_mask_and_nowhere_else():
    labels, hu = labelled(), np.random.default_rng(0).integers(-150, 300, (SIDE_PX, SIDE_PX)).astype(np.int16)
    picture = outlined(hu, labels, Box(0, 0, SIDE_PX))
    red = (picture == COLORS[LESION_IDS["metastasis"]]).all(-1)
    distance = ndimage.distance_transform_cdt(labels == LESION_IDS["metastasis"], metric="taxicab")
    assert np.array_equal(red, (distance > 0) & (distance <= 2))
    green = (picture == COLORS[LIVER]).all(-1)
    assert np.array_equal(green, ndimage.distance_transform_cdt(labels >= LIVER, metric="taxicab") == 1)
    grey = picture[~red & ~green]
    assert (grey == grey[:, :1]).all()
    assert np.array_equal(grey[:, 0], (255 * window(hu)).astype(np.uint8)[~red & ~green])


def test_a_small_slice_is_enlarged_and_what_lies_beyond_it_is_air():
    labels = labelled(64)
    picture = outlined(np.zeros((64, 64), np.int16), labels, Box(-32, -32, 128))
    assert picture.shape == (SIDE_PX, SIDE_PX, 3)
    assert (picture[:50] == 0).all()
    assert (picture == COLORS[LIVER]).all(-1).any()


def test_reference_left_prediction_right_and_corners_around_the_lesion():
    hu, reference = np.full((SIDE_PX, SIDE_PX), -500, np.int16), labelled()
    lesion = reference == LESION_IDS["metastasis"]
    pair = side_by_side(hu, reference, np.zeros_like(reference), Box(0, 0, SIDE_PX), lesion)
    left, right = pair[:, :SIDE_PX], pair[:, -SIDE_PX:]
    assert (left == COLORS[LIVER]).all(-1).any()
    assert not (right == COLORS[LIVER]).all(-1).any()
    for half in (left, right):
        rows, columns = np.nonzero((half == 255).all(-1))
        inside = np.flatnonzero(lesion.any(1))
        assert 0 < inside[0] - rows.min() <= 8
        assert 0 < rows.max() - inside[-1] <= 8
        assert (columns.min(), columns.max()) == (rows.min(), rows.max())  # a square


def test_corners_at_the_edge_and_of_a_lesion_outside_of_the_box_do_no_harm():
    hu, labels = np.zeros((2, 40, 40), np.int16)
    labels = labels.astype(np.uint8)
    lesion = np.zeros((40, 40), bool)
    lesion[0, 0] = True
    assert side_by_side(hu, labels, labels, Box(0, 0, 40), lesion).shape == (SIDE_PX, 2 * SIDE_PX + 4, 3)
    assert side_by_side(hu, labels, labels, Box(20, 20, 10), lesion).shape == (SIDE_PX, 2 * SIDE_PX + 4, 3)


def test_png_holds_the_picture_and_nothing_else():
    picture = np.random.default_rng(0).integers(0, 255, (8, 9, 3)).astype(np.uint8)
    opened = Image.open(io.BytesIO(png(picture)))
    assert np.array_equal(np.asarray(opened), picture)
    assert opened.info == {}
