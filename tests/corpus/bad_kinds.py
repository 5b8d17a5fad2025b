"""The kinds of bad input: each makes what a user might hand over by mistake, and the command line that meets it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lesionseg.model import Model


@dataclass(frozen=True)
class Bench:
    """A folder of its own for each kind, and good things to spoil a copy of.

    Attributes:
        folder: empty; all that a kind makes lies here, and all that its command would write.
        lits: store of three volumes.
        slices: store of twelve single slices.
        source: what these were prepared from, `lits/` and `slices/`.
        run: finished run of a lesion net.
        model: to save as a folder.
        fit: command line of a pretraining, by its run folder and further options.
        tune: the same of a fine-tuning.
    """

    folder: Path
    lits: Path
    slices: Path
    source: Path
    run: Path
    model: Model
    fit: Callable[..., list[str]]
    tune: Callable[..., list[str]]

    def copy(self, path: Path) -> Path:
        """A copy to spoil."""
        return Path(shutil.copytree(path, self.folder / path.name))

    def write(self, name: str, content: str | bytes) -> Path:
        """A file of this content."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    @property
    def out(self) -> str:
        """Where the command would write."""
        return str(self.folder / "out")


Make = Callable[[Bench], list[str]]
KINDS: dict[str, Make] = {}


def bad(door: str, *names: str) -> Callable[[Make], Make]:
    """Enter a kind under its door and name."""

    def enter(make: Make) -> Make:
        for name in names:
            enter_kind(door, name, make)
        return make

    return enter


def enter_kind(door: str, name: str, make: Make) -> None:
    """Enter one of a family of kinds."""
    key = f"{door}: {name}"
    assert key not in KINDS, key
    KINDS[key] = make


def family(door: str, changes: dict[str, object], make: Callable[[Bench, object], list[str]]) -> None:
    """Enter kinds that differ in one thing."""
    for name, change in changes.items():
        enter_kind(door, name, lambda bench, change=change: make(bench, change))


def lines(*rows: str) -> str:
    """A text of these lines."""
    return "".join(f"{row}\n" for row in rows)


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file below a folder, and the names of empty folders."""
    for path in sorted(folder.rglob("*")):
        yield str(path.relative_to(folder)), path.read_bytes() if path.is_file() else b"folder"
