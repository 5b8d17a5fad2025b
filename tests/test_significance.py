"""Tests of rows against scipy and by hand, their symmetries, and false alarms in simulated grids of known truth."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lesionseg.significance import draw_swaps, holm, significance, standardised_difference, swapped_differences
from lesionseg.statistics import FIGURES, PatientSums, estimates, variance_of

SIMULATION = Path(__file__).parents[1] / "experiments" / "benchmarks" / "simulated_comparisons.py"


def equal_counts(values: np.ndarray) -> PatientSums:
    """Every patient has two slices of this mean, in every figure: (seeds, patients) values."""
    sums = np.repeat(2.0 * values[..., None], len(FIGURES), axis=-1)
    return PatientSums(sums, np.full_like(sums, 2.0), np.arange(values.shape[1]) % 3)


def random_sums(rng: np.random.Generator, seeds: int, patients: int) -> PatientSums:
    counts = rng.integers(0, 5, (seeds, patients, len(FIGURES))).astype(float)
    return PatientSums(counts * rng.random(counts.shape), counts, np.arange(patients) % 3)


def p_of(rows: dict[str, PatientSums], row: str = "b", n: int = 2000) -> np.ndarray:
    table = significance(rows, "a", n)
    return table[table.schedule == row].p.to_numpy()


@pytest.mark.parametrize("seed", range(3))
def test_few_patients_give_the_exact_p_of_scipy(seed: int) -> None:
    one, other = np.random.default_rng(seed).random((2, 1, 9))
    reference = stats.permutation_test(
        (other[0], one[0]), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
    )
    assert p_of({"a": equal_counts(one), "b": equal_counts(other)}) == pytest.approx([reference.pvalue] * 6)


def test_many_patients_give_the_p_of_scipy_but_for_chance() -> None:
    one, other = np.random.default_rng(5).random((2, 1, 40))
    reference = stats.permutation_test(
        (other[0], one[0]), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples",
        n_resamples=40_000, vectorized=True, rng=np.random.default_rng(0),
    )  # fmt: skip
    assert 0.02 < reference.pvalue < 0.98
    p = p_of({"a": equal_counts(one), "b": equal_counts(other)}, n=40_000)
    assert p == pytest.approx([reference.pvalue] * 6, abs=0.01)


def test_a_swap_gives_the_ratio_of_the_swapped_tables() -> None:
    """Unequal counts: the pooled figures are taken anew, by plain loops."""
    rng = np.random.default_rng(1)
    a, b = random_sums(rng, 2, 6), random_sums(rng, 2, 6)
    swaps = draw_swaps(2, 6, 20, seed=3)
    draws = swapped_differences(b, a, swaps.signs)
    for signs, draw in zip(swaps.signs, draws, strict=True):
        swap = (signs < 0)[None, :, None]
        here = PatientSums(np.where(swap, a.sums, b.sums), np.where(swap, a.counts, b.counts), a.folds)
        there = PatientSums(np.where(swap, b.sums, a.sums), np.where(swap, b.counts, a.counts), a.folds)
        assert draw == pytest.approx(estimates(here) - estimates(there), abs=1e-12)


def test_every_arrangement_is_counted_once_where_they_are_few() -> None:
    few, many, seeds = draw_swaps(1, 6, 64, 0), draw_swaps(1, 7, 64, 0), draw_swaps(2, 3, 64, 0)
    assert few.complete
    assert len(np.unique(few.signs, axis=0)) == 64
    assert not many.complete
    assert not seeds.complete
    assert len(seeds.signs) == 64


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), seeds=st.sampled_from([1, 3]), patients=st.integers(3, 9))
def test_symmetries(seed: int, seeds: int, patients: int) -> None:
    """Rows in another order: the same p. Two rows exchanged: the other sign, the same p. The row itself: p = 1."""
    rng = np.random.default_rng(seed)
    a, b, c = (random_sums(rng, seeds, patients) for _ in range(3))
    forward = significance({"a": a, "b": b, "c": c}, "a", 300)
    other_order = significance({"c": c, "a": a, "b": b}, "a", 300)
    names = ["schedule", "figure"]
    merged = forward.merge(other_order, on=names, suffixes=("", "_other"))
    for column in ("p", "p_holm", "effect_size", "smallest_holm"):
        assert merged[column].to_numpy() == pytest.approx(merged[f"{column}_other"].to_numpy(), nan_ok=True)
    back = significance({"b": b, "a": a}, "b", 300)
    there, here = forward[forward.schedule == "b"], back[back.schedule == "a"]
    if seeds == 1:  # all arrangements: as many are turned round as not
        assert there.p.to_numpy() == pytest.approx(here.p.to_numpy(), nan_ok=True)
    assert there.effect_size.to_numpy() == pytest.approx(-here.effect_size.to_numpy(), nan_ok=True)
    same = p_of({"a": a, "b": a}, n=300)
    assert (same[~np.isnan(same)] == 1).all()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), patients=st.integers(3, 9))
def test_patients_in_another_order_give_the_same_exact_p(seed: int, patients: int) -> None:
    rng = np.random.default_rng(seed)
    rows = {"a": random_sums(rng, 1, patients), "b": random_sums(rng, 1, patients)}
    order = rng.permutation(patients)
    turned = {name: PatientSums(x.sums[:, order], x.counts[:, order], x.folds[order]) for name, x in rows.items()}
    assert p_of(rows) == pytest.approx(p_of(turned), nan_ok=True)


def test_holm_by_hand() -> None:
    """0.01 x 4, 0.02 x 3, 0.03 x 2, 0.5; beside it a column with a figure that one row lacks, and one with ties."""
    p = np.array([[0.03, 0.04, 0.5], [0.01, np.nan, 0.5], [0.5, 0.01, 0.5], [0.02, 0.02, 0.5]])
    expected = np.array([[0.06, 0.04, 1], [0.04, np.nan, 1], [0.5, 0.03, 1], [0.06, 0.04, 1]])
    assert holm(p) == pytest.approx(expected, nan_ok=True)
    assert holm(p[:1]) == pytest.approx(p[:1])


def test_the_standardised_difference_of_equal_patients_is_the_t_over_the_root_of_n() -> None:
    one, other = np.random.default_rng(2).random((2, 1, 15))
    a, b = equal_counts(one), equal_counts(other)
    t = stats.ttest_rel(other[0], one[0]).statistic
    assert standardised_difference(b, a, variance_of(b, a)) == pytest.approx([t / np.sqrt(15)] * 6)


def test_the_smallest_difference_of_one_row_is_that_of_a_t_test_with_eighty_per_cent_power() -> None:
    """Simulated: differences of that size among 20 patients are seen by a t test in four of five studies."""
    one, other = np.random.default_rng(3).normal(0, 0.3, (2, 1, 20))
    table = significance({"a": equal_counts(one), "b": equal_counts(other)}, "a", 200).set_index(["schedule", "figure"])
    smallest = table.loc[("b", "dice1"), "smallest_holm"]
    deviation = np.std(other - one, ddof=1)
    studies = np.random.default_rng(4).normal(smallest, deviation, (20_000, 20))
    power = (stats.ttest_1samp(studies, 0, axis=1).pvalue < 0.05).mean()
    assert power == pytest.approx(0.80, abs=0.02)


def test_the_smallest_difference_of_several_seeds_is_shown_in_about_four_of_five_studies() -> None:
    """Somewhat more often with so few runs: docs/statistics.md."""
    rng, patients, runs = np.random.default_rng(12), 12, 3

    def study(shift: float) -> dict[str, PatientSums]:
        own, run = rng.normal(0, 0.06, (2, 1, patients)), rng.normal(0, 0.03, (2, runs, 3))
        one, other = rng.normal(0.4, 0.05, (2, runs, patients)) + own + run[..., np.arange(patients) % 3]
        return {"a": equal_counts(one), "b": equal_counts(other + shift)}

    def of_b(rows: dict[str, PatientSums], n: int) -> pd.Series:
        return significance(rows, "a", n).set_index(["schedule", "figure"]).loc[("b", "dice1")]

    smallest = np.median([of_b(study(0), 2).smallest_holm for _ in range(300)])
    shown = np.mean([of_b(study(smallest), 500).p_holm <= 0.05 for _ in range(300)])
    assert 0.75 < shown < 0.95


def test_no_smallest_difference_is_larger_than_a_figure_can_be() -> None:
    """Three patients, however different the rows."""
    rng = np.random.default_rng(13)
    for seeds in (1, 3):
        rows = {name: random_sums(rng, seeds, 3) for name in "abc"}
        table = significance(rows, "a", 500).query("schedule != 'a' and figure != 'false_positives_per_slice'")
        assert np.isinf(table.smallest_holm.dropna()).all()
        assert np.isinf(table.query("figure != 'accuracy_found'").smallest_holm).all()
        assert (table.p_holm.dropna() > 0.05).all()


@pytest.mark.filterwarnings("error")
def test_one_patient_with_all_lesions_tells_nothing_of_others() -> None:
    rng = np.random.default_rng(14)
    rows = {name: random_sums(rng, 3, 6) for name in "ab"}
    for sums in rows.values():
        sums.counts[:, :5, 3] = sums.sums[:, :5, 3] = 0
        sums.counts[:, 5, 3] = 4
        sums.sums[:, 5, 3] = rng.uniform(0, 4, 3)
    row = significance(rows, "a", 500).set_index(["schedule", "figure"]).loc[("b", "accuracy_all")]
    assert np.isnan(row.effect_size)
    assert row.p > 0.05


def test_more_rows_ask_for_more() -> None:
    rng = np.random.default_rng(6)
    rows = {name: random_sums(rng, 1, 20) for name in "abcdef"}
    two = significance({name: rows[name] for name in "ab"}, "a", 500).set_index(["schedule", "figure"]).loc["b"]
    six = significance(rows, "a", 500).set_index(["schedule", "figure"]).loc["b"]
    assert (six.p == two.p).all()
    assert (six.p_holm >= two.p_holm).all()
    assert (six.smallest_holm > two.smallest_holm).all()


@pytest.mark.parametrize(("patients", "rows", "can"), [(5, 1, False), (6, 1, True), (7, 4, False), (8, 4, True)])
def test_too_few_patients_for_any_difference_are_known(patients: int, rows: int, can: bool) -> None:
    """A row that is better in every patient has the least p there is: shown or not is what was foretold."""
    rng = np.random.default_rng(9)
    base = rng.normal(0, 1, (1, patients))
    made = {"a": base, **{name: base + rng.uniform(5, 6, base.shape) for name in "bcde"[:rows]}}
    table = significance({name: equal_counts(values) for name, values in made.items()}, "a").query("schedule != 'a'")
    assert (np.isfinite(table.smallest_holm) == can).all()
    assert ((table.p_holm <= 0.05) == can).all()


def test_patients_who_do_not_count_in_a_figure_show_nothing_of_it() -> None:
    """However many arrangements they add, counted in full or drawn."""
    rng = np.random.default_rng(10)
    for patients in (12, 20):
        a, b = (equal_counts(rng.random((1, patients))) for _ in "ab")
        for sums in (a, b):
            sums.sums[:, 5:, 3] = sums.counts[:, 5:, 3] = 0
        table = significance({"a": a, "b": b}, "a", 5000).query("schedule == 'b'").set_index("figure")
        assert np.isinf(table.smallest_holm).to_dict() == {name: name == "accuracy_all" for name in FIGURES}


def test_runs_that_differ_widen_the_test() -> None:
    """A row better in every patient of one run of three, and worse in another, is no better schedule."""
    rng = np.random.default_rng(7)
    base = rng.normal(0.5, 0.05, (3, 40)) + rng.normal(0, 0.1, 40)
    luck = np.array([0.20, -0.10, 0.05])[:, None]
    lucky = equal_counts(base + luck + rng.normal(0, 0.05, (3, 40)))
    steady = equal_counts(base + luck.mean() + rng.normal(0, 0.05, (3, 40)))
    p = {name: p_of({"a": equal_counts(base), "b": row})[0] for name, row in (("lucky", lucky), ("steady", steady))}
    assert p["steady"] < 0.01
    assert p["lucky"] > 0.2


def test_a_figure_that_is_not_defined_is_not_tested() -> None:
    rng = np.random.default_rng(8)
    rows = {name: random_sums(rng, 1, 12) for name in "abc"}
    rows["b"].counts[..., 4] = rows["b"].sums[..., 4] = 0
    table = significance(rows, "a", 300).set_index(["schedule", "figure"])
    assert np.isnan(table.loc[("b", "accuracy_found"), ["p", "p_holm", "smallest_holm"]].to_numpy(float)).all()
    other = table.loc[("c", "accuracy_found")]
    assert other.p_holm == other.p
    assert table.loc["a"].isna().all(axis=None)
    assert significance(rows, None)[["p", "p_holm", "effect_size", "smallest_holm"]].isna().all(axis=None)


def test_simulated_tables_of_known_truth(tmp_path: Path) -> None:
    """A small round of the simulation: its shares over all figures, wide of 5 and 95 % by three standard errors."""
    designs = ("30 patients, 1 seed", "84 patients, 3 seeds")
    output = tmp_path / "simulated.json"
    command = [sys.executable, str(SIMULATION), "--tables", "150", "--output", str(output), "--designs", *designs]
    subprocess.run(command, check=False, capture_output=True, timeout=300)
    results = json.loads(output.read_text())
    assert [result["design"]["name"] for result in results] == list(designs)
    for result in results:
        mean = {name: np.mean(list(result[name].values())) for name in ("single", "family_wise", "coverage")}
        assert mean["single"] <= 0.08
        assert mean["family_wise"] <= 0.09
        assert mean["coverage"] >= 0.90
        assert np.mean(list(result["coverage_of_difference"].values())) >= 0.91
