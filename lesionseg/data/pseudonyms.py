"""Pseudonyms of cases and patients, and the checksum by which an unchanged source is known again."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import xxhash

from lesionseg.data.store import STORE_FORMAT
from lesionseg.errors import InputError
from lesionseg.parallel import worker_count
from lesionseg.scan import CaseSource

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Job:
    """A source and the pseudonyms it gets."""

    source: CaseSource
    case_id: str
    patient_id: str


def pseudonyms(source: CaseSource, salt: bytes) -> tuple[str, str]:
    """Case id and patient id: patient `p` + 10 hex digits, case the same + `-` + 6, of salted SHA-256."""
    patient = source.patient_id if source.pseudonymous else "p" + _short_hash(salt, source.patient_id, 10)
    return f"{patient}-{_short_hash(salt, source.source_id, 6)}", patient


def study_pseudonym(study: str | None, salt: bytes) -> str | None:
    """`s` + 16 hex digits of salted SHA-256 of a StudyInstanceUID; None for None."""
    return None if study is None else "s" + _short_hash(salt, study, 16)


def with_pseudonyms(sources: Sequence[CaseSource], salt: bytes) -> list[Job]:
    """Name every source by `pseudonyms`.

    Raises:
        InputError: no source, one listed twice, or (by chance) two that get the same name.
    """
    if not sources:
        raise InputError("prepare", expected="at least one case", got="none", remedy="check the folder or table")
    jobs = [Job(source, *pseudonyms(source, salt)) for source in sources]
    patients = {job.source.patient_id: job.patient_id for job in jobs}
    _refuse_doubles("source", (job.source.source_id for job in jobs), "name each case once")
    _refuse_doubles("case pseudonym", (job.case_id for job in jobs), "choose another salt")
    _refuse_doubles("patient pseudonym", patients.values(), "choose another salt")
    return jobs


def source_checksums(jobs: Sequence[Job]) -> dict[str, str]:
    """`source_checksum` of each job by its case id; hashing leaves the interpreter lock, so threads are enough.

    Raises:
        InputError: a file cannot be read.
    """
    with ThreadPoolExecutor(worker_count(None, len(jobs))) as pool:
        checksums = pool.map(source_checksum, [job.source for job in jobs])
        return {job.case_id: checksum for job, checksum in zip(jobs, checksums, strict=True)}


def source_checksum(source: CaseSource) -> str:
    """XXH3 (128 bits) of the bytes of all files, of the options of reading, and of the format of the store.

    Raises:
        InputError: a file cannot be read.
    """
    digest = xxhash.xxh3_128(f"{STORE_FORMAT}\n{len(source.files)}\n{source.options}\n".encode())
    for file in source.files:
        try:
            digest.update(f"{file.stat().st_size}\n".encode())  # or bytes could move from one file to the next
            with open(file, "rb") as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    digest.update(chunk)
        except OSError as error:
            got = error.strerror or "an unreadable file"
            raise InputError(file, expected="a readable file", got=got, remedy="check the path") from None
    return digest.hexdigest()


def without_names(text: str, source: CaseSource, scan_id: str) -> str:
    """The text with "this case" for every name of the source, so that no name gets in and like texts can be counted.

    Numbers of up to three digits stay: a LiTS patient is called `5`, and so are too many other things.
    """
    names = {source.source_id, source.patient_id, scan_id, *map(str, source.files)}
    names |= {file.name for file in source.files}
    for name in sorted(names - {""}, key=len, reverse=True):
        if not re.fullmatch(r"\d{1,3}", name):
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "this case", text)
    return text


def key_table_path(store_path: str | Path) -> Path:
    """Where the table of pseudonyms of a store lies: beside it, never in it."""
    return beside(store_path, ".key.csv")


def beside(folder: str | Path, suffix: str) -> Path:
    """A file next to a folder with its name, also where that is `.`."""
    path = Path(os.path.abspath(folder))
    return path.with_name(path.name + suffix)


def key_table(jobs: list[Job]) -> str:
    """The table, as CSV, that tells which pseudonym is which source."""
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(("case_id", "patient_id", "source_patient_id", "source_id"))
    table.writerows(sorted((j.case_id, j.patient_id, j.source.patient_id, j.source.source_id) for j in jobs))
    return buffer.getvalue()


def _short_hash(salt: bytes, text: str, digits: int) -> str:
    return hashlib.sha256(salt + text.encode()).hexdigest()[:digits]


def _refuse_doubles(what: str, values: Iterable[str], remedy: str) -> None:
    value, count = Counter(values).most_common(1)[0]
    if count > 1:
        raise InputError("prepare", expected=f"each {what} once", got=f"{value} {count} times", remedy=remedy)
