"""`docs/reliability.md` from what the scripts of this folder left.

Usage: reliability.py FOLDER PAGE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HEAD = """\
# Reliability

Written by `make trust`, which makes its own data, tries what can go wrong in what a user does, and counts. Each script
of `experiments/trust/` says in its head what it tries, what counts as a failure, and runs alone. `make soak`, `make
mutants` and `make floors` take longer or install more; their last results stand here too where there are some.

What is quick is an ordinary test: bad and odd input at every door with a snapshot of the messages (`tests/corpus/`),
scans in all orientations, figures of empty cases by table, a run on 1, 2 and 3 processes, pickles that would run code,
and the pages of `segment` and `compare` in a browser under their content security policy.

Not tried: a GPU, a power cut, Windows and macOS. `full_disk.py` needs root, to mount small disks. Known vulnerabilities
of the packages in `requirements.lock` were not looked up: no database of them was within reach.
"""


def page(folder: Path) -> str:
    """The whole page, a table a script in the order of their names."""
    lines = [HEAD]
    for path in sorted(folder.glob("*.json")):
        held = json.loads(path.read_text())
        lines += [f"## {path.stem}.py\n", "| what | tried | failures | |\n|---|---|---|---|"]
        lines += [f"| {row['what']} | {row['count']} | {row['failures']} | {row['detail']} |" for row in held["rows"]]
        lines += [f"\nSeed {held['seed']}, commit {held['commit']}, {held['machine']}.\n"]
        lines += [f"- {fault}" for fault in held["faults"]] + [""] * bool(held["faults"])
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(page(Path(sys.argv[1])))
    print(f"written: {sys.argv[2]}")
