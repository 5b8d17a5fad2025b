"""Estimates against hand-made tables, intervals against scipy and plain resampling, and simulated coverage."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lesionseg.statistics import (
    FIGURES,
    RATE,
    RESOLUTION_SE,
    PatientSums,
    Resamples,
    confusion,
    draw_resamples,
    estimates,
    intervals,
    patient_bootstrap,
    patient_sums,
    rate_interval,
    resampled,
    resamples_of,
    seeded_intervals,
    variance_of,
)
from lesionseg.variance import Variance, effective_patients

COLUMNS = ["seed", "patient_id", "kind", "type", "found", "predicted_type"]
SLICES = pd.DataFrame(
    [
        (0, "a", "dice1", 1.0), (0, "a", "dice1", 0.5), (0, "b", "dice1", 0.0), (0, "c", "dice1", np.nan),
        (0, "a", "dice2", 0.5), (0, "a", "dice2", 0.5), (0, "b", "dice2", 0.2), (0, "c", "dice2", np.nan),
        (0, "a", "false_positives", 0), (0, "a", "false_positives", 1),
        (0, "b", "false_positives", 2), (0, "c", "false_positives", 0),
    ],
    columns=["seed", "patient_id", "figure", "value"],
)  # fmt: skip
LESIONS = pd.DataFrame(
    [
        (0, "a", "reference", "cyst", 1, "cyst"),
        (0, "a", "reference", "cyst", 1, "metastasis"),
        (0, "a", "reference", "metastasis", 0, ""),
        (0, "b", "reference", "hemangioma", 1, "hemangioma"),
        (0, "a", "false_positive", "", 0, "cyst"),
        (0, "b", "false_positive", "", 0, "cyst"),
        (0, "b", "false_positive", "", 0, "cyst"),
    ],
    columns=COLUMNS,
)
TYPES = ("cyst", "hemangioma", "metastasis")


def made_sums(n_seeds: int, n_patients: int, seed: int = 0, shift: float = 0.0) -> PatientSums:
    """Sums of slices that cluster in patients: some patients hold more of them, and are harder."""
    rng = np.random.default_rng(seed)
    shape = (n_seeds, n_patients, len(FIGURES))
    counts = np.broadcast_to(rng.integers(0, 6, (1, n_patients, 1)), shape).astype(float)
    rates = np.clip(rng.normal(0.5, 0.2, (1, n_patients, 1)) + rng.normal(shift, 0.1, shape), 0, 1)
    return PatientSums(counts * rates, counts, np.arange(n_patients) % 3)


def equal_patients(n_seeds: int, n_patients: int, seed: int) -> PatientSums:
    """Sums of patients of four slices each."""
    rates = np.random.default_rng(seed).uniform(0, 1, (n_seeds, n_patients, len(FIGURES)))
    return PatientSums(4 * rates, np.full_like(rates, 4), np.arange(n_patients) % 3)


def test_figures_by_hand() -> None:
    sums = patient_sums(SLICES, LESIONS, ["a", "b", "c"], [0])
    expected = {
        "dice1": 1.5 / 3,
        "dice2": 1.2 / 3,
        "success_rate": 3 / 4,
        "accuracy_all": 2 / 4,
        "accuracy_found": 2 / 3,
        "false_positives_per_slice": 3 / 4,
    }
    assert dict(zip(FIGURES, estimates(sums), strict=True)) == pytest.approx(expected, abs=1e-12)
    table = patient_bootstrap({"x": sums}, None, n=50).set_index("figure")
    assert table.n.to_dict() == dict(zip(FIGURES, (3, 3, 4, 4, 3, 4), strict=True))
    assert sums.folds.tolist() == [0, 0, 0]


NUMBERS = ["estimate", "low", "high", "n", "difference", "difference_low", "difference_high", "resolution"]


@pytest.mark.parametrize("baseline", [None, "a"])
def test_a_table_has_its_columns_of_numbers_whatever_is_known(baseline: str | None) -> None:
    rows = {"a": made_sums(1, 5), "b": made_sums(1, 5, seed=1)}
    table = patient_bootstrap(rows, baseline, n=50)
    assert [*table.columns] == ["schedule", "figure", *NUMBERS]
    assert [table[name].dtype.kind for name in NUMBERS] == ["i" if name == "n" else "f" for name in NUMBERS]
    assert [*table.index] == [*range(2 * len(FIGURES))]
    pd.testing.assert_frame_equal(table, patient_bootstrap(rows, baseline, n=50, seed=0))


def test_a_single_slice_is_enough_for_a_figure_and_none_is_not() -> None:
    shape = (1, 2, len(FIGURES))
    sums, counts = np.zeros(shape), np.zeros(shape)
    sums[0, 0], counts[0, 0] = 0.25, 1  # the second patient has none
    of_two = PatientSums(sums, counts, np.zeros(2, int))
    assert (estimates(of_two) == 0.25).all()
    drawn = resampled(of_two, Resamples(np.array([[1, 1], [0, 2]]), np.zeros((2, 1, 1), int)))
    assert (drawn[0] == 0.25).all()
    assert np.isnan(drawn[1]).all()


def test_estimates_pool_slices_and_lesions_and_do_not_average_patients() -> None:
    slices = SLICES[SLICES.figure == "dice1"]
    per_patient = slices.groupby("patient_id").value.mean().mean()
    assert estimates(patient_sums(SLICES, LESIONS, ["a", "b", "c"], [0]))[0] == slices.value.mean() != per_patient


def test_seeds_are_averaged_after_pooling() -> None:
    other = SLICES.assign(seed=1, value=SLICES.value * (SLICES.patient_id == "a"))
    sums = patient_sums(
        pd.concat([SLICES, other]), pd.concat([LESIONS, LESIONS.assign(seed=1)]), ["a", "b", "c"], [0, 1]
    )
    assert estimates(sums) == pytest.approx([0.5, (0.4 + 1 / 3) / 2, 3 / 4, 2 / 4, 2 / 3, (3 / 4 + 1 / 4) / 2])


def test_n_is_rounded_up_from_the_middle_of_two_seeds() -> None:
    """Two slices in one and three in the other; none and one lesion found."""
    first, other = SLICES.drop(index=[2, 3]), SLICES.drop(index=3).assign(seed=1)
    found = LESIONS.drop(index=[0, 1]).assign(seed=1)
    sums = patient_sums(
        pd.concat([first, other]), pd.concat([LESIONS[LESIONS.found == 0], found]), ["a", "b", "c"], [0, 1]
    )
    table = patient_bootstrap({"row": sums}, None, n=20).set_index("figure")
    assert (table.n["dice1"], table.n["accuracy_found"]) == (3, 1)


def test_unlisted_patients_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"^the tables hold a patient or a seed that is not listed$"):
        patient_sums(SLICES, LESIONS, ["a", "b"], [0])


def test_confusion_by_hand() -> None:
    table = confusion(LESIONS, TYPES)
    assert table.to_numpy().tolist() == [[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]
    assert (*table.columns,) == (*TYPES, "missed")


def test_confusion_has_every_type_in_the_order_asked_for() -> None:
    table = confusion(LESIONS[LESIONS.type != "hemangioma"], TYPES[::-1])
    assert table.to_numpy().tolist() == [[0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 1, 0]]
    assert (*table.index,) == TYPES[::-1]
    assert (*table.columns,) == (*TYPES[::-1], "missed")
    assert {dtype.kind for dtype in table.dtypes} == {"i"}


def test_a_resample_by_weights_is_the_resample_by_rows() -> None:
    """Drawing patients by weights equals copying their rows as often as they are drawn, for every figure."""
    rng = np.random.default_rng(3)
    patients = [f"p{i}" for i in range(7)]
    slices = pd.DataFrame(
        [(s, p, f, rng.random()) for s in (0, 1) for p in patients for f in ("dice1", "dice2", "false_positives")
         for _ in range(rng.integers(1, 4))],
        columns=SLICES.columns,
    )  # fmt: skip
    lesions = pd.DataFrame(
        [(s, p, "reference", TYPES[rng.integers(3)], f := rng.integers(2), TYPES[rng.integers(3)] if f else "")
         for s in (0, 1) for p in patients for _ in range(3)],
        columns=COLUMNS,
    )  # fmt: skip
    fold = np.array([0, 0, 0, 1, 1, 0, 1])
    sums = patient_sums(slices, lesions, patients, [0, 1], fold)
    for drawn_patients, runs in ((rng.integers(0, 7, 7), [0, 0]), (rng.integers(0, 7, 7), [1, 0]), (range(7), [0, 1])):
        seed_of = {patients[i]: runs[fold[i]] for i in range(7)}
        copied_slices = pd.concat([slices[slices.patient_id == patients[i]] for i in drawn_patients])
        copied_lesions = pd.concat([lesions[lesions.patient_id == patients[i]] for i in drawn_patients])
        s = copied_slices[copied_slices.seed == copied_slices.patient_id.map(seed_of)]
        x = copied_lesions[copied_lesions.seed == copied_lesions.patient_id.map(seed_of)]
        means = [s[s.figure == f].value.mean() for f in ("dice1", "dice2", "false_positives")]
        right = x.type == x.predicted_type
        expected = [*means[:2], x.found.mean(), right.mean(), right[x.found == 1].mean(), means[2]]
        weights = np.bincount(list(drawn_patients), minlength=7)[None]
        resample = Resamples(weights, np.array(runs)[None, :, None])
        assert resampled(sums, resample)[0] == pytest.approx(expected, abs=1e-12)


def test_intervals_agree_with_scipy() -> None:
    a, b = made_sums(1, 25, seed=1), made_sums(1, 25, seed=2, shift=0.1)
    table = patient_bootstrap({"baseline": a, "other": b}, "baseline", n=8000, seed=0).set_index(["schedule", "figure"])
    top_a, top_b, n_a, n_b = (x[0, :, 0] for x in (a.sums, b.sums, a.counts, b.counts))

    def ratio(i: np.ndarray, axis: int) -> np.ndarray:
        return top_b[i].sum(axis) / n_b[i].sum(axis)

    def difference(i: np.ndarray, axis: int) -> np.ndarray:
        return ratio(i, axis) - top_a[i].sum(axis) / n_a[i].sum(axis)

    row = table.loc[("other", "dice1")]
    for statistic, low, high in (
        (ratio, row.low, row.high),
        (difference, row.difference_low, row.difference_high),
    ):
        reference = stats.bootstrap(
            (np.arange(25),),
            statistic,
            vectorized=True,
            n_resamples=8000,
            method="percentile",
            rng=np.random.default_rng(9),
            confidence_level=1 - 2 * far_tail(np.minimum(n_a, n_b) if (n_a != n_b).any() else n_a),
        )
        width = reference.confidence_interval.high - reference.confidence_interval.low
        assert [low, high] == pytest.approx(list(reference.confidence_interval), abs=0.05 * width)
        if statistic is difference:
            assert row.resolution == pytest.approx(2.8016 * reference.standard_error, rel=0.06)


def far_tail(counts: np.ndarray) -> float:
    """Tail of a normal distribution beyond Student's t of so many patients, of the variance that n − 1 gives."""
    n = counts.sum() ** 2 / (counts**2).sum()
    return float(stats.norm.sf(stats.t.ppf(0.975, n - 1) * np.sqrt(n / (n - 1))))


def test_a_difference_as_large_as_the_resolution_is_told_from_zero_in_eighty_per_cent() -> None:
    """The constant, from its definition: a normal estimate off by that many standard errors is beyond ±1.96 in 80 %."""
    assert stats.norm.sf(stats.norm.ppf(0.975) - RESOLUTION_SE) == pytest.approx(0.80)
    assert pytest.approx(1.96 + 0.84, abs=0.005) == RESOLUTION_SE


def test_baseline_has_no_difference_and_equal_rows_have_none_to_show() -> None:
    sums = made_sums(1, 12)
    table = patient_bootstrap({"baseline": sums, "copy": sums}, "baseline", n=200)
    base, copy = table[table.schedule == "baseline"], table[table.schedule == "copy"]
    assert base[["difference", "difference_low", "difference_high", "resolution"]].isna().all(axis=None)
    assert (copy.difference == 0).all()
    assert copy[["difference_low", "difference_high", "resolution"]].isna().all(axis=None)
    assert (base.low.to_numpy() == copy.low.to_numpy()).all()
    assert ((base.low < base.estimate) & (base.estimate < base.high)).all()


def test_the_pairing_narrows_the_difference() -> None:
    a, b = made_sums(1, 40, seed=5), made_sums(1, 40, seed=5, shift=0.05)
    paired = (
        patient_bootstrap({"baseline": a, "b": b}, "baseline").set_index(["schedule", "figure"]).loc[("b", "dice1")]
    )
    alone = paired.high - paired.low
    assert paired.difference_high - paired.difference_low < 0.7 * alone


def test_no_interval_where_resamples_cannot_show_a_spread() -> None:
    one = patient_bootstrap({"x": made_sums(1, 1, seed=1)}, None, n=100)
    assert one.estimate.notna().all()
    assert one[["low", "high"]].isna().all(axis=None)
    ones = np.ones((1, 9, len(FIGURES)))
    every_lesion_found = patient_bootstrap({"x": PatientSums(3 * ones, 3 * ones, np.zeros(9, int))}, None, n=100)
    assert (every_lesion_found.estimate == 1).all()
    assert every_lesion_found[["low", "high"]].isna().all(axis=None)


def test_an_undefined_figure_stays_undefined() -> None:
    nothing = np.zeros((1, 5, len(FIGURES)))
    table = patient_bootstrap({"x": PatientSums(nothing, nothing, np.zeros(5, int))}, None, n=20)
    assert table[["estimate", "low", "high"]].isna().all(axis=None)
    assert (table.n == 0).all()


@pytest.mark.filterwarnings("error")
def test_a_figure_without_a_value_in_several_seeds_is_no_warning() -> None:
    sums = made_sums(2, 9)
    sums.sums[..., 4] = sums.counts[..., 4] = 0
    table = patient_bootstrap({"baseline": made_sums(2, 9, seed=1), "b": sums}, "baseline", n=50).query(
        "schedule == 'b'"
    )
    assert (table.low.isna() == (table.figure == "accuracy_found")).all()


def test_the_same_seed_gives_the_same_table() -> None:
    rows = {"baseline": made_sums(2, 9), "b": made_sums(2, 9, seed=1)}
    one, two, other = (patient_bootstrap(rows, "baseline", n=100, seed=s) for s in (4, 4, 5))
    pd.testing.assert_frame_equal(one, two)
    assert (one.low != other.low).any()


@pytest.mark.parametrize("values", [(0.3, 0.5, 0.9, 0.4), (0.3, 0.9)])
def test_resampled_runs_give_the_variance_of_their_mean(values: tuple[float, ...]) -> None:
    drawn = draw_resamples(10, len(values), 200_000, seed=0, n_folds=2)
    means = np.array(values)[drawn.runs].mean(axis=-1)
    assert means.var(axis=0) == pytest.approx([np.var(values, ddof=1) / len(values)] * 2, rel=0.02)
    assert np.corrcoef(means.T)[0, 1] == pytest.approx(0, abs=0.01)
    assert (drawn.patients.sum(axis=1) == 10).all()
    assert draw_resamples(10, 1, 5, seed=0).runs.tolist() == [[[0]]] * 5


def test_several_seeds_stretch_the_interval_to_the_variance_of_patients_and_runs() -> None:
    a, b = made_sums(3, 60, seed=1), made_sums(3, 60, seed=2, shift=0.1)
    row = (
        patient_bootstrap({"baseline": a, "b": b}, "baseline", n=4000)
        .set_index(["schedule", "figure"])
        .loc[("b", "dice1")]
    )
    spread = variance_of(b, a)
    half = (row.difference_high - row.difference_low) / 2
    assert half == pytest.approx(stats.t.ppf(0.975, spread.df[0]) * np.sqrt(spread.total[0]), rel=0.06)
    assert row.resolution == pytest.approx(RESOLUTION_SE * np.sqrt(spread.total[0]))


@pytest.mark.parametrize("n_seeds", [1, 2])
def test_one_seed_has_the_percentiles_of_its_patients_and_more_are_stretched(n_seeds: int) -> None:
    a, b = made_sums(n_seeds, 9, seed=1), made_sums(n_seeds, 9, seed=2, shift=0.1)
    row = patient_bootstrap({"a": a, "b": b}, "a", n=300).set_index(["schedule", "figure"]).loc[("b", "dice2")]
    draws = [resampled(sums, resamples_of(a, 300)) for sums in (a, b)]
    for found, of, spread in (
        ((row.low, row.high), draws[1], variance_of(b)),
        ((row.difference_low, row.difference_high), draws[1] - draws[0], variance_of(b, a)),
    ):
        value = estimates(b) - (0 if of is draws[1] else estimates(a))
        plain = tuple(end[FIGURES.index("dice2")] for end in intervals(value, of, spread.effective))
        assert (found == plain) == (n_seeds == 1)  # fmt: skip


def test_normal_draws_of_few_patients_get_the_interval_of_student() -> None:
    """±t(df) standard errors, whatever the variance of the draws; alone, t(n − 1) with that of n − 1."""
    normal = stats.norm.ppf((np.arange(400_000) + 0.5) / 400_000)[:, None]
    total, df, effective = np.array([0.09]), np.array([3.0]), np.array([4.0])
    spread = Variance(total, total, effective, df, df)
    low, high = seeded_intervals(np.array([0.0]), normal, spread, 2)
    assert [low[0], high[0]] == pytest.approx(np.array([-1, 1]) * stats.t.ppf(0.975, 3) * 0.3, rel=0.005)
    low, high = intervals(np.array([0.0]), normal, effective)
    assert [low[0], high[0]] == pytest.approx(np.array([-1, 1]) * stats.t.ppf(0.975, 3) * np.sqrt(4 / 3), rel=0.005)


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_intervals_of_three_patients_are_as_wide_as_those_of_student(n_seeds: int) -> None:
    """Their outermost resample, one patient thrice, lies nearer."""
    a, b = equal_patients(n_seeds, 3, seed=1), equal_patients(n_seeds, 3, seed=2)
    spread, draws = variance_of(b, a), resampled(b, resamples_of(a)) - resampled(a, resamples_of(a))
    low, high = seeded_intervals(estimates(b) - estimates(a), draws, spread, n_seeds)
    student = 2 * stats.t.ppf(0.975, spread.df) * np.sqrt(spread.total)
    if n_seeds == 1:
        assert (student > np.ptp(draws, axis=0)).all()
    assert high - low == pytest.approx(student, rel=1e-9 if n_seeds > 1 else 0.03)  # of one seed, by its draws


def test_an_interval_of_little_more_than_one_patient_is_that_of_two() -> None:
    """Those of Student's t with a tenth of a degree of freedom would be a million times as wide."""
    draws = np.random.default_rng(0).normal(0, 0.1, (1000, 1))
    for effective in (1.1, 1.5, 2.0):
        low, high = intervals(np.zeros(1), draws, np.array([effective]))
        expected = 2 * stats.t.ppf(0.975, 1) * draws.std() * np.sqrt(effective / (effective - 1))
        assert high - low == pytest.approx(expected)


def test_an_interval_of_a_difference_of_shares_ends_at_1() -> None:
    a, b = equal_patients(3, 2, seed=1), equal_patients(3, 2, seed=2)
    rows = patient_bootstrap({"a": a, "b": b}, "a").query("schedule == 'b'").set_index("figure")
    shares = rows.drop("false_positives_per_slice")
    assert (shares.difference_low >= -1).all()
    assert (shares.difference_high <= 1).all()
    assert {-1, 1} & {*shares.difference_low, *shares.difference_high}


def test_draws_that_all_hang_on_one_patient_are_taken_from_end_to_end() -> None:
    low, high = intervals(np.array([0.3]), np.array([[0.2], [0.4]]), np.array([1.0]))
    assert [low.tolist(), high.tolist()] == [[0.2], [0.4]]


def test_a_difference_counts_the_patients_of_the_row_that_has_fewer() -> None:
    many, few = made_sums(2, 12, seed=1), made_sums(2, 12, seed=2)
    few.counts[:, 3:] = few.sums[:, 3:] = 0
    expected = effective_patients(few.counts.mean(axis=0))
    assert (expected < effective_patients(many.counts.mean(axis=0))).all()
    for one, other in ((many, few), (few, many)):
        assert (variance_of(one, other).effective == expected).all()


def test_the_interval_of_a_rate_is_that_of_its_logarithm() -> None:
    sums = made_sums(1, 40, seed=4)
    sums.counts[0, :, RATE] = 1  # of patients of equal weight the rate is a mean
    values = sums.sums[0, :, RATE]
    row = patient_bootstrap({"x": sums}, None, n=50).set_index("figure").loc["false_positives_per_slice"]
    low, high = stats.t.interval(0.95, 39, np.log(values.mean()), stats.sem(values) / values.mean())
    assert np.log([row.low, row.high]) == pytest.approx([low, high])


def test_the_interval_of_a_rate_holds_the_truth_more_often_than_student_on_the_rate() -> None:
    rng, patients, truth, held = np.random.default_rng(0), 12, float(np.exp(0.5)), []
    for _ in range(2000):
        values = rng.poisson(np.exp(rng.normal(0, 1, patients)))
        mean, error = values.mean(), stats.sem(values)
        low, high = rate_interval(mean, error**2, error**2, patients - 1)
        plain = stats.t.interval(0.95, patients - 1, mean, error)
        held.append((low <= truth <= high, plain[0] <= truth <= plain[1]))
    ours, students = np.mean(held, axis=0)
    assert ours > students + 0.02
    assert 0.91 < ours < 0.97


def test_the_variance_of_a_rate_is_no_smaller_than_that_of_patients_alone() -> None:
    assert rate_interval(2.0, 0.1, 0.4, 8) == rate_interval(2.0, 0.4, 0.4, 8)
    assert np.isnan(rate_interval(0.0, 0.0, 0.0, 8)).all()


def test_two_patients_give_no_interval_of_a_rate() -> None:
    assert np.isnan(rate_interval(1.0, 0.1, 0.1, 1.9)).all()
    assert np.isfinite(rate_interval(1.0, 0.1, 0.1, 2.0)).all()


def test_intervals_of_a_share_stay_between_0_and_1() -> None:
    counts = np.ones((2, 8, len(FIGURES)))
    sums = counts.copy()
    sums[0, 1::2] = 0.8  # all of the second fold's first run
    table = patient_bootstrap({"x": PatientSums(sums, counts, np.arange(8) % 2)}, None).set_index("figure")
    assert (table.loc[list(FIGURES[:-1]), "high"] == 1).all()
    assert table.loc["false_positives_per_slice", "high"] > 1
