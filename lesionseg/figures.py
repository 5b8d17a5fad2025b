"""Arrays → matplotlib figures. Nothing here reads a file, writes one, or needs a display."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lesionseg.boxes import Box, crop, liver_box
from lesionseg.labels import COLORS, LIVER, NAMES, is_liver

#: Abdominal soft-tissue window that every figure shares: liver, its vessels and its lesions all keep their contrast.
WINDOW_HU = (-100.0, 240.0)
#: Added around the liver on every side of a cropped panel, as a share of the liver's longer side.
MARGIN = 0.08
#: What a picture shows beyond the border of a slice.
AIR_HU = -1000
_BACKGROUND, _TEXT, _FAINT = "#101216", "#e8eaed", "#9aa0a6"
_BAR_MM = 50.0


@dataclass(frozen=True, eq=False)
class Panel:
    """One slice of a contact sheet.

    Attributes:
        hu: (H, W).
        labels: (H, W), ids of `lesionseg.labels`.
        title: first line above it; `note` the second, fainter.
        spacing_mm: along (H, W), for proportions and the scale bar; None: unknown.
        outlined: draw the masks; without, they only tell what to cut to.
    """

    hu: np.ndarray
    labels: np.ndarray
    title: str = ""
    note: str = ""
    spacing_mm: tuple[float, float] | None = None
    outlined: bool = True


def window(hu: np.ndarray) -> np.ndarray:
    """HU of any shape → grey values 0 … 1 of `WINDOW_HU`, float32, same shape."""
    low_hu, high_hu = WINDOW_HU
    return ((np.clip(hu, low_hu, high_hu) - low_hu) / (high_hu - low_hu)).astype(np.float32)


def grey_crop(hu: np.ndarray, box: Box) -> np.ndarray:
    """A slice (H, W) cut to a box, air beyond its border, as grey values 0…255 of `WINDOW_HU`: (side, side), uint8."""
    return (255 * window(crop(hu, box, fill=AIR_HU))).astype(np.uint8)


def liver_view(labels: np.ndarray) -> Box | None:
    """The liver box of a slice (H, W) with a margin of `MARGIN`; None where no label is set."""
    box = liver_box(is_liver(labels[None]))
    if box is None:
        return None
    margin = math.ceil(MARGIN * box.side)
    return Box(box.top - margin, box.left - margin, box.side + 2 * margin)


def overlay(axes: Axes, hu: np.ndarray, labels: np.ndarray, *, aspect: float = 1.0) -> None:
    """Draw a slice (H, W) in the window of all figures, with thin outlines of liver and lesions over it.

    The liver is outlined together with its lesions; each lesion type has its colour of `labels.COLORS`.

    Args:
        axes: where; its ticks and frame are removed.
        hu: (H, W).
        labels: (H, W), ids of `lesionseg.labels`.
        aspect: height of a pixel over its width.
    """
    axes.imshow(window(hu), cmap="gray", vmin=0, vmax=1, aspect=aspect, interpolation="bilinear")
    axes.set_axis_off()
    for label, color in COLORS.items():
        mask = is_liver(labels) if label == LIVER else labels == label
        _outline(axes, mask, color, 0.7 if label == LIVER else 1.0)


def contact_sheet(panels: Sequence[Panel], *, title: str = "", columns: int | None = None) -> Figure:
    """A grid of slices on dark ground, each cut to its liver, with outlines, a 5 cm bar where known, and a legend.

    Args:
        panels: the slices, row by row; at least one.
        title: over the sheet.
        columns: default: what makes a sheet of about 3:2.
    """
    columns = columns or min(len(panels), math.ceil(math.sqrt(1.5 * len(panels))))
    rows = math.ceil(len(panels) / columns)
    side, gap, caption, head, foot = 2.6, 0.14, 0.42, 0.55, 0.5  # inches
    width = gap + max(columns, 2) * (side + gap)
    height = head + rows * (side + caption) + foot
    figure = Figure(figsize=(width, height), facecolor=_BACKGROUND)
    for i, panel in enumerate(panels):
        row, column = divmod(i, columns)
        left, bottom = gap + column * (side + gap), height - head - (row + 1) * (side + caption)
        _draw(figure.add_axes((left / width, bottom / height, side / width, side / height)), panel)
    figure.text(gap / width, 1 - 0.2 / height, title, color=_TEXT, fontsize=13, weight="bold", va="top")
    present = np.unique(np.concatenate([np.unique(panel.labels) for panel in panels]))
    _legend(figure, [label for label in COLORS if label in present], gap / width, 0.2 / height)
    return figure


def _draw(axes: Axes, panel: Panel) -> None:
    hu, labels = panel.hu, panel.labels
    box = liver_view(labels)
    if box is not None and (labels == LIVER).any():  # lesions alone do not tell how far the liver reaches
        hu, labels = crop(hu, box, fill=AIR_HU), crop(labels, box, fill=0)
    down, across = panel.spacing_mm or (1.0, 1.0)
    overlay(axes, hu, labels if panel.outlined else np.zeros_like(labels), aspect=down / across)
    if panel.spacing_mm is not None:
        _scale_bar(axes, hu.shape, across)
    axes.set_anchor("SW")
    line: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "bottom"}
    axes.annotate(panel.title, (0, 1), xytext=(0, 14), color=_TEXT, fontsize=8, family="monospace", **line)
    axes.annotate(panel.note, (0, 1), xytext=(0, 3.5), color=_FAINT, fontsize=7.5, **line)


def _outline(axes: Axes, mask: np.ndarray, color: tuple[int, int, int], line_width: float) -> None:
    """The border of a mask, half-way between the pixels inside and those outside."""
    if mask.any():
        padded = np.pad(mask, 1).astype(np.float32)  # or an outline would stay open at the edge of the slice
        rows, columns = (np.arange(-1, n + 1) for n in mask.shape)
        axes.contour(columns, rows, padded, [0.5], colors=[_rgb(color)], linewidths=line_width)


def _scale_bar(axes: Axes, shape: tuple[int, ...], across_mm: float) -> None:
    left, bottom, length = 0.04 * shape[1], 0.955 * shape[0], _BAR_MM / across_mm
    axes.plot([left, left + length], [bottom, bottom], color=_TEXT, linewidth=1.5, solid_capstyle="butt")
    place = (left + length / 2, bottom - 0.015 * shape[0])
    axes.text(*place, "5 cm", color=_TEXT, fontsize=6, ha="center", va="bottom")


def _legend(figure: Figure, labels: list[int], left: float, bottom: float) -> None:
    lines = [Line2D([], [], color=_rgb(COLORS[label]), linewidth=2.5, label=NAMES[label]) for label in labels]
    if lines:
        place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (left, bottom), "borderaxespad": 0}
        figure.legend(
            handles=lines, ncols=len(lines), frameon=False, labelcolor=_TEXT, fontsize=10, borderpad=0, **place
        )
    low, high = WINDOW_HU
    text = f"window {low:.0f} to {high:.0f} HU".replace("-", "\N{MINUS SIGN}")
    figure.text(1 - left, bottom, text, color=_FAINT, fontsize=8, ha="right", va="bottom")


def _rgb(color: tuple[int, int, int]) -> tuple[float, float, float]:
    red, green, blue = color
    return red / 255, green / 255, blue / 255
