"""Metrics of a test run, thin over `lesions.py`: exact on any number of processes, however the sampler pads.

Both keep whole numbers only (pixel counts in int64 rows), so neither a precision setting nor the order of the processes
can change a figure; a slice that a distributed sampler hands out twice counts once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lesionseg.labels import is_liver
from lesionseg.lesions import (
    FALSE_POSITIVE,
    FIRST_TYPE,
    REFERENCE,
    Counts,
    FalsePositive,
    LesionMatch,
    SliceFigures,
    compare_slice,
)

#: Kinds of lesions as the rows of the lesion table hold them.
_KIND_REFERENCE, _KIND_FALSE_POSITIVE = 0, 1
#: Columns of the slice table before the counts: key, reference lesions, false positives.
_SLICE_HEAD = 3
#: Columns of the lesion table: key, kind, type, area_px, overlap_px, found, predicted type (0: none).
_LESION_COLUMNS = 7

ClassMap = Tensor | np.ndarray
Row = dict[str, int | str | float]


class _RowMetric(Metric):
    """Keeps tables of int64 rows, gathered from all processes before `compute`."""

    full_state_update = False
    higher_is_better = True
    is_differentiable = False

    def __init__(self, tables: dict[str, int]) -> None:
        """Keep the named tables, each with its number of columns."""
        super().__init__()
        self._columns = tables
        for name in tables:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def sync(
        self,
        dist_sync_fn: Callable | None = None,
        process_group: Any | None = None,
        should_sync: bool = True,
        distributed_available: Callable | None = None,
    ) -> None:
        """Gather the rows of all processes; one that saw no slice joins in with an int64 table of no rows."""
        for name in self._columns:
            if not len(getattr(self, name)):
                setattr(self, name, [self._rows(name, [])])
        super().sync(dist_sync_fn, process_group, should_sync, distributed_available)

    def set_dtype(self, dst_type: str | torch.dtype) -> Metric:
        """Nothing to convert: counts stay int64."""
        return self

    def _rows(self, name: str, rows: Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(rows, dtype=torch.int64, device=self.device).reshape(-1, self._columns[name])

    def _append(self, name: str, rows: Sequence[Sequence[int]]) -> None:
        getattr(self, name).append(self._rows(name, rows))

    def _table(self, name: str) -> np.ndarray:
        """All rows of a table, (n, columns) int64, as they came; for `compute`, before which `sync` is called."""
        return dim_zero_cat(getattr(self, name)).cpu().numpy()


class LesionFigures(_RowMetric):
    """Dice1, Dice2, success rate, accuracy and false positives of lesion slices; definitions in `lesions.py`."""

    slice_table: list[Tensor]
    lesion_table: list[Tensor]
    _figures: dict[int, SliceFigures]  # from `compute` on

    def __init__(self, lesion_types: Sequence[str]) -> None:
        """Compare class maps whose classes 2, 3, … are `lesion_types`."""
        super().__init__({"slice_table": _SLICE_HEAD + 3 * (1 + len(lesion_types)), "lesion_table": _LESION_COLUMNS})
        self.lesion_types = tuple(lesion_types)

    def update(self, predicted: ClassMap, reference: ClassMap, slice_key: int) -> None:
        """Add a slice: class indices (H, W) each, and a whole number that tells slices apart."""
        figures = compare_slice(_array(predicted), _array(reference), len(self.lesion_types))
        self._append("slice_table", [_slice_row(figures, slice_key)])
        self._append("lesion_table", _lesion_rows(figures, slice_key))

    def compute(self) -> dict[str, float]:
        """The figures over all slices, each slice once; a figure that is nowhere defined is NaN.

        Keys: `dice1`, `dice2` (mean over the slices where they are defined, their number in `dice1_n`, `dice2_n`),
        `success_rate`, `accuracy_all` (of all reference lesions, `lesions_n`), `accuracy_found` (of those found),
        `false_positives_per_slice` (of `slices_n` slices), and `dice_<type>`.
        """
        self._figures = self._unique_slices()
        slices = list(self._figures.values())
        lesions = [lesion for figures in slices for lesion in figures.lesions]
        found = [lesion for lesion in lesions if lesion.found]
        right = sum(lesion.predicted_type == lesion.type for lesion in found)
        dice1, dice2 = _defined(f.dice1 for f in slices), _defined(f.dice2 for f in slices)
        return {
            "dice1": _mean(dice1),
            "dice2": _mean(dice2),
            "dice1_n": len(dice1),
            "dice2_n": len(dice2),
            "success_rate": _ratio(len(found), len(lesions)),
            "accuracy_all": _ratio(right, len(lesions)),
            "accuracy_found": _ratio(right, len(found)),
            "lesions_n": len(lesions),
            "false_positives_per_slice": _ratio(sum(len(f.false_positives) for f in slices), len(slices)),
            "slices_n": len(slices),
            **{
                f"dice_{name}": _mean(_defined(f.dice_types[i] for f in slices))
                for i, name in enumerate(self.lesion_types)
            },
        }

    def slice_rows(self) -> list[Row]:
        """Rows `slice_key, figure, value` by slice key: dice1, dice2, dice_<type> (NaN: not defined), false_positives.

        Computes first if that is still to do, so: call it on every process, or after `compute` on any one.
        """
        self.compute()
        rows: list[Row] = []
        for key, figures in self._figures.items():
            values: dict[str, float] = {"dice1": figures.dice1, "dice2": figures.dice2}
            values |= {f"dice_{name}": value for name, value in zip(self.lesion_types, figures.dice_types, strict=True)}
            values["false_positives"] = len(figures.false_positives)
            rows += [{"slice_key": key, "figure": figure, "value": value} for figure, value in values.items()]
        return rows

    def lesion_rows(self) -> list[Row]:
        """Rows `slice_key, kind, type, area_px, overlap, found, predicted_type` by slice key; call it as `slice_rows`.

        `kind` is reference or false_positive; types are names. A missed lesion has an empty `predicted_type`, a false
        positive an empty `type`, overlap 0 and found 0.
        """
        self.compute()
        return [row for key, figures in self._figures.items() for row in self._lesions_of(key, figures)]

    def _lesions_of(self, key: int, figures: SliceFigures) -> Iterator[Row]:
        for lesion in figures.lesions:
            yield {
                "slice_key": key,
                "kind": REFERENCE,
                "type": self._name(lesion.type),
                "area_px": lesion.area_px,
                "overlap": lesion.overlap,
                "found": int(lesion.found),
                "predicted_type": "" if lesion.predicted_type is None else self._name(lesion.predicted_type),
            }
        for extra in figures.false_positives:
            yield {
                "slice_key": key,
                "kind": FALSE_POSITIVE,
                "type": "",
                "area_px": extra.area_px,
                "overlap": 0.0,
                "found": 0,
                "predicted_type": self._name(extra.predicted_type),
            }

    def _name(self, class_index: int) -> str:
        return self.lesion_types[class_index - FIRST_TYPE]

    def _unique_slices(self) -> dict[int, SliceFigures]:
        """The figures of each slice by key, from the first row that came for it."""
        slices, lesions = self._table("slice_table"), self._table("lesion_table")
        ends = np.cumsum(slices[:, 1] + slices[:, 2])  # both tables came in one order, so each slice owns a run of rows
        keys, first = np.unique(slices[:, 0], return_index=True)
        return {
            int(key): _figures_from_rows(slices[i], lesions[ends[i] - slices[i, 1] - slices[i, 2] : ends[i]])
            for key, i in zip(keys, first, strict=True)
        }


class LiverDice(_RowMetric):
    """Dice of the liver per case in 3-D, then the mean over cases."""

    liver_table: list[Tensor]
    _cases: dict[int, float]  # from `compute` on

    def __init__(self) -> None:
        """Any class index from 1 up is liver: lesions belong to it."""
        super().__init__({"liver_table": 5})

    def update(self, predicted: ClassMap, reference: ClassMap, case_key: int, slice_index: int) -> None:
        """Add a slice of a case: class indices (H, W) each, whole numbers for the case and the slice."""
        counts = Counts.of(is_liver(_array(predicted)), is_liver(_array(reference)))
        self._append("liver_table", [[case_key, slice_index, *astuple(counts)]])

    def case_rows(self) -> list[Row]:
        """Rows `case_key, dice` by case key; NaN where neither holds liver; call it as `LesionFigures.slice_rows`."""
        self.compute()
        return [{"case_key": key, "dice": value} for key, value in self._cases.items()]

    def compute(self) -> dict[str, float]:
        """`liver_dice`, the mean over the cases where it is defined, and their number `liver_dice_n`."""
        table = self._table("liver_table")
        table = table[np.unique(table[:, :2], axis=0, return_index=True)[1]]  # a slice counts once
        self._cases = {
            int(case): Counts(*table[table[:, 0] == case, 2:].sum(0).tolist()).dice for case in np.unique(table[:, 0])
        }
        dice = _defined(self._cases.values())
        return {"liver_dice": _mean(dice), "liver_dice_n": len(dice)}


def _slice_row(figures: SliceFigures, key: int) -> list[int]:
    counts = [n for c in (figures.merged, *figures.types) for n in (c.both, c.predicted, c.reference)]
    return [key, len(figures.lesions), len(figures.false_positives), *counts]


def _lesion_rows(figures: SliceFigures, key: int) -> list[list[int]]:
    found = [
        [key, _KIND_REFERENCE, x.type, x.area_px, x.overlap_px, int(x.found), x.predicted_type or 0]
        for x in figures.lesions
    ]
    return found + [[key, _KIND_FALSE_POSITIVE, 0, x.area_px, 0, 0, x.predicted_type] for x in figures.false_positives]


def _figures_from_rows(row: np.ndarray, lesions: np.ndarray) -> SliceFigures:
    """The inverse of `_slice_row` and `_lesion_rows`."""
    merged, *types = (Counts(*counts) for counts in row[_SLICE_HEAD:].reshape(-1, 3).tolist())
    matches, extras = [], []
    for _, kind, lesion_type, area_px, overlap_px, found, predicted_type in lesions.tolist():
        if kind == _KIND_REFERENCE:
            matches.append(LesionMatch(lesion_type, area_px, overlap_px, bool(found), predicted_type or None))
        else:
            extras.append(FalsePositive(predicted_type, area_px))
    return SliceFigures(merged, tuple(types), tuple(matches), tuple(extras))


def _array(class_map: ClassMap) -> np.ndarray:
    return class_map.cpu().numpy() if isinstance(class_map, Tensor) else class_map


def _defined(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _mean(values: list[float]) -> float:
    return _ratio(math.fsum(values), len(values))


def _ratio(part: float, whole: int) -> float:
    return part / whole if whole else math.nan
