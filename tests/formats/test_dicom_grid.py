import itertools

import numpy as np
import pytest
import test_dicom
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from scipy.spatial.transform import Rotation
from test_dicom import ct, refused, save

from lesionseg.formats.dicom import read_dicom_file, read_dicom_series
from lesionseg.formats.dicom_grid import affine_of

SPACING = (8.0, 0.8, 0.7)
#: Angles about the patient's axes: rotated in the plane, tilted, both, nearly not at all, coronal and oblique.
ROTATIONS = [
    (0, 0, 7.3),
    (12.4, 0, 0),
    (14.2, -9.7, 21.3),
    (-3.3, 24.8, -11.9),
    (0.02, -0.025, 0.01),
    (83.1, 6.4, -17.5),
]


def truth(angles, depth):
    """Orientation, positions down the normal (D, 3), and the affine of the grid, with nothing rounded."""
    turned = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3] = np.c_[turned[:, [2, 1, 0]] * (-SPACING[0], *SPACING[1:]), (-103.71, -48.33, 812.17)]
    return turned[:, :2].T.ravel(), affine[:3, 3] + np.outer(np.arange(depth), affine[:3, 0]), affine


def corners(affine, shape):
    return affine @ np.array([[*corner, 1] for corner in itertools.product(*((0, n - 1) for n in shape))]).T


def off(affine, true, shape):
    """How far corners lie from where they belong, in voxels."""
    return np.abs(np.linalg.inv(true) @ (corners(affine, shape) - corners(true, shape))).max()


def series(tmp_path, hu, cosines, positions):
    """Files of single slices, in another order."""
    slices = [ct(pixels, position, cosines) for pixels, position in zip(hu, positions, strict=True)]
    return read_dicom_series(save(tmp_path / "ct", slices[::-1]))


def enhanced(tmp_path, hu, cosines, positions):
    """A multi-frame file that states all of each frame by itself, in another order."""
    order = np.random.default_rng(0).permutation(len(hu))

    def change(frames):
        for frame, d in zip(frames, order, strict=True):
            orientation, position = Dataset(), Dataset()
            orientation.ImageOrientationPatient = list(map(float, cosines))
            position.ImagePositionPatient = list(map(float, positions[d]))
            frame.PlaneOrientationSequence, frame.PlanePositionSequence = Sequence([orientation]), Sequence([position])

    return read_dicom_file(test_dicom.TestEnhanced().file(tmp_path, hu[order], change=change))


@pytest.mark.parametrize("read", [series, enhanced])
@pytest.mark.parametrize("decimals", [3, 4])
@pytest.mark.parametrize("angles", ROTATIONS, ids=str)
def test_cosines_rounded_to_three_decimals_are_read(tmp_path, read, decimals, angles):
    shape = (25, 6, 7)
    hu = np.random.default_rng(3).integers(-1000, 1500, shape).astype(np.int16)
    cosines, positions, true = truth(angles, len(hu))
    scan = read(tmp_path, hu, cosines.round(decimals), positions.round(3))
    np.testing.assert_array_equal(scan.hu, hu)
    assert off(scan.affine, true, shape) < 0.1
    directions = scan.affine[:3, :3] / np.linalg.norm(scan.affine[:3, :3], axis=0)
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-12)


def places(cosines, positions):
    found = [Dataset() for _ in positions]
    for place, position in zip(found, positions, strict=True):
        place.ImageOrientationPatient, place.ImagePositionPatient = cosines.tolist(), position.tolist()
        place.PixelSpacing = list(SPACING[1:])
    return found


@pytest.mark.parametrize(("decimals", "voxels"), [(3, 0.35), (4, 0.06), (6, 0.002)])
def test_corners_of_a_whole_body(decimals, voxels):
    """Three decimals leave 0.05° of turning in the plane unknown, whoever reads them."""
    shape = (60, 512, 512)
    for turn in Rotation.random(50, random_state=0).as_euler("xyz", degrees=True):
        cosines, positions, true = truth(turn, shape[0])
        assert off(affine_of(places(cosines.round(decimals), positions.round(3))), true, shape) < voxels


def test_positions_of_few_slices_turn_nothing():
    """Two slices rounded to 0.05 mm say less of the normal than the cosines do."""
    cosines, positions, true = truth((14.2, -9.7, 21.3), 2)
    positions[1] += 0.05
    assert off(affine_of(places(cosines, positions)), true, (2, 512, 512)) < 0.1


@pytest.mark.parametrize("read", [series, enhanced])
@pytest.mark.parametrize("angles", ROTATIONS[:4], ids=str)
def test_two_decimals_are_refused_for_what_they_are(tmp_path, read, angles):
    hu = np.zeros((5, 6, 7), np.int16)
    cosines, positions, _ = truth(angles, len(hu))
    error = refused(lambda: read(tmp_path, hu, cosines.round(2), positions), "two unit vectors at right angles",
                    "rounded to two decimals")  # fmt: skip
    assert error.code == "geometry"


def test_cosines_that_rounding_does_not_explain_are_refused(tmp_path):
    hu = np.zeros((5, 6, 7), np.int16)
    cosines, positions, _ = truth(ROTATIONS[2], len(hu))
    error = refused(lambda: series(tmp_path, hu, cosines * 1.00234, positions), "lengths 1.0023 and 1.0023")
    assert "decimals;" in str(error)


@pytest.mark.parametrize(("tilt", "why"), [(0.3, "gantry tilt, or a normal of rounded cosines"), (1, "gantry tilt)")])
def test_a_stack_beside_its_normal_is_refused(tmp_path, tilt, why):
    hu = np.zeros((20, 6, 7), np.int16)
    _, positions, _ = truth((tilt, 0, 0), len(hu))
    refused(lambda: series(tmp_path, hu, np.array([1, 0, 0, 0, 1, 0]), positions), f"{tilt}° from the normal: {why}")
