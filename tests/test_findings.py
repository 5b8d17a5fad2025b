import itertools
import math

import numpy as np
import pytest
from scipy import ndimage
from skimage.measure import regionprops

from lesionseg.findings import measure_findings
from lesionseg.measurements import FULL_CONNECTIVITY
from lesionseg.scan import Scan, canonical_axes, spacing_of


def numbered(generator, shape, level=0.9):
    """Ids of the components of smoothed noise, in any order, as uint16."""
    noise = ndimage.gaussian_filter(generator.normal(size=shape), generator.uniform(0.5, 2))
    ids, n = ndimage.label(noise > np.quantile(noise, level), FULL_CONNECTIVITY)
    return ids.astype(np.uint16), n


def affine_of(order, signs, spacing, origin=(-40.0, 25.0, 310.0)):
    """Array axis i runs along patient axis order[i] (0 L, 1 P, 2 S), towards or against it."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (patient, sign, step) in enumerate(zip(order, signs, spacing, strict=True)):
        affine[patient, axis] = sign * step
    affine[:3, 3] = origin
    return affine


def findings_of(scan, ids, n):
    return measure_findings(scan, ids, ["cyst"] * n, [{"cyst": 1.0}] * n)


def test_200_random_masks_agree_with_scikit_image():
    generator, checked = np.random.default_rng(0), 0
    while checked < 200:
        ids, n = numbered(generator, (1, *generator.integers(8, 60, 2)))
        hu = generator.integers(-1000, 3000, ids.shape).astype(np.int16)
        found = findings_of(Scan(hu, "x"), ids, n)
        for finding, region in zip(found, regionprops(ids[0], intensity_image=hu[0].astype(float)), strict=True):
            assert finding.area_px == finding.voxels == region.area
            assert finding.mean_hu == pytest.approx(region.intensity_mean)
            assert finding.sd_hu == pytest.approx(region.intensity_std)
            assert finding.centroid_index == pytest.approx((0, *region.centroid))
            assert region.feret_diameter_max - 1 < finding.long_axis_px <= region.feret_diameter_max + 1e-9
            checked += 1


def test_volumes_agree_with_scikit_image():
    generator = np.random.default_rng(1)
    for _ in range(10):
        ids, n = numbered(generator, (12, 20, 24))
        hu = generator.integers(-1000, 3000, ids.shape).astype(np.int16)
        spacing = (2.5, 0.7, 0.7)
        scan = Scan(hu, "x", spacing, affine_of((2, 1, 0), (1, 1, 1), spacing))
        for finding, region in zip(findings_of(scan, ids, n), regionprops(ids, hu.astype(float)), strict=True):
            slices = [(region.image[i], i + region.bbox[0]) for i in range(len(region.image))]
            largest, key = max(slices, key=lambda item: (item[0].sum(), -item[1]))
            assert finding.voxels == region.area
            assert finding.volume_ml == pytest.approx(region.area * 2.5 * 0.49 / 1000)
            assert (finding.area_px, finding.key_slice) == (largest.sum(), key)
            assert finding.area_mm2 == pytest.approx(largest.sum() * 0.49)
            assert finding.slices == (region.bbox[0], region.bbox[3] - 1)
            assert finding.centroid_mm == pytest.approx(scan.affine[:3] @ [*region.centroid, 1])
            assert (finding.mean_hu, finding.sd_hu) == pytest.approx((region.intensity_mean, region.intensity_std))
            assert finding.long_axis_mm == pytest.approx(finding.long_axis_px * 0.7)
            assert finding.short_axis_mm == pytest.approx(finding.short_axis_px * 0.7)


def test_the_48_orientations_give_the_same_lesions_at_the_same_places():
    generator = np.random.default_rng(2)
    ids, n = numbered(generator, (7, 12, 14))
    hu = generator.integers(-1000, 3000, ids.shape).astype(np.int16)
    spacing = (3.0, 0.8, 0.6)
    upright = Scan(hu, "x", spacing, affine_of((2, 1, 0), (1, 1, 1), spacing))
    expected = findings_of(upright, ids, n)
    for order, signs in itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)):
        turned = [axis for axis in range(3) if signs[axis] < 0]
        scan_hu, scan_ids = (np.flip(array.transpose(order), turned) for array in (hu, ids))
        turn = np.zeros((4, 4))
        turn[3, 3] = 1
        for new, old in enumerate(order):
            turn[old, new] = signs[new]
            turn[old, 3] = hu.shape[old] - 1 if signs[new] < 0 else 0
        affine = upright.affine @ turn
        scan = Scan(scan_hu, "x", spacing_of(affine), affine)
        axis, flipped = canonical_axes(affine)[0][0], canonical_axes(affine)[1][0]
        for a, b in zip(findings_of(scan, scan_ids, n), expected, strict=True):
            for name in ("voxels", "area_px", "mean_hu", "sd_hu", "volume_ml", "area_mm2", "centroid_mm"):
                assert getattr(a, name) == pytest.approx(getattr(b, name), abs=1e-9)
            for name in ("long_axis_px", "short_axis_px", "long_axis_mm", "short_axis_mm"):
                assert getattr(a, name) == pytest.approx(getattr(b, name))
            assert affine[:3] @ [*a.centroid_index, 1] == pytest.approx(b.centroid_mm)
            last = scan_hu.shape[axis] - 1
            assert a.slices == (tuple(last - i for i in b.slices[::-1]) if flipped else b.slices)
            on_key = np.count_nonzero(np.take(scan_ids, a.key_slice, axis) == a.id)
            assert on_key == a.area_px


@pytest.mark.parametrize(
    ("depth", "spacing", "has_plane", "has_volume"),
    [
        (3, (2.0, 0.5, 0.5), True, True),
        (3, None, False, False),
        (1, (2.0, 0.5, 0.5), True, False),
        (1, (math.nan, 0.5, 0.5), True, False),
        (3, (math.nan, 0.5, 0.5), True, False),
        (1, None, False, False),
    ],
)
def test_what_cannot_be_known_is_none(depth, spacing, has_plane, has_volume):
    ids = np.zeros((depth, 8, 8), dtype=np.uint16)
    ids[0, 2:5, 3:5] = 1
    (found,) = findings_of(Scan(np.zeros(ids.shape, np.int16), "x", spacing), ids, 1)
    assert found.centroid_mm is None
    assert found.centroid_index == (0.0, 3.0, 3.5)
    assert found.area_mm2 == (pytest.approx(1.5) if has_plane else None)
    assert (found.long_axis_mm is not None) == (found.short_axis_mm is not None) == has_plane
    assert found.volume_ml == (pytest.approx(0.003) if has_volume else None)
    assert (found.area_px, found.voxels, found.slices, found.key_slice) == (6, 6, (0, 0), 0)


def test_types_and_their_probabilities_belong_to_their_lesion():
    ids = np.zeros((1, 4, 8), dtype=np.uint16)
    ids[0, 0, 0], ids[0, 2, 4:7] = 2, 1
    scan = Scan(np.zeros(ids.shape, np.int16), "x")
    one, two = measure_findings(scan, ids, ["cyst", "undetermined"], [{"cyst": 0.9}, {"cyst": 0.4}])
    assert (one.id, one.voxels, one.type, one.probability) == (1, 3, "cyst", 0.9)
    assert (two.id, two.voxels, two.type, two.probability) == (2, 1, "undetermined", 0.4)


def test_no_lesions_no_findings():
    scan = Scan(np.zeros((2, 4, 4), np.int16), "x")
    assert measure_findings(scan, np.zeros((2, 4, 4), np.uint16), [], []) == ()


@pytest.mark.parametrize("types", [["cyst"], ["cyst"] * 3])
def test_ids_and_types_must_fit(types):
    scan, ids = Scan(np.zeros((1, 4, 4), np.int16), "x"), np.zeros((1, 4, 4), np.uint16)
    ids[0, 0, 0], ids[0, 2, 2] = 1, 2
    with pytest.raises(ValueError, match="argument"):
        measure_findings(scan, ids, types, [{}] * len(types))
    ids[0, 0, 0] = 0
    with pytest.raises(ValueError, match="every id"):
        measure_findings(scan, ids, types, [{}] * len(types))
    with pytest.raises(ValueError, match="must be"):
        measure_findings(scan, ids[:, :2], types, [{}] * len(types))
