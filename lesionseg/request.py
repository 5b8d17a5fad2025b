"""Whether a run folder holds exactly what a command line asks for: told in a moment, before torch is loaded.

A quick "yes" only: the run's fingerprint (`lesionseg.runs`) decides whenever this says no.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

#: Options that do not change what comes out of a run; each is followed by its value.
_IGNORED = ("--cell", "--trainer.default_root_dir", "--data.num_workers")
_RUN_DIR = "--trainer.default_root_dir"


def request_sha256(args: Sequence[str]) -> str:
    """Hash of a command line with every path replaced by what lies there, and of the package's own source."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    for option, value in zip(["", *args], [*args, ""], strict=True):
        if option in _IGNORED or value in _IGNORED:
            continue
        digest.update(value.encode() + b"\0")
        for path in _contents(Path(value)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def is_done(args: Sequence[str]) -> bool:
    """Whether the run folder named on the command line holds the finished run of this very command line."""
    if _RUN_DIR not in args[:-1]:
        return False
    try:
        held = json.loads(Path(args[args.index(_RUN_DIR) + 1], "run.json").read_text())
        return held["state"] == "finished" and held["request_sha256"] == request_sha256(args)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _contents(path: Path) -> list[Path]:
    """The files that stand for a path: itself, the manifest of a store, the checkpoint of a run."""
    candidates = [path, path / "manifest.json", path / "checkpoints" / "last.ckpt"]
    return [candidate for candidate in candidates if candidate.is_file()]
