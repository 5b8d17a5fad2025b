from pathlib import Path

import numpy as np
import pytest

from lesionseg.errors import InputError
from lesionseg.formats.voxels import to_int16, to_labels

SHAPE = (3, 4, 5)
FILE = Path("a.nii")


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">i2", "<u2", "<i4", "<f4", "<f8", ">f8"])
def test_values_that_fit_are_kept_whatever_their_type(dtype):
    values = np.arange(60).reshape(SHAPE).astype(dtype)
    hu, labels = to_int16(values, SHAPE, FILE), to_labels(values, SHAPE, FILE, range(60))
    assert (hu.dtype, labels.dtype) == (np.int16, np.uint8)
    assert not np.shares_memory(hu, values)  # a reader may fill the same slice again and again
    np.testing.assert_array_equal(hu, values)
    np.testing.assert_array_equal(labels, values)


def test_fractions_are_rounded_as_numpy_rounds():
    values = np.random.default_rng(0).uniform(-1000, 1000, SHAPE)
    np.testing.assert_array_equal(to_int16(values, SHAPE, FILE), np.rint(values))


def test_a_value_between_allowed_ones_is_refused():
    values = np.zeros(SHAPE, np.uint8)
    values[1, 2, 3] = 4
    np.testing.assert_array_equal(to_labels(values, SHAPE, FILE, {0, 2, 4}), values)
    values[1, 0, 0], values[2, 0, 0] = 3, 1
    with pytest.raises(InputError, match="expected label values 0, 2, 4; got the value 1, 3;"):
        to_labels(values, SHAPE, FILE, {0, 2, 4})


@pytest.mark.parametrize("value", [-1, 256, 0.5, np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_label_is_refused(value):
    values = np.zeros(SHAPE, np.float32)
    values[2, 3, 4] = value
    with pytest.raises(InputError, match="not whole numbers"):
        to_labels(values, SHAPE, FILE, range(256))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
def test_values_are_renamed_at_once(dtype):
    values = (np.arange(60) % 5).reshape(SHAPE).astype(dtype)
    found = to_labels(values, SHAPE, FILE, range(5), renamed={2: 3, 3: 2, 4: 255})
    np.testing.assert_array_equal(found, np.array([0, 1, 3, 2, 255])[values.astype(int)])


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 1), (-3.1, 8.4), (-1.024, 3.071)])
def test_a_normalised_image_is_refused(low, high):
    """To 0…1, to −1…1, by mean and deviation, or HU by the thousand."""
    values = np.linspace(low, high, 60, dtype=np.float32).reshape(SHAPE)
    with pytest.raises(InputError, match="as of a normalised image"):
        to_int16(values, SHAPE, FILE)


@pytest.mark.parametrize(("low", "high"), [(58.2, 142.0), (-120.5, -60.1)])
def test_a_resampled_cut_out_of_one_tissue_is_none(low, high):
    values = np.linspace(low, high, 60, dtype=np.float32).reshape(SHAPE)
    np.testing.assert_array_equal(to_int16(values, SHAPE, FILE), np.rint(values))


@pytest.mark.parametrize(("value", "dtype"), [(40000, np.uint16), (-32769, np.int32), (1e5, np.float32)])
def test_a_value_that_int16_cannot_hold_is_refused(value, dtype):
    values = np.zeros(SHAPE, dtype)
    values[1, 2, 3] = value
    with pytest.raises(InputError, match="finite, within int16"):
        to_int16(values, SHAPE, FILE)
