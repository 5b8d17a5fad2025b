"""Scored cases → figures with 95 % intervals and n. The resampling unit of every interval is the patient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lesionseg.evaluation.scoring import CaseScore
from lesionseg.lesions import Counts
from lesionseg.statistics import RESAMPLES, draw_resamples, intervals, patient_bootstrap, patient_sums
from lesionseg.variance import effective_patients

#: How the classes of the slice tables were come by: the nets' in the liver box of the reference (what `lesionseg test`
#: scores), in that of the predicted liver, and what a user receives (cleaned, types by vote).
REFERENCE_BOX, PREDICTED_BOX, CASCADE = "reference box", "predicted box", "whole cascade"
WAYS = (REFERENCE_BOX, PREDICTED_BOX, CASCADE)

#: What the n of each pooled figure is: the sums it is made of (see `_terms`), and what they count.
COUNTED: dict[str, tuple[tuple[str, ...], str]] = {
    "liver_dice_per_case": (("liver_n",), "cases"),
    "liver_dice_global": (("liver_n",), "cases"),
    "liver_assd_mm": (("liver_assd_mm_n",), "cases"),
    "lesion_dice_per_case": (("lesion_n",), "cases"),
    "lesion_dice_global": (("lesion_n",), "cases"),
    "lesion_assd_mm": (("lesion_assd_mm_n",), "cases"),
    "lesion_recall_iou": (("iou_reference",), "reference lesions"),
    "lesion_precision_iou": (("iou_predicted",), "predicted lesions"),
    "lesion_f1_iou": (("iou_reference", "iou_predicted"), "lesions of both"),
    "lesion_recall_any": (("any_reference",), "reference lesions"),
    "lesion_precision_any": (("any_predicted",), "predicted lesions"),
    "lesion_f1_any": (("any_reference", "any_predicted"), "lesions of both"),
    "burden_error_absolute": (("burden_n",), "cases"),
    "burden_error_rmse": (("burden_n",), "cases"),
}
#: Sums by which a patient weighs in a figure, where they are not its n: one with many voxels may be most of it.
_WEIGHTS = {"liver_dice_global": "liver_voxels", "lesion_dice_global": "lesion_voxels"}
#: All others are shares, or differences of shares.
_IN_MM = ("liver_assd_mm", "lesion_assd_mm")
#: Has no interval: resampling cannot show a maximum larger than the one seen.
LARGEST = "burden_error_max"


def pooled_figures(scores: Sequence[CaseScore]) -> dict[str, dict[str, Any]]:
    """The figures of volumes by name: `estimate`, `low`, `high` (NaN: undefined), `n`, `of` (what n counts).

    Resamples in which a figure is not defined are left out of its interval; where all agree there is none.
    """
    terms = pd.DataFrame([_terms(score) for score in scores]).groupby([score.patient_id for score in scores]).sum()
    whole = pooled({str(name): values.sum() for name, values in terms.items()})
    weights = draw_resamples(len(terms), 1, RESAMPLES, seed=0).patients
    draws = pooled(dict(zip(map(str, terms.columns), (weights @ terms.to_numpy()).T, strict=True)))
    counted = np.stack([terms[list(names)].sum(axis=1) for names, _ in COUNTED.values()], axis=1)
    weighed = counted.copy()
    for name, weight in _WEIGHTS.items():
        weighed[:, list(COUNTED).index(name)] = terms[weight]
    value = np.array([float(whole[name]) for name in COUNTED])
    low, high = intervals(value, np.stack([draws[name] for name in COUNTED], axis=1), effective_patients(weighed))
    low, high = np.maximum(low, 0), np.minimum(high, [np.inf if name in _IN_MM else 1 for name in COUNTED])
    out = {
        name: {
            "estimate": float(whole[name]),
            "low": float(low[place]),
            "high": float(high[place]),
            "n": int(counted[:, place].sum()),
            "of": of,
        }
        for place, (name, (_, of)) in enumerate(COUNTED.items())
    }
    errors = [abs(score.burden.predicted - score.burden.reference) for score in scores if score.burden is not None]
    largest = {"estimate": max(errors, default=math.nan), "low": math.nan, "high": math.nan}
    return {**out, LARGEST: {**out["burden_error_rmse"], **largest}}


def pooled(sums: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The figures `COUNTED` from sums of `_terms` over cases, numbers or arrays of one shape; NaN: undefined."""
    t = {name: np.asarray(value, dtype=np.float64) for name, value in sums.items()}
    out = {}
    for name in ("liver", "lesion"):
        out[f"{name}_dice_per_case"] = _ratio(t[f"{name}_dice"], t[f"{name}_n"])
        out[f"{name}_dice_global"] = _ratio(2 * t[f"{name}_both"], t[f"{name}_voxels"])
        out[f"{name}_assd_mm"] = _ratio(t[f"{name}_assd_mm"], t[f"{name}_assd_mm_n"])
    for way in ("iou", "any"):
        recall = _ratio(t[f"{way}_found"], t[f"{way}_reference"])
        precision = _ratio(t[f"{way}_right"], t[f"{way}_predicted"])
        both = np.nan_to_num(_ratio(2 * recall * precision, recall + precision))  # one side empty, or nothing found: 0
        some = t[f"{way}_reference"] + t[f"{way}_predicted"] > 0
        out[f"lesion_recall_{way}"], out[f"lesion_precision_{way}"] = recall, precision
        out[f"lesion_f1_{way}"] = np.where(some, both, np.nan)
    out["burden_error_absolute"] = _ratio(t["burden_absolute"], t["burden_n"])
    out["burden_error_rmse"] = np.sqrt(_ratio(t["burden_square"], t["burden_n"]))
    return out


def slice_figures(scores: Sequence[CaseScore]) -> pd.DataFrame:
    """The figures of `metrics.py` in every way of `WAYS` (column `schedule`), see `statistics.patient_bootstrap`.

    Differences are those to the reference box, on the same slices.
    """
    patients = sorted({score.patient_id for score in scores})
    sums = {way: patient_sums(*slice_rows(scores, way), patients, [0]) for way in WAYS}
    return patient_bootstrap(sums, REFERENCE_BOX)


def slice_rows(scores: Sequence[CaseScore], way: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Slices and lesions of all cases in one way, as tables of a run with the column `seed`."""
    slices, lesions = (
        [{**row, "patient_id": score.patient_id, "seed": 0} for score in scores for row in rows(score)]
        for rows in (lambda score: score.tables[way].slices, lambda score: score.tables[way].lesions)
    )
    places = ["patient_id", "seed"]
    return (
        pd.DataFrame(slices, columns=["slice_key", "figure", "value", *places]),
        pd.DataFrame(lesions, columns=["slice_key", "kind", "type", "area_px", "found", "predicted_type", *places]),
    )


def _terms(score: CaseScore) -> dict[str, float]:
    """What a case adds to the sums; 0, and 0 to the n, where a figure is not defined."""
    terms: dict[str, float] = {}
    for name, counts in (("liver", score.liver or Counts(0, 0, 0)), ("lesion", score.lesion)):
        known = not math.isnan(counts.dice)
        terms |= {f"{name}_dice": counts.dice if known else 0, f"{name}_n": known}
        terms |= {f"{name}_both": counts.both, f"{name}_voxels": counts.predicted + counts.reference}
    for name, distance in (("liver_assd_mm", score.liver_assd_mm), ("lesion_assd_mm", score.lesion_assd_mm)):
        terms |= {name: distance or 0, f"{name}_n": distance is not None}
    error = 0.0 if score.burden is None else score.burden.predicted - score.burden.reference
    terms |= {"burden_absolute": abs(error), "burden_square": error**2, "burden_n": score.burden is not None}
    for way, lesions in (("iou", score.at_iou), ("any", score.at_any_overlap)):
        terms |= {f"{way}_found": lesions.found, f"{way}_reference": lesions.reference}
        terms |= {f"{way}_right": lesions.right, f"{way}_predicted": lesions.predicted}
    return {name: float(value) for name, value in terms.items()}


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0)
