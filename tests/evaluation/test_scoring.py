import json
import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance
from scipy import ndimage

from lesionseg.evaluation.scoring import (
    LESION_COLUMNS,
    Burden,
    CaseScore,
    Elsewhere,
    SliceTables,
    score_case,
    slice_tables,
    surface_distance_mm,
)
from lesionseg.findings import measure_findings
from lesionseg.labels import LESION_TYPES, TARGETS
from lesionseg.lesions import Counts, compare_slice
from lesionseg.matching import LesionCounts, number_lesions
from lesionseg.scan import Scan
from lesionseg.segmentation import UNDETERMINED, Segmentation

TYPES = (*LESION_TYPES, UNDETERMINED)
CYST, HEMANGIOMA, UNTYPED = 2, 3, 5
SPACING = (2.5, 0.8, 0.7)


def segmented(labels, spacing=SPACING):
    """A segmentation that holds these labels; every lesion is called a cyst."""
    scan = Scan(np.zeros(labels.shape, np.int16), "x", spacing)
    ids = number_lesions(labels > 1).astype(np.uint16)
    n = int(ids.max())
    findings = measure_findings(scan, ids, ["cyst"] * n, [{"cyst": 0.7}] * n)
    return Segmentation(scan, labels, ids, findings, None, 0, {}, {})


def scored(predicted, reference, spacing=SPACING, liver_predicted=False, tables=None):
    return score_case(
        segmented(predicted, spacing), reference, case_id="c", patient_id="p", liver_predicted=liver_predicted,
        tables=tables or {},
    )  # fmt: skip


def map_of(*planes):
    """Labels written as digits, `.` for background; one text a slice, rows apart by blanks."""
    return np.array([[[0 if c == "." else int(c) for c in row] for row in plane.split()] for plane in planes], np.uint8)


def random_maps(generator, shape):
    """Liver and lesions of reference and prediction, alike but not the same."""

    def smooth(width):
        return ndimage.gaussian_filter(generator.normal(size=shape), width)

    liver, lesion = smooth(3), smooth(1)
    out = []
    for _ in range(2):
        a, b = liver + 0.4 * smooth(3), lesion + 0.3 * smooth(1)
        labels = (a > np.quantile(a, 0.5)).astype(np.uint8)
        kind = generator.integers(2, 5, shape).astype(np.uint8)
        out.append(np.where((labels > 0) & (b > np.quantile(b, 0.85)), kind, labels).astype(np.uint8))
    return out


@pytest.mark.parametrize("shape", [(6, 18, 20), (1, 30, 30)])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), SPACING])
def test_surface_distance_is_that_of_monai(shape, spacing):
    generator = np.random.default_rng(0)
    for _ in range(10):
        a, b = (labels > 0 for labels in random_maps(generator, shape))
        a, b = (ndimage.binary_opening(x) | (np.arange(x.size) == 7).reshape(x.shape) for x in (a, b))
        pair = [torch.from_numpy(x[0] if len(x) == 1 else x)[None, None] for x in (a, b)]
        mm = spacing[1:] if len(a) == 1 else spacing
        expected = compute_average_surface_distance(*pair, symmetric=True, include_background=True, spacing=mm)
        assert surface_distance_mm(a, b, spacing) == pytest.approx(float(expected), rel=1e-5)


def test_surface_distance_by_hand():
    a = map_of("11....")[..., :] > 0
    assert surface_distance_mm(a, a, SPACING) == 0
    assert surface_distance_mm(a, np.roll(a, 2), SPACING) == pytest.approx(0.7 * (2 + 1 + 1 + 2) / 4)
    assert surface_distance_mm(a, np.roll(a, 2), (math.nan, 0.8, 0.7)) == pytest.approx(0.7 * 1.5)
    assert surface_distance_mm(a, a, None) is None
    assert surface_distance_mm(a, a & False, SPACING) is None
    assert surface_distance_mm(a & False, a, SPACING) is None


NONE = "...... ......"
LIVER = "1111.. 1111.."
ONE = "1221.. 1111.."
TWO = "1121.2 1111.1"


@pytest.mark.parametrize(
    ("predicted", "reference", "liver", "lesion", "burden", "lesions"),
    [
        (NONE, NONE, Counts(0, 0, 0), Counts(0, 0, 0), None, (0, 0, 0, 0)),
        (LIVER, NONE, Counts(0, 8, 0), Counts(0, 0, 0), None, (0, 0, 0, 0)),
        (NONE, LIVER, Counts(0, 0, 8), Counts(0, 0, 0), Burden(0, 0), (0, 0, 0, 0)),
        (LIVER, LIVER, Counts(8, 8, 8), Counts(0, 0, 0), Burden(0, 0), (0, 0, 0, 0)),
        (NONE, ONE, Counts(0, 0, 8), Counts(0, 0, 2), Burden(0, 0.25), (0, 1, 0, 0)),
        (LIVER, ONE, Counts(8, 8, 8), Counts(0, 0, 2), Burden(0, 0.25), (0, 1, 0, 0)),
        (ONE, LIVER, Counts(8, 8, 8), Counts(0, 2, 0), Burden(0.25, 0), (0, 0, 0, 1)),
        (ONE, NONE, Counts(0, 8, 0), Counts(0, 2, 0), None, (0, 0, 0, 1)),
        (ONE, ONE, Counts(8, 8, 8), Counts(2, 2, 2), Burden(0.25, 0.25), (1, 1, 1, 1)),
        (TWO, ONE, Counts(8, 10, 8), Counts(1, 2, 2), Burden(0.2, 0.25), (1, 1, 1, 2)),
    ],
)
def test_every_empty_case(predicted, reference, liver, lesion, burden, lesions):
    score = scored(map_of(predicted), map_of(reference))
    assert (score.liver, score.lesion, score.burden) == (liver, lesion, burden)
    assert score.at_iou == score.at_any_overlap == LesionCounts(*lesions)
    assert (score.liver_assd_mm is None) == (liver.predicted == 0 or liver.reference == 0)
    assert (score.lesion_assd_mm is None) == (lesion.predicted == 0 or lesion.reference == 0)
    assert len(score.lesions) == lesions[1] + lesions[3]
    assert score.elsewhere.slices == (liver.reference == 0)


def test_volumes_agree_with_plain_counting():
    generator = np.random.default_rng(1)
    for _ in range(5):
        predicted, reference = random_maps(generator, (6, 18, 20))
        score = scored(predicted, reference)
        a, b = set(map(tuple, np.argwhere(predicted > 1))), set(map(tuple, np.argwhere(reference > 1)))
        assert score.lesion.dice == 2 * len(a & b) / (len(a) + len(b))
        assert score.burden == Burden(len(a) / np.sum(predicted > 0), len(b) / np.sum(reference > 0))
        assert (
            score.at_iou.reference
            == score.at_any_overlap.reference
            == ndimage.label(reference > 1, np.ones((3,) * 3))[1]
        )


def test_a_liver_that_is_no_reference_is_not_scored():
    score = scored(map_of(ONE), map_of(ONE), liver_predicted=True)
    assert (score.liver, score.liver_assd_mm, score.burden) == (None, None, None)
    assert score.lesion == Counts(2, 2, 2)


def test_unknown_spacing_leaves_no_millimetres():
    score = scored(map_of(ONE), map_of(ONE), spacing=None)
    assert (score.liver_assd_mm, score.lesion_assd_mm) == (None, None)
    assert all(math.isnan(row["long_axis_mm"]) and math.isnan(row["volume_ml"]) for row in score.lesions)


def test_what_is_found_where_the_reference_has_no_liver_is_counted_by_itself():
    predicted = map_of(ONE, "2.2... ......", NONE, "1..... ......")
    score = scored(predicted, map_of(ONE, NONE, NONE, NONE))
    assert score.elsewhere == Elsewhere(slices=3, false_positives=2)


def test_rows_of_lesions():
    predicted = map_of("2222.. ...... 5.....")  # one over two, and one that is none
    reference = map_of("223... ...... ......", "...... ...... .....4")
    predicted = np.concatenate([predicted, np.zeros_like(predicted)])
    rows = scored(predicted, reference).lesions
    assert all(tuple(row) == LESION_COLUMNS for row in rows)
    kept = [(r["kind"], r["lesion"], r["type"], r["voxels"], r["overlap"], r["iou"], r["partner"]) for r in rows]
    assert kept == [
        ("reference", 1, "cyst", 3, 1.0, 0.75, 1),
        ("reference", 2, "metastasis", 1, 0.0, 0.0, 0),
        ("predicted", 1, "cyst", 4, 0.75, 0.75, 1),
        ("predicted", 2, "cyst", 1, 0.0, 0.0, 0),
    ]
    assert [(r["first_slice"], r["last_slice"]) for r in rows] == [(0, 0), (1, 1), (0, 0), (0, 0)]
    assert [r["probability"] for r in rows[2:]] == [0.7, 0.7]
    assert rows[0]["volume_ml"] == pytest.approx(3 * 2.5 * 0.8 * 0.7 / 1000)


def test_a_reference_lesion_has_the_type_of_most_of_its_voxels_and_may_have_none():
    rows = scored(map_of(NONE + " ......"), map_of("3322.. ...... 5.....")).lesions
    assert [row["type"] for row in rows] == ["cyst", "lesion"]  # a tie: the lower id


@pytest.mark.filterwarnings("error")
def test_a_case_whose_reference_has_no_liver_adds_no_slice():
    empty = np.zeros((2, 8, 8), np.uint8)
    assert slice_tables(empty, empty, [], ["lesion"]) == SliceTables((), ())


@pytest.mark.parametrize("types", [TYPES, ("lesion",)])
def test_slice_tables_are_those_of_the_slices(types):
    predicted, reference = random_maps(np.random.default_rng(2), (5, 20, 20))
    slices = (0, 2, 3)
    tables = slice_tables(predicted, reference, slices, types)
    folded = [TARGETS["lesion"].apply(x) if len(types) == 1 else x for x in (predicted, reference)]
    for index in slices:
        expected = compare_slice(folded[0][index], folded[1][index], len(types))
        values = {row["figure"]: row["value"] for row in tables.slices if row["slice_key"] == index}
        assert (values["dice1"], values["dice2"]) == (expected.dice1, expected.dice2)
        assert values["false_positives"] == len(expected.false_positives)
        lesions = [row for row in tables.lesions if row["slice_key"] == index and row["kind"] == "reference"]
        assert [row["found"] for row in lesions] == [lesion.found for lesion in expected.lesions]
    assert {row["slice_key"] for row in tables.slices} == set(slices)


def test_an_undetermined_lesion_is_found_and_has_no_right_type():
    reference = map_of("1221.. 1111..")
    (row,) = slice_tables(np.where(reference == CYST, UNTYPED, reference), reference, [0], TYPES).lesions
    assert (row["type"], row["found"], row["predicted_type"]) == ("cyst", 1, UNDETERMINED)


def test_a_score_survives_its_file():
    predicted, reference = random_maps(np.random.default_rng(3), (4, 16, 16))
    tables = {"way": slice_tables(predicted, reference, range(4), TYPES)}
    empty = scored(map_of(NONE), map_of(NONE), None, liver_predicted=True)
    for score in (scored(predicted, reference, tables=tables), empty, scored(map_of(ONE), map_of(LIVER), None)):
        again = CaseScore.from_json(json.loads(json.dumps(score.to_json(), allow_nan=False)))
        assert repr(again) == repr(score)  # NaN equals nothing, its text does
