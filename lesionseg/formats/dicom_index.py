"""Which DICOM files belong together: a peek at each header, and the files of each study."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from lesionseg.errors import InputError
from lesionseg.formats.dicom import read_dataset, refused
from lesionseg.formats.dicom_checks import is_ct, is_localizer, word

_PEEKED = ["SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID", "ImageType", "Modality"]


class Peek(NamedTuple):
    """What a file says of where it belongs: UIDs of study and series (empty: blanked), modality, CT, localizer."""

    study: str
    series: str
    modality: str
    ct: bool
    localizer: bool


@dataclass
class StudyFiles:
    """The DICOM files of one study, and the UIDs of its CT series.

    Attributes:
        uid: of the study; empty where it is blanked.
        files: those that cannot be read and may be a part of it included.
        ct: UIDs of its CT series that are not localizers alone.
        localizers: UIDs of series with localizers.
        modalities: of all files.
    """

    uid: str
    files: list[Path] = field(default_factory=list)
    ct: set[str] = field(default_factory=set)
    localizers: set[str] = field(default_factory=set)
    modalities: set[str] = field(default_factory=set)

    @property
    def is_ct(self) -> bool:
        """Holds CT, or says so."""
        return bool(self.all_ct) or "CT" in self.modalities

    @property
    def all_ct(self) -> set[str]:
        """UIDs of the CT series, localizers among them."""
        return self.ct | self.localizers

    @cached_property
    def folders(self) -> set[Path]:
        """Those that hold its files."""
        return {path.parent for path in self.files}

    @cached_property
    def folder(self) -> Path:
        """The deepest one that holds all files."""
        return Path(os.path.commonpath(self.folders))


def peek(path: Path) -> Peek:
    """Read no more of a file than tells where it belongs; `InputError` where its header cannot be read."""
    with refused(path, "a readable DICOM file"):
        header = read_dataset(path, stop_before_pixels=True, specific_tags=_PEEKED)
        study, series = (str(header.get(name) or "") for name in ("StudyInstanceUID", "SeriesInstanceUID"))
        return Peek(study, series, word(header.get("Modality")), is_ct(header), is_localizer(header))


def by_study(paths: Sequence[Path]) -> list[StudyFiles]:
    """DICOM files by study; files whose study UID is blanked by folder.

    A file that cannot be read is given to every CT study of its folder, as it may be a part of it: reading then says
    so. A series under several study UIDs stays together, so that reading refuses it.
    """
    studies: dict[str, StudyFiles] = {}
    owner: dict[str, str] = {}  # of a series
    unreadable = []
    for path in paths:
        try:
            held = peek(path)
        except (InputError, OSError):
            unreadable.append(path)
            continue
        key = held.study or f"folder {path.parent}"
        if held.series:
            key = owner.setdefault(held.series, key)
        study = studies.setdefault(key, StudyFiles(held.study))
        study.files.append(path)
        study.modalities.add(held.modality)
        if held.ct:
            (study.localizers if held.localizer else study.ct).add(held.series)
    holders = defaultdict(list)
    for study in studies.values():
        for folder in {path.parent for path in study.files} if study.is_ct else ():
            holders[folder].append(study)
    for path in unreadable:
        if path.parent not in holders:
            key = f"unreadable {path.parent}"
            holders[path.parent].append(studies.setdefault(key, StudyFiles("", modalities={"CT"})))
        for study in holders[path.parent]:
            study.files.append(path)
    return list(studies.values())
