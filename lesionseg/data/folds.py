"""Folds by patient: every patient lies in one part only, and the parts hold lesion types in like shares."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from lesionseg.data.records import CaseRecord
from lesionseg.errors import InputError
from lesionseg.labels import NAMES

NO_LESION = "none"
#: The share of the inner validation is met to one part in this many, as far as there are patients.
_FINEST_PARTS = 20


@dataclass(frozen=True)
class Split:
    """Case ids of the three parts, each in order; no patient lies in two of them."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


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
        expected, remedy = f"1 to {patients} folds for {patients} patients", "choose another number of folds"
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
    if max(Counter(names).values()) < count:  # scikit-learn refuses: no stratum could reach every part
        names = alike
    parts = _divided(records, names, count, seed)
    # With few patients a part may get none for the sake of the balance; without strata each goes to the smallest part.
    return parts if all(parts) else _divided(records, alike, count, seed)


def _divided(records: list[CaseRecord], names: list[str], count: int, seed: int) -> list[list[CaseRecord]]:
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # Scarce types are reported by `imbalance`, in words of this package.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        divided = splitter.split(np.zeros(len(records)), names, [record.patient_id for record in records])
        return [[records[i] for i in test] for _, test in divided]


def _ids(records: list[CaseRecord]) -> tuple[str, ...]:
    return tuple(sorted(record.case_id for record in records))
