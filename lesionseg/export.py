"""`export`: trained runs → one model folder; the schedule chosen by the comparison or by name, the votes calibrated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lesionseg.errors import InputError, printable
from lesionseg.grid import SHARED, SHARED_STARTS, read_grid
from lesionseg.held_out import calibrate_votes
from lesionseg.model import MOST_NETS, Model
from lesionseg.model_net import Net
from lesionseg.paper import in_paper_order
from lesionseg.runs import RUN_FILE, RunInfo, finished_run, liver_run
from lesionseg.statistics import FIGURES, PRIMARY, estimates, patient_sums

#: Said of a model whose schedule the comparison chose.
OPTIMISTIC = "chosen on the test folds: its own figures there are optimistic"
#: What the nets of an ensemble share: they are folds and seeds of one schedule.
_ALIKE = {"name": "schedule", **SHARED, **SHARED_STARTS, "row_sha256": "settings, fold and seed apart,"}


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
    temperature, calibration = calibrate_votes(runs, model)
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
