import json
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from hypothesis.strategies import sampled_from
from made_cases import AFFINE, made
from skimage import measure

from lesionseg.boxes import Box
from lesionseg.data.records import CaseRecord, describe, highest_of, islands, lesions_of
from lesionseg.scan import Case, Scan

IDS = {"case_id": "p0123456789-abcdef", "patient_id": "p0123456789", "source_checksum": "0" * 32}


def test_a_hand_made_case_is_measured():
    case = made(0, lesion=3)
    record = describe(Case(Scan(case.hu, "x", case.spacing_mm, AFFINE), case.labels, "y"), **IDS)
    assert record.liver_box == Box(5, 4, 22)  # 20 pixels and one more on every side
    assert record.liver_slices == (0, 1, 2, 3)
    assert record.lesion_slices == (0, 1)
    assert record.lesion_types == ("hemangioma",)
    (lesion,) = record.lesions
    assert (lesion.type, lesion.voxels, lesion.slices) == ("hemangioma", 24, (0, 1))
    assert lesion.volume_ml == pytest.approx(24 * 5 * 0.8 * 0.8 / 1000)
    assert lesion.area_mm2 == pytest.approx(12 * 0.64)
    # 4 wide and 3 high: from the middle of the left edge of one corner pixel to that of the right edge of the other.
    assert lesion.diameter_mm == pytest.approx(0.8 * math.hypot(4, 2))


def test_lesions_are_components_of_one_type():
    labels = np.ones((3, 12, 12), np.uint8)
    labels[0, 2, 2] = labels[1, 3, 3] = 2  # one lesion: they touch over a corner
    labels[1, 4, 4] = 3  # touches, but is of another type
    labels[2, 9:11, 9:11] = 2
    found = [(lesion.type, lesion.voxels, lesion.slices) for lesion in lesions_of(labels, highest_of(labels), None)]
    assert found == [("cyst", 2, (0, 1)), ("cyst", 4, (2, 2)), ("hemangioma", 1, (1, 1))]
    liver = np.ones((1, 4, 4), np.uint8)
    assert lesions_of(liver, highest_of(liver), None) == ()


@given(arrays(np.uint8, array_shapes(min_dims=3, max_dims=3, max_side=9), elements=sampled_from([1, 1, 1, 1, 2, 5])))
def test_lesions_are_those_of_a_search_of_all_voxels(labels):
    expected = []
    for label, name in ((2, "cyst"), (5, "lesion")):
        regions = measure.regionprops(measure.label(labels == label, connectivity=3))
        expected += [(name, int(region.area), (region.bbox[0], region.bbox[3] - 1)) for region in regions]
    found = [(lesion.type, lesion.voxels, lesion.slices) for lesion in lesions_of(labels, highest_of(labels), None)]
    assert found == expected  # in the same order: by type, then by first voxel


@given(arrays(bool, array_shapes(min_dims=3, max_dims=3, max_side=9)))
def test_islands_hold_a_mask_once_and_no_empty_plane(mask):
    times = np.zeros(mask.shape, int)
    for island in islands(mask):
        times[island] += 1
        for axis in range(3):
            assert mask[island].any(tuple(i for i in range(3) if i != axis)).all()
    assert times.max() <= 1
    assert times[mask].all()


def test_unknown_spacing_leaves_millimetres_out():
    labels = made(0, shape=(1, 32, 32)).labels
    (unknown,) = lesions_of(labels, highest_of(labels), None)
    assert (unknown.volume_ml, unknown.area_mm2, unknown.diameter_mm) == (None, None, None)
    (slice_only,) = lesions_of(labels, highest_of(labels), (math.nan, 0.5, 0.5))
    assert slice_only.volume_ml is None
    assert slice_only.area_mm2 == 3.0


@pytest.mark.parametrize("spacing_mm", [None, (math.nan, 0.8, 0.8), (5.0, 0.8, 0.8)])
def test_record_survives_json(spacing_mm):
    case = made(1)
    scan = Scan(case.hu, "x", spacing_mm, None if spacing_mm is None else AFFINE)
    record = describe(Case(scan, case.labels, "y"), warnings=("odd",), **IDS)
    assert json.loads(record.to_json(), parse_constant=pytest.fail)["case_id"] == record.case_id
    again = CaseRecord.from_json(record.to_json())
    assert repr(again) == repr(record)  # NaN is not equal to itself


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_numbers_that_json_does_not_know_are_refused_before_they_are_written(number):
    case = made(1)
    record = describe(Case(Scan(case.hu, "x", (5.0, 0.8, 0.8), AFFINE), case.labels, "y"), **IDS)
    for wrong in ({"spacing_mm": (5.0, number, 0.8)}, {"affine": ((number, 0.0, 0.0, 0.0), *record.affine[1:])}):
        with pytest.raises(ValueError, match="not finite"):
            msgspec.structs.replace(record, **wrong)


def test_records_with_other_fields_are_refused():
    case = made(1)
    text = describe(Case(Scan(case.hu, "x"), case.labels, "y"), **IDS).to_json()
    data = json.loads(text)
    assert CaseRecord.from_json(json.dumps(data).encode()) == CaseRecord.from_json(text)
    for broken in (
        {**data, "name": "x"},
        {key: value for key, value in data.items() if key != "shape"},
        {**data, "shape": [1, 2]},
        {**data, "shape": [1, 2, 3.5]},
        {**data, "case_id": 3},
        {**data, "liver_slices": ["1"]},
        {**data, "implanted_in": 3},
        {**data, "lesions": [{"type": "cyst"}]},
        {**data, "shape": [0, 32, 32]},
        {**data, "liver_slices": [50]},
        {**data, "lesion_slices": [-1]},
        {**data, "liver_box": [0, 0, 10_000]},
        {**data, "liver_box": [0, 0, 0]},
    ):
        with pytest.raises(msgspec.ValidationError):
            CaseRecord.from_json(json.dumps(broken).encode())
