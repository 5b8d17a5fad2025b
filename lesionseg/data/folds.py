"""Folds by patient: every patient lies in one part only, and the parts hold lesion types in like shares."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction

import numpy as np
import pandas as pd

from lesionseg.data.records import CaseRecord
from lesionseg.errors import InputError
from lesionseg.labels import NAMES

NO_LESION = "none"
#: The share of the inner validation is met to one part in this many, as far as there are patients.
_FINEST_PARTS = 20
#: Of more numbers numpy is faster than plain Python.
_MANY = 60


@dataclass(frozen=True)
class Split:
    """Case ids of the three parts, each in order; no patient lies in two of them."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def to_json(self) -> str:
        """The text of `split.json`."""
        return json.dumps({part: list(cases) for part, cases in asdict(self).items()}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Split:
        """The inverse of `to_json`; `ValueError`, `TypeError` or `AttributeError` for anything else."""
        return cls(**{part: tuple(cases) for part, cases in json.loads(text).items()})


def split(
    records: Sequence[CaseRecord], *, folds: int, fold: int, inner_validation: float = 0.2, seed: int = 0
) -> Split:
    """One fold: test part, inner validation and training part. The order of the records does not matter.

    Args:
        records: all cases of a store.
        folds: number of folds; their test parts are disjoint and cover all cases. 1: no test part, all cases train.
        fold: which of them, from 0.
        inner_validation: share of the training cases that is set aside to steer training, at least one patient;
            0: none.
        seed: of the draw.

    Raises:
        InputError: fewer patients than folds, or too few training patients to set one aside.
    """
    records = sorted(records, key=lambda record: record.case_id)
    patients = len({record.patient_id for record in records})
    if not 1 <= folds <= patients:
        expected = f"1 to {patients} folds for {patients} patients"
        remedy = "set data.folds (make: FOLDS=, and PRETRAIN_OPTIONS='--data.folds N' of a pretraining)"
        raise InputError("folds", expected=expected, got=str(folds), remedy=remedy)
    if not 0 <= fold < folds:
        raise InputError("fold", expected=f"0 to {folds - 1}", got=str(fold), remedy="folds are counted from 0")
    parts = _parts(records, folds, seed) if folds > 1 else [[], records]
    rest = [record for i, part in enumerate(parts) if i != fold for record in part]
    train, validation = _set_aside(rest, inner_validation, seed)
    return Split(_ids(train), _ids(validation), _ids(parts[fold]))


def strata(records: Sequence[CaseRecord]) -> list[str]:
    """What each case counts as when parts are balanced: the lesion type it holds that fewest patients have.

    So the scarce types are spread first. Without lesion: `none`. A tie goes to the lower label id.
    """
    owners = {(record.patient_id, name) for record in records for name in record.lesion_types}
    patients = Counter(name for _, name in owners)
    order = {name: i for i, name in NAMES.items()}
    return [
        min(record.lesion_types, key=lambda name: (patients[name], order[name]), default=NO_LESION)
        for record in records
    ]


def imbalance(records: Sequence[CaseRecord], parts: Split) -> pd.DataFrame:
    """How the parts differ: rows train, validation, test; columns patients, cases, and lesions of each type present."""
    by_id = {record.case_id: record for record in records}
    types = [name for name in NAMES.values() if any(name in record.lesion_types for record in records)]
    rows = {}
    for name in ("train", "validation", "test"):
        part = [by_id[case_id] for case_id in getattr(parts, name)]
        lesions = Counter(lesion.type for record in part for lesion in record.lesions)
        patients = len({record.patient_id for record in part})
        rows[name] = {"patients": patients, "cases": len(part), **{name: lesions[name] for name in types}}
    return pd.DataFrame.from_dict(rows, orient="index")


def _set_aside(records: list[CaseRecord], share: float, seed: int) -> tuple[list[CaseRecord], list[CaseRecord]]:
    """Divide training cases into those learned from and the inner validation (`share`, at least one patient)."""
    if not 0 <= share < 1:
        raise InputError("inner_validation", expected="a share in [0, 1)", got=str(share), remedy="0.2 is usual")
    if share == 0:
        return records, []
    patients = len({record.patient_id for record in records})
    if patients < 2:
        raise InputError(
            "inner_validation",
            expected="at least 2 patients outside the test part",
            got=str(patients),
            remedy="use fewer folds, more patients, or inner_validation 0",
        )
    fraction = Fraction(share).limit_denominator(min(patients, _FINEST_PARTS))
    count = fraction.denominator if 0 < fraction < 1 else patients
    taken = min(max(round(share * count), 1), count - 1)
    parts = _parts(records, count, seed)
    aside = [record for part in parts[:taken] for record in part]
    return [record for part in parts[taken:] for record in part], aside


def _parts(records: list[CaseRecord], count: int, seed: int) -> list[list[CaseRecord]]:
    """Disjoint parts by patient, none empty, balanced by stratum; `count` is at most the number of patients."""
    names, alike = strata(records), [NO_LESION] * len(records)
    if max(Counter(names).values()) < count:  # no stratum could reach every part
        names = alike
    parts = _divided(records, names, count, seed)
    # With few patients a part may get none for the sake of the balance; without strata each goes to the smallest part.
    return parts if all(parts) else _divided(records, alike, count, seed)


def _divided(records: list[CaseRecord], names: list[str], count: int, seed: int) -> list[list[CaseRecord]]:
    """Parts of whole patients, dealt out one by one, those first whose cases are most unevenly spread over the strata.

    The algorithm of `StratifiedGroupKFold` of scikit-learn 1.8 and later, with its draw. Its folds, too, but for eight
    parts or more of a single stratum, which it adds up in another order. Not that class itself: earlier versions make
    other folds, and two computers that compare their runs must have the same.
    """
    kinds, kind = np.unique(names, return_inverse=True)
    patients, patient = np.unique([record.patient_id for record in records], return_inverse=True)
    table = np.zeros((len(patients), len(kinds)), int)
    np.add.at(table, (patient, kind), 1)
    cases = table.tolist()
    drawn = np.random.RandomState(seed).permutation(len(patients)).tolist()
    order = sorted(drawn, key=lambda place: -_spread(cases[place], 1))
    part_of = np.empty(len(patients), int)
    part_of[order] = _dealt([cases[place] for place in order], count)
    parts: list[list[CaseRecord]] = [[] for _ in range(count)]
    for record, part in zip(records, part_of[patient].tolist(), strict=True):
        parts[part].append(record)
    return parts


def _dealt(cases: list[list[int]], count: int) -> list[int]:
    """The part of each patient, in their order: where the strata are spread most evenly with it, of such the smallest.

    Plain numbers, as a call of numpy for a few of them takes ten times as long.

    Args:
        cases: of each patient, how many there are of each stratum.
        count: of parts.
    """
    totals = [sum(column) for column in zip(*cases, strict=True)]
    held, sizes = [[0] * count for _ in totals], [0] * count
    spread = [0.0] * len(totals)  # of each stratum over the parts
    parts = []
    for row in cases:
        own = [(stratum, n) for stratum, n in enumerate(row) if n]
        best, lowest = 0, math.inf
        for part, size in enumerate(sizes):
            tried = spread.copy()
            for stratum, n in own:
                held[stratum][part] += n
                tried[stratum] = _spread(held[stratum], totals[stratum])
                held[stratum][part] -= n
            mean = _sum(tried) / len(tried)
            # the tolerances of `numpy.isclose`
            if mean < lowest or (abs(mean - lowest) <= 1e-8 + 1e-5 * lowest and size < sizes[best]):
                best, lowest, kept = part, mean, tried
        for stratum, n in own:
            held[stratum][best] += n
        sizes[best] += sum(row)
        spread = kept
        parts.append(best)
    return parts


def _spread(counts: list[int], total: int) -> float:
    """Standard deviation of the shares of a total. Ties hang on its last bit, so that the order of sums is fixed."""
    if len(counts) > _MANY:
        shares = np.array(counts) / total
        away = shares - np.cumsum(shares)[-1] / len(shares)
        return math.sqrt(np.cumsum(away * away)[-1] / len(shares))
    plain = [n / total for n in counts]
    mean = _sum(plain) / len(plain)
    differences = [share - mean for share in plain]
    return math.sqrt(_sum([difference * difference for difference in differences]) / len(plain))


def _sum(values: list[float]) -> float:
    """In order: the built-in `sum` rounds in another way from Python 3.12 on, and `numpy.sum` by its own blocks."""
    total = 0.0
    for value in values:
        total += value
    return total


def _ids(records: list[CaseRecord]) -> tuple[str, ...]:
    return tuple(sorted(record.case_id for record in records))
