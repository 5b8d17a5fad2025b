"""The checkpoints of a run folder, and the weights in them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lesionseg.errors import InputError
from lesionseg.reading import read_torch
from lesionseg.runs import TRAIN_ANEW, finished_run

LAST_CHECKPOINT = Path("checkpoints", "last.ckpt")
BEST_CHECKPOINT = LAST_CHECKPOINT.with_name("best.ckpt")
#: The one before, while a run trains: a disk may fail while the last one is written.
PREVIOUS_CHECKPOINT = LAST_CHECKPOINT.with_name("previous.ckpt")
#: What a checkpoint calls the fingerprint of its run.
FINGERPRINT = "fingerprint"


def read_net(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The net of a finished run: how it is built and fed (plain data), and its tensors by name."""
    checkpoint = _checkpoint(folder / LAST_CHECKPOINT, finished_run(folder).fingerprint)
    state = checkpoint["state_dict"]
    tensors = {name.removeprefix("net."): tensor for name, tensor in state.items() if name.startswith("net.")}
    return checkpoint["lesionseg"], tensors


def checkpoint_to_continue(folder: Path, fingerprint: str) -> Path | None:
    """The last checkpoint of a run, or, where that one cannot be read, the one before; None: there is none.

    Args:
        folder: of the run.
        fingerprint: of the run.

    Raises:
        InputError: there are some, and none of them is a checkpoint of this run that can be read.
    """
    faults = []
    for path in (folder / LAST_CHECKPOINT, folder / PREVIOUS_CHECKPOINT):
        if path.exists():
            try:
                _checkpoint(path, fingerprint)
            except InputError as error:
                faults.append(error)
            else:
                return path
    if not faults:
        return None
    raise faults[0]


def _checkpoint(path: Path, fingerprint: str) -> dict[str, Any]:
    """What the training of a run has saved; `InputError` for anything else."""
    expected = "the last checkpoint of this run"
    held = read_torch(path, expected=expected, remedy=TRAIN_ANEW)
    if not isinstance(held, dict) or not {"state_dict", "lesionseg", FINGERPRINT} <= set(held):
        raise InputError(path, expected=expected, got="another file of torch", remedy=TRAIN_ANEW)
    if held[FINGERPRINT] != fingerprint:
        raise InputError(path, expected=expected, got="that of another run", remedy=TRAIN_ANEW)
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
