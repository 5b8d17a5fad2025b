"""`export`: trained runs → one model folder; the schedule chosen by the comparison or by name, the votes calibrated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lesionseg.calibration import TypedLesion, calibrate, true_types
from lesionseg.data.folds import Split
from lesionseg.data.records import CaseRecord
from lesionseg.data.store import Store
from lesionseg.device import moved, pass_on
from lesionseg.errors import InputError, printable
from lesionseg.grid import SHARED, SHARED_STARTS, read_grid
from lesionseg.inference import lesions_in_liver, predict_lesions
from lesionseg.labels import LIVER, TARGETS, is_liver
from lesionseg.lesions import FIRST_TYPE
from lesionseg.matching import number_lesions
from lesionseg.model import MOST_NETS, Model, Thresholds
from lesionseg.model_net import Net
from lesionseg.paper import in_paper_order
from lesionseg.runs import CONFIG_FILE, RUN_FILE, SPLIT_FILE, RunInfo, finished_run, left_by_fit, liver_run
from lesionseg.statistics import FIGURES, PRIMARY, estimates, patient_sums

#: Said of a model whose schedule the comparison chose.
OPTIMISTIC = "chosen on the test folds: its own figures there are optimistic"
#: Said of the calibration of an ensemble: no lesion is new to all of its nets, so none can judge their mean.
ENSEMBLE = "figures of each net alone; an ensemble votes by their mean, which is less sure than they are"
#: What the nets of an ensemble share: they are folds and seeds of one schedule.
_ALIKE = {"name": "schedule", **SHARED, **SHARED_STARTS}
_TINY = np.finfo(np.float32).tiny


def export(liver: Path, lesions: Sequence[Path], output: Path, *, selected: dict[str, Any] | None = None) -> Model:
    """Make a model folder of a liver run and one or more lesion runs of one schedule; tell what came of it.

    `trained_on` holds the inner validation as well: the temperature has seen it.

    Args:
        liver: run folder of the liver net.
        lesions: run folders of the lesion nets, folds and seeds in any order.
        output: the model folder; one of an earlier model is replaced.
        selected: how the schedule was chosen, from `best_runs`.

    Raises:
        InputError: runs that are not finished, of another target, or no ensemble; one named twice; generated and real
            CT mixed; the output lies in a run or holds something else; the store of a run is gone or another one.
    """
    _refuse_inside_run(output)
    seen = liver_run(liver)
    runs = sorted(((folder, _lesion_run(folder)) for folder in lesions), key=lambda run: (run[1].fold, run[1].seed))
    infos = [info for _, info in runs]
    _refuse_no_ensemble(runs)
    if seen.generated != infos[0].generated:
        kinds = [f"{name} {'generated' if info.generated else 'real'}" for name, info in
                 (("liver", seen), ("lesions", infos[0]))]  # fmt: skip
        raise InputError(liver, expected="both nets trained on real CT, or both on generated CT", got=", ".join(kinds),
                         remedy="name runs of one kind")  # fmt: skip
    nets = tuple(Net.from_run(folder) for folder, _ in runs)
    _refuse_other_nets(runs[0][0], nets)
    model = Model(
        Net.from_run(liver),
        nets,
        selected=selected,
        trained_on=tuple(sorted({voxels for info in (seen, *infos) for voxels in info.trained_on})),
        generated=seen.generated,
        implanted=any(info.implanted for info in infos),
    )
    temperature, calibration = _calibrate(runs, model)
    model = replace(model, temperature=temperature, calibration=calibration)
    if (held := _held(output)) is not None and replace(held, provenance=model.provenance).identity == model.identity:
        print(f"{printable(str(output))} is done already")
        return held
    model.save(output)
    print(printable("\n".join(_said(output, model))))
    return model


def best_runs(root: Path) -> tuple[list[Path], dict[str, Any]]:
    """The runs of the schedule that a comparison finds best, and how it was chosen.

    Args:
        root: folder of the runs of a comparison, see `grid.read_grid`.

    Returns:
        Run folders of every fold and seed; `figure`, `schedule`, `value`, `among` (the value of each schedule; None:
        not defined) and `note`. Equal values: the schedule that comes first in the table.

    Raises:
        InputError: the runs are not comparable, or the figure is defined for none.
    """
    grid = read_grid(root)
    place, among = FIGURES.index(PRIMARY), {}
    for name in in_paper_order(grid.schedules):
        value = float(estimates(patient_sums(*grid.tables(name), grid.patients, grid.seeds))[place])
        among[name] = None if math.isnan(value) else round(value, 6)
    defined = {name: value for name, value in among.items() if value is not None}
    if not defined:
        raise InputError(root, expected=f"runs that {PRIMARY} is defined for", got="no lesion in any test part",
                         remedy="name the runs with --lesion")  # fmt: skip
    best = max(defined, key=lambda name: defined[name])
    selected = {"figure": PRIMARY, "schedule": best, "value": defined[best], "among": among, "note": OPTIMISTIC}
    return [run.folder for run in grid.runs if run.info.name == best], selected


# ---- which runs make a model ----


def _lesion_run(folder: Path) -> RunInfo:
    info = finished_run(folder)
    if info.target == "liver":
        raise InputError(folder, expected="a run of a lesion net", got="target liver",
                         remedy="name one of finetune/, or pretrain/lesion for lesions without types")  # fmt: skip
    return info


def _refuse_no_ensemble(runs: Sequence[tuple[Path, RunInfo]]) -> None:
    """Refuse runs that are not folds and seeds of one schedule, each once."""
    if not 1 <= len(runs) <= MOST_NETS:
        raise InputError("--lesion", expected=f"1 to {MOST_NETS} runs", got=str(len(runs)), remedy="name fewer")
    first, info = runs[0]
    held: dict[str, Path] = {}
    for folder, other in runs:
        for field, meaning in _ALIKE.items():
            ours, theirs = getattr(info, field), getattr(other, field)
            if ours != theirs:
                raise InputError(folder, expected=f"the {meaning} of {first} ({_short(ours)})", got=_short(theirs),
                                 remedy="name folds and seeds of one schedule")  # fmt: skip
        if other.fingerprint in held:
            raise InputError(folder, expected="each run once", got=f"the same as {held[other.fingerprint]}",
                             remedy="name it once")  # fmt: skip
        held[other.fingerprint] = folder


def _refuse_other_nets(folder: Path, nets: Sequence[Net]) -> None:
    """Checkpoints can be exchanged after `run.json` was written."""
    if any(net.description != nets[0].description for net in nets):
        raise InputError(folder, expected="the same net and input in every run", got="checkpoints that differ in them",
                         remedy="train the runs again")  # fmt: skip


def _refuse_inside_run(output: Path) -> None:
    for folder in (output.resolve(), *output.resolve().parents):
        if (folder / RUN_FILE).exists():
            raise InputError(output, expected="a folder of its own", got=f"one inside the run {folder.name}",
                             remedy="name another -o")  # fmt: skip


def _short(value: object) -> str:
    return str(value)[:12]


# ---- calibration ----


def _calibrate(runs: Sequence[tuple[Path, RunInfo]], model: Model) -> tuple[float, dict[str, Any]]:
    """Temperature of the type votes from the inner validation of every run, each predicted by its own net."""
    if len(model.lesion_types) < 2:
        return 1.0, {"reason": "the nets name no types"}
    lesions: list[TypedLesion] = []
    cases, predicted = 0, 0
    store = training_store(*runs[0])  # that of all: they name the same checksum
    for (folder, info), net in zip(runs, model.lesions, strict=True):
        held_out = inner_validation(folder, store)
        typed, n = _held_out_lesions(net, store, held_out, info.fold, model.thresholds)
        lesions, cases, predicted = lesions + typed, cases + len(held_out), predicted + n
    if not cases:
        return 1.0, {"reason": "the runs set no inner validation aside"}
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
        raise InputError(path, expected=f"the store that {run} was trained on ({_short(info.store_sha256)})",
                         got=_short(store.manifest_sha256), remedy="prepare it as it was, or train again")  # fmt: skip
    return store


def inner_validation(run: Path, store: Store) -> list[CaseRecord]:
    """The cases that steered the training of a run, but that no weights learned from."""
    return left_by_fit(run, SPLIT_FILE, lambda text: [store.record(case) for case in Split.from_json(text).validation])


def _held_out_lesions(
    net: Net, store: Store, cases: Sequence[CaseRecord], fold: int, thresholds: Thresholds
) -> tuple[list[TypedLesion], int]:
    """Lesions that the cascade would name with this net and the reference liver: those with a true type, and all.

    A predicted lesion that touches no reference lesion has no true type.
    """
    how, target = pass_on(), TARGETS[net.description["target"]]
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


# ---- what is said ----


def _held(folder: Path) -> Model | None:
    """The model that a folder holds; None: none that can be read."""
    try:
        return Model.load(folder)
    except InputError:
        return None


def _counted(n: int, name: str) -> str:
    return f"{n} {name}" if n == 1 else f"{n} {name}s"


def _said(output: Path, model: Model) -> list[str]:
    provenance = [net.provenance for net in model.lesions]
    folds, seeds = (", ".join(map(str, sorted({p[key] for p in provenance}))) for key in ("fold", "seed"))
    nets = f"{_counted(len(model.lesions), 'lesion net')}"
    where = f"{provenance[0]['name']}, fold {folds} of {provenance[0]['folds']}, seed {seeds}"
    lines = [f"{output}: liver net and {nets} ({where})"]
    if model.selected is not None:
        lines.append(f"selected by {model.selected['figure']} {model.selected['value']:.3f} among "
                     f"{_counted(len(model.selected['among']), 'schedule')}; {model.selected['note']}")  # fmt: skip
    held = model.calibration or {}
    if "reason" in held:
        return [*lines, f"type votes not calibrated: {held['reason']}"]
    before, after, how = held["before"], held["after"], "each net alone, cross-fitted"
    no_better = "" if held["improved"] else ": no better"
    return [
        *lines,
        f"type votes: temperature {model.temperature:.2f} from {held['votes']} votes on {held['lesions']} lesions "
        f"of {held['patients']} patients; calibration error {before['ece']:.3f} → {after['ece']:.3f}, "
        f"negative log-likelihood {before['nll']:.3f} → {after['nll']:.3f} ({how}){no_better}",
    ]
