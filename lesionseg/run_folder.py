"""The folder of a run as a training meets it: whose it is, one training at a time, an earlier run that gives way."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lesionseg.errors import InputError
from lesionseg.locking import one_at_a_time
from lesionseg.runs import RUN_FILE, RunInfo

_LOCK = ".lock"


def held_run(folder: Path) -> RunInfo | None:
    """The run in a folder; None: there is none, or the first of several ranks is taking it away just now.

    Raises:
        InputError: what it says of itself cannot be read.
    """
    path = folder / RUN_FILE
    try:
        return RunInfo.read(folder) if path.exists() else None
    except InputError:
        if path.exists():
            raise
        return None


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder that holds something, but no run."""
    if folder.is_file() or _content(folder):
        raise InputError(
            folder,
            expected="an empty folder, or one of an earlier run",
            got="a file" if folder.is_file() else "a folder with other files",
            remedy="name another --trainer.default_root_dir",
        )


@contextmanager
def claimed(folder: Path, held: RunInfo | None) -> Iterator[None]:
    """Keep other trainings out of a run folder, which is made where there is none.

    Args:
        folder: of the run.
        held: what it held when it was looked at.

    A folder that is made here and gets nothing is removed again.

    Raises:
        InputError: another training is at work there, or has been since.
    """
    expected = "one training of a run at a time"
    busy = InputError(folder, expected=expected, got="another at work", code="run-busy",
                      remedy="wait until it ends, or name another --trainer.default_root_dir")  # fmt: skip
    with one_at_a_time(folder, _LOCK, busy):
        if held_run(folder) != held:
            raise InputError(folder, expected=expected, got="another that was there just now",
                             remedy="give the command again", code="run-busy")  # fmt: skip
        yield


def clear(folder: Path) -> None:
    """Remove an earlier run from a folder that is claimed."""
    for path in _content(folder):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _content(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name != _LOCK] if folder.is_dir() else []
