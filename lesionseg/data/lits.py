"""The door for LiTS: challenge folders of any nesting, and Decathlon `Task03_Liver`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from lesionseg.data.groups import check_excluded, read_groups
from lesionseg.errors import InputError
from lesionseg.folders import files_below
from lesionseg.formats.nifti import read_nifti, read_nifti_labels
from lesionseg.labels import BACKGROUND, LIVER, UNTYPED_LESION
from lesionseg.scan import Case, CaseSource

#: The value of lesions in a LiTS mask, whatever their type.
_LESION = 2


class _Layout(NamedTuple):
    """How a published form of LiTS names its files (path below the root, `/` between folders)."""

    name: str
    volume: str
    mask: str
    case: str


_LAYOUTS = (
    _Layout(
        "LiTS challenge",
        r"(?:.*/)?volume-(\d+)\.nii(?:\.gz)?",
        r"(?:.*/)?segmentation-(\d+)\.nii(?:\.gz)?",
        "volume-{}",
    ),
    _Layout(
        "Decathlon Task03_Liver",
        r"(?:.*/)?imagesTr/liver_(\d+)\.nii(?:\.gz)?",
        r"(?:.*/)?labelsTr/liver_(\d+)\.nii(?:\.gz)?",
        "liver_{}",
    ),
)


def cases(
    root: Path, *, groups: Path | None = None, exclude: Sequence[str] = (), strict: bool = False
) -> list[CaseSource]:
    """List the cases below a folder, in the order of their numbers; nothing is read yet.

    Args:
        root: holds `volume-N.nii[.gz]` and `segmentation-N.nii[.gz]` in any sub-folders, or `imagesTr/liver_N.nii.gz`
            and `labelsTr/liver_N.nii.gz`. Test images, which have no mask, are passed over.
        groups: CSV with columns `case,patient` (case: `volume-N` or `liver_N`); a case that it does not name is a
            patient of its own. LiTS holds several scans of some patients.
        exclude: cases to leave out.
        strict: refuse a volume whose spacing and orientation are unknown, when it is read.

    Raises:
        InputError: the first problem that `find` lists.
    """
    sources, problems = find(root, groups=groups, exclude=exclude, strict=strict)
    if problems:
        raise problems[0]
    return sources


def find(
    root: Path, *, groups: Path | None = None, exclude: Sequence[str] = (), strict: bool = False
) -> tuple[list[CaseSource], list[InputError]]:
    """List the cases as `cases` does, and all problems that show before a file is read (missing, unpaired, doubled)."""
    problems: list[InputError] = []
    volumes, masks, layout = _listing(root, problems)
    if layout is None:
        return [], problems
    names = {number: layout.case.format(number) for number in sorted({*volumes, *masks})}
    patients: dict[str, str] = {}
    try:
        check_excluded(root, exclude, names.values())
        patients = read_groups(groups, names.values())
    except InputError as error:
        problems.append(error)
    numbers = [number for number, name in names.items() if name not in exclude]
    _check_pairs(root, volumes, masks, numbers, problems)
    sources = [
        _source(names[number], volumes[number][0], masks[number][0], patients.get(names[number], names[number]), strict)
        for number in numbers
        if len(volumes[number]) == len(masks[number]) == 1
    ]
    return sources, problems


def _listing(
    root: Path, problems: list[InputError]
) -> tuple[dict[int, list[Path]], dict[int, list[Path]], _Layout | None]:
    """Volumes and masks by number, and the layout they come in (None, with a problem noted: none, or two at once)."""
    try:
        files = [path for path in files_below(root) if ".nii" in path.name]
    except InputError as error:
        problems.append(error)
        return {}, {}, None
    found = []
    for layout in _LAYOUTS:
        volumes, masks = (_numbered(root, files, pattern) for pattern in (layout.volume, layout.mask))
        if volumes or masks:
            found.append((volumes, masks, layout))
    if len(found) == 1:
        return found[0]
    expected = "volume-N.nii[.gz] with segmentation-N.nii[.gz], or Task03_Liver with imagesTr and labelsTr"
    if found:
        expected, got, remedy = "one form of LiTS (both hold the same scans)", "two", "name the folder of one of them"
    elif not root.is_dir():
        got, remedy = "no such folder", "check the path"
    else:
        got, remedy = f"{len(files)} other NIfTI files" if files else "no NIfTI file", "name the folder that holds them"
    problems.append(InputError(root, expected=expected, got=got, remedy=remedy, code="no-cases"))
    return {}, {}, None


def _numbered(root: Path, files: Sequence[Path], pattern: str) -> dict[int, list[Path]]:
    found: dict[int, list[Path]] = defaultdict(list)
    for path in files:
        if match := re.fullmatch(pattern, path.relative_to(root).as_posix()):
            found[int(match[1])].append(path)
    return found


def _check_pairs(
    root: Path,
    volumes: dict[int, list[Path]],
    masks: dict[int, list[Path]],
    numbers: Sequence[int],
    problems: list[InputError],
) -> None:
    """Note every number that lacks its volume or its mask, and every file that is there twice."""
    alone = [
        f"{what} {n}" for n in numbers for what, found in (("volume", masks), ("segmentation", volumes)) if not found[n]
    ]
    if alone:
        expected, remedy = (
            "a segmentation for every volume and the reverse",
            "add the missing files, or exclude the cases",
        )
        problems.append(
            InputError(root, expected=expected, got=f"alone: {', '.join(alone)}", remedy=remedy, code="unpaired")
        )
    for found in (volumes, masks):
        for number in numbers:
            if len(found[number]) > 1:
                got = " and ".join(path.relative_to(root).as_posix() for path in found[number])
                expected, remedy = "each file once", "take one of them out of the folder"
                problems.append(InputError(root, expected=expected, got=got, remedy=remedy, code="doubled"))


def _source(name: str, volume: Path, mask: Path, patient_id: str, strict: bool) -> CaseSource:
    read = partial(_read_case, volume, mask, patient_id, strict)
    return CaseSource(name, patient_id, (volume, mask), read, options="strict" if strict else "")


def _read_case(volume: Path, mask: Path, patient_id: str, strict: bool) -> Case:
    scan, warnings = read_nifti(volume, strict=strict)
    labels = read_nifti_labels(mask, scan, (BACKGROUND, LIVER, _LESION), renamed={_LESION: UNTYPED_LESION})
    return Case(scan, labels, patient_id, warnings=warnings)
