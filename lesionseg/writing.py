"""Files written whole or not at all: a reader, or the next call, never meets half of one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, which takes its place when the block ends without an error, and else is gone.

    The name differs between processes, so that two of them may write one file. Its suffix is not that of `path`:
    writers that choose by the suffix must be told the format.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        if error.filename != str(part):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # what the user has named
    finally:
        with suppress(OSError):  # where there can be no such file, the error is told already
            part.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def remove_parts(folder: Path) -> None:
    """Remove what processes that were killed have left of `whole`; none may be at work there."""
    for path in folder.glob(".*"):
        if re.fullmatch(r"\..+\.\d+", path.name):
            path.unlink(missing_ok=True)
