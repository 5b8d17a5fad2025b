"""What lies below a folder, also where links lead: half of a data set may lie on another disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from lesionseg.errors import InputError

#: Of file systems, at the root of a disk; only its owner can read them.
_OF_THE_SYSTEM = {"lost+found", "System Volume Information", "$RECYCLE.BIN"}


def walk(root: Path, closed: Callable[[OSError], object]) -> Iterator[tuple[Path, list[str], list[str]]]:
    """`os.walk` from the top, in order of names, through links, each folder once; without hidden folders.

    Args:
        root: where to begin.
        closed: called for each folder that cannot be read; it may raise.
    """
    seen = set()
    for here, folders, files in os.walk(root, onerror=closed, followlinks=True):
        place = os.path.realpath(here)
        if place in seen:  # links may lead in circles
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _OF_THE_SYSTEM)
        yield Path(here), folders, sorted(files)


def files_below(root: Path) -> list[Path]:
    """All files below a folder, hidden ones left out, in order; none where there is no such folder.

    Raises:
        InputError: a folder that cannot be read, as nobody knows what it holds (code `unreadable`).
    """

    def refuse(error: OSError) -> None:
        if root.is_dir():
            raise InputError(error.filename, expected="a folder that can be read", got=error.strerror or str(error),
                             remedy="let it be read, or take it out of the input", code="unreadable")  # fmt: skip

    paths = (here / name for here, _, names in walk(root, refuse) for name in names if not name.startswith("."))
    return sorted(path for path in paths if path.is_file())
