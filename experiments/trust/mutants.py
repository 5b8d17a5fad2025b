"""Small changes of the code that decides: how many of them do its tests notice?

Usage: mutants.py [--only MODULE ...] [--output JSON]   (`make mutants`, about half an hour)

mutmut changes one operator, number, word or argument at a time in a copy of the sources and runs the module's own
tests. What no test notices is counted by its reason, from `survivors.py`. A module fails where less than `LEAST` are
noticed; every change without a reason is listed, and is a failure too.

mutmut runs the tests in a fork of a process that has run them already, where those that start processes fail by
themselves. They are left out, and tried on what the others have let live, in a process of its own; there `SAMPLE` of
the changes that mutmut calls noticed are tried again, too.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rows import Row, publish
from survivors import REASONS

ROOT = Path(__file__).parents[2]
#: Module → the tests that must notice.
MODULES = {
    "schedules.py": "test_schedules.py",
    "command_line.py": "test_command_line.py",
    "boxes.py": "test_boxes.py",
    "inputs.py": "test_inputs.py",
    "lesions.py": "test_lesions.py",
    "metrics.py": "test_metrics.py",
    "data/folds.py": "data/test_folds.py",
    "statistics.py": "test_statistics.py",
}
LEAST = 0.9
#: Noticed changes of a module that are tried again.
SAMPLE = 10
#: Part of the names of tests that start processes.
LEFT_OUT = "processes"
_OF_A_VARIANT = re.compile(r"__mutmut_\d+$")


def mutated(module: str, folder: Path) -> Counter[str]:
    """Run mutmut on a copy in `folder`; how many mutants ended in which way."""
    for name in ("lesionseg", "tests", "experiments"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    settings = {
        "source_paths": f"lesionseg/{module}",
        "pytest_add_cli_args_test_selection": f"tests/{MODULES[module]}",
        "pytest_add_cli_args": f"-p\n    no:cacheprovider\n    --hypothesis-seed=0\n    -k\n    not {LEFT_OUT}",
    }
    lines = ["[mutmut]", *(f"{key}=\n    {value}" for key, value in settings.items()), "also_copy="]
    lines += [f"    {name}" for name in ("lesionseg", "tests", "experiments", "pyproject.toml")]
    (folder / "setup.cfg").write_text("\n".join(lines) + "\n")
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    mutmut = [sys.executable, "-m", "mutmut"]
    done = subprocess.run([*mutmut, "run"], cwd=folder, env=environment, capture_output=True, text=True)
    results = subprocess.run([*mutmut, "results", "--all", "true"], cwd=folder, env=environment, capture_output=True,
                             text=True, check=True).stdout  # fmt: skip
    ends = dict(re.findall(r"^\s+(\S+): ([\w ]+)$", results, re.MULTILINE))
    if not ends:
        sys.exit(done.stdout[-3000:] + done.stderr[-3000:])
    if not lives("", module, folder, f"not {LEFT_OUT}"):
        sys.exit("the tests fail where nothing is changed")
    alive = {name for name, end in ends.items() if end == "survived" and lives(name, module, folder, LEFT_OUT)}
    (folder / "survived.txt").write_text("\n".join(sorted(alive)))
    (folder / "killed.txt").write_text("\n".join(name for name, end in ends.items() if end == "killed"))
    late = sum(end == "survived" for end in ends.values()) - len(alive)
    return Counter(ends.values()) + Counter(killed=late) - Counter(survived=late)


def lives(name: str, module: str, folder: Path, tests: str) -> bool:
    """Whether these of a module's tests (as pytest's -k) let a mutant live, in a process of their own."""
    environment = {**os.environ, "PYTHONPATH": str(folder / "mutants"), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--hypothesis-seed=0", "-k", tests,
             str(folder / "mutants" / "tests" / MODULES[module])]  # fmt: skip
    done = subprocess.run(
        words, cwd=folder / "mutants", env={**environment, "MUTANT_UNDER_TEST": name}, capture_output=True
    )
    if done.returncode not in (0, 1, 2, 5):
        sys.exit(f"pytest failed\n{done.stdout.decode()}{done.stderr.decode()}")
    return done.returncode in (0, 5)  # 5: no such tests


def unconfirmed(module: str, folder: Path) -> list[str]:
    """Of some mutants that mutmut has killed, those that live where the tests have a process of their own."""
    killed = (folder / "killed.txt").read_text().split()
    some = random.Random(0).sample(killed, min(SAMPLE, len(killed)))
    return [name for name in some if lives(name, module, folder, f"not {LEFT_OUT}")]


def survivors(module: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Line as it stands and as it was changed, of each mutant that no test noticed."""
    source = (folder / "mutants" / "lesionseg" / module).read_text()
    places = {node.name: node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}
    lines = source.splitlines()
    for name in (folder / "survived.txt").read_text().split():
        function = name.rpartition(".")[2]
        original = _OF_A_VARIANT.sub("__mutmut_orig", function)
        one, other = (
            [line.replace(of, "") for line in lines[places[of].lineno - 1 : places[of].end_lineno]]
            for of in (original, function)
        )
        changed = [line for line in difflib.ndiff(one, other) if line[:2] in ("- ", "+ ")]
        yield (
            " ".join(line[2:].strip() for line in changed if line[0] == "-"),
            " ".join(line[2:].strip() for line in changed if line[0] == "+"),
        )


def reason(before: str, after: str) -> str | None:
    """Why nothing is to be seen of a change."""
    return next((why for pattern, why in REASONS.items() if re.search(pattern, f"{before} → {after}")), None)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=MODULES, default=list(MODULES))
    parser.add_argument("--output", type=Path, default=Path("runs/trust/mutants.json"))
    options = parser.parse_args()
    rows, faults = [], []
    for module in options.only:
        with tempfile.TemporaryDirectory() as name:
            ends = mutated(module, Path(name))
            left = list(survivors(module, Path(name)))
            lived = [f"{module}: noticed by mutmut, not by its tests: {one}" for one in unconfirmed(module, Path(name))]
        total = sum(ends.values())
        noticed = total - ends["survived"] - ends["no tests"]
        explained: Counter[str] = Counter()
        unexplained = []
        for before, after in left:
            why = reason(before, after)
            if why is None:
                unexplained.append(f"{module}: not noticed: {before} → {after}")
            else:
                explained[why] += 1
        few = [f"{module}: noticed {noticed / total:.1%} of {total}"] * (noticed < LEAST * total)
        detail = f"{noticed / total:.1%} noticed"
        if explained:
            detail += "; of the others " + ", ".join(f"{n}: {why}" for why, n in explained.most_common())
        rows.append(Row(f"mutants of {module}", total, len(unexplained) + len(few) + len(lived), detail))
        faults += few + unexplained + lived
    return publish(rows, faults, options.output, 0)


if __name__ == "__main__":
    sys.exit(main())
