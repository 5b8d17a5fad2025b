"""Scores of cases pooled: against plain loops, and every undefined case."""

import math
from dataclasses import fields

import numpy as np
import pytest
from scipy import stats

from lesionseg.evaluation.figures import COUNTED, LARGEST, WAYS, pooled_figures, slice_figures
from lesionseg.evaluation.scoring import Burden, CaseScore, Elsewhere, SliceTables, slice_tables
from lesionseg.evaluation.text import VOLUME_HEADINGS
from lesionseg.lesions import Counts
from lesionseg.matching import LesionCounts
from lesionseg.statistics import RESAMPLES, draw_resamples

EMPTY = SliceTables((), ())


def score(patient="p0", **given):
    """A case without anything but what is given."""
    nothing = {
        "case_id": "c", "patient_id": patient, "liver": Counts(0, 0, 0), "lesion": Counts(0, 0, 0),
        "liver_assd_mm": None, "lesion_assd_mm": None, "burden": None, "at_iou": LesionCounts(0, 0, 0, 0),
        "at_any_overlap": LesionCounts(0, 0, 0, 0), "lesions": (), "elsewhere": Elsewhere(0, 0),
        "tables": dict.fromkeys(WAYS, EMPTY),
    }  # fmt: skip
    assert set(nothing) == {field.name for field in fields(CaseScore)}
    return CaseScore(**{**nothing, **given})


def random_scores(n, patients, seed):
    rng = np.random.default_rng(seed)

    def counts():
        predicted, reference = rng.integers(0, 3, 2) * rng.integers(1, 100, 2)
        return Counts(int(rng.integers(0, min(predicted, reference) + 1)), int(predicted), int(reference))

    def lesions():
        reference, predicted = map(int, rng.integers(0, 4, 2))
        found, right = (int(rng.integers(0, k + 1)) if reference and predicted else 0 for k in (reference, predicted))
        return LesionCounts(found, reference, right, predicted)

    return [
        score(
            f"p{rng.integers(patients)}",
            liver=counts() if rng.random() < 0.8 else None,
            lesion=counts(),
            liver_assd_mm=float(rng.random()) if rng.random() < 0.7 else None,
            lesion_assd_mm=float(rng.random()) if rng.random() < 0.4 else None,
            burden=Burden(*map(float, rng.random(2))) if rng.random() < 0.8 else None,
            at_iou=lesions(),
            at_any_overlap=lesions(),
        )
        for _ in range(n)
    ]


def plain(scores):
    """Every figure and its n by plain loops over the cases."""
    out = {}
    for name in ("liver", "lesion"):
        pairs = [
            getattr(s, name)
            for s in scores
            if getattr(s, name) and getattr(s, name).predicted + getattr(s, name).reference
        ]
        out[f"{name}_dice_per_case"] = mean([2 * c.both / (c.predicted + c.reference) for c in pairs]), len(pairs)
        whole = sum(c.predicted + c.reference for c in pairs)
        out[f"{name}_dice_global"] = (2 * sum(c.both for c in pairs) / whole if pairs else math.nan), len(pairs)
        far = [d for s in scores if (d := getattr(s, f"{name}_assd_mm")) is not None]
        out[f"{name}_assd_mm"] = mean(far), len(far)
    for way, field in (("iou", "at_iou"), ("any", "at_any_overlap")):
        found, reference, right, predicted = (
            sum(getattr(getattr(s, field), name) for s in scores)
            for name in ("found", "reference", "right", "predicted")
        )
        recall = found / reference if reference else math.nan
        precision = right / predicted if predicted else math.nan
        harmonic = 2 / (1 / recall + 1 / precision) if found and right else 0.0
        out[f"lesion_recall_{way}"] = recall, reference
        out[f"lesion_precision_{way}"] = precision, predicted
        out[f"lesion_f1_{way}"] = (harmonic if reference + predicted else math.nan), reference + predicted
    errors = [s.burden.predicted - s.burden.reference for s in scores if s.burden]
    out["burden_error_absolute"] = mean([abs(e) for e in errors]), len(errors)
    out["burden_error_rmse"] = math.sqrt(mean([e * e for e in errors])), len(errors)
    out[LARGEST] = max(map(abs, errors), default=math.nan), len(errors)
    return out


def weight(name, scores):
    """What the cases of a patient weigh in a figure: the denominator they bring."""
    if name.endswith("dice_global"):
        pairs = [pair for s in scores if (pair := getattr(s, name.partition("_")[0]))]
        return sum(pair.predicted + pair.reference for pair in pairs)
    return plain(scores)[name][1]


def mean(values):
    return sum(values) / len(values) if values else math.nan


@pytest.mark.parametrize("seed", range(8))
def test_figures_are_those_of_plain_loops(seed):
    scores = random_scores(n=1 + 4 * seed, patients=1 + seed, seed=seed)
    found = pooled_figures(scores)
    for name, (value, n) in plain(scores).items():
        assert found[name]["estimate"] == pytest.approx(value, nan_ok=True), name
        assert found[name]["n"] == n, name
    assert set(found) == {*COUNTED, LARGEST} == set(VOLUME_HEADINGS)


def test_intervals_are_those_of_patients_drawn_anew():
    """Cases of a drawn patient come in together, as often as it is drawn; as wide as few patients ask for."""
    scores = random_scores(n=20, patients=6, seed=3)
    patients = sorted({s.patient_id for s in scores})
    draws = []
    for weights in draw_resamples(len(patients), 1, RESAMPLES, 0).patients:
        drawn = [s for patient, times in zip(patients, weights, strict=True) for _ in range(times)
                 for s in scores if s.patient_id == patient]  # fmt: skip
        draws.append({name: value for name, (value, _) in plain(drawn).items()})
    for name, figure in pooled_figures(scores).items():
        if name == LARGEST:
            assert math.isnan(figure["low"])
            continue
        values = np.array([draw[name] for draw in draws])
        counts = np.array([weight(name, [s for s in scores if s.patient_id == patient]) for patient in patients])
        n = counts.sum() ** 2 / (counts**2).sum()
        values, far = values[~np.isnan(values)], stats.t.ppf(0.975, n - 1) * np.sqrt(n / (n - 1))
        low, high = np.quantile(values, (stats.norm.sf(far), stats.norm.cdf(far)))
        wider = max(1, 2 * far * values.std() / (high - low))
        most = np.inf if name.endswith("_mm") else 1
        expected = [max(figure["estimate"] - wider * (figure["estimate"] - low), 0),
                    min(figure["estimate"] + wider * (high - figure["estimate"]), most)]  # fmt: skip
        assert [figure["low"], figure["high"]] == pytest.approx(expected), name


def test_one_patient_has_no_interval():
    figures = pooled_figures(random_scores(n=5, patients=1, seed=1)).values()
    assert all(math.isnan(figure["low"]) and math.isnan(figure["high"]) for figure in figures)


def test_nothing_defined_is_nan_with_n_0():
    for figure in pooled_figures([score(), score("p1", liver=None)]).values():
        assert math.isnan(figure["estimate"])
        assert figure["n"] == 0


def test_lesions_missed_everywhere_have_f1_of_0():
    figures = pooled_figures([score(at_iou=LesionCounts(0, 2, 0, 0)), score("p1")])
    assert (figures["lesion_recall_iou"]["estimate"], figures["lesion_f1_iou"]["estimate"]) == (0, 0)
    assert math.isnan(figures["lesion_precision_iou"]["estimate"])


def test_slices_of_each_way_are_pooled_and_compared_on_the_same_slices():
    reference = np.zeros((1, 8, 8), np.uint8)
    reference[0, 1:7, 1:7], reference[0, 2:4, 2:4] = 1, 2
    missed = np.where(reference == 2, 1, reference)
    tables = [dict(zip(WAYS, (slice_tables(x, reference, [0], ("cyst", "undetermined")) for x in three), strict=True))
              for three in ((reference, reference, missed), (reference, missed, missed))]  # fmt: skip
    table = slice_figures([score(f"p{i}", tables=t) for i, t in enumerate(tables)])
    values = table.pivot(index="schedule", columns="figure", values="estimate").success_rate
    assert values.to_dict() == dict(zip(WAYS, (1, 0.5, 0), strict=True))
    differences = table[table.figure == "success_rate"].set_index("schedule").difference
    assert differences[list(WAYS[1:])].tolist() == [-0.5, -1]


def test_cases_without_slices_have_no_figures_of_slices():
    table = slice_figures([score(), score("p1")])
    assert table.estimate.isna().all()
    assert (table.n == 0).all()
