"""What a run folder knows of itself: `run.json`, its fingerprint, its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from lesionseg.errors import InputError, first_sentence
from lesionseg.writing import write_text

#: What the run is, its resolved settings, its cases of each part, its schedule as it was trained, what it logged.
RUN_FILE, CONFIG_FILE, SPLIT_FILE = "run.json", "config.yaml", "split.json"
SCHEDULE_FILE, METRICS_FILE = "schedule.json", "metrics.csv"
#: Its tables (`lesionseg.results`): a liver net has the first, a lesion net the others.
CASES_FILE, SLICES_FILE, LESIONS_FILE = "cases.csv", "slices.csv", "lesions.csv"
#: Pictures of a few fixed slices by epoch, and of the worst test lesions (`<lesion_id>.png`); W&B's own files.
OVERLAYS_FOLDER, WORST_FOLDER = "overlays", "worst"
WANDB_FOLDER, WANDB_DATA_FOLDER = "wandb", "wandb-data"
#: What to do about a run that is damaged; where it is called finished, its command alone says that it is done.
TRAIN_ANEW = "remove the run folder, and train it again"
#: Between what made the first part of a run and what made the next.
THEN = ", then "
T = TypeVar("T")


@dataclass(frozen=True)
class RunInfo:
    """Contents of `run.json`.

    Attributes:
        name: what the run is called in tables (the schedule, for a fine-tuning).
        state: `running` until the tables are written, then `finished`.
        fingerprint: hash of resolved config, store manifest and weights; equal fingerprints, equal runs.
        request_sha256: hash of the command line with all it names; see `lesionseg.request`.
        config_sha256: hash of what must be equal between rows of one comparison (all but schedule, fold, seed).
        row_sha256: hash of what must be equal within a row of one comparison (all but fold and seed).
        store_sha256: hash of the store's manifest.
        weights_sha256: hash of the checkpoint the net started from; None: none.
        trained_on: voxel hashes of every case this net has seen in training, that of its start included; what is to
            be tested must not be among them.
        known_before: cases of the inner validation that its start has seen, as far as they can be told.
        generated: trained on, or started from, generated CT.
        target: key of `labels.TARGETS`.
        fold: which fold was the test part.
        folds: number of folds.
        seed: of the run.
        epochs: length of the training.
        encoder: name of the encoder.
        encoder_weights: `imagenet`, `file`, or None.
        commit: of the package's source, with `-dirty` where files differed; None outside a checkout. All of them, in
            their order, where it was another when the run went on or was tested again; `version` and `machine` alike.
        version: of the package.
        machine: kind of machine, without its name.
        implanted: its lesions are implanted in real CT.
        ranks: processes that trained it since it last started (`docs/scaling.md` says what depends on them).
    """

    name: str
    state: str
    fingerprint: str
    request_sha256: str
    config_sha256: str
    row_sha256: str
    store_sha256: str
    weights_sha256: str | None
    trained_on: tuple[str, ...]
    generated: bool
    target: str
    fold: int
    folds: int
    seed: int
    epochs: int
    encoder: str
    encoder_weights: str | None
    commit: str | None
    version: str
    machine: str
    implanted: bool = False
    known_before: tuple[str, ...] = ()
    ranks: int = 1

    def after(self, held: RunInfo) -> RunInfo:
        """The run where it goes on from what `held` has trained, or tests it, perhaps by other code or elsewhere."""
        return replace(
            self,
            commit=_joined(held.commit, self.commit),
            version=str(_joined(held.version, self.version)),
            machine=str(_joined(held.machine, self.machine)),
        )

    def write(self, folder: Path) -> None:
        """Write `run.json`, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / RUN_FILE, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> RunInfo:
        """Read `run.json`; `InputError` where it is missing or not one."""
        path = folder / RUN_FILE
        try:
            held = json.loads(path.read_text())
            return cls(**held | {name: tuple(held[name]) for name in ("trained_on", "known_before")})
        except FileNotFoundError:
            got = "no run.json" if folder.is_dir() else "no such folder"
        except (ValueError, TypeError, KeyError, RecursionError) as error:  # no UTF-8 is a ValueError
            got = f"a run.json that cannot be read ({error})"
        raise InputError(folder, expected="a run folder", got=got, remedy="name a folder made by `lesionseg fit`")


def finished_run(folder: Path) -> RunInfo:
    """The `run.json` of a run that has ended; `InputError` for one that has not."""
    run = RunInfo.read(folder)
    if run.state != "finished":
        raise InputError(folder, expected="a finished run", got="one that is not", remedy="let it finish: fit again")
    return run


def liver_run(folder: Path) -> RunInfo:
    """The `run.json` of a finished run of the liver net; `InputError` for any other."""
    run = finished_run(folder)
    if run.target != "liver":
        raise InputError(folder, expected="a run of the liver net", got=f"target {run.target}",
                         remedy="name the run that `make pretrain` left in pretrain/liver")  # fmt: skip
    return run


def left_by_fit(run: Path, name: str, read: Callable[[str], T]) -> T:
    """What a file of a run folder says; `InputError` where `read` can make nothing of its text."""
    try:
        return read((run / name).read_text())
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError, RecursionError) as error:
        got = f"{type(error).__name__}: {first_sentence(error)}"
        raise InputError(run / name, expected="as its fit left it", got=got, remedy=TRAIN_ANEW) from None


def _joined(before: str | None, now: str | None) -> str | None:
    if before == now:
        return now
    parts, last = (before or "unknown").split(THEN), now or "unknown"
    return THEN.join(parts if parts[-1] == last else [*parts, last])


def sha256_of(value: Mapping[str, Any]) -> str:
    """Hash of plain data, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
