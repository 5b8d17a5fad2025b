"""A prepared store: one folder of arrays per case, memory-mapped, and the manifest that says what they are.

    STORE/manifest.json
    STORE/cases/<case_id>/{hu.npy, labels.npy, record.json}

`hu.npy` is int16 (D, H, W), `labels.npy` uint8 (D, H, W) with ids of `lesionseg.labels`, both canonical (see
`scan.canonical_axes`). The manifest is written last, so a folder without one was never finished.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from tokenize import TokenError
from typing import Literal

import msgspec
import numpy as np

from lesionseg.collector import collector_at_rest
from lesionseg.data.records import CaseRecord, LesionRecord
from lesionseg.errors import InputError
from lesionseg.labels import NAMES
from lesionseg.scan import Scan, array_checksum

__all__ = ["CaseRecord", "LesionRecord", "Store", "StoreKind"]

StoreKind = Literal["lits", "slices"]

#: Changes with the layout of a store, its checksums, how a door reads or what is measured of a case; other stores are
#: made again.
STORE_FORMAT = 2
MANIFEST, CASES = "manifest.json", "cases"
HU, LABELS, RECORD = "hu.npy", "labels.npy", "record.json"
CASE_ID = re.compile(r"p[0-9a-f]{10}-[0-9a-f]{6}")
_DTYPES: dict[str, np.dtype] = {HU: np.dtype(np.int16), LABELS: np.dtype(np.uint8)}
_REMEDY = "run `lesionseg prepare` again"
#: Where sizes are right and voxels are not, which `prepare` does not look for: it would have to read them all.
_REMOVE = f"remove {{}}, then {_REMEDY}"


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
        array = _mapped_as(case_folder(self.path, case_id) / name, self.record(case_id).shape, _DTYPES[name])
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
            raise _damaged(file, f"label ids up to {max(NAMES)}", str(labels.max()), _REMOVE.format(file.parent))
        return labels

    def _slices(self, case_id: str, name: str, part: slice) -> np.ndarray:
        # text: joined as Paths, the names take a tenth of the time of a read
        file = os.path.join(self.path, CASES, case_id, name)
        return _read_slices(file, self.record(case_id).shape, _DTYPES[name], part)

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


def array_damage(folder: Path, record: CaseRecord, *, verify: bool = False) -> InputError | None:
    """What is wrong with the arrays in the folder of a case, if anything; `verify` recomputes their checksums."""
    if (problem := size_damage(folder, record)) is not None:
        return problem
    for name, checksum in ((HU, record.voxel_checksum), (LABELS, record.labels_checksum)):
        array = _mapped_as(folder / name, record.shape, _DTYPES[name])
        if isinstance(array, InputError):
            return array
        if verify and array_checksum(array) != checksum:
            return _damaged(folder / name, f"checksum {checksum}", "other voxels", _REMOVE.format(folder))
    return None


def size_damage(folder: str | Path, record: CaseRecord) -> InputError | None:
    """What the sizes of the files in the folder of a case tell: an array that is missing, short or long."""
    for name, dtype in _DTYPES.items():
        expected = len(_header(record.shape, dtype)) + math.prod(record.shape) * dtype.itemsize
        try:
            size = os.stat(file := f"{folder}{os.sep}{name}").st_size
        except OSError as error:
            return _damaged(file, f"{dtype} array of shape {record.shape}", f"no file ({error.strerror})")
        if size != expected:
            return _damaged(file, f"{dtype} array of shape {record.shape}, {expected} bytes", f"{size} bytes")
    return None


@cache
def _header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """What `np.save` writes before the values of an array."""
    text, descr = io.BytesIO(), np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(text, {"shape": shape, "fortran_order": False, "descr": descr})
    return text.getvalue()


def case_folder(store: Path, case_id: str) -> Path:
    """The folder of a case."""
    return store / CASES / case_id


def manifest_text(kind: StoreKind, records: tuple[CaseRecord, ...]) -> str:
    """The manifest of these cases: the same cases give the same bytes."""
    ordered = sorted(records, key=lambda record: record.case_id)
    text = msgspec.json.encode(_Manifest(STORE_FORMAT, kind, tuple(ordered)), order="sorted")
    return msgspec.json.format(text, indent=1).decode() + "\n"


def _mapped_as(file: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap | InputError:
    """The array in a file, read-only and mapped, or what is wrong with it."""
    expected = f"{dtype} array of shape {shape}"
    try:
        array = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError, SyntaxError, TokenError) as error:  # what a garbled header leads to
        return _damaged(file, expected, f"no readable array ({error})")
    if not isinstance(array, np.memmap) or array.shape != shape or array.dtype != dtype:
        return _damaged(file, expected, f"{array.dtype} {array.shape}")
    return array


def _read_slices(file: str, shape: tuple[int, ...], dtype: np.dtype, part: slice) -> np.ndarray:
    """Slices of the array in a file, whose header is compared and not parsed."""
    header, (first, stop, _) = _header(shape, dtype), part.indices(shape[0])
    out = np.empty((stop - first, *shape[1:]), dtype)
    expected = f"{dtype} array of shape {shape}"
    try:
        with io.FileIO(file) as stream:  # what `open` makes, which takes a while to find that out
            if stream.read(len(header)) != header:
                raise _damaged(file, expected, "another header")
            stream.seek(first * math.prod(shape[1:]) * out.itemsize, os.SEEK_CUR)
            if stream.readinto(out.data.cast("B")) != out.nbytes:
                raise _damaged(file, expected, "a shorter one")
    except OSError as error:
        raise _damaged(file, expected, f"no file that can be read ({error.strerror})") from error
    return out


def _damaged(file: Path | str, expected: str, got: str, remedy: str = _REMEDY) -> InputError:
    return InputError(file, expected=expected, got=got, remedy=remedy, code="store-array")


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
    raise InputError(file, expected=expected, got=got, remedy=_REMEDY, code="store-manifest")


def _check_ids(ids: list[str]) -> None:
    if not ids or ids != sorted(set(ids)):
        raise ValueError("no cases, or cases doubled or out of order")
    strange = [case_id for case_id in ids if not CASE_ID.fullmatch(case_id)]
    if strange:  # a name such as ../x would lead out of the store
        raise ValueError(f"{strange[0]!r} is no case id")
