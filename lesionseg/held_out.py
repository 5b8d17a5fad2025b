"""Lesions of the inner validation of runs, each predicted by its own net → the temperature of the type votes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lesionseg.calibration import TypedLesion, calibrate, true_types
from lesionseg.data.folds import Split
from lesionseg.data.records import CaseRecord
from lesionseg.data.store import Store
from lesionseg.device import inference_on, moved
from lesionseg.errors import InputError
from lesionseg.inference import lesions_in_liver, predict_lesions
from lesionseg.labels import LIVER, TARGETS, is_liver
from lesionseg.lesions import FIRST_TYPE
from lesionseg.matching import number_lesions
from lesionseg.model import Model, Thresholds
from lesionseg.model_net import Net
from lesionseg.runs import CONFIG_FILE, SPLIT_FILE, RunInfo, left_by_fit

#: Said of the calibration of an ensemble: no lesion is new to all of its nets, so none can judge their mean.
ENSEMBLE = "figures of each net alone; an ensemble votes by their mean, which is less sure than they are"
_TINY = np.finfo(np.float32).tiny


def calibrate_votes(runs: Sequence[tuple[Path, RunInfo]], model: Model) -> tuple[float, dict[str, Any]]:
    """Temperature of the type votes from the inner validation of every run, each predicted by its own net.

    Cases that the start of a run has learned from are passed over: votes on them are surer than on new ones.
    """
    if len(model.lesion_types) < 2:
        return 1.0, {"reason": "the nets name no types"}
    lesions: list[TypedLesion] = []
    cases, predicted = 0, 0
    store = training_store(*runs[0])  # that of all: they name the same checksum
    for (folder, info), net in zip(runs, model.lesions, strict=True):
        held_out = [case for case in inner_validation(folder, store) if case.case_id not in info.known_before]
        typed, n = _held_out_lesions(net, store, held_out, info.fold, model.thresholds)
        lesions, cases, predicted = lesions + typed, cases + len(held_out), predicted + n
    if not cases:
        return 1.0, {"reason": "the runs set no inner validation aside that their nets have not learned from"}
    temperature, record = calibrate(lesions, model.lesion_types)
    if "reason" not in record:
        record["without_true_type"] = predicted - len(lesions)
        if len(runs) > 1:
            record["note"] = ENSEMBLE
    return temperature, record


def training_store(run: Path, info: RunInfo) -> Store:
    """The store of a run, as it was when the run was trained."""
    path = left_by_fit(run, CONFIG_FILE, lambda text: Path(yaml.safe_load(text)["data"]["store"]))
    if not path.is_dir():
        raise InputError(path, expected=f"the store that {run} was trained on, for its calibration", got="no folder",
                         remedy="call from the folder that the training was called from, or prepare it again",
                         )  # fmt: skip
    store = Store.open(path)
    if store.manifest_sha256 != info.store_sha256:
        raise InputError(path, expected=f"the store that {run} was trained on ({info.store_sha256[:12]})",
                         got=store.manifest_sha256[:12], remedy="prepare it as it was, or train again")  # fmt: skip
    return store


def inner_validation(run: Path, store: Store) -> list[CaseRecord]:
    """The cases that steered the training of a run and that it did not learn from; its start may have."""
    return left_by_fit(run, SPLIT_FILE, lambda text: [store.record(case) for case in Split.from_json(text).validation])


def _held_out_lesions(
    net: Net, store: Store, cases: Sequence[CaseRecord], fold: int, thresholds: Thresholds
) -> tuple[list[TypedLesion], int]:
    """Lesions that the cascade would name with this net and the reference liver: those with a true type, and all.

    A predicted lesion that touches no reference lesion has no true type.
    """
    how, target = inference_on(), TARGETS[net.description["target"]]
    built = moved(net.build(), how.device)
    typed: list[TypedLesion] = []
    predicted = 0
    for record in cases:
        if record.liver_box is None:
            continue
        scan, labels = store.scan(record.case_id), np.asarray(store.labels(record.case_id))
        found = predict_lesions(
            [built], net.spec, scan.hu, record.liver_slices, record.liver_box, naming=net.naming, how=how
        )
        ids = lesions_in_liver(found.classes > LIVER, is_liver(labels), thresholds.least_voxels(scan))
        predicted += int(ids.max())
        owner, scores = ids.reshape(-1)[found.places], np.log(np.maximum(found.types, _TINY))
        reference = target.apply(labels)
        covered = true_types(ids, number_lesions(reference >= FIRST_TYPE), 1)  # the same vote, over lesions
        for lesion, kind in true_types(ids, reference, FIRST_TYPE).items():
            name = f"{record.case_id}/{covered[lesion]}"
            typed.append(TypedLesion(scores[owner == lesion], kind, record.patient_id, fold, name))
    return typed, predicted
