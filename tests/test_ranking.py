"""Ranks over resamples against plain loops, ties, and less that is better."""

from __future__ import annotations

import numpy as np
import pytest

from lesionseg.ranking import ranks
from lesionseg.statistics import FIGURES, PatientSums, resampled, resamples_of


def sums_of(values: np.ndarray) -> PatientSums:
    """One seed, one slice a patient, the same in every figure."""
    sums = np.repeat(values[None, :, None], len(FIGURES), axis=-1)
    return PatientSums(sums, np.ones_like(sums), np.zeros(len(values), int))


def test_ranks_are_those_of_sorted_resamples() -> None:
    rng = np.random.default_rng(0)
    rows = {name: sums_of(rng.random(12)) for name in "abc"}
    table = ranks(rows, n=400).set_index(["figure", "schedule"])
    resamples = resamples_of(rows["a"], 400)
    draws = np.stack([resampled(sums, resamples)[:, 0] for sums in rows.values()], axis=1)
    places = np.array([[sorted(draw)[::-1].index(value) + 1 for value in draw] for draw in draws])
    for i, name in enumerate("abc"):
        row = table.loc[("dice1", name)]
        assert row.probability_best == pytest.approx((places[:, i] == 1).mean())
        low, high = np.quantile(places[:, i], (0.025, 0.975), method="nearest")
        assert (row.rank_low, row.rank_high) == (low, high)
        less = table.loc[("false_positives_per_slice", name)]
        assert less.probability_best == pytest.approx((places[:, i] == 3).mean())


def test_equal_rows_share_the_first_place() -> None:
    values = np.random.default_rng(1).random(9)
    table = ranks({"a": sums_of(values), "b": sums_of(values), "c": sums_of(values - 1)}, n=100)
    dice = table[table.figure == "dice1"]
    assert dice.probability_best.tolist() == [0.5, 0.5, 0]
    assert dice.rank_low.tolist() == dice.rank_high.tolist() == [1.5, 1.5, 3]


def test_probabilities_add_up_and_a_row_without_a_figure_takes_no_place() -> None:
    rng = np.random.default_rng(2)
    rows = {name: sums_of(rng.random(6)) for name in "abcd"}
    rows["b"].counts[..., 4] = 0
    table = ranks(rows, n=200)
    assert table.groupby("figure").probability_best.sum().to_numpy() == pytest.approx(1)
    columns = ["probability_best", "rank_low", "rank_high"]
    undefined = (table.schedule == "b") & (table.figure == "accuracy_found")
    assert table[columns].isna().all(axis=1).tolist() == undefined.tolist()
    without = ranks({name: sums for name, sums in rows.items() if name != "b"}, n=200)
    one, other = (t[(t.figure == "accuracy_found") & (t.schedule != "b")] for t in (table, without))
    assert one[columns].to_numpy() == pytest.approx(other[columns].to_numpy())


def test_where_every_resample_is_the_same_there_are_no_ranks() -> None:
    """One patient alone has lesions: there is no interval either."""
    rows = {name: sums_of(np.full(2, value)) for name, value in (("a", 0.25), ("b", 1.0))}
    for sums in rows.values():
        sums.counts[:, 0] = sums.sums[:, 0] = 0
    assert ranks(rows, n=50).iloc[:, 2:].isna().all(axis=None)


def test_a_figure_that_no_row_has_gives_no_ranks() -> None:
    rows = {name: sums_of(np.ones(6)) for name in "ab"}
    for sums in rows.values():
        sums.counts[..., 4] = 0
    assert ranks(rows, n=50).query("figure == 'accuracy_found'").iloc[:, 2:].isna().all(axis=None)
