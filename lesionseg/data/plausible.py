"""What is wrong, or only odd, with one case or with a cohort of cases, each kind under a code that stays."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from scipy import ndimage

from lesionseg.data.records import CaseRecord
from lesionseg.data.store import StoreKind
from lesionseg.errors import InputError
from lesionseg.labels import LIVER, NAMES
from lesionseg.measurements import FULL_CONNECTIVITY
from lesionseg.scan import holds_fat_or_air

#: What each code of this file means. Faults of files carry the codes of the `InputError` that names them.
CODES: dict[str, str] = {
    "remark": "the case can be read, with a remark",
    "liver-hu": "the median of the liver is one that no liver has: not in HU, or the mask is misplaced",
    "liver-hu-unusual": "the median of the liver is unusual, or that of a few voxels is none of a liver",
    "no-negative-hu": "no voxel below 0 HU, so neither fat nor air: grey values, or a window that starts too high",
    "liver-empty": "no liver in the mask",
    "liver-missing": "slices without a liver mask: a liver net must find it",
    "lesion-empty": "a single slice without lesion in its mask",
    "lesion-outside-liver": "a lesion that touches no liver",
    "lesion-tiny": "a lesion of very few voxels: a slip of the brush, perhaps",
    "spacing-unusual": "unusual voxel spacing",
    "same-scan-leak": "one scan under two patients: a leak between folds",
    "same-study-leak": "slices of one DICOM study under two patients: a leak between folds",
    "same-study": "one StudyInstanceUID under many patients: no study, but what an anonymiser wrote",
    "same-scan": "one scan twice under one patient",
    "generated-mixed": "generated cases among real ones",
    "few-patients": "fewer patients than folds",
    "scarce-type": "a lesion type in fewer patients than folds",
}

#: What `prepare` says of a case whose values are `no-negative-hu`.
NO_FAT_OR_AIR = "no voxel lies below 0 HU, so neither fat nor air: see that the values are Hounsfield units"
#: Medians outside these are no liver: pure fat is about -100 HU, and no parenchyma is enhanced to 300.
LIVER_LIMITS_HU = (-100.0, 300.0)
#: A severely fatty liver comes down to about 0 HU, a healthy one in the portal phase lies at 100 to 120.
LIVER_USUAL_HU = (0.0, 200.0)
#: So many slices tell the median of a liver well enough, and so few voxels (the rim of a lesion at the dome) do not.
LIVER_SLICES, FEW_LIVER_VOXELS = 8, 200
#: Usual spacing in mm, through and within the plane, of abdominal CT (LiTS: 0.45 to 6.0, and 0.56 to 1.0).
USUAL_SLICE_MM, USUAL_PIXEL_MM = (0.3, 10.0), (0.3, 3.5)
#: Lesions of fewer voxels are reported.
FEW_VOXELS = 4


@dataclass(frozen=True)
class Problem:
    """One finding.

    Attributes:
        severity: after an error work cannot go on; a warning is to be looked at.
        code: a key of `CODES`, or the code of an `InputError`; the same from version to version.
        where: the case or file.
        message: what was found.
        remedy: what to do.
    """

    severity: Literal["error", "warning"]
    code: str
    where: str
    message: str
    remedy: str


_error, _warning = partial(Problem, "error"), partial(Problem, "warning")


def unreadable(error: InputError) -> Problem:
    """A fault of a file, as its reader says it."""
    return _error(error.code, error.where, f"expected {error.expected}; got {error.got}", error.remedy)


def case_problems(record: CaseRecord, hu: np.ndarray, labels: np.ndarray, where: str, kind: StoreKind) -> list[Problem]:
    """What one case tells: `hu` and `labels` are (D, H, W), `record` what was measured of them."""
    remarks = [text for text in record.warnings if text != NO_FAT_OR_AIR]  # which is told below
    found = [_warning("remark", where, text, "see that this is meant") for text in remarks]
    found += grey_values(record, hu, labels, where)
    found += _masks(record, labels, where, kind)
    found += _spacing(record, where)
    return found


def cohort_problems(records: Sequence[CaseRecord], where: dict[str, str], cohort: str, folds: int) -> list[Problem]:
    """What no case tells alone; `where` gives the name to print for each case id, `cohort` that of them all."""
    found = [*_same_voxels(records, where), *_same_study(records, where)]
    generated = sum(record.generated for record in records)
    if 0 < generated < len(records):
        text = f"{generated} of {len(records)} cases are generated"
        found.append(_error("generated-mixed", cohort, text, "prepare them apart"))
    missing = sum(record.liver_predicted and not record.liver_slices for record in records)
    if missing:
        remedy = "prepare with `--liver RUN`, or add a column liver_mask"
        found.append(_warning("liver-missing", cohort, f"{missing} of {len(records)} cases", remedy))
    patients = len({record.patient_id for record in records})
    if patients < folds:
        found.append(_warning("few-patients", cohort, f"{patients} patients, {folds} folds", "use fewer folds"))
    for name in NAMES.values():
        owners = len({record.patient_id for record in records if name in record.lesion_types})
        if 0 < owners < min(folds, patients):
            text = f"{name} in {owners} of {patients} patients: not every one of {folds} folds can test it"
            found.append(_warning("scarce-type", cohort, text, "use fewer folds, or read its figures with care"))
    return found


def grey_values(record: CaseRecord, hu: np.ndarray, labels: np.ndarray, where: str) -> Iterator[Problem]:
    """Whether the values can be Hounsfield units: of all, and of the liver on at most `LIVER_SLICES` of its slices."""
    if not holds_fat_or_air(hu):
        remedy = "see that the image is in HU (PNG: the window columns)"
        yield _warning("no-negative-hu", where, f"HU from {hu.min()} to {hu.max()}", remedy)
    with_liver = record.liver_slices
    some = [with_liver[i] for i in np.linspace(0, len(with_liver) - 1, min(len(with_liver), LIVER_SLICES)).astype(int)]
    parenchyma = np.concatenate([hu[i][labels[i] == LIVER] for i in some]) if some else hu[:0]
    if parenchyma.size:
        median = float(np.median(parenchyma))
        text, remedy = (
            f"median of the liver {median:.0f} HU",
            "look at the picture: is it in HU, the mask on the liver?",
        )
        if not LIVER_LIMITS_HU[0] <= median <= LIVER_LIMITS_HU[1] and parenchyma.size > FEW_LIVER_VOXELS:
            yield _error("liver-hu", where, text, remedy)
        elif not LIVER_USUAL_HU[0] <= median <= LIVER_USUAL_HU[1]:
            yield _warning("liver-hu-unusual", where, text, remedy)


def _masks(record: CaseRecord, labels: np.ndarray, where: str, kind: StoreKind) -> Iterable[Problem]:
    if kind == "slices" and not record.lesions:
        yield _warning("lesion-empty", where, "no lesion in the mask", "it will serve as a slice without lesion")
    few = sum(lesion.voxels < FEW_VOXELS for lesion in record.lesions)
    if few:
        text = f"{few} of {len(record.lesions)} lesions have fewer than {FEW_VOXELS} voxels"
        yield _warning("lesion-tiny", where, text, "see that they are meant")
    if record.liver_predicted:
        return
    if not record.liver_slices:
        problem = _error if kind == "slices" else _warning
        yield problem("liver-empty", where, "no liver in the mask", "give a liver mask, or leave the case out")
    outside = _lesions_without_liver(labels)
    if outside:
        text = f"{outside} lesions touch no liver"
        yield _warning("lesion-outside-liver", where, text, "look at the picture: do the masks fit each other?")


def _lesions_without_liver(labels: np.ndarray) -> int:
    """Islands of lesion, types merged, with no liver voxel beside them."""
    whole = ndimage.find_objects((labels > LIVER).view(np.uint8))
    if not whole:
        return 0
    window = labels[_around(whole[0])]
    islands, _ = ndimage.label(window > LIVER, FULL_CONNECTIVITY)
    count = 0
    for i, box in enumerate(ndimage.find_objects(islands), start=1):
        near = ndimage.binary_dilation(islands[_around(box)] == i, FULL_CONNECTIVITY)
        count += not (window[_around(box)][near] == LIVER).any()
    return count


def _around(box: tuple[slice, ...]) -> tuple[slice, ...]:
    """A box one voxel larger on every side; what reaches over the array is cut off by indexing."""
    return tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)


def _spacing(record: CaseRecord, where: str) -> Iterable[Problem]:
    if record.spacing_mm is None:
        return
    thickness, *plane = record.spacing_mm
    usual = math.isnan(thickness) or USUAL_SLICE_MM[0] <= thickness <= USUAL_SLICE_MM[1]
    if not usual or not all(USUAL_PIXEL_MM[0] <= side <= USUAL_PIXEL_MM[1] for side in plane):
        text = " × ".join(f"{side:.3g}" for side in record.spacing_mm)
        yield _warning("spacing-unusual", where, f"spacing {text} mm", "figures in mm will be off if it is wrong")


def _same_voxels(records: Sequence[CaseRecord], where: dict[str, str]) -> list[Problem]:
    groups: dict[str, list[CaseRecord]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.case_id):
        groups[record.voxel_checksum].append(record)
    found = []
    for group in groups.values():
        for twin in group[1:]:
            text = f"same voxels as {where[group[0].case_id]}"
            if twin.patient_id == group[0].patient_id:
                found.append(_warning("same-scan", where[twin.case_id], text, "leave one out (`--exclude`)"))
            else:
                remedy = "join the patients (`--groups`), or leave one out (`--exclude`)"
                found.append(_error("same-scan-leak", where[twin.case_id], text, remedy))
    return found


def shared_studies(records: Sequence[CaseRecord]) -> list[tuple[CaseRecord, CaseRecord, bool]]:
    """Studies under several patients: two records of each, of two patients, and whether it is a patient of two names.

    It is where the study has two patients, and there are more, or at most half of all: an id of the slice was given in
    the place of the patient's. A UID that stands for more of them is no study, but what an anonymiser wrote.
    """
    owners: dict[str, dict[str, CaseRecord]] = defaultdict(dict)
    for record in sorted(records, key=lambda record: record.case_id):
        if record.study is not None:
            owners[record.study].setdefault(record.patient_id, record)
    patients = len({record.patient_id for record in records})
    several = [list(found.values()) for found in owners.values() if len(found) > 1]
    return [(found[0], found[1], len(found) == 2 < patients or 2 * len(found) <= patients) for found in several]


def _same_study(records: Sequence[CaseRecord], where: dict[str, str]) -> Iterator[Problem]:
    for first, second, leak in shared_studies(records):
        text = f"of the same DICOM study (StudyInstanceUID) as {where[first.case_id]}"
        if leak:
            remedy = "give them the patient that they are of, or leave one out (`--exclude`)"
            yield _error("same-study-leak", where[second.case_id], text, remedy)
        else:
            yield _warning("same-study", where[second.case_id], text, "see that no patient has two names")
