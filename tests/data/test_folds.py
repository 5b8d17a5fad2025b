import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from lesionseg.data.folds import Split, imbalance, split, strata
from lesionseg.data.records import CaseRecord, LesionRecord
from lesionseg.errors import InputError

REMEDY = "set data.folds (make: FOLDS=, and PRETRAIN_OPTIONS='--data.folds N' of a pretraining)"
TYPES = ("cyst", "hemangioma", "metastasis", "lesion")


def record(patient: int, case: int, types: tuple[str, ...]) -> CaseRecord:
    lesions = tuple(LesionRecord(name, 9, (0, 0), None, None, None) for name in types)
    known = tuple(name for name in TYPES if name in types)
    return CaseRecord(
        case_id=f"p{patient:010x}-{case:06x}",
        patient_id=f"p{patient:010x}",
        shape=(1, 8, 8),
        spacing_mm=None,
        affine=None,
        liver_box=None,
        liver_slices=(0,),
        lesion_slices=(0,) if types else (),
        lesion_types=known,
        lesions=lesions,
        liver_predicted=False,
        generated=False,
        warnings=(),
        source_checksum="",
        voxel_checksum="",
        labels_checksum="",
    )


@st.composite
def cohorts(draw):
    """2 to 20 patients with 1 to 4 cases each, in any order; types as rare or as common as may be."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.lists(st.floats(0, 1), min_size=4, max_size=4))
    records = []
    for patient in range(draw(st.integers(2, 20))):
        for case in range(rng.integers(1, 5)):
            types = tuple(name for name, p in zip(TYPES, share, strict=True) if rng.random() < p)
            records.append(record(patient, case, types))
    rng.shuffle(records)
    return records


def patients_of(records, case_ids):
    return {r.patient_id for r in records if r.case_id in set(case_ids)}


@given(cohorts(), st.integers(1, 5), st.sampled_from([0.0, 0.05, 0.2, 0.34, 0.5, 0.9]), st.integers(0, 5))
@settings(max_examples=2 * settings.default.max_examples, deadline=None)
def test_no_patient_in_two_parts_and_every_case_tested_once(records, folds, share, seed):
    patients = len({r.patient_id for r in records})
    if folds > patients:
        with pytest.raises(InputError):
            split(records, folds=folds, fold=0)
        return
    tested = []
    for fold in range(folds):
        without = split(records, folds=folds, fold=fold, inner_validation=0, seed=seed)
        tested += without.test
        if share and len(patients_of(records, without.train)) < 2:
            with pytest.raises(InputError):
                split(records, folds=folds, fold=fold, inner_validation=share, seed=seed)
            continue
        parts = split(records, folds=folds, fold=fold, inner_validation=share, seed=seed)
        assert parts.test == without.test
        groups = [patients_of(records, part) for part in (parts.train, parts.validation, parts.test)]
        assert sum(map(len, groups)) == len(set.union(*groups)) == patients
        assert sorted(parts.train + parts.validation + parts.test) == sorted(r.case_id for r in records)
        assert [bool(group) for group in groups] == [True, share > 0, folds > 1]
        assert split(records[::-1], folds=folds, fold=fold, inner_validation=share, seed=seed) == parts
    assert folds == 1 or sorted(tested) == sorted(r.case_id for r in records)


def of_scikit_learn(records, folds, seed):
    """Case ids of each part; `records` in the order of their ids."""
    names, patients = strata(records), [r.patient_id for r in records]
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of scarce types
        return [tuple(records[i].case_id for i in test) for _, test in splitter.split(names, names, patients)]


@given(cohorts(), st.integers(2, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=2 * settings.default.max_examples, deadline=None)
def test_test_parts_are_those_of_scikit_learn(records, folds, seed):
    records = sorted(records, key=lambda r: r.case_id)
    names = strata(records)
    # With one stratum it sums eight numbers or more in another order, on whose last bit ties hang.
    assume(folds <= len(patients_of(records, [r.case_id for r in records])) and (folds < 8 or len(set(names)) > 1))
    assume(max(map(names.count, names)) >= folds)  # it refuses others
    theirs = of_scikit_learn(records, folds, seed)
    assume(all(theirs))
    ours = [split(records, folds=folds, fold=k, inner_validation=0, seed=seed).test for k in range(folds)]
    assert ours == theirs


def test_many_parts_are_those_of_scikit_learn():
    records = [record(p, c, (TYPES[p % 2],)) for p in range(150) for c in range(1 + p % 2)]
    theirs = of_scikit_learn(records, 70, seed=0)
    for fold in (0, 35, 69):
        assert split(records, folds=70, fold=fold, inner_validation=0).test == theirs[fold]


def test_folds_stay_what_they_were():
    """Runs of one fold are compared across versions and computers: these parts may never change."""
    kinds = ("cyst", "hemangioma", "metastasis", "cyst", "metastasis", "cyst")
    records = [record(p, c, (kinds[p % 6],)) for p in range(12) for c in range(1 + p % 3)]
    parts = [split(records, folds=3, fold=fold, seed=7) for fold in range(3)]
    tested = [sorted(int(p[1:], 16) for p in patients_of(records, part.test)) for part in parts]
    aside = [sorted(int(p[1:], 16) for p in patients_of(records, part.validation)) for part in parts]
    assert tested == [[0, 2, 3, 6, 7], [5, 8, 9], [1, 4, 10, 11]]
    assert aside == [[5], [2, 3], [5]]


@pytest.mark.parametrize("folds", [2, 7, 8, 20])
def test_patients_of_one_kind_make_parts_of_like_size(folds):
    records = [record(p, 0, ("cyst",)) for p in range(45)]
    sizes = [len(split(records, folds=folds, fold=fold, inner_validation=0).test) for fold in range(folds)]
    assert max(sizes) - min(sizes) <= 1


def test_no_part_is_left_without_a_patient():
    """To balance the types alone would give two of these four patients to one part of four, and none to another."""
    cysts = {0: [1, 1, 0, 1], 1: [0, 0], 2: [1, 1], 3: [1]}
    records = [record(p, i, ("cyst",) * has) for p, cases in cysts.items() for i, has in enumerate(cases)]
    tested = [patients_of(records, split(records, folds=4, fold=fold, inner_validation=0).test) for fold in range(4)]
    assert sorted(map(len, tested)) == [1, 1, 1, 1]
    again = [[patients_of(records, split(records, folds=4, fold=fold, inner_validation=0).test) for fold in range(4)]
             for _ in range(3)]  # fmt: skip
    assert again == [tested] * 3


def test_every_type_reaches_every_part_where_it_can():
    records = [record(p, 0, (TYPES[p % 3],)) for p in range(45)]
    for fold in range(3):
        table = imbalance(records, split(records, folds=3, fold=fold, inner_validation=0.2))
        assert list(table.loc["test"]) == [15, 15, 5, 5, 5]
        assert list(table.loc["validation"]) == [6, 6, 2, 2, 2]
        assert list(table.loc["train"]) == [24, 24, 8, 8, 8]
        assert list(table.columns) == ["patients", "cases", "cyst", "hemangioma", "metastasis"]


def test_a_scarce_type_is_spread_though_it_never_comes_alone():
    types = [("cyst", "metastasis")] * 3 + [("metastasis",)] * 27
    records = [record(p, 0, t) for p, t in enumerate(types)]
    for fold in range(3):
        table = imbalance(records, split(records, folds=3, fold=fold, inner_validation=0))
        assert table.loc["test", "cyst"] == 1


def test_the_stratum_of_a_case_is_its_scarcest_type_by_patients():
    records = [record(0, i, ("cyst",)) for i in range(9)]  # many cysts, but of one patient
    records += [record(p, 0, ("metastasis",)) for p in (1, 2)]
    records += [record(3, 0, ("cyst", "metastasis")), record(4, 0, ()), record(5, 0, ("hemangioma", "lesion"))]
    assert strata(records)[-3:] == ["cyst", "none", "hemangioma"]


def test_the_scarcest_type_is_not_the_first_by_name_or_label():
    records = [record(p, 0, ("cyst",)) for p in range(3)] + [record(3, 0, ("cyst", "metastasis"))]
    assert strata(records)[-1] == "metastasis"


def test_a_type_that_just_reaches_every_part_does():
    records = [record(p, 0, (TYPES[p % 2],)) for p in range(6)]
    for seed in range(5):
        for fold in range(3):
            table = imbalance(records, split(records, folds=3, fold=fold, inner_validation=0, seed=seed))
            assert list(table.loc["test"]) == [2, 2, 1, 1]


def test_a_type_too_scarce_for_every_part_is_no_warning():
    records = [record(p, 0, ("cyst" if p else "hemangioma",)) for p in range(9)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        split(records, folds=3, fold=0, inner_validation=0)


@pytest.mark.parametrize(
    ("share", "of", "patients"),
    [
        (0.1, 20, 2),
        (0.2, 20, 4),
        (0.3, 20, 6),
        (0.5, 20, 10),
        (0.75, 20, 15),
        (0.01, 20, 1),
        (0.99, 3, 2),
        (0.02, 100, 2),
    ],
)
def test_inner_validation_is_the_stated_share(share, of, patients):
    records = [record(p, 0, ("cyst",)) for p in range(of)]
    parts = split(records, folds=1, fold=0, inner_validation=share)
    assert len(parts.validation) == patients
    assert parts.test == ()


def test_seeds_give_other_folds_of_the_same_make():
    records = [record(p, 0, (TYPES[p % 3],)) for p in range(30)]
    one, two = (split(records, folds=3, fold=0, seed=seed) for seed in (0, 1))
    assert one != two
    assert split(records, folds=3, fold=0) == one


def test_four_patients_of_one_kind_can_be_left_out_one_by_one():
    records = [record(p, c, ("lesion",)) for p, n in enumerate((2, 1, 1, 2)) for c in range(n)]
    tests = []
    for fold in range(4):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            parts = split(records, folds=4, fold=fold)
        assert [len(patients_of(records, p)) for p in (parts.train, parts.validation, parts.test)] == [2, 1, 1]
        tests.append(patients_of(records, parts.test).pop())
    assert len(set(tests)) == 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"folds": 6, "fold": 0}, f"folds: expected 1 to 5 folds for 5 patients; got 6; {REMEDY}"),
        ({"folds": 0, "fold": 0}, f"folds: expected 1 to 5 folds for 5 patients; got 0; {REMEDY}"),
        ({"folds": 3, "fold": 3}, "fold: expected 0 to 2; got 3; folds are counted from 0"),
        ({"folds": 3, "fold": -1}, "fold: expected 0 to 2; got -1; folds are counted from 0"),
        (
            {"folds": 3, "fold": 0, "inner_validation": 1.0},
            "inner_validation: expected a share in [0, 1); got 1.0; 0.2 is usual",
        ),
        (
            {"folds": 3, "fold": 0, "inner_validation": -0.1},
            "inner_validation: expected a share in [0, 1); got -0.1; 0.2 is usual",
        ),
    ],
)
def test_impossible_splits_are_refused(options, says):
    records = [record(p, 0, ("cyst",)) for p in range(5)]
    with pytest.raises(InputError) as error:
        split(records, **options)
    assert str(error.value) == says


def test_too_few_patients_for_an_inner_validation():
    records = [record(p, 0, ("cyst",)) for p in range(2)]
    with pytest.raises(InputError) as error:
        split(records, folds=2, fold=0)
    assert str(error.value) == (
        "inner_validation: expected at least 2 patients outside the test part; got 1; "
        "use fewer folds, more patients, or inner_validation 0"
    )
    ids = [r.case_id for r in records]
    parts = split(records, folds=2, fold=0, inner_validation=0)
    assert parts in (Split((ids[0],), (), (ids[1],)), Split((ids[1],), (), (ids[0],)))
