"""Variance parts against textbook analysis of variance, a plain t test, and simulated patients and runs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lesionseg.variance import effective_patients, influence, variance


def test_influence_is_the_first_order_change_of_the_ratio() -> None:
    """What dropping a small part of a patient changes, by plain division."""
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 6, (2, 7, 3)).astype(float)
    sums = rng.random(counts.shape) * counts
    values = influence(sums, counts)
    ratio = sums.sum(axis=1) / counts.sum(axis=1)
    assert values.sum(axis=1) == pytest.approx(ratio - ratio.mean(axis=0), abs=1e-12)
    alone = influence(sums[:1], counts[:1])[0]
    step = 1e-6
    for patient in range(7):
        weights = np.ones(7)
        weights[patient] += step
        changed = (weights[:, None] * sums[0]).sum(axis=0) / (weights[:, None] * counts[0]).sum(axis=0)
        assert (changed - ratio[0]) / step == pytest.approx(alone[patient], abs=1e-5)


def test_equal_patients_give_the_squared_standard_error_of_a_mean() -> None:
    values = np.random.default_rng(1).normal(size=(1, 12, 2))
    counts = np.full((12, 2), 3.0)
    spread = variance(influence(values * counts, counts[None]), counts, np.zeros(12))
    assert spread.total == pytest.approx(stats.sem(values[0], axis=0) ** 2)
    assert spread.df == pytest.approx([11, 11])
    assert spread.effective == pytest.approx([12, 12])
    assert np.isinf(spread.df_runs).all()


def test_unequal_patients_tell_as_much_as_fewer() -> None:
    assert effective_patients(np.array([[1.0, 4, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]])).tolist() == [4, 1, 0]


def test_one_fold_is_the_analysis_of_variance_of_readers_and_cases() -> None:
    """Mean squares of a two-way table by hand: runs + max(patients − both, 0), all over runs x patients."""
    table = np.random.default_rng(2).normal(size=(4, 9))  # runs x patients
    table += np.arange(4)[:, None] + np.arange(9) / 2
    counts = np.ones((9, 1))
    spread = variance(influence(table[..., None], np.ones((4, 9, 1))), counts, np.zeros(9))
    grand, of_run, of_patient = table.mean(), table.mean(axis=1), table.mean(axis=0)
    ms_runs = 9 * ((of_run - grand) ** 2).sum() / 3
    ms_patients = 4 * ((of_patient - grand) ** 2).sum() / 8
    ms_both = ((table - of_run[:, None] - of_patient + grand) ** 2).sum() / 24
    expected = (ms_runs + max(ms_patients - ms_both, 0)) / 36
    assert spread.total == pytest.approx([expected])
    assert spread.df_runs == pytest.approx([expected**2 / ((ms_runs / 36) ** 2 / 3)])


@pytest.mark.parametrize(("run_sd", "own_sd"), [(0.0, 1.0), (0.3, 1.0), (0.5, 0.1)])
def test_the_variance_is_that_of_simulated_grids(run_sd: float, own_sd: float) -> None:
    """Mean of the estimated variance, beside the variance of the estimate, over 3 folds x 3 seeds of 30 patients."""
    rng = np.random.default_rng(3)
    fold = np.arange(30) % 3
    means, totals = [], []
    for _ in range(1500):
        values = rng.normal(0, 0.5, 30) + rng.normal(0, run_sd, (3, 3))[:, fold] + rng.normal(0, own_sd, (3, 30))
        means.append(values.mean())
        counts = np.ones((30, 1))
        totals.append(variance(influence(values[..., None], np.ones((3, 30, 1))), counts, fold).total[0])
    assert np.mean(totals) == pytest.approx(np.var(means), rel=0.12)


def test_a_figure_without_counts_has_no_variance() -> None:
    nothing = np.zeros((2, 4, 1))
    assert np.isnan(variance(influence(nothing, nothing), nothing[0], np.zeros(4)).total).all()
