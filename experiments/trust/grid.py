"""A grid killed at random moments, again and again, against the same grid left alone: is the comparison the same?

Usage: grid.py [--kills N] [--seed N] [--output JSON]

Both grids are `make finetune` on the phantom from nothing: data, pretraining, two schedules that freeze and thaw, two
folds. The whole process group gets SIGKILL, as when the power fails, and the same command is given again, in the end
without a kill. Compared byte by byte: all of `compare/` but the page, which holds times, and the tables of every cell.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rows import Row, asked, publish

ROOT = Path(__file__).parents[2]
ROWS = "SCHEDULES=hierarchical_freezing hierarchical_unfreezing"
COMMAND = ("make", "finetune", ROWS, "FOLDS=2", "EPOCHS=6", "PRETRAIN_EPOCHS=6")
CELL_TABLES = ("slices.csv", "lesions.csv", "split.json", "schedule.json")


def started(run: Path) -> subprocess.Popen[bytes]:
    """The grid in a run folder; what it says goes to a file beside it."""
    # It must not take part in a make that this program was started from.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    with run.with_suffix(".log").open("ab") as log:
        command = [*COMMAND, f"RUN={run}"]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)


def ended(run: Path, within_s: float | None = None) -> bool:
    """Let the grid go on, to its end or until it is killed after so many seconds; did it end?"""
    process = started(run)
    try:
        if process.wait(within_s):
            sys.exit("the grid failed\n" + run.with_suffix(".log").read_text()[-3000:])
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False
    return True


def seconds(run: Path) -> float:
    """How long the grid takes to its end."""
    began = time.monotonic()
    ended(run)
    return time.monotonic() - began


def results(run: Path) -> dict[str, bytes]:
    """What the two grids must share, by path."""
    compared = [path for path in (run / "compare").iterdir() if path.suffix in (".csv", ".md", ".png")]
    cells = [cell / table for cell in run.glob("finetune/*/fold*") for table in CELL_TABLES]
    return {str(path.relative_to(run)): path.read_bytes() for path in (*compared, *cells)}


def main() -> int:
    options = asked(__file__, kills=(5, "of the whole grid, at most"))
    rng, kills = np.random.default_rng(options.seed), 0
    with tempfile.TemporaryDirectory() as name:
        whole, killed = Path(name) / "whole", Path(name) / "killed"
        usual_s, idle_s = seconds(whole), seconds(whole)  # idle: nothing is left to do, what every new start costs
        longest_s = idle_s + 1.5 * (usual_s - idle_s) / options.kills  # so that all of them fit into one grid
        while kills < options.kills and not ended(killed, rng.uniform(idle_s / 4, longest_s)):
            kills += 1
        ended(killed)
        held, expected = results(killed), results(whole)
    faults = [path for path in sorted({*held, *expected}) if held.get(path) != expected.get(path)]
    detail = f"{len(expected)} tables and figures compared"
    return publish([Row("kills of make finetune at random moments", kills, len(faults), detail)],
                   [f"{path} differs" for path in faults], options.output, options.seed)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
