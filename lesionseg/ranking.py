"""How sure the order of the rows is: each row's ranks over resamples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from lesionseg.statistics import FIGURES, LEVEL, RESAMPLES, PatientSums, resampled, resamples_of

#: Figures of which less is better.
LESS_IS_BETTER = ("false_positives_per_slice",)


def ranks(rows: Mapping[str, PatientSums], n: int = RESAMPLES) -> pd.DataFrame:
    """Ranks of all rows under resamples that they share (`statistics.draw_resamples`), 1 is best.

    Rows that are equal in a resample share the places they take: each gets their mean rank and its part of the best.
    With several seeds a resample counts too much of what a patient has of his own in each run: the probabilities are
    then somewhat too even. With few patients they are too sure: unlike intervals, they are not widened.

    Returns:
        One row per schedule and figure: `schedule, figure, probability_best, rank_low, rank_high`; the ranks hold 95 %
        of the resamples. A row whose figure is defined in none has NaN and takes no place among the others; all have
        NaN where no resample gives another value than the others, which tells nothing, as of the intervals.
    """
    resamples = resamples_of(next(iter(rows.values())), n)
    draws = np.stack([resampled(sums, resamples) for sums in rows.values()], axis=1)  # (n, rows, figures)
    table = []
    for place, figure in enumerate(FIGURES):
        values = draws[:, :, place] if figure in LESS_IS_BETTER else -draws[:, :, place]
        best, low, high = _of_figure(values)
        part = {"schedule": list(rows), "figure": figure, "probability_best": best, "rank_low": low, "rank_high": high}
        table.append(pd.DataFrame(part))
    return pd.concat(table, ignore_index=True)


def _of_figure(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of resamples (n, rows) in which each row is least, and the ends of 95 % of its ranks, (rows,) each.

    Of the rows that have values, over the resamples in which they all do.
    """
    best, low, high = (np.full(values.shape[1], np.nan) for _ in range(3))
    defined = ~np.isnan(values).all(axis=0)
    values = values[:, defined]
    values = np.round(values[~np.isnan(values).any(axis=1)], 12)  # sums of floats in another order are no difference
    if values.size and (values != values[0]).any():
        least, tail = values == values.min(axis=1, keepdims=True), (1 - LEVEL) / 2
        best[defined] = (least / least.sum(axis=1, keepdims=True)).mean(axis=0)
        low[defined], high[defined] = np.quantile(rankdata(values, axis=1), (tail, 1 - tail), axis=0, method="nearest")
    return best, low, high
