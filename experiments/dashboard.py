"""A W&B workspace and report of a comparison: written to a file, and published where someone is logged in.

Usage: dashboard.py RUNS COMPARISON [--entity NAME]
    RUNS: folder of the grid, e.g. runs/phantom/finetune       COMPARISON: what `lesionseg compare` wrote of it

The definition, `dashboard.json` in COMPARISON, is what W&B's own interface stores: `workspace` and `report`. Needs the
extra `dashboard` (wandb-workspaces). Publishing creates the project where it is missing; the runs come by themselves
with WANDB_MODE=online, or later by `wandb sync`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr

from lesionseg.errors import InputError
from lesionseg.grid import Grid, read_grid
from lesionseg.results import LESIONS_FILE
from lesionseg.writing import write_text

PROJECT, SCHEDULE = "lesionseg", "name"
#: Stands where the definition names an account, as long as none is known.
NOBODY = "entity"
#: Sections that are open at first.
OPEN = 3
VALIDATION = ("dice1", "dice2", "success_rate", "accuracy_all", "accuracy_found", "false_positives_per_slice")
LOSSES = ("loss", "loss_dice", "loss_cross_entropy")


class NotPublished(Exception):  # noqa: N818 (the definition is written all the same)
    """Why workspace and report are not in W&B."""


def panel(metric: str, runs: int, spread: str = "minmax", log: bool = False) -> wr.LinePlot:
    """A figure by epoch: one line a schedule, mean over folds and seeds (so many runs in all), with their spread."""
    return wr.LinePlot(
        title=metric,
        x="epoch",
        y=[metric],
        groupby=wr.Config(SCHEDULE),
        groupby_aggfunc="mean",
        groupby_rangefunc=spread,
        log_y=log,
        max_runs_to_show=runs,
    )


def sections(grid: Grid) -> dict[str, list]:
    """Panels by heading. All have the epoch as their axis, so that the phases of all stand under one another."""
    names, draw = blocks(grid), partial(panel, runs=len(grid.runs))
    per_type = [f"val/dice_{name}" for name in grid.lesion_types]
    return {
        "Schedules side by side": [draw(f"val/{name}") for name in VALIDATION],
        "Phases": [draw("phase"), *(draw(f"trains/{name}") for name in names)],
        "Drift from the start weights, by block": [draw(f"drift/{name}") for name in names],
        "Spread of folds and seeds": [draw(f"val/{name}", spread="stddev") for name in ("dice1", "accuracy_all")],
        "Lesion types": [draw(name) for name in per_type],
        "Loss": [draw(f"train/{name}") for name in LOSSES],
        "Rates": [draw(f"lr/{name}") for name in names],
        "Gradients": [draw(f"grad_norm/{name}", log=True) for name in names],
        "Pictures and lesions": [wr.MediaBrowser(media_keys=["overlays/burned_in", "val/lesions"], num_columns=3)],
    }


def blocks(grid: Grid) -> list[str]:
    """Blocks of the net from the input on, as the schedules of the runs name them."""
    found: dict[str, None] = {}
    for run in grid.runs:
        path = run.folder / "schedule.json"
        if not path.exists():
            raise InputError(path, expected="the schedule of the run", got="no such file", remedy="run this cell again")
        found |= dict.fromkeys(json.loads(path.read_text())["steps"][0]["rates"])
    return list(found)


def runs_of(grid: Grid) -> list:
    """What picks the runs of this comparison: their fingerprints.

    Their group holds more: runs that were replaced, and rows that were moved away.
    """
    return [expr.Config("fingerprint").isin(sorted({run.info.fingerprint for run in grid.runs}))]


def workspace(grid: Grid, entity: str) -> ws.Workspace:
    """The schedules side by side, phases aligned, drift by block, the spread of folds and seeds."""
    return ws.Workspace(
        entity=entity,
        project=PROJECT,
        name="Freeze schedules",
        sections=[
            ws.Section(name=name, panels=panels, is_open=i < OPEN)
            for i, (name, panels) in enumerate(sections(grid).items())
        ],
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=len(grid.runs)),
        runset_settings=ws.RunsetSettings(filters=runs_of(grid), groupby=[expr.Config(SCHEDULE)]),
    )


def report(grid: Grid, entity: str, text: str) -> wr.Report:
    """`table.md` with its statistics, then the curves behind it."""
    runset = wr.Runset(name="runs of the comparison", filters=runs_of(grid), groupby=[f"config.{SCHEDULE}"])
    blocks_of_text = [wr.MarkdownBlock(text=text)]
    for name, panels in sections(grid).items():
        blocks_of_text += [wr.H2(text=name), wr.PanelGrid(runsets=[runset], panels=panels)]
    return wr.Report(project=PROJECT, entity=entity, title="Freeze schedules compared", blocks=blocks_of_text)


def refuse_older(table: Path, grid: Grid) -> None:
    """Refuse a table that a run has been tested after: its figures would stand beside the curves of another one.

    Raises:
        InputError: there is such a run.
    """
    later = [run.folder for run in grid.runs if (run.folder / LESIONS_FILE).stat().st_mtime > table.stat().st_mtime]
    if later:
        raise InputError(table, expected="a comparison of the runs as they are now", remedy="make compare",
                         got=f"one from before {len(later)} of them was tested, {later[0]} for one")  # fmt: skip


def account() -> str | None:
    """The entity of who is logged in; None where nobody is. Whatever W&B raises where it cannot be reached."""
    try:
        return wandb.Api().default_entity
    except wandb.errors.UsageError:
        return None


def dashboards(grid: Grid, entity: str, text: str) -> dict[str, ws.Workspace | wr.Report]:
    """All that is published of a comparison, by the name it has in the definition."""
    return {"workspace": workspace(grid, entity), "report": report(grid, entity, text)}


def write_definition(path: Path, made: Mapping[str, ws.Workspace | wr.Report]) -> None:
    """What W&B would store, as JSON."""
    plain = {
        name: thing._to_model().model_dump(by_alias=True, exclude_none=True, mode="json")
        for name, thing in made.items()
    }
    write_text(path, json.dumps(plain, indent=1) + "\n")


def publish(grid: Grid, entity: str | None, text: str) -> None:
    """Publish workspace and report, and print their addresses.

    Raises:
        NotPublished: nobody is logged in, or W&B could not be reached or refused.
    """
    try:
        logged_in = account()
        if logged_in is None:
            raise NotPublished("nobody is logged in to W&B")
        for name, thing in dashboards(grid, entity or logged_in, text).items():
            print(f"{name}: {thing.save().url}")
    except NotPublished:
        raise
    except Exception as error:  # its own errors and those of the libraries below it have no common class
        raise NotPublished(f"W&B says: {(str(error) or type(error).__name__).splitlines()[0]}") from error


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("comparison", type=Path)
    parser.add_argument("--entity", help="user or team; none: your default one")
    options = parser.parse_args(argv)
    try:
        table = options.comparison / "table.md"
        if not table.exists():
            raise InputError(table, expected="a comparison", got="no such file", remedy="make compare")
        grid, text = read_grid(options.runs), table.read_text()
        refuse_older(table, grid)
    except InputError as error:
        print(f"lesionseg: wrong input: {error}", file=sys.stderr)
        return 2
    definition = options.comparison / "dashboard.json"
    write_definition(definition, dashboards(grid, options.entity or NOBODY, text))
    try:
        publish(grid, options.entity, text)
    except NotPublished as why:
        print(f"{why}: the definition of workspace and report is in {definition}\n"
              "to publish them: `.venv/bin/wandb login`, upload the runs that were logged offline\n"
              f"(`.venv/bin/wandb sync {options.runs}/*/*/wandb/offline-run-*`),\n"
              "then `make dashboard` again")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
