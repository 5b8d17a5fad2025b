"""The text of a comparison: `table.md` and the compact table on stdout, with the paper's rows below."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Sized

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from lesionseg.grid import Grid
from lesionseg.grid_basis import basis, data_kind, encoder_weights
from lesionseg.lesions import MIN_OVERLAP
from lesionseg.paper import BASELINE, PAPER, title
from lesionseg.results import MISSED
from lesionseg.significance import PERMUTATIONS
from lesionseg.statistics import FIGURES, PRIMARY, RESAMPLES, confusion
from lesionseg.wording import ALPHA, cell, difference_cell, is_shown, p_cell, power, rank_cell, verdict

#: Columns that the printed table needs to show intervals.
_FULL_WIDTH = 160
HEADINGS = {
    "dice1": "Dice1",
    "dice2": "Dice2",
    "success_rate": "success rate",
    "accuracy_all": "accuracy_all",
    "accuracy_found": "accuracy_found",
    "false_positives_per_slice": "FP / slice",
}
#: Of the figures themselves, wherever they are printed.
FIGURE_DEFINITIONS = f"""\
- **Dice1**: Dice of lesion against everything else, types merged, on each slice that holds a lesion in the reference or
  the prediction; mean over these slices (n).
- **Dice2**: Dice of each lesion type that the slice holds in the reference or the prediction; mean over the types, then
  over the slices (n).
- **success rate**: share of the reference lesions (2-D connected components of one type, 8-neighbourhood; n) of whose
  area the prediction covers at least {MIN_OVERLAP}, with any type.
- **accuracy_all** (primary): share of all reference lesions (n) that are found and rightly typed, by the majority of
  the predicted lesion pixels inside the lesion.
- **accuracy_found**: the same among the lesions found (n). Each row finds other lesions, so it never stands alone.
- **FP / slice**: predicted components (types merged) that hold no reference lesion pixel, per test slice (n)."""
DEFINITIONS = f"""\
The definitions are this package's own.

{FIGURE_DEFINITIONS}
- **interval**: 95 %, percentiles of {RESAMPLES} resamples of patients (and, with several seeds, of the runs of each
  fold), for few patients and few runs as wide as Student's t; means stay those over slices and lesions. None where
  every resample gives the same value (every lesion found, say): that is no proof of certainty. Of FP / slice, but not
  of its difference, Student's t on the logarithm, which needs two degrees of freedom.
- **resolution**: (1.96 + 0.84) standard errors of the paired difference. With many patients, a true difference of that
  size has an interval that leaves out 0 in 80 % of studies; what the test could have shown is said beside it. Intervals
  and resolution are not corrected for the number of comparisons.
- **p**: {PERMUTATIONS} swaps of patients between the two rows (with one seed all, where there are no more), all seeds
  of a patient together; the share that gives a pooled difference at least as far from 0. With several seeds the
  variance between runs is added. **After Holm**: corrected for the rows of one figure; accuracy_all is primary, the
  other figures are not corrected for each other. Shown: at most {ALPHA} after Holm.
- **standardised difference**: Cohen's d_z, the difference over its standard deviation between patients.
- **could have shown**: the smallest true difference that the test shows after Holm with about 80 % power. None where
  that is larger than a figure can be, or where even a row that is better in every patient would have p above {ALPHA}
  after Holm: swapping all patients or none is two of all arrangements.
- **ranks**: of the resamples of patients (and of runs), the same for all rows; ties are shared. They are not widened
  for few patients, as the intervals are: of two equal rows one then seems surely the best too often. Choosing the best
  row by this table is a choice by test results."""


def markdown(grid: Grid, schedules: Sequence[str], table: pd.DataFrame, against: str | None) -> str:
    """The whole of `table.md`. `against`: the row that the others are compared with; None: no such row."""
    rows = {name: _rows(table, name) for name in schedules}
    parts = [
        f"# Freeze schedules compared ({data_kind(grid)})",
        "\n".join(f"- {line}" for line in basis(grid)),
        "## Figures\n\nEstimate [95 % interval], n.",
        pipe_table(
            ["schedule", "starts from", *HEADINGS.values()],
            [[title(name), _start(grid, name), *map(cell, rows[name])] for name in schedules],
        ),
        f"## Difference to {title(against or BASELINE)}, on the same patients",
        _differences(schedules, rows, against),
        f"## Test of the difference to {title(against or BASELINE)}",
        _tests(grid, schedules, rows, against),
        "## Ranks\n\nShare of the resamples in which a row is the best of these; 95 % of its ranks, 1 is best.",
        pipe_table(
            ["schedule", *HEADINGS.values()], [[title(name), *map(rank_cell, rows[name])] for name in schedules]
        ),
        "## Confusion of lesion types\n\n"
        "Reference lesions of all seeds, by true type (rows) and predicted type (columns).",
        _confusion(grid, schedules),
        "## Definitions\n\n" + DEFINITIONS,
        "## The paper's table: other data and other definitions\n\n"
        "arXiv 1907.13409: 332 private slices. Anchors, not values to reach.",
        pipe_table(
            ["schedule", "Dice1", "Dice2", "success rate", "accuracy"],
            [[title(name), *(f"{value:.2f}" for value in figures.values())] for name, figures in PAPER.items()],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _start(grid: Grid, schedule: str) -> str:
    """What a row's weights were before fine-tuning."""
    info = next(run.info for run in grid.runs if run.info.name == schedule)
    encoder = encoder_weights(info.encoder_weights)
    return encoder if info.weights_sha256 is None else f"{encoder}, pretraining {info.weights_sha256[:8]}"


def _rows(table: pd.DataFrame, schedule: str) -> list[pd.Series]:
    """The rows of one schedule, in the order of `FIGURES`."""
    rows = table[table.schedule == schedule].set_index("figure").loc[list(FIGURES)]
    return [row for _, row in rows.iterrows()]


def _differences(schedules: Sequence[str], rows: Mapping[str, list[pd.Series]], against: str | None) -> str:
    if against is None:
        return f"No row `{BASELINE}`: there is nothing to take differences to."
    lines = [[title(name), *map(difference_cell, rows[name])] for name in schedules if name != against]
    heads = ["schedule", *HEADINGS.values()]
    return "Difference [95 % interval]; resolution.\n\n" + pipe_table(heads, lines)


def _tests(grid: Grid, schedules: Sequence[str], rows: Mapping[str, list[pd.Series]], against: str | None) -> str:
    """The primary figure in words, then every figure in numbers."""
    if against is None or not (others := _others(schedules, against)):
        return f"No row to test against `{against or BASELINE}`."
    primary = FIGURES.index(PRIMARY)
    words = [f"- {title(name)}: {verdict(rows[name][primary])}." for name in others]
    lines = [[title(name), *map(p_cell, rows[name])] for name in others]
    return "\n\n".join((
        f"{HEADINGS[PRIMARY]} (primary) against {title(against)}, {_given(grid)}, "
        f"p after Holm over {_counted(others)}:",
        "\n".join(words),
        "Every figure: p, p after Holm; standardised difference. Bold: a difference is shown.",
        pipe_table(["schedule", *HEADINGS.values()], lines),
    ))  # fmt: skip


def _others(schedules: Sequence[str], against: str) -> list[str]:
    """The rows that are tested against that one."""
    return [name for name in schedules if name != against]


def _counted(rows: Sized) -> str:
    return f"{len(rows)} rows" if len(rows) > 1 else "1 row"


def _given(grid: Grid) -> str:
    """What the tests and intervals speak of."""
    return "given these trained models" if len(grid.seeds) == 1 else "over patients and trainings"


def _confusion(grid: Grid, schedules: Sequence[str]) -> str:
    lines = []
    for name in schedules:
        counts = confusion(grid.tables(name)[1], grid.lesion_types)
        lines += [[title(name), true, *map(str, row), str(sum(row))] for true, *row in counts.itertuples()]
    return pipe_table(["schedule", "true type", *grid.lesion_types, MISSED, "n"], lines)


def pipe_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def print_table(grid: Grid, schedules: Sequence[str], table: pd.DataFrame, against: str | None) -> None:
    """The compact table on stdout: ruled on a terminal, plain elsewhere; intervals where there is room for them."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_FULL_WIDTH)
    full = console.width >= _FULL_WIDTH
    text = Table(
        title=f"{data_kind(grid)}, {len(grid.patients)} patients{', 95 % intervals' if full else ''}",
        box=box.SIMPLE if console.is_terminal else None,
        title_justify="left",
    )
    text.add_column("schedule", no_wrap=True)
    for heading in HEADINGS.values():
        text.add_column(heading, justify="right", no_wrap=full)
    for name in schedules:
        text.add_row(title(name), *(_short(row, full) for row in _rows(table, name)))
    console.print(text)
    for line in _test_lines(grid, schedules, table, against):
        console.print(line, soft_wrap=True)


def _test_lines(grid: Grid, schedules: Sequence[str], table: pd.DataFrame, against: str | None) -> list[str]:
    """What the tests of the primary figure say, a line for each difference shown, one for all the others."""
    if against is None or not (others := _others(schedules, against)):
        return []
    rows = table[table.figure == PRIMARY].set_index("schedule").loc[others]
    shown = [f"  {title(str(name))}: {verdict(row)}" for name, row in rows.iterrows() if is_shown(row)]
    head = f"{PRIMARY} against {title(against)}, {_given(grid)}, Holm over {_counted(rows)}:"
    if rows.p.isna().all():
        return [f"{head} not defined"]
    if not shown:
        return [f"{head} no difference shown{power(rows.smallest_holm.min(), rows.smallest_holm.max())}"]
    return [head, *shown, *(["  no difference shown in the other rows"] if len(shown) < len(rows) else [])]


def _short(row: pd.Series, with_interval: bool) -> str:
    interval = f" [{row.low:.2f}, {row.high:.2f}]" if with_interval and not math.isnan(row.low) else ""
    return ("–" if math.isnan(row.estimate) else f"{row.estimate:.3f}") + interval
