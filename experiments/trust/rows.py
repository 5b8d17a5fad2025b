"""Rows of `docs/reliability.md`: what was tried, how often, and how often it failed.

A script of this folder takes its options from `asked` and hands its `Row`s to `publish`; `reliability.py` joins what
they left to the page.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lesionseg.provenance import provenance


@dataclass(frozen=True)
class Row:
    """One line.

    Attributes:
        what: what was tried.
        count: how often.
        failures: how often it did what it must not.
        detail: what became of the others.
    """

    what: str
    count: int
    failures: int
    detail: str = ""


def asked(script: str, **counts: tuple[float, str]) -> argparse.Namespace:
    """The options of a script, by its file: `--seed`, `--output` and its counts, each with what it counts."""
    parser = argparse.ArgumentParser()
    for name, (usual, what) in counts.items():
        parser.add_argument(f"--{name}", type=type(usual), default=usual, help=what)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/trust", Path(script).stem).with_suffix(".json"))
    return parser.parse_args()


def publish(rows: Sequence[Row], faults: Sequence[str], output: Path, seed: int) -> int:
    """Print the rows and each fault, write the JSON; the exit status, 1 where anything failed."""
    for row in rows:
        print(f"{row.what}: {row.count}, failures {row.failures}{'; ' + row.detail if row.detail else ''}", flush=True)
    for fault in faults:
        print(f"  {fault}")
    output.parent.mkdir(parents=True, exist_ok=True)
    content = {"rows": [asdict(row) for row in rows], "faults": list(faults), "seed": seed, **provenance()}
    output.write_text(json.dumps(content, indent=1) + "\n")
    return int(any(row.failures for row in rows))
