"""From results tables to estimates: pooled figures, bootstrap intervals, paired differences and their resolution.

Every figure is a ratio of sums over patients (Dice1: the sum of the slices' Dice over the number of slices that have
one; success rate: lesions found over lesions), so a resampled figure follows exactly from weights on these sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import norm
from scipy.stats import t as student

from lesionseg.results import MISSED, REFERENCE
from lesionseg.variance import Variance, effective_patients, influence, variance

#: The figures, in the order of the columns of a comparison.
FIGURES = ("dice1", "dice2", "success_rate", "accuracy_all", "accuracy_found", "false_positives_per_slice")
#: The one that a comparison is about, and that a schedule is chosen by.
PRIMARY = "accuracy_all"
#: The largest possible value of each.
LARGEST = np.array([1, 1, 1, 1, 1, np.inf])
#: The one that is a rate and no share, so that its values have a long upper tail.
RATE = FIGURES.index("false_positives_per_slice")
#: Three patients of equal weight have so many.
RATE_DF = 2

LEVEL, POWER = 0.95, 0.80
#: Resamples of an interval.
RESAMPLES = 10_000
#: With many patients, a true difference of so many standard errors, 1.96 + 0.84, has a 95 % interval that leaves out 0
#: in 80 % of studies. It tells of the spread, not of a test: few patients may allow none (`significance`).
RESOLUTION_SE = float(norm.ppf(0.5 + LEVEL / 2) + norm.ppf(POWER))


@dataclass(frozen=True, eq=False)
class PatientSums:
    """Numerator and denominator of each figure for every seed and patient, (seeds, patients, figures), float64.

    Attributes:
        sums: numerators.
        counts: denominators.
        folds: (patients,), number of the fold in which each patient is tested, by one run a seed.
    """

    sums: np.ndarray
    counts: np.ndarray
    folds: np.ndarray


@dataclass(frozen=True, eq=False)
class Resamples:
    """Patients and runs drawn anew.

    Attributes:
        patients: (n, patients), how often each patient is drawn.
        runs: (n, folds, drawn), seeds whose runs are drawn in each fold.
    """

    patients: np.ndarray
    runs: np.ndarray


def patient_sums(
    slices: pd.DataFrame,
    lesions: pd.DataFrame,
    patients: Sequence[str],
    seeds: Sequence[int],
    folds: Sequence[int] | None = None,
) -> PatientSums:
    """Sum up the tables of one schedule over its folds.

    Args:
        slices: rows of `slices.csv` of all its runs, with a column `seed`.
        lesions: rows of `lesions.csv` of the same runs, with a column `seed`.
        patients: every test patient, one who has no lesion included.
        seeds: every seed.
        folds: number of the fold in which each patient is tested; None: there is one.
    """
    reference = lesions[lesions.kind == REFERENCE]
    found = reference[reference.found == 1]
    values: dict[str, tuple[pd.DataFrame, pd.Series]] = {}
    for figure, column in (("dice1", "dice1"), ("dice2", "dice2"), ("false_positives_per_slice", "false_positives")):
        rows = slices[(slices.figure == column) & slices.value.notna()]
        values[figure] = rows, rows.value
    right = reference.predicted_type == reference.type  # never so for a missed lesion: its predicted type is empty
    values["success_rate"] = reference, reference.found
    values["accuracy_all"] = reference, right
    values["accuracy_found"] = found, right[reference.found == 1]

    tables = [_sum_by_patient(*values[figure], patients, seeds) for figure in FIGURES]
    return PatientSums(
        np.stack([t[0] for t in tables], axis=-1),
        np.stack([t[1] for t in tables], axis=-1),
        np.zeros(len(patients), dtype=int) if folds is None else np.asarray(folds),
    )


def estimates(sums: PatientSums) -> np.ndarray:
    """Each figure (figures,): pooled over all patients, then the mean over seeds; NaN where it is not defined."""
    top, bottom = sums.sums.sum(axis=1), sums.counts.sum(axis=1)
    return np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0).mean(axis=0)


def draw_resamples(n_patients: int, n_seeds: int, n: int, seed: int, n_folds: int = 1) -> Resamples:
    """Draw n resamples: patients with replacement, and in each fold runs with replacement.

    Of the S runs of a fold (one a seed) S − 1 are drawn, which makes the variance of their mean unbiased (Rao and Wu,
    JASA 83:231, 1988); drawing S would understate it by (S − 1) / S, by half for two seeds. A single run stays as it
    is: given these trained models.
    """
    rng = np.random.default_rng(seed)
    patients = rng.multinomial(n_patients, np.full(n_patients, 1 / n_patients), size=n)
    return Resamples(patients, rng.integers(n_seeds, size=(n, n_folds, max(n_seeds - 1, 1))))


def resampled(sums: PatientSums, resamples: Resamples) -> np.ndarray:
    """Each figure under each resample, (n, figures): pooled over folds, then the mean over the runs drawn in each.

    NaN where a drawn run leaves it undefined.
    """
    weights, drawn = resamples.patients.astype(np.float64), np.arange(len(resamples.patients))[:, None]
    top = bottom = np.zeros(())
    for fold, runs in zip(np.unique(sums.folds), resamples.runs.transpose(1, 0, 2), strict=True):
        here = sums.folds == fold
        top = top + np.tensordot(weights[:, here], sums.sums[:, here], axes=(1, 1))[drawn, runs]  # (n, drawn, figures)
        bottom = bottom + np.tensordot(weights[:, here], sums.counts[:, here], axes=(1, 1))[drawn, runs]
    return np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0).mean(axis=1)


def patient_bootstrap(
    rows: Mapping[str, PatientSums], baseline: str | None, n: int = RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """Estimates of all rows with 95 % intervals, and their paired differences to the row `baseline`.

    All rows must hold the same patients, seeds and folds in the same order: they are resampled with the same weights,
    so a difference is one between rows on the same patients. Resamples in which a figure is not defined are left out of
    its interval. Where all resamples agree (one patient; every lesion found), they say nothing of the spread: the
    interval and the resolution are NaN. No correction for the number of comparisons.

    Args:
        rows: sums of each schedule, by name.
        baseline: the row that the others are compared with; None: no differences.
        n: number of resamples.
        seed: of the resampling.

    Returns:
        One row per schedule and figure: `schedule, figure, estimate, low, high, n, difference, difference_low,
        difference_high, resolution`. `n` is the number of slices or lesions of the figure (mean over seeds);
        `resolution` is `RESOLUTION_SE` standard errors of the difference.
    """
    resamples = resamples_of(next(iter(rows.values())), n, seed)
    base = None if baseline is None else rows[baseline]
    base_draws = None if base is None else resampled(base, resamples)
    table = []
    for name, sums in rows.items():
        value, draws = estimates(sums), resampled(sums, resamples)
        spread = variance_of(sums)
        low, high = seeded_intervals(value, draws, spread, len(sums.sums))
        low[RATE], high[RATE] = rate_interval(value[RATE], spread.total[RATE], spread.patients[RATE], spread.df[RATE])
        counts = np.floor(sums.counts.sum(axis=1).mean(axis=0) + 0.5).astype(int)
        part = {"estimate": value, "low": np.maximum(low, 0), "high": np.minimum(high, LARGEST), "n": counts}
        if base is None or base_draws is None or name == baseline:
            none = np.full(len(FIGURES), np.nan)
            part |= dict.fromkeys(("difference", "difference_low", "difference_high", "resolution"), none)
        else:
            difference, spread = value - estimates(base), variance_of(sums, base)
            low, high = seeded_intervals(difference, draws - base_draws, spread, len(sums.sums))
            part["difference"] = difference
            part |= {"difference_low": np.maximum(low, -LARGEST), "difference_high": np.minimum(high, LARGEST)}
            part["resolution"] = np.where(np.isnan(low), np.nan, RESOLUTION_SE * np.sqrt(spread.total))
        table.append(pd.DataFrame({"schedule": name, "figure": FIGURES, **part}))
    return pd.concat(table, ignore_index=True)


def resamples_of(sums: PatientSums, n: int = RESAMPLES, seed: int = 0) -> Resamples:
    """Resamples for rows of the patients, seeds and folds of these sums."""
    n_seeds, n_patients, _ = sums.sums.shape
    return draw_resamples(n_patients, n_seeds, n, seed, len(np.unique(sums.folds)))


def variance_of(sums: PatientSums, base: PatientSums | None = None) -> Variance:
    """Variance of the estimates, or of their differences to those of `base`, which has the same patients and seeds."""
    values, counts = influence(sums.sums, sums.counts), sums.counts.mean(axis=0)
    if base is None:
        return variance(values, counts, sums.folds)
    other = base.counts.mean(axis=0)
    fewer = np.where(effective_patients(other) < effective_patients(counts), other, counts)
    return variance(values - influence(base.sums, base.counts), fewer, sums.folds)


def confusion(lesions: pd.DataFrame, types: Sequence[str]) -> pd.DataFrame:
    """How many reference lesions of each type (rows) were typed as what (columns), with the column `missed`."""
    reference = lesions[lesions.kind == REFERENCE]
    predicted = reference.predicted_type.where(reference.found == 1, MISSED)
    table = pd.crosstab(reference.type, predicted)
    return table.reindex(index=list(types), columns=[*types, MISSED], fill_value=0)


def seeded_intervals(
    value: np.ndarray, draws: np.ndarray, spread: Variance, n_seeds: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `intervals` of draws; for several seeds as wide as Student's t of `spread`, about the estimate `value`.

    A resample of patients and runs counts three times what a patient has of his own in each run (Owen, Ann Appl Stat
    1:386, 2007), and few runs ask for longer tails: the draws tell only how far it reaches to either side.
    """
    low, high = intervals(value, draws, spread.effective)
    if n_seeds == 1:
        return low, high
    return _as_wide_as(value, low, high, _student(spread.df) * np.sqrt(spread.total))


def rate_interval(value: float, total: float, patients: float, df: float) -> tuple[float, float]:
    """95 % interval of a rate: Student's t on its logarithm (delta method).

    NaN where patients do not differ, and below `RATE_DF` degrees of freedom, where it would span factors of thousands.

    Resamples of few patients seldom hold as many false positives as the next patient may have, so that their
    percentiles end too low (docs/statistics.md). Patients and runs together vary at least as much as patients alone:
    where the estimates say the opposite, that of the patients is taken.

    Args:
        value: the rate.
        total: its variance.
        patients: its variance given these trained models.
        df: degrees of freedom of `total`.
    """
    error = np.sqrt(max(total, patients))
    if not (error > 1e-9 and df >= RATE_DF):  # NaN as well
        return np.nan, np.nan
    far = float(np.exp(student.ppf(0.5 + LEVEL / 2, df) * error / value))
    return value / far, value * far


def intervals(value: np.ndarray, draws: np.ndarray, effective: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Expanded percentiles of each column of draws (n, figures); NaN where they all agree.

    The 2.5 and 97.5 % of a normal distribution are moved out to those of Student's t with the variance that n − 1
    gives: plain percentiles are too narrow for few patients (Hesterberg, Am Stat 69:371, 2015). Of very few patients
    the outermost resample lies nearer than that: then they are stretched to the width of Student's t.

    Args:
        value: the estimates, (figures,).
        draws: from a resample of patients.
        effective: (figures,), number of patients, see `variance.effective_patients`.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        unbiased = np.where(effective > 1 + 1e-9, np.sqrt(effective / (effective - 1)), np.nan)
        far = student.ppf(0.5 + LEVEL / 2, effective - 1) * unbiased
        width = _student(effective - 1) * unbiased
    tails = np.nan_to_num(norm.sf(far), nan=0.0)
    ends = [
        np.quantile(column, (tail, 1 - tail)) if _spread(column) else (np.nan, np.nan)
        for column, tail in zip(_defined(draws), tails, strict=True)
    ]
    low, high = np.array(ends).T
    deviation = np.array([column.std() if len(column) else np.nan for column in _defined(draws)])
    return _as_wide_as(value, low, high, np.fmax(width * deviation, (high - low) / 2))


def _student(df: np.ndarray) -> np.ndarray:
    """Half of the width of a 95 % interval, in standard errors; below one degree of freedom it would be senseless."""
    return student.ppf(0.5 + LEVEL / 2, np.maximum(df, 1))


def _as_wide_as(
    value: np.ndarray, low: np.ndarray, high: np.ndarray, half: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """An interval stretched about the estimate, both sides alike, until half of its width is `half`."""
    factor = 2 * half / (high - low)
    return value - factor * (value - low), value + factor * (high - value)


def _defined(draws: np.ndarray) -> list[np.ndarray]:
    return [column[~np.isnan(column)] for column in draws.T]


def _spread(column: np.ndarray) -> bool:
    """Whether draws differ by more than rounding."""
    return len(column) > 1 and float(np.ptp(column)) > 1e-9


def _sum_by_patient(
    rows: pd.DataFrame, values: pd.Series, patients: Sequence[str], seeds: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of values for each seed and patient, (seeds, patients) each."""
    of_seed = pd.Index(seeds).get_indexer(pd.Index(rows.seed))
    of_patient = pd.Index(patients).get_indexer(pd.Index(rows.patient_id))
    if (of_seed < 0).any() or (of_patient < 0).any():
        raise ValueError("the tables hold a patient or a seed that is not listed")
    cell, shape = of_seed * len(patients) + of_patient, (len(seeds), len(patients))
    sums = np.bincount(cell, weights=values.to_numpy(np.float64), minlength=shape[0] * shape[1])
    counts = np.bincount(cell, minlength=shape[0] * shape[1])
    return sums.reshape(shape).astype(np.float64), counts.reshape(shape).astype(np.float64)  # without rows both are int
