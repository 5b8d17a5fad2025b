"""Freeze schedules: which blocks of a network train at a given share of the training, and at what rate.

Plain data in, plain data out; nothing here knows a network or a trainer. In YAML:

    trains:
      stem: never
      stage1: [0.5, 1.0]                              # trains in the second half
      stage2: [{start: 0, stop: 0.5}, {start: 0.5, stop: 1, rate: 0.1}]
      encoder: always                                 # every encoder block not named otherwise
      decoder: always
      head: always
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import ROUND_HALF_UP, Decimal
from itertools import pairwise
from typing import Any

from lesionseg.block_names import ENCODER_BLOCKS, OUTSIDE_ENCODER
from lesionseg.errors import InputError

#: Key that stands for all encoder blocks not named otherwise.
ENCODER = "encoder"


@dataclass(frozen=True, order=True)
class Phase:
    """A stretch of the training in which a block trains: shares of it (0…1), and a factor on the learning rate."""

    start: float
    stop: float
    rate: float = 1.0


@dataclass(frozen=True)
class Step:
    """Epochs `start` to `stop` - 1 (from 0), and the rate of each block in them; rate 0 is frozen."""

    start: int
    stop: int
    rates: dict[str, float]


@dataclass(frozen=True)
class ResolvedSchedule:
    """A schedule for a given number of epochs and given blocks; neighbouring steps differ."""

    epochs: int
    steps: tuple[Step, ...]

    def state(self, epoch: int) -> dict[str, float]:
        """Rate of each block in `epoch` (from 0): a function of the epoch and of nothing else.

        Raises:
            ValueError: no such epoch.
        """
        if not 0 <= epoch < self.epochs:
            raise ValueError(f"epoch must lie in 0…{self.epochs - 1}, got {epoch}")
        return dict(self.steps[bisect_right([step.start for step in self.steps], epoch) - 1].rates)

    def table(self) -> str:
        """Steps × blocks as text: ● trains, ○ frozen, and the factor on the learning rate where it is not 1."""
        header = ["epochs", *self.steps[0].rates]
        rows = [[_span(step), *(_mark(rate) for rate in step.rates.values())] for step in self.steps]
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        lines = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in [header, *rows])
        return "\n".join("  ".join(line).rstrip() for line in lines)

    def to_json(self) -> str:
        """All of it as JSON text: `epochs`, and `steps` with `start`, `stop` (not included) and `rates`."""
        return json.dumps(asdict(self), indent=2)


@dataclass(frozen=True)
class FreezeSchedule:
    """When each block or group trains, in shares of the training; phases of a block are in order and apart."""

    trains: dict[str, tuple[Phase, ...]]

    @classmethod
    def parse(cls, trains: Mapping[str, Any]) -> FreezeSchedule:
        """Read plain data: name → `always`, `never`, [start, stop], or a list of {start, stop, rate (default 1)}.

        Raises:
            InputError: anything else, shares outside 0…1, a phase without length, phases that overlap.
        """
        if not isinstance(trains, Mapping) or not trains:
            raise _error("a mapping from block to the phases it trains in", repr(trains), "see experiments/schedules")
        return cls({str(name): _phases(str(name), value) for name, value in trains.items()})

    def resolve(self, epochs: int, block_names: Sequence[str]) -> ResolvedSchedule:
        """Turn shares into epochs: share s of the training ends before epoch s × `epochs`, rounded (halves up).

        Raises:
            InputError: unknown or uncovered blocks, a step shorter than an epoch, a time at which nothing trains.
        """
        phases = self._per_block(block_names)
        shares = _shares(phases)
        _check_epochs(shares, epochs)
        steps: list[Step] = []
        for start, stop in pairwise(shares):
            rates = {name: _rate(each, start) for name, each in phases.items()}
            if not any(rates.values()):
                got = f"all frozen between the shares {start:g} and {stop:g}"
                raise _error("a block that trains at any time", got, f"let one train there: {', '.join(block_names)}")
            first = steps.pop().start if steps and steps[-1].rates == rates else _epoch(start, epochs)
            steps.append(Step(first, _epoch(stop, epochs), rates))
        return ResolvedSchedule(epochs, tuple(steps))

    def check_names(self) -> None:
        """Refuse names that no network has, before there is one.

        Raises:
            InputError: an unknown block, or none for one that every network has.
        """
        encoder = [name for name in ENCODER_BLOCKS if name in self.trains]
        # Which of the first ones there are, the encoder says.
        there = ENCODER_BLOCKS[ENCODER_BLOCKS.index(encoder[0]) if encoder else 0 :]
        self._per_block([*there, *(name for name in OUTSIDE_ENCODER if name != "classifier" or name in self.trains)])

    def check_epochs(self, epochs: int) -> None:
        """Refuse a number of epochs that is too small, before there is a network.

        Raises:
            InputError: two changes fall on one epoch.
        """
        _check_epochs(_shares(self.trains), epochs)

    def _per_block(self, block_names: Sequence[str]) -> dict[str, tuple[Phase, ...]]:
        """Phases of each block, the encoder group spread over its blocks."""
        names = ", ".join(block_names)
        unknown = [name for name in self.trains if name not in (*block_names, ENCODER)]
        if unknown:
            raise _error(
                f"blocks of this network ({names}) or `{ENCODER}`", ", ".join(unknown), "rename or remove them"
            )
        group = {name: self.trains[ENCODER] for name in block_names if ENCODER in self.trains}
        phases = {**{n: p for n, p in group.items() if n not in OUTSIDE_ENCODER}, **self.trains}
        missing = [name for name in block_names if name not in phases]
        if missing:
            raise _error(f"every block of this network ({names})", f"none for {', '.join(missing)}", "add them")
        return {name: phases[name] for name in block_names}


def _phases(name: str, value: Any) -> tuple[Phase, ...]:
    """Phases of one block from its plain data, in order."""
    if value == "always":
        return (Phase(0.0, 1.0),)
    if value == "never":
        return ()
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        pair = len(value) == 2 and all(map(_is_number, value))
        phases = [_phase(name, {"start": value[0], "stop": value[1]})] if pair else [_phase(name, v) for v in value]
        phases.sort()
        for before, after in pairwise(phases):
            if after.start < before.stop:
                got = f"{before.start:g}…{before.stop:g} and {after.start:g}…{after.stop:g}"
                raise _error("phases that do not overlap", got, "let each start where the one before stops", name)
        return tuple(phases)
    raise _error(
        "always, never, [start, stop] or a list of {start, stop, rate}", repr(value), "write one of these", name
    )


def _phase(name: str, value: Any) -> Phase:
    """One phase from {start, stop} or {start, stop, rate}."""
    if not isinstance(value, Mapping) or not {"start", "stop"} <= set(value) <= {"start", "stop", "rate"}:
        raise _error("a phase {start, stop, rate}", repr(value), "write shares of the training, 0 to 1", name)
    if not all(map(_is_number, value.values())):
        raise _error("numbers in a phase", repr(dict(value)), "write shares of the training, 0 to 1", name)
    phase = Phase(**{key: float(number) for key, number in value.items()})
    if not 0 <= phase.start < phase.stop <= 1:
        raise _error("0 ≤ start < stop ≤ 1", f"{phase.start:g}…{phase.stop:g}", "write shares of the training", name)
    if phase.rate <= 0:
        raise _error(
            "a rate above 0", f"{phase.rate:g}", "leave the phase out: a block trains only in its phases", name
        )
    return phase


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shares(phases: Mapping[str, Sequence[Phase]]) -> list[float]:
    """Where the training begins, changes and ends."""
    return sorted({0.0, 1.0, *(share for each in phases.values() for p in each for share in (p.start, p.stop))})


def _rate(phases: Sequence[Phase], share: float) -> float:
    """Rate just after `share`; 0 outside all phases."""
    return next((phase.rate for phase in phases if phase.start <= share < phase.stop), 0.0)


def _epoch(share: float, epochs: int) -> int:
    """The epoch before which a share of the training ends: halves up, and exact for the share as it was written."""
    return int((Decimal(repr(share)) * epochs).to_integral_value(ROUND_HALF_UP))


def _check_epochs(shares: Sequence[float], epochs: int) -> None:
    """Refuse a number of epochs in which two changes of the schedule fall on one epoch."""
    if epochs < 1:
        raise _error("a number of epochs", str(epochs), "set max_epochs")
    same = next(((a, b) for a, b in pairwise(shares) if _epoch(a, epochs) == _epoch(b, epochs)), None)
    if same:
        got = f"{epochs} epochs, in which the shares {same[0]:g} and {same[1]:g} fall on the same one"
        raise _error("steps of at least one epoch", got, _enough_epochs(shares, epochs))


def _enough_epochs(shares: Sequence[float], epochs: int) -> str:
    """How long to train, from `epochs` on, so that no two shares fall on the same epoch."""
    shortest = min(b - a for a, b in pairwise(shares))
    if shortest < 0.001:
        return "write shares that lie less than a thousandth apart alike"
    # Once the shortest step is an epoch long, all are: from there on, every number works.
    enough = math.ceil(1 / shortest) + 1
    fits = [n for n in range(epochs, enough + 1) if len({_epoch(share, n) for share in shares}) == len(shares)]
    always = next(n for place, n in enumerate(fits) if enough - n == len(fits) - 1 - place)
    some = "" if fits[0] == always else f"{fits[0]} or "
    return f"train for {some}at least {always} epochs"


def _span(step: Step) -> str:
    return f"{step.start}–{step.stop - 1}" if step.stop - step.start > 1 else str(step.start)


def _mark(rate: float) -> str:
    return "○" if rate == 0 else "●" if rate == 1 else f"● ×{rate:g}"


def _error(expected: str, got: str, remedy: str, block: str = "") -> InputError:
    return InputError(f"schedule: {block}" if block else "schedule", expected=expected, got=got, remedy=remedy)
