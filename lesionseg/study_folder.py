"""The folder of one study in an output: put in place whole, known by its record, and never replaced where a user's
work lies in it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lesionseg.errors import InputError, some
from lesionseg.locking import one_at_a_time
from lesionseg.runs import sha256_of
from lesionseg.studies import RECORD
from lesionseg.writing import write_text

_LOCK, _TEMPORARY = ".lesionseg.lock", ".lesionseg-"
#: Of folders that keep an earlier result, under its name, while the new one takes its place.
_ASIDE = f"{_TEMPORARY}old-"


@dataclass(frozen=True)
class Record:
    """What a study's folder was made of and what it holds.

    Attributes:
        made_of: all that decides its content, plain JSON data; equal, equal content.
        place: `Study.place`.
        facts: of the segmentation, for the summary, plain JSON data.
        files: hash of each file by name.
    """

    made_of: dict[str, Any]
    place: str
    facts: dict[str, Any]
    files: dict[str, str]

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """That of a folder; None where it has none, or one that is not as it was written."""
        try:
            content = json.loads((folder / RECORD).read_bytes())
            seal = content.pop("sha256")
            return cls(**content) if seal == sha256_of(content) else None
        except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
            return None

    def write(self, folder: Path) -> None:
        """Write that of a folder, with a hash by which a change of it shows."""
        content = asdict(self)
        write_text(folder / RECORD, json.dumps({**content, "sha256": sha256_of(content)}, indent=1) + "\n")

    def is_whole(self, folder: Path) -> bool:
        """No file is gone."""
        return all((folder / name).is_file() for name in self.files)


def finished(folder: Path, made_of: dict[str, Any], place: str) -> dict[str, Any] | None:
    """The facts of a folder that is whole and was made of the same at the same place; else None.

    Names, sizes and times of files may be equal in two places, so that what it was made of does not tell them apart.
    """
    record = Record.read(folder)
    if record is None or (record.made_of, record.place) != (made_of, place) or not record.is_whole(folder):
        return None
    return record.facts


@contextmanager
def made(output: Path, made_of: dict[str, Any], place: str, facts: dict[str, Any]) -> Iterator[Path]:
    """A temporary folder to write into, whole when the block ends without an error, and else gone.

    `put_in_place` gives it its name; what nobody gives a name is removed with the lock of the output.

    Args:
        output: where it lies.
        made_of: see `Record`.
        place: see `Record`.
        facts: see `Record`.
    """
    temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=output))
    try:
        yield temporary
        files = {path.name: file_sha256(path) for path in sorted(temporary.iterdir())}
        Record(made_of, place, facts, files).write(temporary)
        temporary.chmod(0o755)  # mkdtemp lets nobody else in
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def put_in_place(temporary: Path, folder: Path, place: str) -> None:
    """Give a folder that `made` has made its name; what lies there is replaced where `refuse_replacing` lets it.

    Killed between the two steps of that, it leaves the earlier result aside, and the next `locked` puts it back.
    """
    refuse_replacing(folder, place)
    try:
        if folder.exists():  # a folder with files cannot be replaced in one step
            folder.rename(Path(tempfile.mkdtemp(prefix=_ASIDE, dir=folder.parent), folder.name))
        temporary.rename(folder)
    finally:
        _restore(folder.parent)


def refuse_replacing(folder: Path, place: str) -> None:
    """Raise `InputError` unless the folder is not there, empty, or an earlier result of the same study, untouched."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    record = Record.read(folder)
    if record is None:
        got = f"something else, or a changed {RECORD}"
    elif record.place != place:
        got = "the results of a study elsewhere that has the same name"
    else:
        held = {path.name: path for path in folder.iterdir() if path.name != RECORD and not _is_left_by_finder(path)}
        touched = [name for name, path in held.items() if record.files.get(name) != file_sha256(path)]
        if not touched:
            return
        got = f"files changed or added since ({some(sorted(touched))})"
    raise InputError(folder, expected="a new folder, or an earlier result of this study as it was written", got=got,
                     remedy="move the folder away, or name another output", code="output")  # fmt: skip


def _is_left_by_finder(path: Path) -> bool:
    """What macOS puts into every folder that is looked at; other hidden files are a user's."""
    return path.name == ".DS_Store" or path.name.startswith("._")


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Make the output folder and hold it, see `one_at_a_time`. What a killed process left half-written is removed."""
    if output.exists() and not output.is_dir():
        raise InputError(output, expected="a folder", got="a file", remedy="name another output", code="output")
    busy = InputError(output, expected="one `lesionseg segment` at a time", got="another at work",
                      remedy="wait until it ends, or name another output", code="output-busy")  # fmt: skip
    with one_at_a_time(output, _LOCK, busy):
        try:
            _remove_temporaries(output)
            yield
        finally:
            _remove_temporaries(output)


def _restore(output: Path) -> None:
    """Put back each earlier result whose place is free, and remove those whose place a new one has taken."""
    for aside in output.glob(f"{_ASIDE}*"):
        for old in aside.iterdir():
            if not (output / old.name).exists():
                old.rename(output / old.name)
        shutil.rmtree(aside, ignore_errors=True)


def _remove_temporaries(output: Path) -> None:
    _restore(output)
    for path in output.iterdir():
        if path.name.startswith(_TEMPORARY):
            shutil.rmtree(path, ignore_errors=True)


def file_sha256(path: Path) -> str:
    """Hash of a file; of a folder, which no result holds, a word that is no hash."""
    if not path.is_file():
        return "folder"
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
