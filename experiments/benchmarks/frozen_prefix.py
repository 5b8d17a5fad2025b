"""The most that keeping the features of a frozen prefix could save, for whole schedules.

Usage: frozen_prefix.py [--nets phantom paper] [--rounds N] [--output JSON]

While the first blocks of the encoder are frozen, with fixed statistics, what they make of a slice is a function of its
pixels alone. It could be computed once for each view of a slice and read again in every later epoch. That is exact only
if an epoch shows a slice as an earlier one did, so with `data.augmentation: null`: augmentation draws a new view each
time. The forward of the prefix is taken as saved in every step. Its features are read again at no cost, which is the
bound, or from a file in the system's cache, as they would be where they do not fit into memory.

A step, the forward of its prefix and the reading of its features are timed in turn for each state that a schedule goes
through; the figure is the mean over its epochs.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml
from freeze_states import NETS, Step
from rounds import Row, publish, rounds, seconds
from torch import nn

from lesionseg.block_names import OUTSIDE_ENCODER
from lesionseg.schedules import FreezeSchedule

SCHEDULES = Path(__file__).parents[1] / "schedules"
#: Rows of the paper that freeze the encoder from the input on.
NAMES = ("hierarchical_unfreezing", "hierarchical_freezing", "freeze_encoder")
#: Of the profile of the paper.
EPOCHS = 60
#: From here on it would be built.
WORTH = 1.3


def prefixes(schedule: str, block_names: Sequence[str]) -> list[int]:
    """How many blocks, from the input on, are frozen in each epoch."""
    trains = yaml.safe_load((SCHEDULES / f"{schedule}.yaml").read_text())["schedule"]["trains"]
    resolved = FreezeSchedule.parse(trains).resolve(EPOCHS, block_names)
    encoder = [name for name in block_names if name not in OUTSIDE_ENCODER]
    rates = [resolved.state(epoch) for epoch in range(EPOCHS)]
    return [next((i for i, name in enumerate(encoder) if each[name]), len(encoder)) for each in rates]


def prefix_seconds(step: Step, frozen: Sequence[str]) -> float:
    """From the start of the forward to the last output of a module of the prefix."""
    step.freeze(frozen)
    last = begin = time.perf_counter()

    def note(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal last
        last = time.perf_counter()

    modules = [module for name in frozen for module in step.blocks[name].modules if module is not step.net.encoder]
    hooks = [module.register_forward_hook(note) for module in modules]
    begin = time.perf_counter()
    with torch.no_grad():
        step.net.encoder(step.images)
    for hook in hooks:
        hook.remove()
    return last - begin


def written_features(step: Step, folder: Path) -> list[Path]:
    """What the encoder's blocks make of the images, from the input on, each in a file of its own."""
    step.net.eval()
    with torch.no_grad():
        features = step.net.encoder(step.images)[1:]  # the first is the images
    files = [folder / f"{i}.float32" for i in range(len(features))]
    for file, each in zip(files, features, strict=True):
        each.contiguous().numpy().tofile(file)
    return files


def read_seconds(files: Sequence[Path]) -> float:
    return seconds(lambda: [torch.from_numpy(np.fromfile(file, np.float32)) for file in files])()


def step_seconds(step: Step, frozen: Sequence[str]) -> float:
    step.freeze(frozen)
    return seconds(step)()


def measure(name: str, repeats: int) -> list[Row]:
    """A row for each schedule."""
    step = Step(*NETS[name])
    encoder = [block for block in step.blocks if block not in OUTSIDE_ENCODER]
    ways = {f"step {n}": partial(step_seconds, step, encoder[:n]) for n in range(len(encoder) + 1)}
    ways |= {f"prefix {n}": partial(prefix_seconds, step, encoder[:n]) for n in range(1, len(encoder) + 1)}
    with tempfile.TemporaryDirectory() as folder:
        files = written_features(step, Path(folder))
        ways |= {f"read {n}": partial(read_seconds, files[:n]) for n in range(1, len(encoder) + 1)}
        found = rounds(ways, repeats) | dict.fromkeys(("prefix 0", "read 0"), [0.0] * repeats)
    rows = []
    for schedule in NAMES:
        frozen = prefixes(schedule, list(step.blocks))
        whole, saved, read = (
            [sum(found[f"{kind} {n}"][i] for n in frozen) / EPOCHS for i in range(repeats)]
            for kind in ("step", "prefix", "read")
        )
        free = [a - b for a, b in zip(whole, saved, strict=True)]
        paid = [a + b for a, b in zip(free, read, strict=True)]
        what = f"mean step of {schedule}, {name} net"
        rows.append(Row(what, "s", whole, "frozen prefix at no cost", "limit", free, most=WORTH))
        rows.append(Row(what, "s", whole, "frozen prefix from files", "limit", paid, most=WORTH))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark/frozen_prefix.json"))
    options = parser.parse_args()
    publish([row for name in options.nets for row in measure(name, options.rounds)], options.output)


if __name__ == "__main__":
    main()
