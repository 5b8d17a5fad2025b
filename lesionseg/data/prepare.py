"""`prepare`: sources → store. Whole cases or none, continued after any interruption, and no name of a source inside."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from lesionseg.data.case_files import CASES, HU, LABELS, array_damage, case_folder
from lesionseg.data.plausible import NO_FAT_OR_AIR, grey_values, shared_studies
from lesionseg.data.pseudonyms import (
    Job,
    key_table,
    key_table_path,
    source_checksum,
    source_checksums,
    study_pseudonym,
    with_pseudonyms,
    without_names,
)
from lesionseg.data.records import CaseRecord, describe
from lesionseg.data.store import CASE_ID, MANIFEST, RECORD, Store, StoreKind, manifest_text
from lesionseg.errors import InputError, some
from lesionseg.locking import one_at_a_time
from lesionseg.parallel import Cluster, each
from lesionseg.parallel.cluster import visible
from lesionseg.scan import CaseSource, to_canonical

_LOCK, _TEMPORARY = ".lock", ".tmp-"
#: Cases that a warning names.


class _Stated(msgspec.Struct):
    """Of a manifest, whatever its format: the kind of the store."""

    kind: StoreKind


def prepare(
    sources: Sequence[CaseSource],
    store_path: str | Path,
    *,
    kind: StoreKind,
    salt: bytes = b"",
    workers: int | None = None,
    dask: str | None = None,
) -> Store:
    """Bring a store up to date with its sources: new and changed cases are read, vanished ones removed.

    Beside the store, `<store_path>.key.csv` tells which pseudonym is which source; it stays with the user.

    Args:
        sources: the cases, from a door (`lits.cases`, `slices.cases`).
        store_path: folder of the store: new, empty, or a store of the same kind.
        kind: recorded in the manifest.
        salt: mixed into the pseudonyms. Without a secret salt, who guesses an id can confirm it.
        workers: processes; default: one per CPU, 8 at most. Each holds a volume. 1: no further process.
        dask: address of a Dask scheduler whose workers take their place; they see sources and store under these paths.

    Raises:
        InputError: from reading a case, or: no source, one twice, one scan or DICOM study under two patients, a liver
            that is none in HU, generated cases among real ones, another prepare at work, a folder that is no store, a
            cluster that is not fit (see `Cluster`). Cases already finished stay for the next call; the store has no
            manifest until all are.
        ChildProcessError: see `each`.
    """
    store_path = Path(store_path)
    jobs = with_pseudonyms(sources, salt)
    _refuse_other_folder(store_path, kind)
    busy = InputError(store_path, expected="one prepare at a time", got="another", remedy="wait until it ends",
                      code="store-busy")  # fmt: skip
    with one_at_a_time(store_path, _LOCK, busy):
        _remove_temporaries(store_path)
        found = _bring_up_to_date(store_path, jobs, partial(_prepare_case, kind=kind, salt=salt), workers, dask)
        _replace_text(key_table_path(store_path), key_table(jobs), mode=0o600)
        records = _compared(store_path, found)
        _replace_text(store_path / MANIFEST, manifest_text(kind, records))
    _announce(records)
    return Store.open(store_path)


def _bring_up_to_date(
    store_path: Path,
    jobs: list[Job],
    prepare_case: Callable[..., tuple[Path, CaseRecord]],
    workers: int | None,
    dask: str | None,
) -> Collection[CaseRecord]:
    """Case folders as the sources say; the manifest goes before the first change and is not yet written again."""
    records = _finished(store_path, jobs)
    todo = [job for job in jobs if job.case_id not in records]
    gone = _gone(store_path, jobs)
    seen = todo[0].source.files if todo else ()
    cluster = None if dask is None else Cluster(dask, store_path, partial(visible, *seen))
    if todo or gone:
        (store_path / MANIFEST).unlink(missing_ok=True)
    if gone:
        names = some(sorted(folder.name for folder in gone), 3)
        cases = f"{len(gone)} case{'s' * (len(gone) > 1)}"
        warnings.warn(f"{cases} removed from the store, as no longer in the input: {names}", stacklevel=4)
    for folder in gone:
        shutil.rmtree(folder)
    try:
        prepare_one = partial(prepare_case, store_path=store_path)
        with closing(each(prepare_one, todo, workers=workers, dask=cluster, title="prepare")) as results:
            for folder, record in results:
                _put_in_place(folder, case_folder(store_path, record.case_id))
                records[record.case_id] = record
    finally:
        _remove_temporaries(store_path)
    return records.values()


def _prepare_case(job: Job, store_path: Path, kind: StoreKind, salt: bytes) -> tuple[Path, CaseRecord]:
    """Read a case and write it, whole, into a temporary folder of the store; the caller puts it in its place."""
    checksum = source_checksum(job.source)  # here, so that the files come from the disk once and are then in its cache
    case = to_canonical(job.source.read())
    notes = tuple(without_names(text, job.source, case.scan.scan_id) for text in case.warnings)
    if not case.labels.any():
        if kind == "slices":
            remedy = "give a liver mask, or leave the slice out"
            raise InputError(
                job.source.source_id,
                expected="a mask with liver",
                got="an empty mask",
                remedy=remedy,
                code="liver-empty",
            )
        notes += ("no liver in the reference",)
    record = describe(
        case,
        case_id=job.case_id,
        patient_id=job.patient_id,
        study=study_pseudonym(case.scan.study, salt),
        source_checksum=checksum,
        warnings=notes,
    )
    for problem in grey_values(record, case.scan.hu, case.labels, job.source.source_id):
        if problem.severity == "error" and not case.liver_predicted:
            raise InputError(problem.where, expected="a liver in Hounsfield units", got=problem.message,
                             remedy=problem.remedy, code=problem.code)  # fmt: skip
        if problem.code == "no-negative-hu":
            record = msgspec.structs.replace(record, warnings=(*record.warnings, NO_FAT_OR_AIR))
    folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=store_path))
    np.save(folder / HU, case.scan.hu)
    np.save(folder / LABELS, case.labels)
    (folder / RECORD).write_bytes(record.to_json())
    folder.chmod(0o755)  # mkdtemp lets nobody else in
    return folder, record


def _compared(store_path: Path, records: Collection[CaseRecord]) -> tuple[CaseRecord, ...]:
    """The records in order, after what no case can tell alone: generated beside real, a scan or study of two."""
    ordered = sorted(records, key=lambda record: record.case_id)
    generated = sum(record.generated for record in ordered)
    if 0 < generated < len(ordered):
        got, remedy = f"{generated} generated among {len(ordered)}", "prepare them apart"
        raise InputError(
            store_path, expected="only generated or only real cases", got=got, remedy=remedy, code="generated-mixed"
        )
    for one, other, leak in shared_studies(ordered):
        if leak:
            raise InputError(
                store_path,
                expected="each DICOM study (StudyInstanceUID) under one patient",
                got=f"one in {one.case_id} and {other.case_id} (names: {key_table_path(store_path)})",
                remedy="give them the patient that they are of (or by `--groups`), leave one out by `--exclude`, or "
                "blank a UID that an anonymiser gave to several patients",
                code="same-study-leak",
            )
        warnings.warn(f"{one.case_id} and {other.case_id} share a StudyInstanceUID; see that no patient has two names",
                      stacklevel=3)  # fmt: skip
    first: dict[str, CaseRecord] = {}
    for i, record in enumerate(ordered):
        twin = first.setdefault(record.voxel_checksum, record)
        if twin.patient_id != record.patient_id:
            raise InputError(
                store_path,
                expected="each scan under one patient",
                got=f"the same voxels in {twin.case_id} and {record.case_id} (names: {key_table_path(store_path)})",
                remedy="join their patients by `--groups`, or leave one out by `--exclude`",
                code="same-scan-leak",
            )
        if twin is not record:
            ordered[i] = msgspec.structs.replace(record, warnings=(*record.warnings, f"same voxels as {twin.case_id}"))
    return tuple(ordered)


def _announce(records: tuple[CaseRecord, ...]) -> None:
    """Each kind of warning once, with the number of cases it is about."""
    count = Counter(text for record in records for text in record.warnings)
    for text, n in count.items():
        first = next(record.case_id for record in records if text in record.warnings)
        warnings.warn(f"{first}{f' and {n - 1} more' if n > 1 else ''}: {text}", stacklevel=3)


def _refuse_other_folder(store_path: Path, kind: StoreKind) -> None:
    """Nothing that `prepare` did not make is ever removed: a folder with other things in it is refused."""
    remedy = "name another output folder"
    if not store_path.exists():
        return
    if not store_path.is_dir():
        raise InputError(store_path, expected="a folder", got="a file", remedy=remedy, code="store-folder")
    known, cases = {MANIFEST, CASES, _LOCK}, store_path / CASES
    other = [path for path in store_path.iterdir() if path.name not in known and not _is_temporary(path)]
    other += [path for path in cases.iterdir() if not CASE_ID.fullmatch(path.name)] if cases.is_dir() else []
    if other:
        raise InputError(
            store_path, expected="an empty folder or a store", got=str(min(other)), remedy=remedy, code="store-folder"
        )
    try:
        found = msgspec.json.decode((store_path / MANIFEST).read_bytes(), type=_Stated).kind
    except (OSError, ValueError, RecursionError):
        return  # no manifest, or a damaged one that is written anew
    if found != kind:
        raise InputError(
            store_path, expected=f"a store of {kind}", got=f"one of {found}", remedy=remedy, code="store-folder"
        )


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(_TEMPORARY)


def _remove_temporaries(store_path: Path) -> None:
    """What a killed prepare left half-written."""
    for path in filter(_is_temporary, store_path.iterdir()):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)  # its worker may live a moment longer; what is left goes next time
        else:
            path.unlink(missing_ok=True)


def _finished(store_path: Path, jobs: list[Job]) -> dict[str, CaseRecord]:
    """Records of the cases that are there, whole, and made from the same source."""
    whole = {}
    for job in jobs:
        folder = case_folder(store_path, job.case_id)
        try:
            record = CaseRecord.from_json((folder / RECORD).read_bytes())
        except (OSError, ValueError, RecursionError):
            continue  # not there, or not whole: made again
        same = (record.case_id, record.patient_id) == (job.case_id, job.patient_id)
        if same and array_damage(folder, record) is None:
            whole[job.case_id] = record
    checksums = source_checksums([job for job in jobs if job.case_id in whole])
    return {case_id: record for case_id, record in whole.items() if record.source_checksum == checksums[case_id]}


def _gone(store_path: Path, jobs: list[Job]) -> list[Path]:
    cases, wanted = store_path / CASES, {job.case_id for job in jobs}
    return [folder for folder in cases.iterdir() if folder.name not in wanted] if cases.is_dir() else []


def _put_in_place(folder: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    if target.exists():  # a folder with files cannot be replaced in one step; the manifest is gone by now
        shutil.rmtree(target)
    os.replace(folder, target)


def _replace_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file in one step; one that already says so is not touched."""
    if path.is_file() and path.read_bytes() == text.encode():
        return
    temporary = path.with_name(_TEMPORARY + path.name)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as stream:
        stream.write(text.encode())
    os.replace(temporary, path)
