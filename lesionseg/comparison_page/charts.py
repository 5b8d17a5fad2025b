"""Charts of the page as SVG: learning curves with phase marks over the drift of each block, one chart a schedule."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lesionseg.comparison_page.histories import FIGURES, LOSSES, History

#: Okabe-Ito: told apart under every common colour blindness.
_COLORS = ("#0072B2", "#D55E00", "#009E73")
_MARK, _FROZEN = "#586474", "#00000060"
#: Least drift that has a colour of its own; below it a block counts as unmoved.
LEAST_DRIFT = 0.01
_WIDTH_INCHES, _CURVE_INCHES, _MAP_INCHES = 5.2, 1.45, 1.75


def charts(histories: Mapping[str, History]) -> dict[str, bytes]:
    """The SVG of each schedule that logged anything; all share their axes and colours, so that they compare."""
    logged = {name: history for name, history in histories.items() if history.curves}
    losses = _limits(logged.values(), LOSSES, floor=0.0)
    figures = _limits(logged.values(), FIGURES, floor=0.0)
    drifts = [float(np.nanmax(history.drift.to_numpy())) for history in logged.values() if history.drift.size]
    norm = LogNorm(LEAST_DRIFT, max([*drifts, 10 * LEAST_DRIFT]))
    return {name: _svg(_chart(history, losses, figures, norm)) for name, history in logged.items()}


def _chart(history: History, losses: tuple[float, float], figures: tuple[float, float], norm: LogNorm) -> Figure:
    with_map = bool(history.drift.size)
    heights = [_CURVE_INCHES, _CURVE_INCHES, *[_MAP_INCHES] * with_map]
    figure = Figure(figsize=(_WIDTH_INCHES, sum(heights) + 0.35), layout="constrained")
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    for panel, names, limits, text in zip(
        axes, (LOSSES, FIGURES), (losses, figures), ("training loss", "inner validation"), strict=False
    ):
        _draw_curves(panel, history, names)
        panel.set_ylim(*limits)
        panel.set_ylabel(text, fontsize=8.5)
    if with_map:
        _draw_drift(figure, axes[-1], history, norm)
    for mark in history.marks:
        for panel in axes:
            panel.axvline(mark, color=_MARK, linewidth=0.9, linestyle=(0, (3, 2)), zorder=4)
    axes[-1].set_xlabel("epochs done", fontsize=8.5)
    axes[-1].set_xlim(0, max(int(curve.index.max()) for curve in history.curves.values()) + 1)
    for panel in axes:
        panel.tick_params(labelsize=8, length=2)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_curves(panel: Axes, history: History, names: Mapping[str, str]) -> None:
    """Mean with a band from the least to the greatest run."""
    for color, (name, label) in zip(_COLORS, names.items(), strict=True):
        if name in history.curves:
            curve = history.curves[name]
            done = curve.index.to_numpy() + 1
            panel.fill_between(done, curve.low, curve.high, color=color, alpha=0.18, linewidth=0)
            marker = "o" if len(done) < 12 else None
            panel.plot(done, curve["mean"], color=color, linewidth=1.6, marker=marker, markersize=3, label=label)
    panel.grid(axis="y", color="#e3e7ec", linewidth=0.7)
    panel.set_axisbelow(True)
    if panel.lines:
        panel.legend(fontsize=7.5, frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 0.98), borderaxespad=0)
    else:  # fewer epochs than lie between two validations
        panel.set_yticks([])
        panel.text(
            0.5, 0.5, "none logged", transform=panel.transAxes, ha="center", va="center", fontsize=8, color=_MARK
        )


def _draw_drift(figure: Figure, panel: Axes, history: History, norm: LogNorm) -> None:
    """Epochs × blocks, the input at the top; hatched where a block is frozen in every run."""
    drift = history.drift
    edges = np.append(drift.index.to_numpy(), drift.index.max() + 1)
    colors = matplotlib.colormaps["viridis"].with_extremes(under="#eef1f4", bad="white")
    mesh = panel.pcolormesh(edges, np.arange(drift.shape[1] + 1), drift.T.to_numpy(), norm=norm, cmap=colors)
    for row, block in enumerate(drift.columns):
        for start, stop in _frozen(history, block):
            panel.add_patch(
                Rectangle((start, row), stop - start, 1, fill=False, hatch="////", edgecolor=_FROZEN, linewidth=0)
            )
    panel.set_yticks(np.arange(drift.shape[1]) + 0.5, drift.columns)
    panel.set_ylim(drift.shape[1], 0)
    panel.set_ylabel("drift", fontsize=8.5)
    bar = figure.colorbar(mesh, ax=panel, extend="min", pad=0.01, fraction=0.045)
    ticks = [t for t in (0.01, 0.03, 0.1, 0.3, 1, 3) if norm.vmin <= t <= norm.vmax]  # type: ignore[operator]
    bar.set_ticks(ticks, labels=[f"{t:g}" for t in ticks])
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=7.5, length=2)


def _frozen(history: History, block: str) -> list[tuple[int, int]]:
    """Spans of epochs (the last not included) in which a block is frozen in every run."""
    if block not in history.trains:
        return []
    spans: list[tuple[int, int]] = []
    for epoch in history.trains.index[history.trains[block] == 0]:
        first = spans.pop()[0] if spans and spans[-1][1] == epoch else int(epoch)
        spans.append((first, int(epoch) + 1))
    return spans


def _limits(histories: Iterable[History], names: Iterable[str], floor: float) -> tuple[float, float]:
    """From `floor` to a little above the greatest mean of these curves (a single run may leave the picture)."""
    tops = [float(h.curves[name]["mean"].max()) for h in histories for name in names if name in h.curves]
    return floor, 1.08 * max([*tops, 1e-6])


def _svg(figure: Figure) -> bytes:
    """The same figure gives the same bytes: no date, and ids from a fixed salt."""
    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "lesionseg", "hatch.linewidth": 0.6, "svg.fonttype": "path"}):
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None})
    return out.getvalue()
