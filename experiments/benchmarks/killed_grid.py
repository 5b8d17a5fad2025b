"""A grid killed at random moments, again and again, against the same grid left alone: is the comparison the same?

Usage: killed_grid.py [--kills N] [--seed N] [--epochs N] [--output JSON]

Both grids are `make finetune` on the phantom from nothing: data, pretraining, two schedules that freeze and thaw, two
folds. The whole process group gets SIGKILL, as when the power fails; the same command is then given again. Compared
byte by byte: all of `compare/` but the page, which holds times, and the tables of every cell.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCHEDULES = "hierarchical_freezing hierarchical_unfreezing"
CELL_TABLES = ("slices.csv", "lesions.csv", "split.json", "schedule.json")


def start(name: str, epochs: int) -> subprocess.Popen[str]:
    command = ["make", "finetune", f"NAME={name}", f"SCHEDULES={SCHEDULES}", "FOLDS=2", f"EPOCHS={epochs}"]
    # the grid must not take part in a make that this program was started from
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    log = (ROOT / "runs" / f"{name}.log").open("a")
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=log, stderr=log, text=True, start_new_session=True
    )


def finish(name: str, epochs: int) -> float:
    """Seconds that the command takes to its end."""
    began = time.perf_counter()
    if start(name, epochs).wait():
        sys.exit(f"the grid failed: runs/{name}.log")
    return time.perf_counter() - began


def kill_after(seconds: float, name: str, epochs: int) -> bool:
    """Start the command and kill all of it after so long; False: it had ended before."""
    grid = start(name, epochs)
    try:
        if grid.wait(timeout=seconds):
            sys.exit(f"the grid failed: runs/{name}.log")
    except subprocess.TimeoutExpired:
        os.killpg(grid.pid, signal.SIGKILL)
        grid.wait()
        return True
    return False


def results(name: str) -> dict[str, bytes]:
    """What the two grids must share, by path."""
    run = ROOT / "runs" / name
    compared = [path for path in (run / "compare").iterdir() if path.suffix in (".csv", ".md", ".png")]
    cells = [cell / table for cell in run.glob("finetune/*/fold*") for table in CELL_TABLES]
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted([*compared, *cells])}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark/killed_grid.json"))
    options = parser.parse_args()
    from lesionseg.runs import provenance

    for name in ("undisturbed", "killed"):
        shutil.rmtree(ROOT / "runs" / name, ignore_errors=True)
    (ROOT / "runs").mkdir(exist_ok=True)
    whole = finish("undisturbed", options.epochs)
    idle = finish("undisturbed", options.epochs)  # nothing left to do: what every new start costs
    moments = random.Random(options.seed)
    killed = []
    while len(killed) < options.kills:
        # so that even ten starts that get on well do not reach the end
        seconds = moments.uniform(idle / 4, idle + 1.5 * (whole - idle) / options.kills)
        if not kill_after(seconds, "killed", options.epochs):
            sys.exit(f"the grid ended before the {len(killed) + 1}th kill: choose more epochs")
        killed.append(seconds)
        print(f"kill {len(killed)} after {seconds:.1f} s", flush=True)
    finish("killed", options.epochs)
    ours, theirs = results("killed"), results("undisturbed")
    different = sorted(path for path in {*ours, *theirs} if ours.get(path) != theirs.get(path))
    print(f"{len(theirs)} files, {len(different)} different after {len(killed)} kills", *different, sep="\n")
    content = {"files": sorted(theirs), "different": different, "killed_after_s": killed, "whole_s": whole,
               "seed": options.seed, "epochs": options.epochs, **provenance()}  # fmt: skip
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(content, indent=1) + "\n")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
