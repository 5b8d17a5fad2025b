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
from lesionseg.runs import finished_run

LAST_CHECKPOINT = Path("checkpoints", "last.ckpt")
BEST_CHECKPOINT = LAST_CHECKPOINT.with_name("best.ckpt")
#: The one before, while a run trains: a disk may fail while the last one is written.
PREVIOUS_CHECKPOINT = LAST_CHECKPOINT.with_name("previous.ckpt")


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
