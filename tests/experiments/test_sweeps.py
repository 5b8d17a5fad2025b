"""The grid on many machines: the sweep file and the SLURM script name the cells of the Makefile, and run them."""

import os
import shlex
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import yaml
from test_yaml import TINY
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from lesionseg.grid import read_grid

ROOT = Path(__file__).parents[2]
SWEEP = ROOT / "experiments" / "sweeps" / "grid.yaml"
SLURM = ROOT / "experiments" / "slurm" / "grid.sbatch"

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def shell(*words, **environment):
    """Without what an outer make hands down (these tests run under `make test`)."""
    inherited = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "GNUMAKEFLAGS"}
    environment = {name: value for name, value in os.environ.items() if name not in inherited} | environment
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)


def echoed(*words, **environment):
    """The words of the `lesionseg` command that something comes to."""
    done = shell(*words, "LESIONSEG=echo", **environment)
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout)


def agent_commands():
    """The command of each cell, put together as wandb's agent does it, with its own functions."""
    sweep = yaml.safe_load(SWEEP.read_text())
    assert (sweep["method"], sweep["program"]) == ("grid", "make")
    names = list(sweep["parameters"])
    commands = []
    for values in product(*(parameter["values"] for parameter in sweep["parameters"].values())):
        args = {name: {"value": value} for name, value in zip(names, values, strict=True)}
        macros = {**create_sweep_command_args({"args": args}), "program": [sweep["program"]]}
        command = create_sweep_command(sweep["command"])
        commands.append([word for part in command for word in _filled(part, macros)])
    return commands


def _filled(part, macros):
    return macros[part[2:-1]] if part.startswith("${") else [part]


def grid_commands(*args):
    """What `make finetune` runs, cell by cell, without the place in the grid."""
    done = shell("make", "-n", "finetune", *args)
    lines = [line for line in done.stdout.splitlines() if "--cell" in line]
    return [shlex.split(line.split(".venv/bin/lesionseg ")[1])[:-2] for line in lines]


def test_the_sweep_is_the_grid():
    commands = agent_commands()
    assert len(commands) == 15
    assert sorted(" ".join(words[2:]) for words in commands) == sorted(shell("make", "-s", "cells").stdout.splitlines())
    runs = [words for words in grid_commands() if "experiments/schedules/baseline.yaml" in words]
    assert [echoed(*words) for words in commands if "SCHEDULE=baseline" in words] == runs


def test_a_command_of_the_sweep_leaves_a_run_that_compare_reads(tmp_path, slices_store, pretrained):
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "lesion").symlink_to(pretrained)
    words = next(words for words in agent_commands() if "SCHEDULE=hierarchical_unfreezing" in words)
    here = [f"RUN={tmp_path}", f"DATA={slices_store.parent}", f"LESIONSEG={sys.executable} -m lesionseg.cli"]
    done = shell(*words, *here, f"FIT_OPTIONS={TINY}")
    assert done.returncode == 0, done.stderr
    (run,) = read_grid(tmp_path / "finetune").runs
    assert run.folder == tmp_path / "finetune" / "hierarchical_unfreezing" / "fold0-seed0"
    assert run.info.weights_sha256 is not None


@pytest.mark.parametrize("task", [0, 3, 7])
def test_a_slurm_task_runs_the_cell_of_its_number(task):
    """Whatever is said for make beside the script, `lesionseg` itself included, goes through."""
    given = ["NAME=mine", "SCHEDULES=l2_sp no_freezing", "FOLDS=2", "SEEDS=0 7", "EPOCHS=9", "PROFILE=paper"]
    assert echoed("bash", str(SLURM), *given, SLURM_ARRAY_TASK_ID=str(task)) == grid_commands(*given)[task]


def test_a_slurm_task_beyond_the_grid_is_refused():
    done = shell("bash", str(SLURM), "LESIONSEG=echo", SLURM_ARRAY_TASK_ID="15")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--array: expected 0 to 14; got 15" in done.stderr


def test_slurm_reads_the_options_of_the_script():
    """Options count only above the first command."""
    lines = SLURM.read_text().splitlines()
    options = [i for i, line in enumerate(lines) if line.startswith("#SBATCH ")]
    commands = [i for i, line in enumerate(lines) if line and not line.startswith("#")]
    assert options
    assert max(options) < min(commands)


def test_a_cell_without_a_name_is_refused():
    done = shell("make", "cell", "SCHEDULE=baseline", "FOLD=0")
    assert done.returncode == 2
    assert "expected SCHEDULE=, FOLD= and SEED=; got baseline 0; take a line of make cells" in done.stderr


def test_an_array_without_tasks_or_with_wrong_words_is_told_in_one_line():
    done = shell("bash", str(SLURM), SLURM_ARRAY_TASK_ID="")
    assert "submit it with --array=0-N" in done.stderr
    done = shell("bash", str(SLURM), "DEVICES=x", SLURM_ARRAY_TASK_ID="0")
    assert done.returncode == 2
    assert "DEVICES: expected a whole number" in done.stderr
    assert "--array" not in done.stderr
