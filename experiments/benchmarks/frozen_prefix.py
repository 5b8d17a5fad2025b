"""The most that keeping the features of a frozen prefix could save, for whole schedules.

Usage: frozen_prefix.py [--nets phantom paper] [--rounds N] [--output JSON]

While the first blocks of the encoder are frozen, with fixed statistics, what they make of a slice is a function of its
pixels alone. It could be computed once for each view of a slice and read again in every later epoch. That is exact only
if an epoch shows a slice as an earlier one did, so with `data.augmentation: null`: augmentation draws a new view each
time. The bound here takes the forward of the prefix as saved in every step, and its features as read at no cost.

A step and the forward of its prefix are timed in turn for each state that a schedule goes through; the figure is the
mean over its epochs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
import yaml
from freeze_states import NETS, Step
from rounds import Row, publish, rounds, seconds
from torch import nn

from lesionseg.schedules import OUTSIDE_ENCODER, FreezeSchedule

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


def step_seconds(step: Step, frozen: Sequence[str]) -> float:
    step.freeze(frozen)
    return seconds(step)()


def measure(name: str, repeats: int) -> list[Row]:
    """A row for each schedule."""
    step = Step(*NETS[name])
    encoder = [block for block in step.blocks if block not in OUTSIDE_ENCODER]
    ways = {f"step {n}": partial(step_seconds, step, encoder[:n]) for n in range(len(encoder) + 1)}
    ways |= {f"prefix {n}": partial(prefix_seconds, step, encoder[:n]) for n in range(1, len(encoder) + 1)}
    found = rounds(ways, repeats) | {"prefix 0": [0.0] * repeats}
    rows = []
    for schedule in NAMES:
        frozen = prefixes(schedule, list(step.blocks))
        whole = [sum(found[f"step {n}"][i] for n in frozen) / EPOCHS for i in range(repeats)]
        saved = [sum(found[f"prefix {n}"][i] for n in frozen) / EPOCHS for i in range(repeats)]
        left = [a - b for a, b in zip(whole, saved, strict=True)]
        what = f"mean step of {schedule}, {name} net"
        rows.append(Row(what, "s", whole, "frozen prefix at no cost", "limit", left, most=WORTH))
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
