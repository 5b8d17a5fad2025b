"""The whole small chain on the oldest versions of its dependencies that `pyproject.toml` allows.

Usage: floors.py [--seed N] [--output JSON]   (`make floors`, which installs them into an environment of their own)

It is what a user gets whose other packages hold ours back. Nothing but the end of each command is looked at: numbers
may differ from those of newer versions in their last digits.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import tomllib
from importlib.metadata import version
from pathlib import Path

import small_grid
from rows import Row, asked, publish

ROOT = Path(__file__).parents[2]


def mended(manifest: Path, prepare: list[str]) -> list[str]:
    """What is wrong with how a manifest that was cut off is met, which each library tells in its own way."""
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:-20])
    looked = small_grid.run(["check", str(manifest.parent), "--output", f"{manifest.parent}.png"])
    again = small_grid.run(prepare)
    if looked.returncode != 2 or "Traceback" in looked.stderr:
        return [f"check of a torn manifest: status {looked.returncode}"]
    return [] if again.returncode == 0 and manifest.read_bytes() == whole else ["a torn manifest was not mended"]


def main() -> int:
    options = asked(__file__)
    os.environ.update(WANDB_MODE="offline", OMP_NUM_THREADS="1")
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    oldest = {re.split(r"[\[>]", line)[0]: line.partition(">=")[2] for line in wanted}
    newer = [f"{name} {version(name)}, not {least}" for name, least in oldest.items()
             if not version(name).startswith(least)]  # fmt: skip
    faults = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = folder / "runs" / "baseline" / "fold0-seed0"
        steps = (
            small_grid.phantom(folder), small_grid.prepare_lits(folder), small_grid.prepare(folder, folder / "slices"),
            small_grid.fit_liver(folder), small_grid.fit(folder, run),
            ["compare", str(folder / "runs"), "--output", str(folder / "compare")],
            small_grid.export(folder, run, folder / "model"), small_grid.segment(folder, folder / "studies"),
            ["evaluate", f"{folder}/lits", "--model", f"{folder}/model", "--exclude-trained", "--output",
             str(folder / "evaluation")],
        )  # fmt: skip
        for words in steps:
            done = small_grid.run(words)
            if done.returncode:
                faults.append(f"{words[0]}: status {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
        torn = mended(folder / "slices" / "manifest.json", small_grid.prepare(folder, folder / "slices"))
        faults += torn
    detail = f"{len(oldest) - len(newer)} of {len(oldest)} packages at their oldest"
    detail += f"; others ask for {'; '.join(newer)}" if newer else ""
    rows = [
        Row("commands on the oldest allowed versions", len(steps), len(faults) - len(torn), detail),
        Row("a torn manifest, refused and written anew", 1, len(torn)),
    ]
    return publish(rows, faults, options.output, options.seed)


if __name__ == "__main__":
    sys.exit(main())
