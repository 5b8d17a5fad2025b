"""Figure of a comparison: each schedule's figures with their intervals, beside the paper's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

#: Panels: figure of `statistics.FIGURES`, heading, meaning.
PANELS = {
    "dice1": ("Dice1", "lesion against the rest"),
    "dice2": ("Dice2", "mean over lesion types"),
    "success_rate": ("Success rate", "lesions found"),
    "accuracy_all": ("Accuracy, all", "found and rightly typed"),
    "accuracy_found": ("Accuracy, found", "of the lesions found"),
}
#: Okabe-Ito blue and vermilion, told apart under every common colour blindness, and in grey by fill and shape.
_OURS, _PAPER, _GRID, _SOFT = "#0072B2", "#D55E00", "#d9d9d9", "#444444"
_OFFSET = 0.17


def schedules_figure(
    table: pd.DataFrame,
    schedules: Sequence[str],
    titles: Mapping[str, str],
    paper: Mapping[str, Mapping[str, float]],
    note: str,
) -> Figure:
    """Small multiples: a dot and its 95 % interval per schedule, the paper's value as a hollow diamond below it.

    Args:
        table: result of `statistics.patient_bootstrap`.
        schedules: the rows, from top to bottom.
        titles: how each is called.
        paper: the paper's figures by schedule and figure; schedules it does not name have none.
        note: one line below the panels: what the data are and how many.
    """
    height = 1.85 + 0.5 * len(schedules)
    figure = Figure(figsize=(13, height), dpi=200, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.06))
    axes = figure.subplots(1, len(PANELS), sharey=True, squeeze=False)[0]
    for panel, (name, (heading, meaning)) in zip(axes, PANELS.items(), strict=True):
        rows = table[table.figure == name].set_index("schedule").loc[list(schedules)]
        _draw(panel, rows, [paper.get(schedule, {}).get(name, np.nan) for schedule in schedules])
        panel.set_title(heading, fontsize=11.5, fontweight="bold", pad=20)
        below = {"xycoords": "axes fraction", "xytext": (0, 7), "textcoords": "offset points", "ha": "center"}
        panel.annotate(meaning, (0.5, 1.0), fontsize=9.5, color=_SOFT, **below)
    axes[0].set_yticks(range(len(schedules)), [titles[schedule] for schedule in schedules], fontsize=10.5)
    axes[0].set_ylim(len(schedules) - 0.5, -0.5)
    figure.legend(handles=_legend(bool(paper)), loc="outside upper right", ncols=2, frameon=False, fontsize=9.5)
    figure.supxlabel(note, fontsize=8.5, color=_SOFT, x=0.99, ha="right")
    return figure


def _draw(panel: Axes, rows: pd.DataFrame, paper: Sequence[float]) -> None:
    places = np.arange(len(rows))
    panel.hlines(places, rows.low, rows.high, color=_OURS, linewidth=2.2, zorder=2)
    panel.plot(rows.estimate, places, "o", color=_OURS, markersize=7, zorder=3)
    panel.plot(paper, places + _OFFSET, "D", markersize=5.5, markerfacecolor="white", markeredgecolor=_PAPER, zorder=3)
    panel.set_xlim(-0.03, 1.03)
    panel.set_xticks(np.linspace(0, 1, 5), ["0", "0.25", "0.5", "0.75", "1"], fontsize=9)
    panel.grid(axis="x", color=_GRID, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    for place in places[1:]:
        panel.axhline(place - 0.5, color=_GRID, linewidth=0.6)


def _legend(with_paper: bool) -> list[Line2D]:
    ours = Line2D([], [], color=_OURS, marker="o", markersize=7, linewidth=2.2, label="estimate, 95 % interval")
    paper = Line2D(
        [], [], linestyle="none", marker="D", markersize=5.5, markerfacecolor="white", markeredgecolor=_PAPER,
        label="paper (other data and definitions; its accuracy: most likely of the lesions found)",
    )  # fmt: skip
    return [ours, paper] if with_paper else [ours]
