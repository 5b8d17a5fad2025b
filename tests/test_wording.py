"""What is said of a test follows the test, whatever the interval."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from lesionseg.wording import number, p_cell, probability, rank_cell, verdict

ROW = pd.Series(
    {"difference": 0.05, "difference_low": 0.01, "difference_high": 0.09, "p": 0.012, "p_holm": 0.048,
     "effect_size": 0.31, "smallest_holm": 0.07, "probability_best": 0.424, "rank_low": 1.0, "rank_high": 4.0}
)  # fmt: skip


def changed(**values: float) -> pd.Series:
    return pd.Series({**ROW, **values})


def test_a_difference_is_shown_by_the_test_and_not_by_the_interval() -> None:
    assert verdict(ROW) == "higher: +0.050 [+0.010, +0.090], p 0.048"
    assert verdict(changed(difference=-0.05, difference_low=-0.09, difference_high=-0.01)).startswith("lower: −0.050 [")
    assert verdict(changed(p_holm=0.051)) == "no difference shown, p 0.051; could have shown ≥ about 0.070"
    assert verdict(changed(p=1.0, p_holm=1.0, smallest_holm=math.nan)) == "no difference shown, p 1.000"
    few = verdict(changed(p=0.0625, p_holm=0.25, smallest_holm=math.inf))
    assert few == "no difference shown, p 0.250; so few patients or runs can show no difference"
    assert verdict(changed(p=math.nan, p_holm=math.nan)) == "not defined"


def test_cells() -> None:
    assert p_cell(ROW) == "**0.012, 0.048; +0.310**"
    assert p_cell(changed(p_holm=0.06)) == "0.012, 0.060; +0.310"
    assert p_cell(changed(p=math.nan)) == "–"
    assert rank_cell(ROW) == "42 %; 1–4"
    assert rank_cell(changed(rank_high=1.0)) == "42 %; 1"
    assert rank_cell(changed(rank_low=2.5, rank_high=2.5)) == "42 %; 2.5"
    assert rank_cell(changed(rank_low=1.5, rank_high=3.0)) == "42 %; 1.5–3"
    assert rank_cell(changed(probability_best=math.nan)) == "–"
    shares = {0.0: "0 %", 0.0049: "< 1 %", 0.01: "1 %", 0.99: "99 %", 0.9951: "> 99 %", 1.0: "100 %"}
    for share, text in shares.items():
        assert rank_cell(changed(probability_best=share)).startswith(f"{text}; ")


@pytest.mark.parametrize(
    ("p", "text"), [(0.0001, "< 0.001"), (0.001, "0.001"), (0.0501, "0.051"), (0.05, "0.050"), (1.0, "1.000")]
)
def test_p_is_never_rounded_down(p: float, text: str) -> None:
    assert probability(p) == text


def test_numbers() -> None:
    assert [number(-0.0001), number(-0.25), number(math.nan)] == ["0.000", "−0.250", "–"]
    assert [number(value, "+") for value in (-0.0004, 0.0004, 0.0, 1e-17)] == ["−0.000", "+0.000", "0.000", "0.000"]
