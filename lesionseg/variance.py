"""How far a pooled figure would differ with other patients and other trainings: arrays only.

The patients are the cases and the trained runs the readers of a study of many readers and many cases, whose variance
has three parts (Dorfman, Berbaum and Metz, Invest Radiol 27:723, 1992). Figures are made linear at the estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Variance:
    """Variance of estimates, (figures,) each, in the square of the figure's unit.

    Attributes:
        total: of the estimate; over patients and runs, or over patients alone where there is one seed.
        patients: the same given these trained models.
        effective: number of patients of equal weight that would tell as much (Kish, Survey Sampling, 1965).
        df: degrees of freedom of `total` (Satterthwaite, Biometrics Bulletin 2:110, 1946).
        df_runs: the same for the runs alone, patients taken as many (Hillis, Stat Med 26:596, 2007); inf with one seed.
    """

    total: np.ndarray
    patients: np.ndarray
    effective: np.ndarray
    df: np.ndarray
    df_runs: np.ndarray


def influence(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """What each seed and patient adds to the distance of that seed's ratio from the mean of all, to first order.

    Args:
        sums: (seeds, patients, figures), numerators.
        counts: denominators, the same shape.

    Returns:
        (seeds, patients, figures); the sum over patients is the ratio of the seed minus the mean over seeds.
    """
    whole = counts.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio, share = sums.sum(axis=1, keepdims=True) / whole, counts / whole
        return sums / whole - share * ratio.mean(axis=0, keepdims=True)


def effective_patients(counts: np.ndarray) -> np.ndarray:
    """Patients of equal weight that would tell as much as these with their counts (patients, figures); (figures,)."""
    square = (counts**2).sum(axis=0)
    return np.divide(counts.sum(axis=0) ** 2, square, out=np.zeros_like(square), where=square > 0)


def variance(values: np.ndarray, counts: np.ndarray, folds: np.ndarray) -> Variance:
    """Variance of an estimate, or of the difference of two, from its influence values.

    With one seed it is that between patients. With several it is runs + max(patients − both, 0): what differs between
    the runs of a fold, and between patients, less what a patient has of his own in each run, which both hold. Runs of
    one seed in two folds are taken as independent: they learn from other patients, in another order.

    Args:
        values: (seeds, patients, figures), from `influence`, or a difference of two such.
        counts: (patients, figures), the denominators, mean over seeds.
        folds: (patients,), number of the fold each patient is tested in.
    """
    effective = effective_patients(counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        spare = np.maximum(effective - 1, 0)
        # a single patient tells nothing of others, and the root of a rounding error would be a spread
        patients = np.where(spare > 1e-9, effective / spare, np.nan) * (values.mean(axis=0) ** 2).sum(axis=0)
        if len(values) == 1:
            return Variance(patients, patients, effective, spare, np.full_like(patients, np.inf))
        runs, both, free = _between_runs(values, counts, folds)
        own = np.maximum(patients - both, 0)
        total = runs + own
        df = total**2 / (runs**2 / free + own**2 / spare)
        return Variance(total, patients, effective, df, total**2 / (runs**2 / free))


def _between_runs(values: np.ndarray, counts: np.ndarray, folds: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Variance between the runs of a fold, that of a patient's own part in each run, degrees of freedom of the first.

    Both are of the mean over seeds. A fold with a single patient cannot tell the two apart: it adds to the first only.
    """
    n_seeds = len(values)
    of_fold = (folds == np.unique(folds)[:, None]).astype(np.float64)  # (folds, patients)
    added = np.einsum("kp,spf->skf", of_fold, values)
    runs = (added.var(axis=0, ddof=1) / n_seeds).sum(axis=0)

    weight = of_fold.T @ (of_fold @ counts)
    share = np.divide(counts, weight, out=np.zeros_like(counts), where=weight > 0)
    common = share * np.einsum("kp,skf->spf", of_fold, added - added.mean(axis=0))
    own = values - values.mean(axis=0) - common
    n_patients = of_fold @ (counts > 0)  # (folds, figures)
    unbiased = np.divide(n_patients, n_patients - 1, out=np.zeros_like(n_patients), where=n_patients > 1)
    both = np.einsum("spf,pf->f", own**2, of_fold.T @ unbiased) / (n_seeds * (n_seeds - 1))
    return runs, both, len(of_fold) * (n_seeds - 1)
