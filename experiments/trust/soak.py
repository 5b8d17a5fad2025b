"""The whole chain again and again in one process, with kills in between: flat memory and open files, nothing lost.

Usage: soak.py [--minutes N] [--seed N] [--output JSON]

A round makes everything anew in one place: prepare, pretrain, finetune, compare, export, segment. Before half of the
steps, the same command runs as a process of its own and is killed at a random moment. What a round makes must be equal
to what the first one made, to the last bit. Memory (resident) and open files are read after each round: the median of
the last third of the rounds against that of the third before. Models and tables name the commit of the sources: commit
nothing meanwhile.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import small_grid
import torch
from kills import verbs
from rows import Row, asked, publish

from lesionseg.cli import main as lesionseg
from lesionseg.study_folder import file_sha256

#: Growth of memory from one third of the rounds to the next that is noise.
FLAT = 1.03


def steps(folder: Path) -> dict[Path, tuple[list[str], Callable[[Path], object]]]:
    """Output → command line and what a reader makes of the output, in order."""
    known = verbs(folder)
    run, compared = folder / "runs" / "baseline" / "fold0-seed0", folder / "compare"
    return {
        folder / "lits": (small_grid.prepare_lits(folder), known["prepare"].content),
        folder / "slices": (small_grid.prepare(folder, folder / "slices"), known["prepare"].content),
        folder / "liver": (small_grid.fit_liver(folder), known["fit"].content),
        run: (small_grid.fit(folder, run), known["fit"].content),
        compared: (
            ["compare", str(folder / "runs"), "--output", str(compared)],
            lambda path: [file_sha256(path / name) for name in ("table.csv", "table.md")],
        ),
        folder / "model": (small_grid.export(folder, run, folder / "model"), known["export"].content),
        folder / "studies": (small_grid.segment(folder, folder / "studies"), known["segment"].content),
    }


def a_round(
    folder: Path, rng: np.random.Generator, usual_s: dict[Path, float]
) -> tuple[dict[str, object], int, list[str]]:
    """All steps: what they made, how many kills there were, what went wrong."""
    made: dict[str, object] = {}
    kills, faults = 0, []
    for output, (words, content) in steps(folder).items():
        if output in usual_s and rng.random() < 0.5:
            kills += killed(words, float(rng.uniform(0, usual_s[output])))
        began, said = time.monotonic(), io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = lesionseg(words)
        usual_s.setdefault(output, time.monotonic() - began + 3)  # a process of its own also has to start
        if status:
            faults.append(f"{words[0]}: status {status}: {said.getvalue().strip().splitlines()[-1:]}")
        made[output.name] = content(output)
    return made, kills, faults


def killed(words: list[str], after_s: float) -> bool:
    """Start a command and kill it with all it has started; False: it had ended before."""
    quiet = subprocess.DEVNULL
    process = subprocess.Popen([*small_grid.LESIONSEG, *words], stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        process.wait(after_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def resident_mb() -> float:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> int:
    options = asked(__file__, minutes=(20.0, "that it may take"))
    os.environ.update(WANDB_MODE="disabled", OMP_NUM_THREADS="1")
    torch.set_num_threads(1)  # as the killed processes have it: sums of other threads differ in their last digits
    rng, began = np.random.default_rng(options.seed), time.monotonic()
    memory, files, kills, faults, first = [], [], 0, [], None
    usual_s: dict[Path, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if lesionseg(small_grid.phantom(folder)):
            sys.exit("the phantom failed")
        while time.monotonic() - began < options.minutes * 60 or len(memory) < 3:
            made, killed_now, wrong = a_round(folder, rng, usual_s)
            first = made if first is None else first
            faults += [f"round {len(memory)}: {fault}" for fault in wrong]
            changed = [name for name, content in made.items() if content != first[name]]
            faults += [f"round {len(memory)}: another {name} than in the first" for name in changed]
            kills += killed_now
            memory.append(resident_mb())
            files.append(len(list(Path("/proc/self/fd").iterdir())))
            for path in folder.iterdir():
                if path.name != "source":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
    third = max(len(memory) // 3, 1)
    middle, last = (float(np.median(part)) for part in (memory[-2 * third : -third], memory[-third:]))
    grown = [f"memory grew from {middle:.0f} to {last:.0f} MB"] * (last > FLAT * middle)
    opened = [f"open files grew from {files[third]} to {files[-1]}"] * (files[-1] > files[third])
    rows = [
        Row("rounds of the whole chain in one process", len(memory), len(faults), f"{kills} kills in between"),
        Row("memory of that process, flat", 1, len(grown), f"{middle:.0f} MB, in the end {last:.0f} MB"),
        Row("open files of that process, flat", 1, len(opened), f"{files[third]}, in the end {files[-1]}"),
    ]
    return publish(rows, [*faults, *grown, *opened], options.output, options.seed)


if __name__ == "__main__":
    sys.exit(main())
