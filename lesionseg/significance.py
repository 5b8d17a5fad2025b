"""Whether a row differs from the baseline: patients swapped between the two, Holm's correction, size of the effect.

With one seed the hypothesis is about these trained models: in each patient either could have given the other's result.
With several it is about the schedules: over patients and trainings the figure is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import chi2
from scipy.stats import t as student

from lesionseg.statistics import FIGURES, LARGEST, LEVEL, POWER, PatientSums, estimates, variance_of
from lesionseg.variance import Variance
from lesionseg.wording import ALPHA

#: Most arrangements of a test; all of them are counted where there are no more.
PERMUTATIONS = 10_000
#: Differences closer than this are the same: sums of floats in another order.
_ROUNDING = 1e-12
#: A Student's t of more degrees of freedom is a normal distribution.
_MANY = 1e9


@dataclass(frozen=True, eq=False)
class Swaps:
    """Which patients' results are swapped between two rows.

    Attributes:
        signs: (n, patients), −1 where swapped, 1 where not.
        complete: whether `signs` holds every arrangement once.
        normal: (n, 1), standard normal numbers for the part of the runs.
        tails: (n, 1), shares between 0 and 1 from which the tails of that part are drawn.
    """

    signs: np.ndarray
    complete: bool
    normal: np.ndarray
    tails: np.ndarray


def significance(
    rows: Mapping[str, PatientSums], baseline: str | None, n: int = PERMUTATIONS, seed: int = 0
) -> pd.DataFrame:
    """Test every row against the row `baseline`. The family of Holm's correction is the rows, each figure by itself.

    Args:
        rows: sums of each schedule, by name; the same patients, seeds and folds in the same order.
        baseline: the row that the others are tested against; None: no tests.
        n: most arrangements of a test.
        seed: of the arrangements.

    Returns:
        One row per schedule and figure: `schedule, figure, p, p_holm, effect_size, smallest_holm`; NaN for the baseline
        and where a figure is not defined. `effect_size` is `standardised_difference`, `smallest_holm` is
        `smallest_shown`.
    """
    none = np.full((len(rows), len(FIGURES)), np.nan)
    p, effect, smallest, spreads = none.copy(), none.copy(), none.copy(), {}
    if baseline is not None and len(rows) > 1:
        base = rows[baseline]
        swaps = draw_swaps(base.sums.shape[0], base.sums.shape[1], n, seed)
        for place, (name, sums) in enumerate(rows.items()):
            if name != baseline:
                spreads[place] = spread = variance_of(sums, base)
                p[place] = swap_test(sums, base, swaps, spread)
                effect[place] = standardised_difference(sums, base, spread)
        compared = np.maximum((~np.isnan(p)).sum(axis=0), 1)
        for place, spread in spreads.items():
            smallest[place] = smallest_shown(list(rows.values())[place], base, spread, compared)
    columns = {"p": p, "p_holm": holm(p), "effect_size": effect, "smallest_holm": smallest}
    places = pd.MultiIndex.from_product([list(rows), FIGURES], names=["schedule", "figure"])
    return pd.DataFrame({name: values.ravel() for name, values in columns.items()}, index=places).reset_index()


def draw_swaps(n_seeds: int, n_patients: int, n: int, seed: int) -> Swaps:
    """Every arrangement of the patients where there are at most n and one seed, n random ones elsewhere."""
    generator = np.random.default_rng(seed)
    complete = n_seeds == 1 and 2**n_patients <= n
    if complete:
        bits = np.arange(2**n_patients)[:, None] >> np.arange(n_patients) & 1
    else:
        bits = generator.integers(2, size=(n, n_patients))
    return Swaps(
        1.0 - 2.0 * bits, complete, generator.standard_normal((len(bits), 1)), generator.random((len(bits), 1))
    )


def swap_test(sums: PatientSums, base: PatientSums, swaps: Swaps, spread: Variance) -> np.ndarray:
    """Two-sided p of the difference of each figure (figures,): share of arrangements at least as far from 0.

    A patient's sums of all seeds are swapped together and the pooled figures taken anew. Exact where every arrangement
    is counted; random ones count the observed one too (Phipson and Smyth, Stat Appl Genet Mol Biol 9:39, 2010).
    """
    observed = estimates(sums) - estimates(base)
    draws = swapped_differences(sums, base, swaps.signs)
    if len(sums.sums) > 1:
        draws = _with_runs(draws, spread, swaps)
    extreme = (~(np.abs(draws) < np.abs(observed) - _ROUNDING)).sum(axis=0)  # an undefined one counts as extreme
    p = extreme / len(draws) if swaps.complete else (extreme + 1) / (len(draws) + 1)
    return np.where(np.isnan(observed), np.nan, p)


def swapped_differences(sums: PatientSums, base: PatientSums, signs: np.ndarray) -> np.ndarray:
    """Difference of each pooled figure under each arrangement, (n, figures)."""

    def both_ways(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        middle, moved = (one + other).sum(axis=1) / 2, np.tensordot(signs, (one - other) / 2, axes=(1, 1))
        return middle + moved, middle - moved  # (n, seeds, figures)

    tops, bottoms = both_ways(sums.sums, base.sums), both_ways(sums.counts, base.counts)
    here, there = (
        np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)
        for top, bottom in zip(tops, bottoms, strict=True)
    )
    return (here - there).mean(axis=1)


def _with_runs(draws: np.ndarray, spread: Variance, swaps: Swaps) -> np.ndarray:
    """Arrangements of patients, widened by what other trainings would have changed.

    A run moves all of its patients at once, which no swap of patients shows; and the runs are too few to swap. So
    their part is normal, of the variance that `variance` gives to patients and runs beyond patients alone; as few runs
    tell that variance, the whole gets the tails of Student's t (Hillis, Stat Med 26:596, 2007).
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        narrower = np.nan_to_num(np.sqrt(np.minimum(spread.total / spread.patients, 1)), nan=1.0)
    wider = np.sqrt(np.nan_to_num(np.maximum(spread.total - spread.patients, 0)))
    df = np.clip(np.nan_to_num(spread.df_runs, nan=_MANY), None, _MANY)
    tails = np.sqrt(df / chi2.ppf(swaps.tails, df))
    return (draws * narrower + swaps.normal * wider) * tails


def holm(p: np.ndarray) -> np.ndarray:
    """P values (rows, figures) corrected for the number of rows, each figure by itself; NaN is no comparison.

    Holm, Scand J Stat 6:65, 1979: all of a figure's false alarms together stay below the level.
    """
    order = np.argsort(p, axis=0)  # NaN last
    left = (~np.isnan(p)).sum(axis=0) - np.arange(len(p))[:, None]
    steps = np.minimum(np.maximum.accumulate(np.take_along_axis(p, order, 0) * left, axis=0), 1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, steps, 0)
    return adjusted


def standardised_difference(sums: PatientSums, base: PatientSums, spread: Variance) -> np.ndarray:
    """Cohen's d_z: the difference over the standard deviation between patients of their own (figures,).

    Lakens, Front Psychol 4:863, 2013, equation 7; patients weigh what their counts make them weigh. Of these trained
    models, also with several seeds. NaN where patients do not differ.
    """
    deviation = np.sqrt(spread.patients * spread.effective)
    difference = estimates(sums) - estimates(base)
    return np.divide(difference, deviation, out=np.full_like(difference, np.nan), where=deviation > 1e-9)


def smallest_shown(sums: PatientSums, base: PatientSums, spread: Variance, compared: np.ndarray) -> np.ndarray:
    """Smallest true difference that the test shows with about 80 % power in the first of Holm's steps (figures,).

    NaN where a figure is not defined or nothing differs; inf where patients or runs are too few for any.

    Args:
        sums: of a row.
        base: of the row that it is compared with.
        spread: `variance_of` the two.
        compared: (figures,), how many rows are.
    """
    error, n = np.sqrt(spread.total), spread.effective
    level, reach = 1 - (1 - LEVEL) / 2 / compared, student.ppf(POWER, spread.df) * error
    if len(sums.sums) == 1:
        # it sees what a t test sees; and of n patients' 2**n arrangements, 2 are as far from 0 as the farthest
        smallest = student.ppf(level, spread.df) * error + reach
        counting = ((sums.counts + base.counts)[0] > 0).sum(axis=0)
        hopeless = compared * 2.0 ** (1 - counting) > ALPHA
    else:
        # patients swapped hold the difference d itself, d**2 / n beside their variance, and `_with_runs` widens that:
        # (d - reach)**2 = far**2 * still + (1 - left) * d**2
        far = student.ppf(level, np.minimum(spread.df_runs, _MANY))
        with np.errstate(invalid="ignore", divide="ignore"):
            swapped = np.minimum(spread.total, spread.patients)
            still = swapped * (n - 1) / n + np.maximum(spread.total - swapped, 0)
            left = 1 - far**2 * swapped / spread.patients / n
            inner = reach**2 - left * (reach**2 - far**2 * still)
            smallest = (reach + np.sqrt(np.maximum(inner, 0))) / left
        hopeless = left <= 0
    smallest = np.where(error > 1e-9, smallest, np.nan)
    defined = ~np.isnan(estimates(sums) - estimates(base))
    return np.where(defined & (hopeless | (smallest > LARGEST)), np.inf, smallest)
