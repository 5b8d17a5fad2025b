"""What a step costs under each freeze state, against the count of what it must compute and keep.

Usage: freeze_states.py [--nets phantom paper] [--rounds N] [--output JSON]

States: blocks frozen from the input on, one more each time, to the whole encoder; and from the deep end. Time is that
of forward, backward and AdamW.

The count of operations has three kinds, as they have different rates on any machine: multiplications of convolutions
forward, those of their gradients (of input and of weights, as far as autograd needs them), and bytes read and written
by everything else (norms, activations, sums, optimizer). The rate of each kind is measured once, on the net with
nothing frozen, op by op; from there on the time of a state follows from its count alone, as a share of the time
of the unfrozen step in the same round. The plain count, all multiplications alike, is printed beside it.

The count of memory follows each result of an operation from there to the last operation that reads it, by its size
alone: what the backward needs, gradients, and what is passed on. Its highest sum stands against the peak of all that
the allocator gave out in the step: there is also the scratch space of the operations, and whatever is held longer than
it is used. torch, for one, keeps the inputs of frozen convolutions above a block that learns.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # torch's profiler is talkative; read when torch loads

import torch
from rounds import Row, publish, rounds, seconds
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from lesionseg.block_names import OUTSIDE_ENCODER
from lesionseg.inputs import InputSpec
from lesionseg.networks import blocks
from lesionseg.tasks import LesionTask

#: Encoder, decoder channels, side of the image, slices: the profile `phantom`, and a slice at the size of the paper.
NETS = {
    "phantom": ("tu-test_resnet", (64, 32, 24, 16, 16), 96, 8),
    "paper": ("se_resnet50", (256, 128, 64, 32, 16), 320, 1),
}
FORWARD, GRADIENTS, BYTES = "convolutions", "gradients of convolutions", "bytes of the rest"
KINDS = {torch.ops.aten.convolution: FORWARD, torch.ops.aten.convolution_backward: GRADIENTS}


class Step:
    """A step of a net on one batch, with some of its blocks frozen."""

    def __init__(
        self, encoder: str, channels: tuple[int, ...], side: int, slices: int,
        *, channels_last: bool = True, device: str = "cpu",
    ) -> None:  # fmt: skip
        torch.manual_seed(0)
        spec = InputSpec(side, "liver")
        task = LesionTask(encoder, spec, "typed", decoder_channels=channels, channels_last=channels_last).to(device)
        self.net, self.loss, self.blocks = task.net, task.loss, blocks(task.net)
        self.optimizer = task.configure_optimizers()
        self.images = torch.randn(slices, 3, side, side, device=device)
        self.targets = torch.randint(0, 5, (slices, 1, side, side), device=device)
        self.context: AbstractContextManager[object] = nullcontext()

    def freeze(self, frozen: Iterable[str]) -> None:
        """Set which blocks learn, as `StagedFreezing` does."""
        for name, block in self.blocks.items():
            for module in block.modules:
                module.training = name not in frozen
            for _, parameter in block.parameters:
                parameter.requires_grad_(name not in frozen)

    def forward(self) -> Tensor:
        with self.context:
            return self.loss(self.net(self.images), self.targets)

    def __call__(self) -> None:
        self.forward().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def states(self) -> dict[str, tuple[str, ...]]:
        """What is frozen, by name: nothing, the encoder from the input on, and from its deep end."""
        encoder = [name for name in self.blocks if name not in OUTSIDE_ENCODER]
        prefixes = list(accumulate((name,) for name in encoder))
        suffixes = list(accumulate((name,) for name in reversed(encoder[1:])))
        return {"nothing": ()} | {" + ".join(names): names for names in (*prefixes, *suffixes)}


class Meter(TorchDispatchMode):
    """Counts what each kind of operation computes, and the seconds it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.counts, self.seconds = Counter[str](), Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        begin = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        took = time.perf_counter() - begin
        if not func.is_view:
            kind = KINDS.get(func.overloadpacket, BYTES)
            count = flop_registry[func.overloadpacket] if kind != BYTES else _bytes
            self.counts[kind] += count(*args, **(kwargs or {}), out_val=out)
            self.seconds[kind] += took
        return out


@dataclass
class Life:
    """A result: its bytes, and the operations that make it and use it last, by their place in the step."""

    size: int
    made: int
    last: int


class Tape(TorchDispatchMode):
    """Follows every storage that a step makes from there to the last operation that reads it.

    How long autograd or Python hold on to it makes no difference. A view reads nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._length = 0
        # The reference keeps the address of a storage that is gone from going to another one.
        self._lives: dict[StorageWeakRef, Life] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = _storages((args, kwargs))
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            for storage in _storages((_read(func, args), kwargs)).keys() & self._lives.keys():
                self._lives[storage].last = self._length
            for storage, size in _storages(out).items():
                if storage not in given:
                    self._lives[storage] = Life(size, self._length, self._length)
            self._length += 1
        return out

    def peak(self) -> int:
        """The most bytes at a time, each from the operation that makes it to the one that reads it last."""
        changes = [0] * (self._length + 1)
        for life in self._lives.values():
            changes[life.made] += life.size
            changes[life.last + 1] -= life.size
        return max(accumulate(changes))


def _read(func: Any, args: Any) -> Any:
    """The arguments, without an input that is given for its shape alone, as the weight needs no gradient."""
    if func is torch.ops.aten.convolution_backward.default:
        *_, (_, weight, _) = args
        unread = not weight
    elif func is torch.ops.aten.native_batch_norm_backward.default:
        *_, training, _, (_, weight, _) = args
        unread = not training and not weight
    else:
        unread = False
    return (args[0], *args[2:]) if unread else args


def _storages(values: Any) -> dict[StorageWeakRef, int]:
    """The bytes of each storage; views share one."""
    storages = [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    return {StorageWeakRef(storage): storage.nbytes() for storage in storages}


def _bytes(*args: Any, out_val: Any, **kwargs: Any) -> int:
    """Read and written by an operation, each tensor once."""
    held = {id(leaf): leaf for leaf in tree_leaves((args, kwargs, out_val)) if isinstance(leaf, Tensor)}
    return sum(tensor.nbytes for tensor in held.values())


def metered(step: Step) -> Meter:
    """A step, counted."""
    with Meter() as meter:
        step()
    return meter


def needed_bytes(step: Step) -> int:
    """The most that the results of a step's operations take at a time, each to the last operation that reads it."""
    with Tape() as tape:
        step()
    return tape.peak()


def peak_bytes(step: Step) -> int:
    """The most that the allocator has given out in a step, beyond what was held before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    changes = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in changes))


def measure(name: str, repeats: int) -> list[Row]:
    """Rows of time and memory for every state of a net."""
    step = Step(*NETS[name])
    states = step.states()
    meters, needed, peaks = {}, {}, {}
    for state, frozen in states.items():
        step.freeze(frozen)
        step()
        meters[state], needed[state] = metered(step), needed_bytes(step)
        peaks[state] = [peak_bytes(step) for _ in range(2)]
    found = rounds({state: partial(_timed, step, frozen) for state, frozen in states.items()}, repeats)
    whole = meters["nothing"]
    rates = {kind: whole.seconds[kind] / count for kind, count in whole.counts.items()}
    rows = []
    for state in states:
        counts = meters[state].counts
        share = sum(rates[kind] * count for kind, count in counts.items()) / sum(whole.seconds.values())
        plain = sum(counts[k] for k in KINDS.values()) / sum(whole.counts[k] for k in KINDS.values())
        print(f"{name}, frozen: {state}: {share:.3f} of the unfrozen step by the count with rates, {plain:.3f} plain")
        if state != "nothing":
            counted = [share * seconds for seconds in found["nothing"]]
            what = f"step, {name} net, frozen: {state}"
            rows.append(Row(what, "s", found[state], "count", "model", counted, least=0.9, most=1.1))
        memory = [peak / 2**20 for peak in peaks[state]]
        what = f"peak memory of a step, {name} net, frozen: {state}"
        rows.append(Row(what, "MiB", memory, "count", "model", [needed[state] / 2**20], least=0.9, most=1.1))
    return rows


def _timed(step: Step, frozen: Iterable[str]) -> float:
    step.freeze(frozen)
    return seconds(step)()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark/freeze_states.json"))
    options = parser.parse_args()
    publish([row for name in options.nets for row in measure(name, options.rounds)], options.output)


if __name__ == "__main__":
    main()
