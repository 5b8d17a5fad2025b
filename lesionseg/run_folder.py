"""The folder of a run as a training meets it: whose it is, one training at a time, an earlier run that gives way.

An earlier run of other settings lies aside, in `.earlier`, until the new one has its first checkpoint: one that fails
in its first step, is killed there, or is only tried (`fast_dev_run`) costs nobody the run that was there. On its way
there and back it is in `.moving`, so that a kill at any moment leaves all of it in these places.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytorch_lightning.utilities import rank_zero_info

from lesionseg.errors import InputError
from lesionseg.locking import one_at_a_time
from lesionseg.run_weights import LAST_CHECKPOINT
from lesionseg.runs import (
    CASES_FILE,
    CONFIG_FILE,
    LESIONS_FILE,
    METRICS_FILE,
    OVERLAYS_FOLDER,
    RUN_FILE,
    SCHEDULE_FILE,
    SLICES_FILE,
    SPLIT_FILE,
    WANDB_DATA_FOLDER,
    WANDB_FOLDER,
    WORST_FOLDER,
    RunInfo,
)

_LOCK, _EARLIER, _MOVING = ".lock", ".earlier", ".moving"
#: All that a run writes into its folder. What else lies there is its user's, and stays.
WRITTEN = (RUN_FILE, CONFIG_FILE, SPLIT_FILE, SCHEDULE_FILE, METRICS_FILE, CASES_FILE, SLICES_FILE, LESIONS_FILE,
           LAST_CHECKPOINT.parts[0], WANDB_FOLDER, WANDB_DATA_FOLDER, OVERLAYS_FOLDER, WORST_FOLDER)  # fmt: skip


def held_run(folder: Path) -> RunInfo | None:
    """The run in a folder; None: there is none, or the first of several ranks is moving it just now.

    It is the one that lies aside, as long as the one in its place has no checkpoint.

    Raises:
        InputError: what it says of itself cannot be read.
    """
    places = [folder, folder / _MOVING]
    if not _has_begun(folder):
        places.insert(0, folder / _EARLIER)
    for place in places:
        try:
            if (place / RUN_FILE).exists():
                return RunInfo.read(place)
        except InputError:
            if (place / RUN_FILE).exists():
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

    A folder that is made here and gets nothing is removed again.

    Args:
        folder: of the run.
        held: what it held when it was looked at.

    Raises:
        InputError: another training is at work there, or has been since.
    """
    expected = "one training of a run at a time"
    busy = InputError(folder, expected=expected, got="another at work", code="run-busy",
                      remedy="wait until it ends, or name another --trainer.default_root_dir")  # fmt: skip
    with one_at_a_time(folder, _LOCK, busy):
        _settle(folder)
        if held_run(folder) != held:
            raise InputError(folder, expected=expected, got="another that was there just now",
                             remedy="give the command again", code="run-busy")  # fmt: skip
        try:
            yield
        finally:
            _settle(folder)


def set_aside(folder: Path) -> None:
    """Let the run in a folder that is claimed give way to another, until `forget_earlier` or the end of the claim."""
    if not (folder / RUN_FILE).exists():
        _remove_written(folder)  # what a kill left while a run was removed
        return
    _move(folder, folder / _MOVING)
    (folder / _MOVING).rename(folder / _EARLIER)


def forget_earlier(folder: Path) -> None:
    """Remove what lies aside, as the run in its place has a checkpoint."""
    shutil.rmtree(folder / _EARLIER, ignore_errors=True)


def _settle(folder: Path) -> None:
    """Bring the run back that lies aside, where the one in its place has no checkpoint; else remove it."""
    if (folder / _EARLIER).exists():
        if _has_begun(folder):
            forget_earlier(folder)
        else:
            _remove_written(folder)
            (folder / _EARLIER).rename(folder / _MOVING)
            rank_zero_info(
                f"{folder} holds the run again that was there before: the one after it had no checkpoint yet"
            )
    if (folder / _MOVING).exists():
        _move(folder / _MOVING, folder)
        (folder / _MOVING).rmdir()


def _has_begun(folder: Path) -> bool:
    """Whether the run in its place has a checkpoint."""
    return (folder / LAST_CHECKPOINT).exists()


def _move(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for name in WRITTEN:
        if os.path.lexists(source / name):
            (source / name).rename(target / name)


def _remove_written(folder: Path) -> None:
    for path in (folder / name for name in WRITTEN):
        if os.path.lexists(path):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _content(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name != _LOCK] if folder.is_dir() else []
