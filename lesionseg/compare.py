"""`compare`: the table of freeze schedules from finished runs, as text, CSV, figure and page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lesionseg.compare_table import markdown, print_table
from lesionseg.comparison_page import page
from lesionseg.errors import InputError
from lesionseg.grid import Grid, read_grid
from lesionseg.grid_basis import data_kind
from lesionseg.paper import BASELINE, PAPER, in_paper_order, title
from lesionseg.ranking import ranks
from lesionseg.schedule_figure import schedules_figure
from lesionseg.significance import significance
from lesionseg.statistics import patient_bootstrap, patient_sums
from lesionseg.writing import whole, write_text


def compare(root: Path, output: Path, *, against: str | None = None) -> pd.DataFrame:
    """Compare the runs below `root`; write table, figure and page to `output`; print the table.

    The files are `table.md`, `table.csv`, `schedules.png`, and `report.html`, the page for people.

    Args:
        root: folder of the runs, `<schedule>/fold<k>-seed<s>`.
        output: folder for the files.
        against: the row that the others are compared with; None: `baseline`, where it was run.

    Returns:
        The long table of `statistics_of`, rows in the paper's order, others after it by name.

    Raises:
        InputError: the runs are unfinished or not comparable, see `grid.read_grid`; there is no row `against`; a log of
            theirs cannot be read.
    """
    grid = read_grid(root)
    schedules = in_paper_order(grid.schedules)
    if against is None:
        against = BASELINE if BASELINE in schedules else None
    elif against not in schedules:
        expected, remedy = f"a row that was run: {', '.join(schedules)}", "name one of these"
        raise InputError("--against", expected=expected, got=against, remedy=remedy)
    table = statistics_of(grid, schedules, against)
    text, figure = markdown(grid, schedules, table, against), _figure(grid, schedules, table)
    # before a file is written: one of them that cannot be made leaves no old one beside new ones
    for_people = page(grid, {name: title(name) for name in schedules}, text, figure)
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / "table.csv", table.to_csv(index=False, float_format="%.6f", lineterminator="\n"))
    write_text(output / "table.md", text)
    with whole(output / "schedules.png") as part:
        part.write_bytes(figure)
    write_text(output / "report.html", for_people)
    print_table(grid, schedules, table, against)
    return table


def statistics_of(grid: Grid, schedules: Sequence[str], against: str | None) -> pd.DataFrame:
    """Estimates, differences to the row `against`, tests and ranks of these rows.

    Returns:
        One row per schedule and figure, with the columns of `statistics.patient_bootstrap`, `significance.significance`
        and `ranking.ranks`.
    """
    sums = {name: patient_sums(*grid.tables(name), grid.patients, grid.seeds, grid.patient_folds) for name in schedules}
    table = patient_bootstrap(sums, against)
    for more in (significance(sums, against), ranks(sums)):
        table = table.merge(more, on=["schedule", "figure"], how="left", validate="1:1")
    return table


def _figure(grid: Grid, schedules: Sequence[str], table: pd.DataFrame) -> bytes:
    """`schedules.png`."""
    n_lesions = int(table[table.figure == "success_rate"].n.iloc[0])
    n_seeds = "1 seed" if len(grid.seeds) == 1 else f"{len(grid.seeds)} seeds"
    note = f"{data_kind(grid)}; {len(grid.patients)} patients, {n_lesions} lesions, {n_seeds}"
    paper = {name: {**figures, "accuracy_found": figures["accuracy"]} for name, figures in PAPER.items()}
    figure = schedules_figure(table, schedules, {name: title(name) for name in schedules}, paper, note)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
