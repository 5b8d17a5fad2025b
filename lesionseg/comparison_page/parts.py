"""Parts of the page: the sections of `table.md`, confusion matrices, pictures of the worst lesions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from markdown_it import MarkdownIt
from markupsafe import Markup

from lesionseg.grid import Grid
from lesionseg.labels import COLORS, LIVER, NAMES
from lesionseg.pages import css_color, data_address
from lesionseg.results import MISSED, RunResult, worst_lesions
from lesionseg.runs import WORST_FOLDER
from lesionseg.statistics import confusion

#: Pictures of one schedule.
MOST_PICTURES = 6
#: Shades of a confusion matrix, as the classes `shade0` … of page.css.
_SHADES = 10


@dataclass(frozen=True)
class Section:
    """A heading of `table.md` and what stands below it, as HTML."""

    heading: str
    body: Markup


@dataclass(frozen=True)
class Cell:
    """A number of a confusion matrix; `shade` 0 … 9 is its share of the row, `right` says that it is a right typing."""

    n: int
    shade: int
    right: bool


@dataclass(frozen=True)
class Picture:
    """A worst lesion: the `data:` address of its picture, and the words beneath."""

    source: str
    caption: str


def sections(text: str) -> list[Section]:
    """The sections of a Markdown text; the first is what stands under its title. HTML in the text stays text."""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    head, *rest = text.split("\n## ")
    title, _, intro = head.partition("\n")
    pairs = [(title.removeprefix("# "), intro), *((part.partition("\n")[0], part.partition("\n")[2]) for part in rest)]
    return [Section(heading, Markup(_fitting(reader.render(body)))) for heading, body in pairs]


def _fitting(html: str) -> str:
    """Wide tables scroll by themselves, and an interval is not broken over two lines."""
    html = re.sub(r"(?<=<td>)[^<]*", lambda cell: re.sub(r"\[[^]]*\]", _unbroken, cell[0]), html)
    return html.replace("<table>", '<div class="scroll" tabindex="0"><table>').replace("</table>", "</table></div>")


def _unbroken(interval: re.Match[str]) -> str:
    return interval[0].replace(" ", "\N{NO-BREAK SPACE}")


def confusion_rows(grid: Grid, schedule: str) -> dict[str, list[Cell]]:
    """True type → cells of `confusion_columns`, over all folds and seeds."""
    counts = confusion(grid.tables(schedule)[1], grid.lesion_types)
    return {str(true): _shaded(counts.loc[true], str(true)) for true in counts.index}


def confusion_columns(grid: Grid) -> list[str]:
    """Predicted types, and missed."""
    return [*grid.lesion_types, MISSED]


def outline_colors(grid: Grid) -> list[tuple[str, str]]:
    """Name and colour of each outline in the pictures."""
    labels = [LIVER, *(label for label, name in NAMES.items() if name in grid.lesion_types)]
    return [(NAMES[label], css_color(COLORS[label])) for label in labels]


def _shaded(row: pd.Series, true: str) -> list[Cell]:
    total = max(int(row.sum()), 1)
    return [Cell(int(n), min(int(_SHADES * n / total), _SHADES - 1), name == true) for name, n in row.items()]


def worst_pictures(runs: Sequence[RunResult]) -> list[Picture]:
    """The largest lesions that the runs of one schedule missed or mistyped, of those they left a picture of."""
    tables = [run.lesions.assign(run=i) for i, run in enumerate(runs)]
    pictures: list[Picture] = []
    for _, row in worst_lesions(pd.concat(tables, ignore_index=True)).iterrows():
        run = runs[int(row.run)]
        path = run.folder / WORST_FOLDER / f"{row.lesion_id}.png"
        if path.exists() and len(pictures) < MOST_PICTURES:
            caption = f"{_outcome(row)}; fold {run.info.fold}, seed {run.info.seed}"
            pictures.append(Picture(data_address(path.read_bytes(), "image/png"), caption))
    return pictures


def _outcome(row: pd.Series) -> str:
    area = f"{row.area_px} px" if pd.isna(row.area_mm2) else f"{row.area_mm2:.0f} mm²"
    ending = f"taken for {row.predicted_type}" if row.predicted_type else MISSED
    return f"{row.type}, {area}: {ending}"
