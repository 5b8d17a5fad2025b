"""`SliceTable`: which slices of a store a part of the data holds, nine bytes each, so that millions fit anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple, overload

import numpy as np

from lesionseg.data.records import CaseRecord


class SliceRef(NamedTuple):
    """One slice of a store: the case, the slice number, and whether it holds what the net is to find."""

    case_id: str
    slice: int
    foreground: bool


class SliceTable(Sequence[SliceRef]):
    """Slices in the order of their cases, read as `SliceRef`s.

    Arrays in place of objects, as every process of a run holds the table and its worker processes share its memory.

    Attributes:
        records: of the whole store.
        case: index in `records` of each slice, int32.
        slice: number within its case, int32.
        foreground: whether it holds what the net is to find, bool.
    """

    def __init__(self, records: Sequence[CaseRecord], chosen: Iterable[int], *, all_slices: bool) -> None:
        """Slices of the chosen records: every one, foreground is liver; or those with liver, foreground is lesion."""
        self.records, chosen = records, list(chosen)
        here = [range(records[i].shape[0]) if all_slices else records[i].liver_slices for i in chosen]
        found = (set(records[i].liver_slices if all_slices else records[i].lesion_slices) for i in chosen)
        self.case = np.repeat(np.array(chosen, np.int32), [len(slices) for slices in here])
        self.slice = np.fromiter(chain.from_iterable(here), np.int32)
        self.foreground = np.array(
            [i in sought for slices, sought in zip(here, found, strict=True) for i in slices], bool
        )

    def __len__(self) -> int:
        return len(self.case)

    @overload
    def __getitem__(self, position: int) -> SliceRef: ...
    @overload
    def __getitem__(self, position: slice) -> list[SliceRef]: ...
    def __getitem__(self, position: int | slice) -> SliceRef | list[SliceRef]:
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        case_id = self.records[self.case[position]].case_id
        return SliceRef(case_id, int(self.slice[position]), bool(self.foreground[position]))
