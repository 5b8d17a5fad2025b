"""The properties of what must be exact, on a thousand random cases each and more, against slow independent versions.

Usage: exactness.py [--seed N] [--output JSON]

They are the property tests of `tests/`, which `make test` runs on fewer cases: folds (no patient on both sides, every
case tested once, those of scikit-learn), lesions and Dice (flood fill, scikit-learn), schedules, clocks and plateaus,
boxes, crops and back (the slowest one on 250 cases); and the figures on 1, 2 and 3 processes.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from rows import Row, asked, publish

ROOT = Path(__file__).parents[2]
TESTS = (
    "data/test_folds.py",
    *(f"test_{name}.py" for name in ("lesions", "metrics", "schedules", "pacing", "boxes", "inputs")),
)
#: What hypothesis prints of a test: its name, and further down how many cases it passed and failed.
_STATISTICS = re.compile(r"^(tests/\S+::\w+):$|- (\d+) passing, (\d+) failing", re.MULTILINE)


def rows_of(text: str) -> list[Row]:
    """A row for each property in the output of pytest."""
    rows, name = [], ""
    for found in _STATISTICS.finditer(text):
        if found[1]:
            name = found[1].rpartition("::")[2].removeprefix("test_").replace("_", " ")
        elif rows and rows[-1].what == name:  # of another phase of the same test
            rows[-1] = Row(name, rows[-1].count + int(found[2]) + int(found[3]), rows[-1].failures + int(found[3]))
        else:
            rows.append(Row(name, int(found[2]) + int(found[3]), int(found[3])))
    return rows


def main() -> int:
    options = asked(__file__)
    words = ["-p", "no:cacheprovider", "-q", "--hypothesis-profile", "trust", "--hypothesis-show-statistics",
             f"--hypothesis-seed={options.seed}", *(f"tests/{name}" for name in TESTS)]  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "pytest", *words], cwd=ROOT, capture_output=True, text=True)
    rows = rows_of(done.stdout)
    failed = re.findall(r"^FAILED .*", done.stdout, re.MULTILINE)
    if done.returncode and not failed:
        sys.exit(done.stdout + done.stderr)
    status = publish(rows, failed, options.output, options.seed)
    return max(status, int(bool(failed)))


if __name__ == "__main__":
    sys.exit(main())
