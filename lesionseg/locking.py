"""One process at a time in a folder. The system holds the lock, so that a killed process leaves it free."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lesionseg.errors import InputError

#: What a file system says that cannot lock files.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)


@contextmanager
def one_at_a_time(folder: Path, name: str, busy: InputError) -> Iterator[None]:
    """Make a folder where there is none, and keep other processes out of it. A new one that stays empty goes again.

    Args:
        folder: to be held.
        name: of the file in it that is locked.
        busy: what to say where another process is at work.

    Raises:
        InputError: `busy`; or the file system knows no locks.
    """
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name)
    try:
        lock.acquire(timeout=0)
    except (Timeout, FileNotFoundError):  # not found: another ends just now, and its folder goes with it
        raise busy from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise InputError(
            folder,
            expected="a file system that can lock files",
            got=error.strerror or "one that cannot",
            remedy="mount it with locks (NFS: lockd; Lustre: -o flock), or name a folder elsewhere",
        ) from None
    if not (folder / name).exists():  # the same, but the file was open by then
        lock.release()
        raise busy
    try:
        yield
    finally:
        try:
            if new and folder.is_dir() and [path.name for path in folder.iterdir()] == [name]:
                shutil.rmtree(folder)  # while it is held: who holds it next would stand in a folder that goes
        finally:
            lock.release()
