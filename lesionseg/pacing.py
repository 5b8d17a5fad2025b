"""What moves a schedule within its shares: `Clock`, rates by a block's age, and `Plateau`, steps that come early.

Plain data in, plain data out, as in `lesionseg.schedules`. In YAML, beside `trains`:

    clock: {warm_up: 0.1, end: 0.0}          # each block warms up when it thaws, then decays
    plateau: {patience: 2, min_delta: 0.0}   # the shares in `trains` are then the latest times
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby, pairwise

from lesionseg.errors import InputError
from lesionseg.schedules import ResolvedSchedule, Step


@dataclass(frozen=True)
class Clock:
    """A factor on the rate of a block that follows its age: linear warm-up, then half a cosine down to `end`.

    A block's clock starts when it thaws and has run out when it freezes or the training ends; one that always trains
    has one clock for the whole training. A change of its rate in between does not start the clock anew.

    Attributes:
        warm_up: share of the block's own time, 0 to below 1, in which its rate rises to the full one.
        end: factor that the decay comes down to, 0…1; 1: no decay.
    """

    warm_up: float = 0.1
    end: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warm_up < 1:
            raise _error("clock.warm_up", "0 to below 1", self.warm_up, "write a share of the block's own time")
        if not 0 <= self.end <= 1:
            raise _error("clock.end", "0 to 1", self.end, "write a factor on the learning rate")

    def factor(self, share: float) -> float:
        """The factor when a share of the block's time, above 0 and below 1, has passed: never 0."""
        if share < self.warm_up:
            return share / self.warm_up
        passed = (share - self.warm_up) / (1 - self.warm_up)
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * passed)) / 2

    def rates(self, schedule: ResolvedSchedule, epoch: int, batch: int, batches: int) -> dict[str, float]:
        """Rate of each block in a step: a function of (epoch, batch), taken at the middle of its last batch.

        Args:
            schedule: says when each block trains, and its rate there.
            epoch: from 0.
            batch: of that epoch, from 0.
            batches: of every epoch.
        """
        now = epoch + (batch + 0.5) / batches
        rates = schedule.state(epoch)
        for name, rate in rates.items():
            if rate:
                start, stop = _stretch(schedule, name, epoch)
                rates[name] = rate * self.factor((now - start) / (stop - start))
        return rates


@dataclass(frozen=True)
class Plateau:
    """Lets the next step of a schedule come early, when the inner validation has stopped getting better.

    Attributes:
        patience: validations without a better figure, 1 or more, after which the next step begins.
        min_delta: by how much a figure must exceed the best one so far to count as better.
    """

    patience: int = 2
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise _error("plateau.patience", "1 or more", self.patience, "write a number of validations")
        if not 0 <= self.min_delta < math.inf:
            raise _error("plateau.min_delta", "0 or more", self.min_delta, "write a difference of the figure")

    def hasten(self, schedule: ResolvedSchedule, figures: Mapping[int, float]) -> ResolvedSchedule:
        """The schedule with the steps moved that the figures seen so far bring forward.

        The steps keep their order, what trains in them, and the end of the training. A step that no plateau brings
        forward begins at its own, latest time. The count starts anew with each step; the best figure stays.

        Args:
            schedule: with the latest times.
            figures: epoch → figure of the inner validation at its end, larger is better; NaN is never better.
        """
        starts = [step.start for step in schedule.steps]
        current, best, waited = 0, -math.inf, 0
        for epoch, figure in sorted(figures.items()):
            while current + 1 < len(starts) and starts[current + 1] <= epoch:
                current, waited = current + 1, 0
            better = figure > best + self.min_delta
            best, waited = (figure, 0) if better else (best, waited + 1)
            if waited >= self.patience and current + 1 < len(starts):
                starts[current + 1] = min(starts[current + 1], epoch + 1)
        spans = zip(pairwise([*starts, schedule.epochs]), schedule.steps, strict=True)
        return ResolvedSchedule(schedule.epochs, tuple(Step(start, stop, step.rates) for (start, stop), step in spans))


def _stretch(schedule: ResolvedSchedule, block: str, epoch: int) -> tuple[int, int]:
    """First epoch of the time around `epoch` in which a block trains without a break, and the one after its last."""
    for _, steps in groupby(schedule.steps, key=lambda step: step.rates[block] > 0):
        held = list(steps)
        if held[0].start <= epoch < held[-1].stop:
            return held[0].start, held[-1].stop
    raise ValueError(f"no such epoch: {epoch}")


def _error(where: str, expected: str, got: float, remedy: str) -> InputError:
    return InputError(f"schedule.{where}", expected=expected, got=str(got), remedy=remedy)
