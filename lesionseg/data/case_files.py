"""The arrays of a case in a store: where they lie, how they are read, what is wrong with them."""

from __future__ import annotations

import io
import math
import os
from functools import cache
from pathlib import Path
from tokenize import TokenError

import numpy as np

from lesionseg.data.records import CaseRecord
from lesionseg.errors import InputError
from lesionseg.scan import array_checksum

CASES, HU, LABELS = "cases", "hu.npy", "labels.npy"
DTYPES: dict[str, np.dtype] = {HU: np.dtype(np.int16), LABELS: np.dtype(np.uint8)}
PREPARE_AGAIN = "run `lesionseg prepare` again"
#: Remedy where sizes are right and voxels are not: `prepare` compares sizes alone, and would keep the folder.
REMOVE = f"remove {{}}, then {PREPARE_AGAIN}"


def case_folder(store: Path, case_id: str) -> Path:
    """The folder of a case."""
    return store / CASES / case_id


def array_damage(folder: Path, record: CaseRecord, *, verify: bool = False) -> InputError | None:
    """What is wrong with the arrays in the folder of a case, if anything; `verify` recomputes their checksums."""
    if (problem := size_damage(folder, record)) is not None:
        return problem
    for name, checksum in ((HU, record.voxel_checksum), (LABELS, record.labels_checksum)):
        array = mapped(folder / name, record.shape, DTYPES[name])
        if isinstance(array, InputError):
            return array
        if verify and array_checksum(array) != checksum:
            return damaged(folder / name, f"checksum {checksum}", "other voxels", REMOVE.format(folder))
    return None


def size_damage(folder: str | Path, record: CaseRecord) -> InputError | None:
    """What the sizes of the files in the folder of a case tell: an array that is missing, short or long."""
    for name, dtype in DTYPES.items():
        expected = len(_header(record.shape, dtype)) + math.prod(record.shape) * dtype.itemsize
        try:
            size = os.stat(file := f"{folder}{os.sep}{name}").st_size
        except OSError as error:
            return damaged(file, f"{dtype} array of shape {record.shape}", f"no file ({error.strerror})")
        if size != expected:
            return damaged(file, f"{dtype} array of shape {record.shape}, {expected} bytes", f"{size} bytes")
    return None


def mapped(file: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.memmap | InputError:
    """The array in a file, read-only and mapped, or what is wrong with it."""
    expected = f"{dtype} array of shape {shape}"
    try:
        array = np.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError, SyntaxError, TokenError) as error:  # what a garbled header leads to
        return damaged(file, expected, f"no readable array ({error})")
    if not isinstance(array, np.memmap) or array.shape != shape or array.dtype != dtype:
        return damaged(file, expected, f"{array.dtype} {array.shape}")
    return array


def read_slices(file: str, shape: tuple[int, ...], dtype: np.dtype, part: slice) -> np.ndarray:
    """Slices of the array in a file, whose header is compared and not parsed."""
    header, (first, stop, _) = _header(shape, dtype), part.indices(shape[0])
    out = np.empty((stop - first, *shape[1:]), dtype)
    expected = f"{dtype} array of shape {shape}"
    try:
        with io.FileIO(file) as stream:  # what `open` makes, which takes a while to find that out
            if stream.read(len(header)) != header:
                raise damaged(file, expected, "another header")
            stream.seek(first * math.prod(shape[1:]) * out.itemsize, os.SEEK_CUR)
            if stream.readinto(out.data.cast("B")) != out.nbytes:
                raise damaged(file, expected, "a shorter one")
    except OSError as error:
        raise damaged(file, expected, f"no file that can be read ({error.strerror})") from error
    return out


def damaged(file: Path | str, expected: str, got: str, remedy: str = PREPARE_AGAIN) -> InputError:
    """The error for a file that is not as the manifest says."""
    return InputError(file, expected=expected, got=got, remedy=remedy, code="store-array")


@cache
def _header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """What `np.save` writes before the values of an array."""
    text, descr = io.BytesIO(), np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(text, {"shape": shape, "fortran_order": False, "descr": descr})
    return text.getvalue()
