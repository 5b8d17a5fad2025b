"""The findings of a segmentation as a table for the page, and a voxel of each to jump to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from lesionseg.labels import COLORS, LESION_TYPES, UNTYPED_LESION
from lesionseg.pages import css_color
from lesionseg.scan import canonical, canonical_axes
from lesionseg.segmentation import Finding, Segmentation


@dataclass(frozen=True)
class Cell:
    """A cell: what it says, what it is sorted by (empty: not known), and the length of its bar (0…1; None: none)."""

    text: str
    value: str
    share: float | None = None


@dataclass(frozen=True)
class Column:
    """A column: its title, its unit, whether it is sorted by number or text, and the colour of its bars."""

    title: str
    unit: str = ""
    kind: str = "number"
    color: str = ""


@dataclass(frozen=True)
class Row:
    """A lesion: its id, its colour, its cells."""

    id: int
    color: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """The table, its rows by id."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


def lesion_table(segmentation: Segmentation) -> Table:
    """A row for each finding, with the columns that mean something for this scan: mm where known, else pixels."""
    chosen = _columns(segmentation)
    rows = tuple(
        Row(finding.id, type_color(finding.type), tuple(make(finding) for _, make in chosen))
        for finding in segmentation.findings
    )
    return Table(tuple(column for column, _ in chosen), rows)


def type_color(name: str) -> str:
    """Colour of a lesion type as CSS writes it."""
    return css_color(LESION_TYPES[name].color if name in LESION_TYPES else COLORS[UNTYPED_LESION])


def key_voxels(segmentation: Segmentation) -> dict[int, tuple[int, int, int]]:
    """For each finding, the voxel of it on its key slice that is nearest to its middle there, in the canonical scan.

    A centroid may lie outside the lesion; this voxel never does.
    """
    scan = segmentation.scan
    ids = canonical(segmentation.lesion_ids, scan.affine)
    _, flip = canonical_axes(scan.affine)
    boxes = ndimage.find_objects(ids)
    found = {}
    for finding in segmentation.findings:
        d = len(ids) - 1 - finding.key_slice if flip[0] else finding.key_slice
        _, rows, columns = boxes[finding.id - 1]
        pixels = np.argwhere(ids[d, rows, columns] == finding.id)
        h, w = pixels[((pixels - pixels.mean(0)) ** 2).sum(1).argmin()] + (rows.start, columns.start)
        found[finding.id] = (d, int(h), int(w))
    return found


def _columns(segmentation: Segmentation) -> list[tuple[Column, Callable[[Finding], Cell]]]:
    findings = segmentation.findings
    known = segmentation.scan.spacing_mm is not None
    volume = segmentation.scan.hu.shape[segmentation.slice_axis] > 1
    columns: list[tuple[Column, Callable[[Finding], Cell]]] = [
        (Column("no."), lambda f: Cell(str(f.id), str(f.id))),
        (Column("type", kind="text"), lambda f: Cell(f.type, f.type)),
        *(_probability(name) for name in dict.fromkeys(name for f in findings for name in f.probabilities)),
    ]
    if known:
        columns += [
            (Column("long × short axis", "mm"), lambda f: _axes(f.long_axis_mm, f.short_axis_mm)),
            (Column("area", "mm²"), lambda f: _number(f.area_mm2, 0)),
        ]
    else:
        columns += [
            (Column("long × short axis", "px"), lambda f: _axes(f.long_axis_px, f.short_axis_px)),
            (Column("area", "px"), lambda f: _number(f.area_px, 0)),
        ]
    if volume and known:
        columns.append((Column("volume", "ml"), lambda f: _number(f.volume_ml, 2)))
    elif volume:
        columns.append((Column("size", "voxels"), lambda f: _number(f.voxels, 0)))
    columns.append((Column("mean ± SD", "HU"), _density))
    if volume:
        columns.append((Column("slices", "first–last"), _slices))
    return columns


def _probability(name: str) -> tuple[Column, Callable[[Finding], Cell]]:
    def cell(finding: Finding) -> Cell:
        share = finding.probabilities.get(name)
        if share is None:
            return Cell("", "")
        return Cell(f"{100 * share:.0f} %", repr(float(share)), min(max(float(share), 0.0), 1.0))

    return Column(name, "prob.", color=type_color(name)), cell


def _axes(long: float | None, short: float | None) -> Cell:
    if long is None or short is None:
        return Cell("–", "")
    return Cell(f"{long:.1f} × {short:.1f}", repr(float(long)))


def _number(value: float | None, digits: int) -> Cell:
    return Cell("–", "") if value is None else Cell(f"{value:,.{digits}f}", repr(float(value)))


def _density(finding: Finding) -> Cell:
    return Cell(signed(f"{finding.mean_hu:.0f} ± {finding.sd_hu:.0f}"), repr(float(finding.mean_hu)))


def _slices(finding: Finding) -> Cell:
    first, last = finding.slices
    return Cell(str(first) if first == last else f"{first}–{last}", str(first))


def signed(text: str) -> str:
    """A number with a true minus sign."""
    return text.replace("-", "\N{MINUS SIGN}")
