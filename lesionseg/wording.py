"""Estimates, differences, tests and ranks in words: what a table may say of them."""

from __future__ import annotations

import math

import pandas as pd

#: Level of a test after Holm's correction.
ALPHA = 0.05


#: Sums of floats in another order differ by less.
_ROUNDING = 1e-12


def number(value: float, sign: str = "") -> str:
    """Three decimals, a true minus; a dash where there is none. With a sign, what rounds to 0 tells its side of it."""
    if math.isnan(value):
        return "–"
    near = round(value, 3)
    if near or not sign:
        return f"{near + 0.0:{sign}.3f}".replace("-", "−")  # + 0.0: no minus zero
    return f"{'' if abs(value) < _ROUNDING else '−' if value < 0 else '+'}0.000"


def interval(low: float, high: float, sign: str = "") -> str:
    """The interval in brackets; nothing where there is none."""
    return "" if math.isnan(low) else f" [{number(low, sign)}, {number(high, sign)}]"


def cell(row: pd.Series) -> str:
    """Estimate [95 % interval], n."""
    return f"{number(row.estimate)}{interval(row.low, row.high)}, {row.n}"


def difference_cell(row: pd.Series) -> str:
    """Difference [95 % interval]; resolution."""
    ends = interval(row.difference_low, row.difference_high, "+")
    return f"{number(row.difference, '+')}{ends}; {number(row.resolution)}"


def is_shown(row: pd.Series) -> bool:
    """Whether the test shows a difference after Holm's correction."""
    return bool(row.p_holm <= ALPHA)


def verdict(row: pd.Series) -> str:
    """What the test of one row allows to say, and no more."""
    if math.isnan(row.p):
        return "not defined"
    if is_shown(row):
        ends = interval(row.difference_low, row.difference_high, "+")
        direction = "higher" if row.difference > 0 else "lower"
        return f"{direction}: {number(row.difference, '+')}{ends}, p {probability(row.p_holm)}"
    return f"no difference shown, p {probability(row.p_holm)}{power(row.smallest_holm, row.smallest_holm)}"


def power(least: float, greatest: float) -> str:
    """What the test could have shown, from the least and the greatest of some rows; nothing where that is unknown."""
    if math.isnan(least):
        return ""
    if math.isinf(least):
        return "; so few patients or runs can show no difference"
    if math.isinf(greatest):
        return f"; could have shown ≥ about {number(least)}, in some rows none"
    return f"; could have shown ≥ about {' to '.join(dict.fromkeys((number(least), number(greatest))))}"


def p_cell(row: pd.Series) -> str:
    """p, p after Holm; standardised difference. Bold where a difference is shown."""
    if math.isnan(row.p):
        return "–"
    text = f"{probability(row.p)}, {probability(row.p_holm)}; {number(row.effect_size, '+')}"
    return f"**{text}**" if is_shown(row) else text


def rank_cell(row: pd.Series) -> str:
    """Share of the resamples in which it is best, never rounded to none or all; 95 % of the ranks."""
    best, low, high = row.probability_best, row.rank_low, row.rank_high  # of ties the mean rank, 2.5 for one
    if math.isnan(best):
        return "–"
    share = "< 1" if 0 < best < 0.01 else "> 99" if 0.99 < best < 1 else f"{100 * best:.0f}"
    return f"{share} %; {low:g}" + (f"–{high:g}" if high > low else "")


def probability(p: float) -> str:
    """A p value; never 0, never rounded down to a level that it does not reach."""
    return "< 0.001" if p < 0.001 else f"{math.ceil(p * 1000 - 1e-9) / 1000:.3f}"
