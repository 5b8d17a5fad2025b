"""Our rows and the neighbours in one table: figures with intervals, time and memory of a training, differences, tests.

Usage: table.py OUT --rows NAME ... --folds N --seeds N ... [--against ROW]
    OUT: what run.py fills, with these rows and perhaps more; takes table.md

Statistics and tests are those of `lesionseg compare`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
from cell import PEER_FILE

from lesionseg.compare import statistics_of
from lesionseg.compare_table import FIGURE_DEFINITIONS, HEADINGS, pipe_table
from lesionseg.errors import InputError
from lesionseg.grid import Grid, read_grid
from lesionseg.grid_basis import basis, data_kind
from lesionseg.paper import in_paper_order, title
from lesionseg.statistics import FIGURES, PRIMARY
from lesionseg.wording import cell, difference_cell, p_cell, verdict
from lesionseg.writing import write_text

COSTS = {"wall_s": "wall, s", "cpu_s": "CPU, s", "peak_mib": "peak memory, MiB"}
DEFINITIONS = f"""\
{FIGURE_DEFINITIONS}
- **wall, CPU, peak memory**: of the whole process of one training, from its start to the tables of its test: imports
  and test are in it, data preparation and pretraining are not. Median [range] over folds and seeds.
- Intervals, tests and words are those of `lesionseg compare`, p after Holm over all other rows."""


def cost_cells(grid: Grid, row: str) -> list[str]:
    """Median [range] of each cost over the runs of a row."""
    costs = [json.loads((run.folder / "cost.json").read_text()) for run in grid.runs if run.info.name == row]
    return [_spread([cost[name] for cost in costs]) for name in COSTS]


def neighbours(grid: Grid) -> dict[str, dict[str, Any]]:
    """What `peer.json` says of each row that is not ours; a number that differs between its runs as their range."""
    held: dict[str, list[dict[str, Any]]] = {}
    for run in grid.runs:
        if (path := run.folder / PEER_FILE).exists():
            held.setdefault(run.info.name, []).append(json.loads(path.read_text()))
    return {row: {name: _alike([one[name] for one in runs]) for name in runs[0]} for row, runs in held.items()}


def _alike(values: Sequence[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else f"{min(values)} to {max(values)}"


def start(grid: Grid, row: str, theirs: dict[str, dict[str, Any]]) -> str:
    """What the weights of a row were before its training."""
    if row in theirs and theirs[row]["start"] is not None:
        return theirs[row]["start"]
    weights = next(run.info.weights_sha256 for run in grid.runs if run.info.name == row)
    return "nothing" if weights is None else f"pretraining {weights[:8]}"


def facts(row: str, peer: dict[str, Any]) -> str:
    """One line on a neighbour."""
    told = [f"{name} {value}" for name, value in peer.items() if name not in ("neighbour", "start")]
    return f"{title(row)}: {', '.join([peer['neighbour'], *told])}."


def markdown(out: Path, grid: Grid, table: pd.DataFrame, order: Sequence[str], against: str) -> str:
    """The whole of `table.md`."""
    theirs = neighbours(grid)
    rows = {row: [r for _, r in _of(table, row).iterrows()] for row in order}
    others = [row for row in order if row != against]
    lines = [*basis(grid), *(facts(row, peer) for row, peer in theirs.items())]
    lines += preparations(out, [row for row in theirs if row.startswith("nnunet")])
    heads = ["row", *HEADINGS.values()]
    return "\n\n".join((
        f"# Against the neighbours ({data_kind(grid)})",
        "\n".join(f"- {line}" for line in lines),
        "## Figures, time and memory\n\nEstimate [95 % interval], n; median [range].",
        pipe_table(["row", "starts from", *HEADINGS.values(), *COSTS.values()],
                   [[title(row), start(grid, row, theirs), *map(cell, rows[row]), *cost_cells(grid, row)]
                    for row in order]),
        f"## Difference to {title(against)}, on the same patients\n\nDifference [95 % interval]; resolution.",
        pipe_table(heads, [[title(row), *map(difference_cell, rows[row])] for row in others]),
        f"## Test of the difference to {title(against)}\n\naccuracy_all (primary):",
        "\n".join(f"- {title(row)}: {verdict(rows[row][FIGURES.index(PRIMARY)])}." for row in others),
        "Every figure: p, p after Holm; standardised difference. Bold: a difference is shown.",
        pipe_table(heads, [[title(row), *map(p_cell, rows[row])] for row in others]),
        f"## Definitions\n\n{DEFINITIONS}",
    )) + "\n"  # fmt: skip


def preparations(out: Path, rows: Sequence[str]) -> list[str]:
    """What these rows of nnU-Net needed before their cells, one line each."""
    names = {f"pretraining_of_{row}": f"pretraining of {title(row)}" for row in rows}
    if rows:
        names = {"datasets": "planning and preprocessing", **names}
    costs = {name: out / "nnunet" / folder / "cost.json" for folder, name in names.items()}
    held = {name: json.loads(path.read_text()) for name, path in costs.items() if path.exists()}
    return [
        f"nnU-Net's {name}: {c['wall_s']:.0f} s, {c['cpu_s']:.0f} s of CPU, {c['peak_mib']:.0f} MiB."
        for name, c in held.items()
    ]


def _of(table: pd.DataFrame, row: str) -> pd.DataFrame:
    return table[table.schedule == row].set_index("figure").loc[list(FIGURES)]


def _spread(values: Sequence[float]) -> str:
    ends = f" [{min(values):.0f}, {max(values):.0f}]" if len(values) > 1 else ""
    return f"{median(values):.0f}{ends}"


def write(out: Path, against: str, rows: Sequence[str], folds: int, seeds: Sequence[int]) -> str:
    """Write `table.md` of these rows, folds and seeds; returns it.

    Raises:
        InputError: a row is not there; runs that cannot be compared, see `lesionseg.grid`.
    """
    grid = read_grid(out / "rows", lambda row, fold, seed: row in rows and fold < folds and seed in seeds)
    if missing := set(rows) - set(grid.schedules):
        got = f"none of {', '.join(sorted(missing))}"
        raise InputError(
            out / "rows", expected=f"the rows {', '.join(rows)}", got=got, remedy="train or leave them out"
        )
    theirs = neighbours(grid)
    order = [*in_paper_order(set(grid.schedules) - set(theirs)), *theirs]
    text = markdown(out, grid, statistics_of(grid, order, against), order, against)
    write_text(out / "table.md", text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", default="no_freezing")
    parser.add_argument("--rows", nargs="+", required=True)
    parser.add_argument("--folds", type=int, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    try:
        print(write(**vars(parser.parse_args())))
    except InputError as error:
        sys.exit(f"peers: {error}")


if __name__ == "__main__":
    main()
