"""From results tables to estimates: pooled figures, patient bootstrap, paired differences, what n could show.

Every figure is a ratio of sums over patients (Dice1: the sum of the slices' Dice over the number of slices that have
one; success rate: lesions found over lesions), so a resampled figure follows exactly from weights on these sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import norm

from lesionseg.results import REFERENCE

#: The figures, in the order of the columns of a comparison.
FIGURES = ("dice1", "dice2", "success_rate", "accuracy_all", "accuracy_found", "false_positives_per_slice")
#: Column of a confusion matrix for the reference lesions that were not found.
MISSED = "missed"

LEVEL, POWER = 0.95, 0.80
#: Resamples of an interval.
RESAMPLES = 2000
#: Smallest true difference that a two-sided test at 5 % shows with 80 % power, in standard errors: 1.96 + 0.84.
DETECTABLE_SE = float(norm.ppf(0.5 + LEVEL / 2) + norm.ppf(POWER))


@dataclass(frozen=True, eq=False)
class PatientSums:
    """Numerator and denominator of each figure for every seed and patient, (seeds, patients, figures), float64."""

    sums: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True, eq=False)
class Resamples:
    """Weights that draw patients and seeds anew.

    Attributes:
        patients: (n, patients), how often each patient is drawn.
        seeds: (n, seeds), share of each seed; rows sum to 1.
    """

    patients: np.ndarray
    seeds: np.ndarray


def patient_sums(
    slices: pd.DataFrame, lesions: pd.DataFrame, patients: Sequence[str], seeds: Sequence[int]
) -> PatientSums:
    """Sum up the tables of one schedule over its folds.

    Args:
        slices: rows of `slices.csv` of all its runs, with a column `seed`.
        lesions: rows of `lesions.csv` of the same runs, with a column `seed`.
        patients: every test patient, one who has no lesion included.
        seeds: every seed.
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
    return PatientSums(np.stack([t[0] for t in tables], axis=-1), np.stack([t[1] for t in tables], axis=-1))


def estimates(sums: PatientSums) -> np.ndarray:
    """Each figure (figures,): pooled over all patients, then the mean over seeds; NaN where it is not defined."""
    n_seeds, n_patients, _ = sums.sums.shape
    return resampled(sums, Resamples(np.ones((1, n_patients)), np.full((1, n_seeds), 1 / n_seeds)))[0]


def draw_resamples(n_patients: int, n_seeds: int, n: int, seed: int) -> Resamples:
    """Draw n resamples: patients with replacement, and seeds with replacement.

    Of S seeds S − 1 are drawn, which makes the variance of their mean unbiased (Rao and Wu, JASA 83:231, 1988);
    drawing S would understate it by (S − 1) / S, by half for two seeds. A single seed stays as it is: given these
    trained models.
    """
    rng = np.random.default_rng(seed)
    patients = rng.multinomial(n_patients, np.full(n_patients, 1 / n_patients), size=n)
    if n_seeds == 1:
        return Resamples(patients, np.ones((n, 1)))
    return Resamples(patients, rng.multinomial(n_seeds - 1, np.full(n_seeds, 1 / n_seeds), size=n) / (n_seeds - 1))


def resampled(sums: PatientSums, resamples: Resamples) -> np.ndarray:
    """Each figure under each resample, (n, figures); NaN where a drawn seed leaves it undefined."""
    weights = resamples.patients.astype(np.float64)
    top = np.tensordot(weights, sums.sums, axes=(1, 1))  # (n, seeds, figures)
    bottom = np.tensordot(weights, sums.counts, axes=(1, 1))
    ratio = np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)
    share = resamples.seeds[:, :, None]
    return np.where(share > 0, share * ratio, 0.0).sum(axis=1)


def patient_bootstrap(
    rows: Mapping[str, PatientSums], baseline: str | None, n: int = RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """Estimates of all rows with 95 % percentile intervals, and their paired differences to the row `baseline`.

    All rows must hold the same patients and seeds in the same order: they are resampled with the same weights, so a
    difference is one between rows on the same patients. Resamples in which a figure is not defined are left out of its
    interval. Where all resamples agree (one patient; every lesion found), they say nothing of the spread: the interval
    and the smallest detectable difference are NaN. No correction for the number of comparisons.

    Args:
        rows: sums of each schedule, by name.
        baseline: the row that the others are compared with; None: no differences.
        n: number of resamples.
        seed: of the resampling.

    Returns:
        One row per schedule and figure: `schedule, figure, estimate, low, high, n, difference, difference_low,
        difference_high, smallest_detectable`. `n` is the number of slices or lesions of the figure (mean over seeds);
        `smallest_detectable` is `DETECTABLE_SE` standard errors of the difference.
    """
    n_seeds, n_patients, _ = next(iter(rows.values())).sums.shape
    resamples = draw_resamples(n_patients, n_seeds, n, seed)
    base = None if baseline is None else rows[baseline]
    base_value, base_draws = (None, None) if base is None else (estimates(base), resampled(base, resamples))
    table = []
    for name, sums in rows.items():
        value, draws = estimates(sums), resampled(sums, resamples)
        part = {
            "estimate": value,
            **intervals("", draws),
            "n": np.rint(sums.counts.sum(axis=1).mean(axis=0)).astype(int),
        }
        if base_value is None or name == baseline:
            none = np.full(len(FIGURES), np.nan)
            part |= dict.fromkeys(("difference", "difference_low", "difference_high", "smallest_detectable"), none)
        else:
            difference = draws - base_draws
            part |= {"difference": value - base_value, **intervals("difference_", difference)}
            part["smallest_detectable"] = DETECTABLE_SE * standard_error(difference)
        table.append(pd.DataFrame({"schedule": name, "figure": FIGURES, **part}))
    return pd.concat(table, ignore_index=True)


def standard_error(draws: np.ndarray) -> np.ndarray:
    """Standard deviation of each column of bootstrap draws (n, figures); NaN where they all agree."""
    return np.array([np.std(column, ddof=1) if _spread(column) else np.nan for column in _defined(draws)])


def confusion(lesions: pd.DataFrame, types: Sequence[str]) -> pd.DataFrame:
    """How many reference lesions of each type (rows) were typed as what (columns), with the column `missed`."""
    reference = lesions[lesions.kind == REFERENCE]
    predicted = reference.predicted_type.where(reference.found == 1, MISSED)
    table = pd.crosstab(reference.type, predicted)
    return table.reindex(index=list(types), columns=[*types, MISSED], fill_value=0)


def intervals(prefix: str, draws: np.ndarray) -> dict[str, np.ndarray]:
    """Percentile interval of each column of draws (n, figures); NaN where they all agree."""
    tail = (1 - LEVEL) / 2
    none = (np.nan, np.nan)
    ends = [np.quantile(column, (tail, 1 - tail)) if _spread(column) else none for column in _defined(draws)]
    low, high = np.array(ends).T
    return {f"{prefix}low": low, f"{prefix}high": high}


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
    return sums.reshape(shape), np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)
