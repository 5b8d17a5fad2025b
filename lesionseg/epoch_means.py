"""`EpochMeans`: means of what is noted in the steps of an epoch, which can be saved in its midst."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pytorch_lightning as pl
from torch import Tensor

from lesionseg.ranks import over_ranks


class EpochMeans:
    """Means of named scalars, added up where they lie: what `self.log` would do, at a fraction of its cost.

    Args:
        state: of a checkpoint, to go on with; None: nothing noted yet.
    """

    def __init__(self, state: tuple[Mapping[str, int], Mapping[str, Tensor]] | None = None) -> None:
        numbers, sums = state or ({}, {})
        self._numbers, self._sums = Counter(numbers), dict(sums)

    def note(self, name: str, value: Tensor) -> None:
        """Add a value to those of its name."""
        self._sums[name] = self._sums.get(name, 0) + value.detach()
        self._numbers[name] += 1

    def means(self) -> dict[str, Tensor]:
        """Mean of what was noted under each name in this process."""
        return {name: total / self._numbers[name] for name, total in self._sums.items()}

    def state(self, trainer: pl.Trainer) -> tuple[dict[str, int], dict[str, Tensor]]:
        """For a checkpoint: how many and their sums, these as means over the processes, all of which call it."""
        return dict(self._numbers), over_ranks(trainer, self._sums)
