"""`report.html` of a comparison: one page that opens from disk and sends no request; all figures are within it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from lesionseg.comparison_page.charts import LEAST_DRIFT, charts
from lesionseg.comparison_page.histories import History, read_history
from lesionseg.comparison_page.parts import confusion_columns, confusion_rows, outline_colors, sections, worst_pictures
from lesionseg.grid import Grid
from lesionseg.pages import data_address, policy, shared_style, template
from lesionseg.segmentation import RESEARCH_USE_ONLY

#: The section of `table.md` in whose place the page has matrices; charts stand before it.
_CONFUSION = "Confusion"
_HERE = Path(__file__).parent


def page(grid: Grid, titles: Mapping[str, str], text: str, figure: bytes) -> str:
    """The page as HTML.

    Args:
        grid: the runs; what they did not log is said to be missing.
        titles: schedule → how it is called, in the order of the rows.
        text: `table.md`; its sections stand on the page as they are, but for the confusions, which are drawn.
        figure: `schedules.png`.

    Raises:
        InputError: what a run logged cannot be read.
    """
    runs = {name: [run for run in grid.runs if run.info.name == name] for name in titles}
    histories = {name: read_history(own) for name, own in runs.items()}
    drawn = charts(histories)
    first, *others = sections(text)
    place = next((i for i, section in enumerate(others) if section.heading.startswith(_CONFUSION)), len(others))
    runs_per_row = len(grid.folds) * len(grid.seeds)
    return template(_HERE).render(
        title=first.heading,
        use=RESEARCH_USE_ONLY,
        intro=first.body,
        figure=data_address(figure, "image/png"),
        before=others[:place],
        after=others[place + 1 :],
        rows=[
            {
                "title": titles[name],
                "chart": data_address(drawn[name], "image/svg+xml") if name in drawn else None,
                "confusion": confusion_rows(grid, name),
                "worst": worst_pictures(runs[name]),
            }
            for name in titles
        ],
        missing=_missing({titles[name]: history for name, history in histories.items()}, runs_per_row),
        columns=confusion_columns(grid),
        legend=outline_colors(grid),
        runs_per_row=runs_per_row,
        least_drift=LEAST_DRIFT,
        **_style(),
    )


def _missing(histories: Mapping[str, History], runs_per_row: int) -> list[str]:
    """What the runs of some rows did not log, a sentence each."""
    without = {
        "Curves and drift of fewer runs, as the others left no metrics.csv": [
            f"{n} ({h.logs} of {runs_per_row})" for n, h in histories.items() if 0 < h.logs < runs_per_row
        ],
        "No learning curves, as these runs left no metrics.csv": [n for n, h in histories.items() if not h.curves],
        "No drift, as these runs were made before it was logged": [
            name for name, history in histories.items() if history.curves and not history.drift.size
        ],
    }
    return [f"{text}: {', '.join(names)}." for text, names in without.items() if names]


def _style() -> dict[str, Any]:
    """The style of the other pages with that of this one, and a policy that lets nothing else in."""
    style = shared_style() + (_HERE / "page.css").read_text(encoding="utf-8")
    return {"style": Markup(style), "policy": Markup(policy(style))}
