"""`Segmentation` → DICOM-SEG: BINARY segments that viewers name and colour. Reading is in `dicom_seg_read`.

Highdicom writes it, always from a `Volume`, which carries its place in the patient: a bare array beside its sources
comes out mirrored wherever the two run in other directions.

`dciodvfy` (dicom3tools) finds no errors in the files; what it warns of is listed in `docs/data.md`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from pydicom.config import RAISE
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid
from pydicom.valuerep import DA, DT, TM, validate_value
from scipy import ndimage

from lesionseg import __version__
from lesionseg.errors import InputError
from lesionseg.formats.dicom import refused
from lesionseg.formats.dicom_checks import ENHANCED
from lesionseg.formats.dicom_grid import frame_places
from lesionseg.labels import CODES, COLORS, LESION_IDS, LIVER, NAMES, UNTYPED_LESION, is_liver
from lesionseg.segmentation import RESEARCH_USE_ONLY, Finding, Segmentation
from lesionseg.writing import whole

#: High, so that it does not meet the numbers that scanners give.
SERIES_NUMBER = 9001
_AGAIN = "export the series again"
#: What SEG and SR must hold though they may be empty (type 2).
REQUIRED = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
             "StudyTime")  # fmt: skip
#: Taken over even where they break a rule: they say whose the study is.
_IDENTITY = ("PatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
#: What reads a value of a kind, and refuses one that is none.
_READERS: dict[str, Callable[[str], object]] = {
    **dict.fromkeys(("AS", "CS", "DS", "IS", "LO", "PN", "SH", "UI"), str),
    "DA": DA,
    "DT": DT,
    "TM": TM,
}


def write_dicom_seg(path: Path, segmentation: Segmentation, sources: Sequence[Dataset]) -> hd.seg.Segmentation | None:
    """Write a segmentation of a DICOM scan; whole or not at all.

    Segment 1 is the liver with the lesions in it; segment 1 + `Finding.id` is that lesion, with a tracking UID by which
    a report can name it. Frames without a voxel are left out, and slices beyond the liver are not referred to. Patient
    and study are those of the sources. UIDs follow from the sources, the model and the voxels: the same result has the
    same UIDs, and fills no PACS with doubles. A slice of unknown thickness is given 1 mm, which the format demands.

    Args:
        path: the file.
        segmentation: of a scan whose place in the patient is known.
        sources: what `dicom.source_headers` gives for the scan; left as they are.

    Returns:
        what was written; None, and no file, where neither liver nor lesion was found: a SEG must hold a frame.

    Raises:
        InputError: sources without study, series or instance UID, or with attributes that a SEG cannot take over.
    """
    scan = segmentation.scan
    if scan.affine is None or len(sources) not in (1, len(scan.hu)):
        raise ValueError("a scan whose place in the patient is known, and its own headers, are needed")
    slices = np.flatnonzero(is_liver(segmentation.labels).any((1, 2)))
    if not len(slices):
        return None
    with refused(path, "CT headers that a DICOM-SEG can refer to", remedy=_AGAIN):
        identity = _identity(segmentation, sources)
        first, stop = int(slices[0]), int(slices[-1]) + 1
        prepared = _prepared(sources, scan.affine)
        prepared = prepared[first:stop] if len(prepared) > 1 else prepared
        _complete(prepared[0])
        dataset = hd.seg.Segmentation(
            prepared,
            _volume(segmentation, first, stop, prepared[0].FrameOfReferenceUID),
            hd.seg.SegmentationTypeValues.BINARY,
            [_description(1, NAMES[LIVER], LIVER), *(_lesion(finding, identity) for finding in segmentation.findings)],
            series_instance_uid=_uid(identity, "series"),
            series_number=SERIES_NUMBER,
            sop_instance_uid=_uid(identity, "instance"),
            instance_number=1,
            manufacturer="lesionseg",
            manufacturer_model_name="lesionseg",
            software_versions=__version__,
            device_serial_number=str(segmentation.model.get("identity", "unknown")),
            content_label="LIVER_LESIONS",
            content_description="Liver and liver lesions, found automatically",
            series_description=f"Liver lesions. {RESEARCH_USE_ONLY}",
            specific_character_set="ISO_IR 192",  # UTF-8: of those of the sources highdicom does not know all
        )
        if len(scan.hu) == 1:  # no distance of slices; highdicom makes one up
            dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].pop("SpacingBetweenSlices", None)
        content = io.BytesIO()
        dataset.save_as(content)
    with whole(path) as part:
        part.write_bytes(content.getbuffer())
    return dataset


def _identity(segmentation: Segmentation, sources: Sequence[Dataset]) -> str:
    """A hash of what was segmented, by what, and of the result."""
    instances = [str(source.get("SOPInstanceUID")) for source in sources]
    types = [finding.type for finding in segmentation.findings]
    digest = hashlib.sha256(json.dumps([instances, types, segmentation.model, __version__], default=str).encode())
    for array in (segmentation.labels, segmentation.lesion_ids):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _uid(identity: str, what: str) -> str:
    return str(generate_uid(entropy_srcs=[identity, what]))


def _prepared(sources: Sequence[Dataset], affine: np.ndarray) -> list[Dataset]:
    """Copies of the sources on the very grid of their scan.

    Highdicom refers from a frame to its source where both lie within 0.001 mm; headers may round more than that.
    """
    prepared = [source[:] for source in sources]  # shallow: elements are replaced and never changed
    step_mm, cosines = float(np.linalg.norm(affine[:3, 0])), _cosines(affine)
    for d, source in enumerate(prepared):
        for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            if not source.get(name):
                raise InputError("DICOM headers", expected=f"a {name}", got="none", remedy=_AGAIN, code="uid")
        frame = source.get("FrameOfReferenceUID") or generate_uid(entropy_srcs=[source.SeriesInstanceUID, "frame"])
        _set(source, "FrameOfReferenceUID", frame)
        if source.SOPClassUID in ENHANCED:
            _frames_on_grid(source, affine)
            continue
        _set(source, "ImagePositionPatient", (affine @ (d, 0, 0, 1))[:3].tolist())
        _set(source, "ImageOrientationPatient", cosines)
        _set(source, "SliceThickness", _thickness_mm(source) or step_mm)
        if len(prepared) > 1:  # measured: what the scanner states may be wrong
            _set(source, "SpacingBetweenSlices", step_mm)
    return prepared


def _frames_on_grid(source: Dataset, affine: np.ndarray) -> None:
    """Give the frames of a multi-frame CT nothing but their places on the grid, with what they share stated once.

    Highdicom takes orientation and measures from nowhere else.
    """
    places, to_index = frame_places(source), np.linalg.inv(affine)
    step_mm, frames = float(np.linalg.norm(affine[:3, 0])), []
    for place in places:
        d = round((to_index @ (*place.ImagePositionPatient, 1))[0])
        frame = Dataset()
        frame.PlanePositionSequence = hd.PlanePositionSequence("PATIENT", (affine @ (d, 0, 0, 1))[:3])
        frames.append(frame)
    shared = Dataset()
    shared.PlaneOrientationSequence = hd.PlaneOrientationSequence("PATIENT", _cosines(affine))
    thickness_mm = next(filter(None, map(_thickness_mm, places)), step_mm)
    between_mm = step_mm if len(places) > 1 else None
    shared.PixelMeasuresSequence = hd.PixelMeasuresSequence(places[0].PixelSpacing, thickness_mm, between_mm)
    _set(source, "SharedFunctionalGroupsSequence", [shared])
    _set(source, "PerFrameFunctionalGroupsSequence", frames)


def _cosines(affine: np.ndarray) -> list[float]:
    """What ImageOrientationPatient holds: the directions along W and along H."""
    return (affine[:3, [2, 1]] / np.linalg.norm(affine[:3, [2, 1]], axis=0)).T.ravel().tolist()


def _thickness_mm(place: Dataset) -> float:
    """0 where none is stated; some writers give it a direction."""
    return abs(float(place.get("SliceThickness") or 0))


def _complete(source: Dataset) -> None:
    """What a SEG takes over of the patient and the study: what is missing becomes empty, what is invalid goes."""
    taken_over = [*source[0x00080000:0x00110000], *source[0x00200010:0x00200011]]  # the second: StudyID
    for element in taken_over:
        if element.keyword not in _IDENTITY and not _is_valid(element):
            del source[element.tag]
    for name in REQUIRED:
        if source.get(name) is None:
            _set(source, name, "")
    removed = source.get("PatientIdentityRemoved") == "YES"
    if removed and not source.get("DeidentificationMethod") and "DeidentificationMethodCodeSequence" not in source:
        _set(source, "DeidentificationMethod", "not stated in the CT")


def _is_valid(element: DataElement) -> bool:
    if element.VR not in _READERS or element.is_empty:
        return True
    try:
        for value in element.value if element.VM > 1 else [element.value]:
            validate_value(element.VR, str(value), RAISE)
            _READERS[element.VR](str(value))
        return element.keyword != "PatientSex" or hd.PatientSexValues(element.value) is not None
    except ValueError:
        return False


def _set(dataset: Dataset, name: str, value: object) -> None:
    """Give an attribute another element; assignment would change the one that a shallow copy shares."""
    dataset.add_new(name, dictionary_VR(name), value)


def _volume(segmentation: Segmentation, first: int, stop: int, frame_of_reference: str) -> hd.Volume:
    """Slices `first` to `stop` of all segments, (D, H, W, segments).

    It begins as zeros, to which the system gives memory only where they are written to: a segment costs what its
    lesion takes, however many there are.
    """
    affine = np.array(segmentation.scan.affine)
    affine[:3, 3] += first * affine[:3, 0]
    ids = segmentation.lesion_ids[first:stop]
    masks = np.zeros((1 + len(segmentation.findings), *ids.shape), dtype=np.uint8)
    masks[0] = is_liver(segmentation.labels[first:stop])
    for finding, box in zip(segmentation.findings, ndimage.find_objects(ids), strict=True):
        masks[finding.id][box] = ids[box] == finding.id
    return hd.Volume(
        masks.transpose(1, 2, 3, 0),
        affine,
        coordinate_system="PATIENT",
        frame_of_reference_uid=frame_of_reference,
        channels={"SegmentNumber": list(range(1, 1 + len(masks)))},
    )


def _lesion(finding: Finding, identity: str) -> hd.seg.SegmentDescription:
    label = LESION_IDS.get(finding.type, UNTYPED_LESION)
    name = f"lesion {finding.id}"
    return _description(
        1 + finding.id,
        name if finding.type == NAMES[UNTYPED_LESION] else f"{name}: {finding.type}",
        label,
        tracking_id=name,
        tracking_uid=_uid(identity, name),
        anatomic_regions=[snomed(LIVER)],
    )


def _description(number: int, name: str, label: int, **more: Any) -> hd.seg.SegmentDescription:
    return hd.seg.SegmentDescription(
        number,
        name,
        codes.SCT.AnatomicalStructure if label == LIVER else codes.SCT.MorphologicallyAbnormalStructure,
        snomed(label),
        hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        hd.AlgorithmIdentificationSequence("lesionseg", codes.DCM.ArtificialIntelligence, __version__),
        display_color=hd.color.CIELabColor.from_rgb(*COLORS[label]),
        **more,
    )


def snomed(label: int) -> Code:
    """The code of a label id."""
    return Code(CODES[label].value, "SCT", CODES[label].meaning)
