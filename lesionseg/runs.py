"""What a run folder knows of itself: `run.json`, its fingerprint, its weights."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from torch import Tensor

from lesionseg import __version__
from lesionseg.errors import InputError
from lesionseg.reading import first_sentence, read_torch
from lesionseg.writing import whole

#: What the run is, its resolved settings, and its cases of each part.
RUN_FILE, CONFIG_FILE, SPLIT_FILE = "run.json", "config.yaml", "split.json"
LAST_CHECKPOINT = Path("checkpoints", "last.ckpt")
BEST_CHECKPOINT = LAST_CHECKPOINT.with_name("best.ckpt")
#: The one before, while a run trains: a disk may fail while the last one is written.
PREVIOUS_CHECKPOINT = LAST_CHECKPOINT.with_name("previous.ckpt")
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
        store_sha256: hash of the store's manifest.
        weights_sha256: hash of the checkpoint the net started from; None: none.
        trained_on: voxel hashes of every case this net has seen in training, that of its start included; what is to
            be tested must not be among them.
        generated: trained on, or started from, generated CT.
        target: key of `labels.TARGETS`.
        fold: which fold was the test part.
        folds: number of folds.
        seed: of the run.
        epochs: length of the training.
        encoder: name of the encoder.
        encoder_weights: `imagenet`, `file`, or None.
        commit: of the package's source, with `-dirty` where files differed; None outside a checkout.
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
    ranks: int = 1

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
            return cls(**{**held, "trained_on": tuple(held["trained_on"])})
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
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, RecursionError) as error:
        got = f"{type(error).__name__}: {first_sentence(error)}"
        raise InputError(run / name, expected="as its fit left it", got=got, remedy="train the run again") from None


def read_net(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The net of a finished run: how it is built and fed (plain data), and its tensors by name."""
    finished_run(folder)
    checkpoint = _checkpoint(folder / LAST_CHECKPOINT)
    state = checkpoint["state_dict"]
    tensors = {name.removeprefix("net."): tensor for name, tensor in state.items() if name.startswith("net.")}
    return checkpoint["lesionseg"], tensors


def checkpoint_to_continue(folder: Path) -> Path | None:
    """The last checkpoint of a run, or, where that one cannot be read, the one before; None: there is none.

    Raises:
        InputError: there are some, and none of them can be read.
    """
    faults = []
    for path in (folder / LAST_CHECKPOINT, folder / PREVIOUS_CHECKPOINT):
        if path.exists():
            try:
                _checkpoint(path)
            except InputError as error:
                faults.append(error)
            else:
                return path
    if not faults:
        return None
    remedy = "remove the run folder to train it anew"
    raise InputError(faults[0].where, expected=faults[0].expected, got=faults[0].got, remedy=remedy)


def _checkpoint(path: Path) -> dict[str, Any]:
    """What a training of this package has saved; `InputError` for anything else."""
    expected, remedy = "the last checkpoint of a training", "train the run again"
    held = read_torch(path, expected=expected, remedy=remedy)
    if not isinstance(held, dict) or not {"state_dict", "lesionseg"} <= set(held):
        raise InputError(path, expected=expected, got="another file of torch", remedy=remedy)
    return held


def weights_sha256(folder: Path) -> str:
    """Hash of the tensors of a run's net, independent of how the checkpoint file was written."""
    return tensors_sha256(read_net(folder)[1])


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hash of named tensors on the CPU."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())  # numpy knows no bfloat16
    return digest.hexdigest()


def sha256_of(value: Mapping[str, Any]) -> str:
    """Hash of plain data, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def provenance() -> dict[str, str | None]:
    """Commit, version and kind of machine; nothing that names the machine or its user."""
    return {"commit": _commit(), "version": __version__, "machine": _machine()}


def _commit() -> str | None:
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")


def _machine() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"CPU only, {os.cpu_count()} cores ({platform.machine()})"
