"""Orientation of scans: all 48 ways an array can lie in a patient, and slanted ones."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from lesionseg.scan import (
    Case,
    Scan,
    array_checksum,
    canonical,
    canonical_axes,
    empty,
    grid_distance_voxels,
    spacing_of,
    to_canonical,
)

ORIENTATIONS = list(itertools.product(itertools.permutations(range(3)), itertools.product((False, True), repeat=3)))
SPACING_MM = (5.0, 0.7, 0.8)


def canonical_affine(rotation: Rotation | None = None) -> np.ndarray:
    """D to the head (+z in LPS), H to the back (+y), W to the left (+x); slanted by `rotation`."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]]) * SPACING_MM
    affine[:3, 3] = -120.0, 35.5, 810.25
    if rotation is not None:
        affine[:3, :3] = rotation.as_matrix() @ affine[:3, :3]
    return affine


def numbered_case(shape: tuple[int, int, int], affine: np.ndarray | None) -> Case:
    """Every voxel holds its own number, so that each can be followed."""
    hu = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    spacing_mm = None if affine is None else SPACING_MM
    return Case(Scan(hu, "scan", spacing_mm, affine), (hu % 5).astype(np.uint8), "patient")


def laid(case: Case, order: tuple[int, ...], flip: tuple[bool, ...]) -> Case:
    """The same case as a scanner with other axes would store it: each voxel is moved by hand, with its position."""
    shape = tuple(case.scan.hu.shape[axis] for axis in order)
    hu, labels = np.empty(shape, np.int16), np.empty(shape, np.uint8)

    def index_in_case(index):
        out = [0, 0, 0]
        for axis, i in enumerate(index):
            out[order[axis]] = shape[axis] - 1 - i if flip[axis] else i
        return tuple(out)

    for index in np.ndindex(shape):
        hu[index], labels[index] = case.scan.hu[index_in_case(index)], case.labels[index_in_case(index)]
    origin = np.array(index_in_case((0, 0, 0)))
    affine = np.eye(4)
    affine[:3, 3] = (case.scan.affine @ [*origin, 1])[:3]
    for axis in range(3):
        step = np.zeros(3)
        step[order[axis]] = -1 if flip[axis] else 1
        affine[:3, axis] = case.scan.affine[:3, :3] @ step
    spacing = tuple(case.scan.spacing_mm[axis] for axis in order)
    return Case(Scan(hu, "scan", spacing, affine), labels, "patient")


@pytest.mark.parametrize(("order", "flip"), ORIENTATIONS)
@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 4, 2)])
def test_every_orientation_comes_back_to_the_canonical_one(order, flip, shape):
    case = numbered_case(shape, canonical_affine(Rotation.from_euler("xyz", (8, -12, 5), degrees=True)))
    back = to_canonical(laid(case, order, flip))
    np.testing.assert_array_equal(back.scan.hu, case.scan.hu)
    np.testing.assert_array_equal(back.labels, case.labels)
    np.testing.assert_allclose(back.scan.affine, case.scan.affine, rtol=0, atol=1e-9)
    assert back.scan.spacing_mm == case.scan.spacing_mm
    assert back.scan.hu.flags.c_contiguous


@pytest.mark.parametrize(("order", "flip"), ORIENTATIONS)
def test_an_array_laid_out_for_it_turns_without_a_copy(order, flip):
    stored = laid(numbered_case((2, 3, 4), canonical_affine()), order, flip).scan
    array = empty(stored.hu.shape, np.int16, stored.affine)
    assert (array.shape, array.dtype) == (stored.hu.shape, np.int16)
    array[:] = stored.hu
    case = Case(Scan(array, "scan", stored.spacing_mm, stored.affine), np.zeros(array.shape, np.uint8), "patient")
    turned = to_canonical(case).scan.hu
    assert np.shares_memory(turned, array)
    np.testing.assert_array_equal(turned, canonical(stored.hu, stored.affine))


def positions_mm(scan: Scan) -> np.ndarray:
    """Patient position of each voxel, ordered by the number it holds."""
    index = np.argwhere(np.ones(scan.hu.shape, bool))[np.argsort(scan.hu.ravel())]
    return index @ scan.affine[:3, :3].T + scan.affine[:3, 3]


@settings(deadline=None)
@given(angles=st.tuples(*[st.floats(-180, 180)] * 3), shape=st.tuples(*[st.integers(1, 4)] * 3))
def test_no_voxel_moves_in_the_patient(angles, shape):
    case = numbered_case(shape, canonical_affine(Rotation.from_euler("zyx", angles, degrees=True)))
    turned = to_canonical(case)
    np.testing.assert_allclose(positions_mm(turned.scan), positions_mm(case.scan), rtol=0, atol=1e-9)
    np.testing.assert_allclose(spacing_of(turned.scan.affine), turned.scan.spacing_mm)
    again = to_canonical(turned)
    np.testing.assert_array_equal(again.scan.hu, turned.scan.hu)
    np.testing.assert_array_equal(again.scan.affine, turned.scan.affine)


def test_canonical_runs_to_head_back_and_left():
    """A voxel set at the head end, at the back, at the left is found at the last index of D, H, W."""
    stored = np.zeros((2, 3, 4), np.int16)  # axes run to the right, to the feet, to the front
    stored[0, 0, 0] = 7  # so this corner is the left, head and back end
    affine = np.array([[-0.8, 0, 0, 0], [0, 0, -0.7, 0], [0, -5.0, 0, 0], [0, 0, 0, 1]])
    case = Case(Scan(stored, "scan", (0.8, 5.0, 0.7), affine), np.zeros((2, 3, 4), np.uint8), "patient")
    turned = to_canonical(case).scan
    assert turned.hu.shape == (3, 4, 2)
    assert turned.hu[-1, -1, -1] == 7
    assert turned.spacing_mm == (5.0, 0.7, 0.8)


def test_without_affine_nothing_is_turned():
    case = numbered_case((2, 3, 4), None)
    assert to_canonical(case) is case
    assert canonical_axes(None) == ((0, 1, 2), (False, False, False))


def test_spacing_is_the_length_of_a_step():
    assert spacing_of(canonical_affine(Rotation.from_euler("x", 30, degrees=True))) == pytest.approx(SPACING_MM)


def test_grid_distance_is_that_of_the_corner_farthest_off():
    affine, shape = canonical_affine(), (11, 21, 31)
    shifted, stretched = affine.copy(), affine.copy()
    shifted[:3, 3] += affine[:3, 1] * 0.25
    stretched[:3, 2] *= 1.01
    assert grid_distance_voxels(affine, affine, shape) == 0
    assert grid_distance_voxels(affine, shifted, shape) == pytest.approx(0.25)
    assert grid_distance_voxels(affine, stretched, shape) == pytest.approx(0.30)


@pytest.mark.parametrize("hu", [np.zeros((3, 3), np.int16), np.zeros((1, 3, 3), np.float32)])
def test_a_scan_is_int16_in_three_axes(hu):
    with pytest.raises(ValueError, match="int16"):
        Scan(hu, "scan")


@pytest.mark.parametrize("labels", [np.zeros((1, 3, 4), np.uint8), np.zeros((1, 3, 3), np.int16)])
def test_labels_lie_on_the_grid_of_the_scan(labels):
    with pytest.raises(ValueError, match="uint8"):
        Case(Scan(np.zeros((1, 3, 3), np.int16), "scan"), labels, "patient")


def test_checksum_tells_shape_and_values_apart():
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    assert array_checksum(array) == array_checksum(np.asfortranarray(array)) == array_checksum(array.astype(">i2"))
    assert array_checksum(array) != array_checksum(array.reshape(3, 2, 4))
    changed = array.copy()
    changed[1, 2, 3] += 1
    assert array_checksum(array) != array_checksum(changed)
