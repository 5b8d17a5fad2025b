"""`make dashboard` without an account: the definition it writes, against what a run really logs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from lesionseg.cli import main
from lesionseg.compare import compare
from lesionseg.runs import RunInfo

pytest.importorskip("wandb_workspaces", reason="needs the extra `dashboard`")
SCRIPT = Path(__file__).parents[2] / "experiments" / "dashboard.py"


@pytest.fixture(scope="module")
def grid(tmp_path_factory, finetuning):
    """A grid of one run, validated once."""
    root = tmp_path_factory.mktemp("dashboard") / "finetune"
    short = ["--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1"]
    assert main(finetuning(root / "baseline" / "fold0-seed0", *short, schedule="baseline")) == 0
    compare(root, root.with_name("compare"))
    return root


def dashboard(runs, comparison, home, **more):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    command = [sys.executable, str(SCRIPT), str(runs), str(comparison)]
    return subprocess.run(
        command,
        env={**environment, "HOME": str(home), **more},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def done(grid, tmp_path_factory):
    return dashboard(grid, grid.with_name("compare"), tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def definition(done, grid):
    assert done.returncode == 0, done.stderr
    return json.loads((grid.with_name("compare") / "dashboard.json").read_text())


def panels(of):
    """Every panel below a definition."""
    if isinstance(of, dict):
        return [of] * ("viewType" in of) + [p for value in of.values() for p in panels(value)]
    return [p for value in of for p in panels(value)] if isinstance(of, list) else []


def test_without_an_account_it_says_how_to_publish(done, grid):
    assert "nobody is logged in" in done.stdout
    assert "wandb login" in done.stdout
    assert f"wandb sync {grid}" in done.stdout


@pytest.mark.parametrize("part", ["workspace", "report"])
def test_every_panel_shows_what_a_run_logs(definition, grid, part):
    logged = set(pd.read_csv(grid / "baseline" / "fold0-seed0" / "metrics.csv").columns)
    lines = [p["config"] for p in panels(definition[part]) if p["viewType"] == "Run History Line Plot"]
    shown = {metric for config in lines for metric in config["metrics"]}
    assert shown <= logged
    for kind in ("drift", "trains", "lr", "grad_norm"):
        assert {name for name in logged if name.startswith(f"{kind}/")} <= shown
    assert {config["xAxis"] for config in lines} == {"epoch"}  # phases stand under one another
    assert {config["groupBy"].split(".")[0] for config in lines} == {"name"}  # the schedule in a run's config
    assert {"minmax", "stddev"} == {config["groupArea"] for config in lines}


def test_the_workspace_picks_the_runs_of_this_comparison(definition, grid):
    (runs,) = definition["workspace"]["spec"]["section"]["runSets"]
    (chosen,) = runs["filters"]["filters"]
    assert (chosen["key"], chosen["op"]) == ({"section": "config", "name": "fingerprint"}, "IN")
    assert chosen["value"] == [RunInfo.read(grid / "baseline" / "fold0-seed0").fingerprint]
    limits = [p["config"]["limit"] for p in panels(definition["workspace"]) if p["viewType"] == "Run History Line Plot"]
    assert set(limits) == {1}  # as many as there are runs


def test_the_report_holds_the_statistics(definition, grid):
    text = json.dumps(definition["report"])
    for line in (grid.with_name("compare") / "table.md").read_text().splitlines():
        assert json.dumps(line)[1:-1] in text


def test_where_wandb_cannot_be_reached_the_definition_is_written_and_the_reason_told(grid, tmp_path):
    shutil.copy(grid.with_name("compare") / "table.md", tmp_path)
    nowhere = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    done = dashboard(grid, tmp_path, tmp_path / "home", **nowhere)
    assert "Traceback" not in done.stderr
    assert done.returncode == 0
    assert done.stdout.startswith("W&B says: ")
    assert "wandb login" in done.stdout
    assert set(json.loads((tmp_path / "dashboard.json").read_text())) == {"workspace", "report"}


def test_a_missing_comparison_is_refused_in_one_line(grid, tmp_path):
    done = dashboard(grid, tmp_path, tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("lesionseg: wrong input: ")
    assert "make compare" in done.stderr
    assert not list(tmp_path.glob("dashboard.json"))


def test_a_table_from_before_a_run_was_tested_is_refused(grid, tmp_path):
    table = shutil.copy(grid.with_name("compare") / "table.md", tmp_path)
    os.utime(table, (0, 0))
    done = dashboard(grid, tmp_path, tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"lesionseg: wrong input: {table}: ")
    assert "make compare" in done.stderr
    assert not list(tmp_path.glob("dashboard.json"))
