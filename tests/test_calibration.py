"""The temperature of the type votes: against scikit-learn, a table by hand, and scores of a known temperature."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss

from lesionseg.calibration import (
    BOUNDS,
    MIN_LESIONS,
    TypedLesion,
    Voters,
    calibrate,
    errors,
    fit_temperature,
    true_types,
    vote,
)

NAMES = ("cyst", "hemangioma", "metastasis")


def made(n: int, temperature: float = 2.0, seed: int = 0, pixels: int = 1, folds: int = 1) -> list[TypedLesion]:
    """Lesions of five a patient; their pixels score alike, and sharper than is true by `temperature`."""
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 1.5, (n, 3))
    odds = np.exp(true) / np.exp(true).sum(1, keepdims=True)
    types = [int(rng.choice(3, p=p)) for p in odds]
    return [
        TypedLesion(np.repeat(row[None], pixels, 0) * temperature, kind, f"p{i // 5}", i // 5 % folds, str(i))
        for i, (row, kind) in enumerate(zip(true, types, strict=True))
    ]


# ---- the vote ----


def test_a_vote_is_the_mean_over_the_pixels_of_a_lesion():
    rng = np.random.default_rng(0)
    lesions = [TypedLesion(rng.normal(0, 3, (size, 3)), 0, "p", 0, "r") for size in (1, 7, 400)]
    for temperature in (0.5, 1.0, 3.0):
        votes = Voters.of(lesions).votes(temperature)
        for lesion, given_vote in zip(lesions, votes, strict=True):
            powers = [[math.exp(score / temperature) for score in pixel] for pixel in lesion.scores]
            by_hand = np.mean([[power / sum(pixel) for power in pixel] for pixel in powers], axis=0)
            np.testing.assert_allclose(given_vote, by_hand, rtol=1e-12)


def test_pixels_of_no_lesion_have_no_vote():
    probabilities = np.array([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9], [0.3, 0.7]])
    np.testing.assert_allclose(vote(probabilities, np.array([2, 0, 1, 2]), 2), [[0.1, 0.9], [0.6, 0.4]])
    assert vote(np.zeros((0, 3)), np.zeros(0, int), 0).shape == (0, 3)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.floats(0.05, 20), st.floats(-1e4, 1e4))
def test_votes_are_probabilities_and_scores_count_by_their_differences(seed, temperature, shift):
    lesions = made(10, seed=seed, pixels=3)
    votes = Voters.of(lesions).votes(temperature)
    np.testing.assert_allclose(votes.sum(1), 1)
    assert votes.min() >= 0
    moved = [lesion._replace(scores=lesion.scores + shift) for lesion in lesions]
    np.testing.assert_allclose(Voters.of(moved).votes(temperature), votes, atol=1e-8)


# ---- true types ----


def test_the_type_of_a_prediction_is_that_of_most_reference_pixels_in_it():
    ids = np.array([[1, 1, 1, 0], [2, 2, 2, 2], [3, 3, 0, 4]])
    reference = np.array([[4, 4, 2, 2], [3, 2, 1, 1], [1, 0, 2, 4]])
    # 1: two pixels against one; 2: a tie goes to the lower type; 3: liver and background only
    assert true_types(ids, reference, 2) == {1: 2, 2: 0, 4: 2}
    assert true_types(ids * 0, reference, 2) == {}


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10_000))
def test_true_types_are_those_of_a_count_in_plain_words(seed):
    rng = np.random.default_rng(seed)
    ids, reference = rng.integers(0, 5, (2, 3, 4)), rng.integers(0, 5, (2, 3, 4))
    expected = {}
    for lesion in range(1, 5):
        under = Counter(int(c) - 2 for c in reference[ids == lesion] if c >= 2)
        if under:
            expected[lesion] = min(under, key=lambda kind: (-under[kind], kind))
    assert true_types(ids.astype(np.int32), reference.astype(np.uint8), 2) == expected


# ---- errors ----


def test_errors_are_those_of_scikit_learn():
    lesions = made(300)
    votes, types = Voters.of(lesions).votes(1.3), np.array([lesion.type for lesion in lesions])
    found = errors(votes, types)
    assert found["nll"] == pytest.approx(log_loss(types, votes, labels=[0, 1, 2]), rel=1e-12)
    assert found["brier"] == pytest.approx(brier_score_loss(types, votes, labels=[0, 1, 2]), rel=1e-12)
    assert found["accuracy"] == accuracy_score(types, votes.argmax(1))
    weights = np.random.default_rng(0).integers(0, 4, 300)
    weighted, repeated = errors(votes, types, weights), np.repeat(np.arange(300), weights)
    assert weighted["nll"] == pytest.approx(log_loss(types, votes, labels=[0, 1, 2], sample_weight=weights))
    assert weighted == pytest.approx(errors(votes[repeated], types[repeated]))


def test_the_calibration_error_of_a_table_by_hand():
    """Ten lesions in three bins: (0.5, 0.6] 3 of 4 right, (0.6, 0.7] 1 of 2, (0.9, 1] 2 of 4."""
    top = np.array([0.51, 0.55, 0.6, 0.54, 0.65, 0.7, 0.95, 1.0, 0.91, 0.94])
    right = np.array([1, 1, 1, 0, 1, 0, 1, 1, 0, 0], dtype=bool)
    votes, types = np.stack([top, 1 - top], axis=1), np.where(right, 0, 1)
    bins = [(4, 3 / 4, 0.55), (2, 1 / 2, 0.675), (4, 2 / 4, 0.95)]
    expected = sum(n / 10 * abs(share - confidence) for n, share, confidence in bins)
    assert errors(votes, types)["ece"] == pytest.approx(expected)


def test_a_vote_of_nothing_for_the_true_type_is_no_infinity():
    assert 700 < errors(np.array([[1.0, 0.0]]), np.array([1]))["nll"] < 800


# ---- the temperature ----


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 5.0])
def test_a_known_temperature_is_found_again(temperature):
    assert fit_temperature(Voters.of(made(5000, temperature))) == pytest.approx(temperature, rel=0.06)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.floats(0.3, 6))
def test_no_other_temperature_is_more_likely(seed, temperature):
    voters = Voters.of([lesion for i in range(3) for lesion in made(20, temperature, seed + i, pixels=2)])
    found = voters.loss(fit_temperature(voters))
    assert all(found <= voters.loss(other) + 1e-7 for other in np.geomspace(*BOUNDS, 200))


def test_scores_of_twice_the_size_have_twice_the_temperature():
    lesions = made(200)
    twice = [lesion._replace(scores=lesion.scores * 2) for lesion in lesions]
    assert fit_temperature(Voters.of(twice)) == pytest.approx(2 * fit_temperature(Voters.of(lesions)), rel=1e-4)


# ---- what is said of it ----


def test_votes_too_sure_of_themselves_are_put_right():
    temperature, record = calibrate(made(600, 4.0, folds=3), NAMES)
    assert temperature == pytest.approx(4.0, rel=0.2)
    assert json.loads(json.dumps(record)) == record
    assert (record["lesions"], record["patients"], sum(record["types"].values())) == (600, 120, 600)
    assert record["method"].endswith("cross-fitted over folds")
    assert [part["part"] for part in record["parts"]] == ["fold 0", "fold 1", "fold 2"]
    assert record["improved"]
    for name in ("nll", "ece", "brier"):
        assert record["after"][name] < record["before"][name]
        assert record["change"][name] == pytest.approx(record["after"][name] - record["before"][name], abs=2e-4)
    for figures in ("before", "after", "change"):
        for name in ("nll", "brier"):
            low, high = record["intervals_95"][figures][name]
            assert low < record[figures][name] < high
    assert record["intervals_95"]["change"]["nll"][1] < 0


@pytest.mark.parametrize("folds", [1, 3])
def test_a_lesion_has_no_part_in_the_temperature_it_is_judged_by(folds):
    """The figures `after`, fitted again by hand: without the part, and without its patients in other parts."""
    lesions = made(90, 3.0, folds=folds)
    lesions += [lesion._replace(fold=(lesion.fold + 1) % folds) for lesion in lesions[:15]]  # seen by two nets
    _, record = calibrate(lesions, NAMES)
    patients = sorted({lesion.patient for lesion in lesions})
    part = [lesion.fold if folds > 1 else patients.index(lesion.patient) % 5 for lesion in lesions]
    votes, table = np.zeros((len(lesions), 3)), []
    for each in sorted(set(part)):
        own = [i for i in range(len(lesions)) if part[i] == each]
        held = {lesions[i].patient for i in own}
        others = [lesion for lesion, p in zip(lesions, part, strict=True) if p != each and lesion.patient not in held]
        table.append(fit_temperature(Voters.of(others)))
        for i in own:
            votes[i] = Voters.of([lesions[i]]).votes(table[-1])
    assert [p["temperature"] for p in record["parts"]] == pytest.approx(table, abs=1e-4)
    assert record["after"]["nll"] == pytest.approx(log_loss([lesion.type for lesion in lesions], votes), abs=1e-4)


def test_folds_of_the_same_patients_are_crossed_by_patient():
    """Two seeds of one fold, or two folds with one inner validation, are no parts apart from each other."""
    lesions = [lesion._replace(fold=fold) for fold in (0, 1) for lesion in made(60)]
    _, record = calibrate(lesions, NAMES)
    assert record["method"].endswith("over patients")
    assert [part["part"] for part in record["parts"]] == [f"patients {i} of 5" for i in range(1, 6)]
    assert sum(part["lesions"] for part in record["parts"]) == record["lesions"] == sum(record["types"].values()) == 60
    assert record["votes"] == 120


def test_a_lesion_that_several_nets_predict_counts_once():
    lesions = [lesion._replace(fold=seed) for seed in range(3) for lesion in made(MIN_LESIONS - 1)]
    temperature, record = calibrate(lesions, NAMES)
    assert temperature == 1.0
    assert f"{MIN_LESIONS - 1} typed lesions" in record["reason"]


def test_a_temperature_that_does_not_help_is_kept_and_told():
    """Each patient needs another temperature, so that none serves the others."""
    lesions = [
        lesion._replace(patient=str(patient), reference=f"{patient} {lesion.reference}")
        for patient in range(2)
        for lesion in made(60, (6.0, 0.5)[patient], seed=patient)
    ]
    temperature, record = calibrate(lesions, NAMES)
    assert temperature != 1.0
    assert record["change"]["nll"] > 0
    assert record["improved"] is False


def test_nets_that_know_nothing_vote_close_to_a_tie():
    lesions = [lesion._replace(type=int(lesion.scores[0].argmin())) for lesion in made(50)]
    temperature, record = calibrate(lesions, NAMES)
    assert temperature == pytest.approx(BOUNDS[1], rel=0.01)
    assert record["improved"]


@pytest.mark.parametrize(
    ("lesions", "reason"),
    [
        ([], "0 typed lesions of 0 types"),
        (made(MIN_LESIONS - 1), f"{MIN_LESIONS - 1} typed lesions of 3 types"),
        ([lesion._replace(type=1) for lesion in made(50)], "50 typed lesions of 1 types"),
        ([lesion._replace(patient="p") for lesion in made(50)], "and 1 patients"),
        ([lesion._replace(type=int(lesion.scores[0].argmax())) for lesion in made(50)], "surer without end"),
    ],
)
def test_too_little_to_fit_a_temperature_is_none(lesions, reason):
    temperature, record = calibrate(lesions, NAMES)
    assert temperature == 1.0
    assert list(record) == ["reason"]
    assert reason in record["reason"]
