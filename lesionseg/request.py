"""Whether a run folder holds exactly what a command line asks for: told in a moment, before torch is loaded.

A quick "yes" only: the run's fingerprint (`lesionseg.runs`) decides whenever this says no.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import yaml

#: Options that do not change what comes out of a run; each is followed by its value.
_IGNORED = ("--cell", "--trainer.default_root_dir", "--data.num_workers", "--trainer.devices", "--trainer.num_nodes")
_RUN_DIR = "--trainer.default_root_dir"
#: Settings name files that hold settings, to such a depth; larger files are none, in bytes.
_MOST_NESTED, _MOST_SETTINGS = 4, 1 << 20


def request_sha256(args: Sequence[str]) -> str:
    """Hash of a command line with every path replaced by what lies there, and of the package's own source."""
    digest = hashlib.sha256(source_sha256().encode())
    typed = words(args)
    for option, value in zip(["", *typed], [*typed, ""], strict=True):
        if option in _IGNORED or value in _IGNORED:
            continue
        digest.update(os.fsencode(value) + b"\0")
        for path in _files(value):
            digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def source_sha256() -> str:
    """Hash of the package's own source, as it was when this process first asked."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def done_in(args: Sequence[str]) -> str | None:
    """The run folder named on the command line, where it holds the finished run of this very command line."""
    typed = words(args)
    if _RUN_DIR not in typed[:-1]:
        return None
    folder = typed[len(typed) - typed[::-1].index(_RUN_DIR)]  # of several the parser takes the last, too
    try:
        held = json.loads(Path(folder, "run.json").read_text())
        return folder if held["state"] == "finished" and held["request_sha256"] == request_sha256(args) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def words(args: Sequence[str]) -> list[str]:
    """The command line with `--key=value` taken apart."""
    return [word for arg in args for word in (arg.split("=", 1) if arg.startswith("--") else [arg])]


def _files(value: str, depth: int = 0) -> list[Path]:
    """The files that stand for a value: those of the path it is, and of the paths in it where it is settings."""
    found = _contents(value)
    if depth > _MOST_NESTED:
        return found
    settings = [path.read_bytes() for path in found if path == Path(value) and path.stat().st_size <= _MOST_SETTINGS]
    settings += [os.fsencode(value)] if value.lstrip().startswith(("{", "[")) else []
    return found + [file for text in settings for inner in _texts(_parsed(text)) for file in _files(inner, depth + 1)]


def _contents(text: str) -> list[Path]:
    """The files that stand for a path: itself, the manifest of a store, the checkpoint of a run."""
    path = Path(text)
    candidates = [path, path / "manifest.json", path / "checkpoints" / "last.ckpt"]
    return [file for file in candidates if os.path.isfile(file)]  # unlike Path.is_file, false for a name too long


def _parsed(text: bytes) -> object:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError):
        return None  # none; or the training's own parser says what is wrong with it


def _texts(value: object) -> Iterator[str]:
    """Every text in plain data; what aliases repeat is looked at once."""
    waiting, seen = [value], set[int]()
    while waiting:
        item = waiting.pop(0)
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict | list) and id(item) not in seen:
            seen.add(id(item))
            waiting += item.values() if isinstance(item, dict) else item
