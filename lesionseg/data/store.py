"""A prepared store: one folder of arrays per case, memory-mapped, and the manifest that says what they are.

    STORE/manifest.json
    STORE/cases/<case_id>/{hu.npy, labels.npy, record.json}

`hu.npy` is int16 (D, H, W), `labels.npy` uint8 (D, H, W) with ids of `lesionseg.labels`, both canonical (see
`scan.canonical_axes`). The manifest is written last, so a folder without one was never finished.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from lesionseg.collector import collector_at_rest
from lesionseg.data.case_files import (
    CASES,
    DTYPES,
    HU,
    LABELS,
    PREPARE_AGAIN,
    REMOVE,
    array_damage,
    case_folder,
    damaged,
    mapped,
    read_slices,
    size_damage,
)
from lesionseg.data.records import CaseRecord, LesionRecord
from lesionseg.errors import InputError
from lesionseg.labels import NAMES
from lesionseg.scan import Scan

__all__ = ["CaseRecord", "LesionRecord", "Store", "StoreKind"]

StoreKind = Literal["lits", "slices"]

#: Changes with the layout of a store, its checksums, how a door reads or what is measured of a case; other stores are
#: made again.
STORE_FORMAT = 5
MANIFEST, RECORD = "manifest.json", "record.json"
CASE_ID = re.compile(r"p[0-9a-f]{10}-[0-9a-f]{6}")


@dataclass(frozen=True)
class Store:
    """An opened store.

    Attributes:
        path: its folder.
        kind: `lits` (volumes, lesions without type) or `slices` (single slices with lesion types).
        records: one per case, ordered by case id.
        manifest_sha256: of the manifest, and through the checksums in it of every voxel.
    """

    path: Path
    kind: StoreKind
    records: tuple[CaseRecord, ...] = field(repr=False)
    manifest_sha256: str

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = False) -> Store:
        """Read the manifest and see that every array is there in its full size.

        What is in a file shows when it is read: opening all of them would take long where there are many.

        Args:
            path: folder made by `prepare`.
            verify: also open every array and recompute all checksums (reads every voxel).

        Raises:
            InputError: no store, an unfinished or damaged one, or one of another format.
        """
        store = read_manifest(Path(path))
        cases = os.path.join(store.path, CASES)
        for record in store.records:
            folder = f"{cases}{os.sep}{record.case_id}"  # of many cases, joining paths takes most of the time
            problem = array_damage(Path(folder), record, verify=True) if verify else size_damage(folder, record)
            if problem is not None:
                raise problem
        return store

    @property
    def generated(self) -> bool:
        """Every case was made by `lesionseg phantom` (a store never mixes the two)."""
        return all(record.generated for record in self.records)

    @property
    def implanted(self) -> bool:
        """Its CT is real, its lesions are not: `lesionseg implant` put them there."""
        return any(record.implanted_in is not None for record in self.records)

    @property
    def content(self) -> str:
        """What kind of CT it holds, in words."""
        return "generated CT" if self.generated else "real CT with implanted lesions" if self.implanted else "real CT"

    @cached_property
    def _by_id(self) -> dict[str, CaseRecord]:
        return {record.case_id: record for record in self.records}

    def record(self, case_id: str) -> CaseRecord:
        """The record of a case; `KeyError` if there is none."""
        return self._by_id[case_id]

    def hu(self, case_id: str) -> np.memmap:
        """Hounsfield units, int16 (D, H, W), read-only and mapped: only what is touched is read.

        Raises:
            InputError: the file holds something else, or is gone; `labels` alike.
        """
        return self._array(case_id, HU)

    def labels(self, case_id: str) -> np.memmap:
        """Label ids, uint8 (D, H, W), read-only and mapped."""
        return self._array(case_id, LABELS)

    def _array(self, case_id: str, name: str) -> np.memmap:
        array = mapped(case_folder(self.path, case_id) / name, self.record(case_id).shape, DTYPES[name])
        if isinstance(array, InputError):
            raise array
        return array

    def hu_slices(self, case_id: str, part: slice) -> np.ndarray:
        """HU of neighbouring slices, `slice(first, stop)`, read into memory: for a few, faster than through a map."""
        return self._slices(case_id, HU, part)

    def label_slices(self, case_id: str, part: slice) -> np.ndarray:
        """Label ids of neighbouring slices, `slice(first, stop)`, read into memory."""
        labels = self._slices(case_id, LABELS, part)
        if labels.max(initial=0) > max(NAMES):
            file = case_folder(self.path, case_id) / LABELS
            raise damaged(file, f"label ids up to {max(NAMES)}", str(labels.max()), REMOVE.format(file.parent))
        return labels

    def _slices(self, case_id: str, name: str, part: slice) -> np.ndarray:
        # text: joined as Paths, the names take a tenth of the time of a read
        file = os.path.join(self.path, CASES, case_id, name)
        return read_slices(file, self.record(case_id).shape, DTYPES[name], part)

    def refuse_changed(self) -> None:
        """Refuse what was made of a store that `prepare` has changed since it was opened.

        Raises:
            InputError: its manifest is another one now, or there is none, as `prepare` is at work.
        """
        try:
            changed = hashlib.sha256(_manifest_bytes(self.path)).hexdigest() != self.manifest_sha256
        except InputError:
            changed = True
        if changed:
            raise InputError(self.path, expected="the store as it was when it was opened",
                             got="one that was prepared anew meanwhile", remedy="give the command again")  # fmt: skip

    def scan(self, case_id: str) -> Scan:
        """A case as a scan, its voxels read into memory; the case id stands for the name."""
        record = self.record(case_id)
        affine = None if record.affine is None else np.array(record.affine)
        return Scan(np.array(self.hu(case_id)), case_id, record.spacing_mm, affine, record.generated)


#: A training asks for its store twice, to know what it is and to read it; of a million cases parsing takes a minute.
_last_read: Store | None = None


def read_manifest(path: Path) -> Store:
    """A store by its manifest alone; its arrays are not looked at.

    Raises:
        InputError: no store, an unfinished one, or one of another format.
    """
    global _last_read
    text = _manifest_bytes(path)
    checksum = hashlib.sha256(text).hexdigest()
    if _last_read is None or (_last_read.path, _last_read.manifest_sha256) != (path, checksum):
        with collector_at_rest():
            _last_read = Store(path, *_parse_manifest(path / MANIFEST, text), checksum)
    return _last_read


def manifest_text(kind: StoreKind, records: tuple[CaseRecord, ...]) -> str:
    """The manifest of these cases: the same cases give the same bytes."""
    ordered = sorted(records, key=lambda record: record.case_id)
    text = msgspec.json.encode(_Manifest(STORE_FORMAT, kind, tuple(ordered)), order="sorted")
    return msgspec.json.format(text, indent=1).decode() + "\n"


def _manifest_bytes(path: Path) -> bytes:
    try:
        return (path / MANIFEST).read_bytes()
    except OSError as error:
        unfinished = (path / CASES).is_dir()
        got = "an unfinished store" if unfinished else f"no {MANIFEST} ({error.strerror})"
        remedy = "run the same `lesionseg prepare` again: it continues" if unfinished else "make one by prepare"
        raise InputError(path, expected="a prepared store", got=got, remedy=remedy, code="store-manifest") from None


class _Head(msgspec.Struct):
    """What the manifest of every format holds."""

    format: int


class _Manifest(_Head):
    kind: StoreKind
    cases: tuple[CaseRecord, ...]


def _parse_manifest(file: Path, text: bytes) -> tuple[StoreKind, tuple[CaseRecord, ...]]:
    try:
        version = msgspec.json.decode(text, type=_Head).format
        if version == STORE_FORMAT:
            manifest = msgspec.json.decode(text, type=_Manifest)
            _check_ids([record.case_id for record in manifest.cases])
            return manifest.kind, manifest.cases
        expected, got = f"format {STORE_FORMAT}", f"format {version}"
    except (ValueError, RecursionError) as error:
        expected, got = "the manifest of a store", f"{error}"
    raise InputError(file, expected=expected, got=got, remedy=PREPARE_AGAIN, code="store-manifest")


def _check_ids(ids: list[str]) -> None:
    if not ids or ids != sorted(set(ids)):
        raise ValueError("no cases, or cases doubled or out of order")
    strange = [case_id for case_id in ids if not CASE_ID.fullmatch(case_id)]
    if strange:  # a name such as ../x would lead out of the store
        raise ValueError(f"{strange[0]!r} is no case id")
