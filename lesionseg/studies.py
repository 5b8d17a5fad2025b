"""The studies that an input holds, told apart by what the files say of themselves, and listed before any is read."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lesionseg.errors import InputError, some
from lesionseg.folders import walk
from lesionseg.formats import is_nifti, read_scan
from lesionseg.formats.dicom import SUFFIXES, is_dicom, read_dicom_file, read_dicom_series
from lesionseg.formats.dicom_checks import word
from lesionseg.formats.dicom_index import StudyFiles, by_study
from lesionseg.formats.nifti import read_nifti, stem
from lesionseg.scan import Scan, holds_fat_or_air

#: File that `lesionseg segment` leaves in every folder it makes; nothing in such a folder is input again.
RECORD = "segment.json"
#: Longer names are cut, as file systems end at 255 bytes.
MOST_NAME_BYTES = 120
#: Share of neighbouring voxels that are equal, from which on whole numbers of 0 to 255 are a label map. Measured: label
#: maps 0.94 and more, CT 0.02 to 0.37 and never without negative values.
LABEL_MAP_SHARE = 0.8
#: Grey values this far apart, in the range of soft tissue, are too coarse; 8 bits of a window of 400 HU are 1.6.
SOFT_TISSUE_HU, COARSE_HU = (-150, 250), 8
#: Of soft tissue, from which on its grey values tell how far apart they are.
_ENOUGH_PIXELS = 100
#: `InputError.code` of a label map in the place of a CT.
LABEL_MAP = "label-map"
#: So many series are listed, no more.


@dataclass(frozen=True)
class Study:
    """One CT to segment, not read yet.

    Attributes:
        name: names its output; made of names of files and folders, or of the study UID, never of what a header says of
            the patient.
        path: the NIfTI file, the DICOM file, or the folder that holds the DICOM files.
        files: all that it is made of; of DICOM also what else belongs to the study.
        dicom: the files are DICOM.
        series: UID of the series to take, or its end; None: the one CT series it holds.
        closed: folders below `path` that cannot be read and may hold slices of it.
        remarks: what a reader should know of how it was found, one sentence each.
    """

    name: str
    path: Path
    files: tuple[Path, ...]
    dicom: bool
    series: str | None = None
    closed: tuple[Path, ...] = ()
    remarks: tuple[str, ...] = ()

    def read(self) -> tuple[Scan, tuple[str, ...]]:
        """The scan, and what a reader should know of it.

        Raises:
            InputError: see the readers of the formats; or a folder that cannot be read (code `unreadable`), or values
                that are not Hounsfield units (code `LABEL_MAP` for a label map, `no-negative-hu` else).
        """
        if self.closed:
            raise InputError(self.closed[0], expected="a folder that can be read, as it may hold slices of this study",
                             got="none", remedy="let it be read, or move the study out of its parent folder",
                             code="unreadable")  # fmt: skip
        warnings: tuple[str, ...] = ()
        if not self.dicom:
            scan, warnings = read_nifti(self.path)
        elif self.path.is_dir():
            scan = read_dicom_series(self.path, self.series, self.files)
        else:
            scan = read_dicom_file(self.path)
        _check_hounsfield(self.path, scan.hu)
        return scan, (*self.remarks, *warnings, *_coarse(scan.hu))

    def fingerprint(self) -> str:
        """Hash of names below `path`, sizes and times of the files, of `closed` and series: changes when they do."""
        root = self.path if self.path.is_dir() else self.path.parent
        stats = [(os.path.relpath(path, root), path.stat()) for path in self.files]
        closed = [os.path.relpath(path, root) for path in self.closed]
        content = [self.series, closed, *((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def place(self) -> str:
        """Hash of where it lies and which study it is: the same while its files change."""
        return hashlib.sha256(os.fsencode(f"{self.path.resolve()}\0{self.series}\0{self.name}")).hexdigest()


class Found(NamedTuple):
    """The studies of an input in the order of their names, and what was passed over, one sentence each."""

    studies: tuple[Study, ...]
    passed_over: tuple[str, ...] = ()


def find_studies(path: Path, series: str | None = None) -> Found:
    """List the studies of a NIfTI file, a DICOM file, or a folder of any nesting; only headers of DICOM are read.

    Every NIfTI file is a study (a label map shows when it is read), and so are the DICOM files of one StudyInstanceUID.
    Passed over: hidden files, folders that `lesionseg segment` made, DICOM studies without CT beside others, folders
    that cannot be read; a DICOM study around one of these may lack slices, so that reading it fails.

    Args:
        path: the input.
        series: take the DICOM study that holds the CT series with this UID, or this end of its UID, and no other study.

    Raises:
        InputError: no such file, no study below the folder, or a series that is not there exactly once.
    """
    return _below(path, series) if path.is_dir() else Found((_single(path, series),))


def _single(path: Path, series: str | None) -> Study:
    if series is not None:
        raise _wrong_series(series, f"the file {path.name}", "leave --series out")
    dicom = path.is_file() and not is_nifti(path) and is_dicom(path)
    if not dicom and not (is_nifti(path) and path.exists()):
        read_scan(path)  # says what is missing or wrong
    base = stem(path) if path.suffix.lower() in (".gz", ".nii", *SUFFIXES) else path.name
    return Study(_plain(base), path, (path,), dicom)


def _below(root: Path, series: str | None) -> Found:
    nifti, dicom, earlier, closed = _walk(root)
    groups = by_study(dicom)
    with_ct, without = [g for g in groups if g.is_ct], [g for g in groups if not g.is_ct]
    passed_over = [f"{earlier} folder{'s' if earlier > 1 else ''} of earlier results"] if earlier else []
    passed_over += [f"{path.relative_to(root)}, a folder that cannot be read" for path in closed]
    if series is not None:
        nifti, with_ct = [], [g for g in with_ct if any(uid.endswith(series) for uid in g.all_ct)] or with_ct
        if len(with_ct) != 1:
            raise _wrong_series(series, _listed(series, with_ct), "name a longer end of one of them")
    elif without:
        if not with_ct and not nifti:
            read_dicom_series(root, files=[path for group in without for path in group.files])  # says what it is
        kinds = ", ".join(sorted({kind for group in without for kind in group.modalities}))
        passed_over.append(f"{len(without)} DICOM stud{'ies' if len(without) > 1 else 'y'} without CT ({kinds})")
    if not with_ct and not nifti:
        got = f"only {passed_over[0]}" if passed_over else "neither among its files"
        remedy = "give NIfTI (.nii, .nii.gz) or DICOM files; convert other formats first"
        raise InputError(root, expected="a CT in NIfTI or DICOM", got=got, remedy=remedy, code="no-study")
    studies = [_nifti_study(root, path) for path in nifti]
    studies += [_dicom_study(root, group, with_ct, series, closed) for group in with_ct]
    return Found(tuple(sorted(_distinct(root, studies), key=lambda study: study.name)), tuple(passed_over))


def _walk(root: Path) -> tuple[list[Path], list[Path], int, list[Path]]:
    """NIfTI files, files that are or mean to be DICOM, the number of folders with results, and folders that are closed.

    Links are followed. A root that is closed is an `OSError`.
    """
    nifti: list[Path] = []
    dicom: list[Path] = []
    closed: list[Path] = []
    earlier = 0

    def note(error: OSError) -> None:
        if Path(error.filename) == root:
            raise error
        closed.append(Path(error.filename))

    for here, folders, names in walk(root, note):
        if RECORD in names:
            folders.clear()
            earlier += 1
            continue
        for name in names:
            path = here / name
            if name.startswith(".") or name.upper() == "DICOMDIR":
                continue
            if is_nifti(path):
                nifti.append(path)
            elif path.suffix.lower() in SUFFIXES or _may_be_dicom(path):
                dicom.append(path)
    return nifti, dicom, earlier, sorted(closed)


def _nifti_study(root: Path, path: Path) -> Study:
    below = path.relative_to(root)
    return Study(_plain("_".join([*below.parent.parts, stem(path)])), path, (path,), dicom=False)


def _dicom_study(
    root: Path, group: StudyFiles, others: Sequence[StudyFiles], series: str | None, closed: Sequence[Path]
) -> Study:
    """Named after its folder, with the end of the study UID where that is the input itself or holds another study."""
    folder = group.folder
    shared = any(other is not group and any(f.is_relative_to(folder) for f in other.folders) for other in others)
    parts = list(folder.relative_to(root).parts)
    if shared or not parts:
        parts.append(f"study-{word(group.uid[-8:].strip('.'))}" if group.uid else "study")
    chosen = [uid for uid in group.ct if series is None or uid.endswith(series)]
    one = chosen[0] if len(chosen) == 1 and chosen[0] else series
    remarks = (f"Not segmented: {_rest(group)}.",) if len(chosen) == 1 and len(group.all_ct) > 1 else ()
    below = tuple(path for path in closed if path.is_relative_to(folder))
    return Study(_plain("_".join(parts)), folder, tuple(sorted(group.files)), True, one, below, remarks)


def _rest(group: StudyFiles) -> str:
    """The CT series of a study besides the one that is taken."""
    others, localizers = len(group.ct) - 1, len(group.localizers - group.ct)
    parts = [f"{n} {kind} series" for n, kind in ((others, "other CT"), (localizers, "localizer")) if n]
    return f"{' and '.join(parts)} of the study"


def _distinct(root: Path, studies: Sequence[Study]) -> list[Study]:
    """Names that no other study has, also where upper and lower case are one, by a hash that stays the same."""
    count = Counter(study.name.casefold() for study in studies)
    return [
        study if count[study.name.casefold()] == 1 else replace(study, name=f"{study.name}-{_hash(root, study)}")
        for study in studies
    ]


def _hash(root: Path, study: Study) -> str:
    return hashlib.sha256(os.fsencode(f"{study.path.relative_to(root)}\0{study.series}")).hexdigest()[:6]


def _plain(text: str) -> str:
    """A file name made of a path: letters, digits, `.`, `-` and `_`, not hidden, not too long."""
    plain = re.sub(r"[^\w.-]+", "_", text).strip("._-")
    return plain.encode()[-MOST_NAME_BYTES:].decode(errors="ignore").strip("._-") or "study"


def _may_be_dicom(path: Path) -> bool:
    """A file that cannot be opened may be a slice, and must not be missed unsaid."""
    try:
        return path.is_file() and is_dicom(path)
    except OSError:
        return True


def _check_hounsfield(path: Path, hu: np.ndarray) -> None:
    """Refuse what has neither fat nor air: a label map, or grey values of another kind."""
    if holds_fat_or_air(hu):
        return
    same = np.count_nonzero(hu[..., 1:] == hu[..., :-1]) >= LABEL_MAP_SHARE * max(hu[..., 1:].size, 1)
    if hu.max() <= 255 and same:
        got, remedy, code = f"a label map of values {hu.min()} to {hu.max()}", "give the CT it was drawn on", LABEL_MAP
    else:
        got, remedy = f"values from {hu.min()} to {hu.max()}", "export the CT again in Hounsfield units"
        code = "no-negative-hu"
    raise InputError(
        path, expected="Hounsfield units, where fat and air lie below 0", got=got, remedy=remedy, code=code
    )


def _coarse(hu: np.ndarray) -> tuple[str, ...]:
    """A sentence where the values of soft tissue are far apart, as of a CT that was compressed to 8 bits."""
    middle = hu[len(hu) // 2]
    soft = middle[(middle >= SOFT_TISSUE_HU[0]) & (middle <= SOFT_TISSUE_HU[1])]
    steps = np.diff(np.unique(soft))
    if soft.size < _ENOUGH_PIXELS or not len(steps) or steps.min() < COARSE_HU:
        return ()
    return (f"Grey values are {steps.min()} HU apart, too coarse for lesions (a CT compressed to 8 bits?).",)


def _listed(series: str, groups: Sequence[StudyFiles]) -> str:
    uids = sorted(uid for group in groups for uid in group.all_ct)
    fitting = [uid for uid in uids if uid.endswith(series)]
    shown = some((word(f"…{uid[-12:]}") for uid in fitting or uids), 8)
    return f"{len(fitting)} of {len(uids)}: {shown}" if uids else "no DICOM file of a CT"


def _wrong_series(series: str, got: str, remedy: str) -> InputError:
    expected = f"one CT series below the folder whose UID ends in {series}"
    return InputError("--series", expected=expected, got=got, remedy=remedy, code="several-series")
