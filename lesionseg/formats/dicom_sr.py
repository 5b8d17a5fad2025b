"""DICOM SR: the findings as a measurement report, TID 1500 of DICOM PS3.16, that refers to the segments of a DICOM-SEG.

One measurement group is the liver, one each lesion: TID 1411 in a volume, TID 1410 in a single slice. The codes are
those of PS3.16: measurements of its context group 218, derivations of 7464, presence of 240. It has no code for the
probability of a type; there the private scheme `99LESIONSEG` stands: `P-` and the SNOMED code of the type is its
probability (0…1), and `TYPE` with the value `Undetermined` (SNOMED) says that no type is probable enough.

`dciodvfy` (dicom3tools) and the template check of PixelMed find no errors in the files; `docs/segment.md` tells what
dciodvfy warns of.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from highdicom import sr
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from lesionseg import __version__
from lesionseg.formats.dicom import refused
from lesionseg.formats.dicom_seg import REQUIRED, SERIES_NUMBER, snomed
from lesionseg.labels import LESION_IDS, LESION_TYPES, LIVER, UNTYPED_LESION
from lesionseg.segmentation import RESEARCH_USE_ONLY, UNDETERMINED, Finding, Segmentation
from lesionseg.writing import whole

#: Designator of the codes that PS3.16 lacks.
PRIVATE_SCHEME = "99LESIONSEG"
_MILLILITER = Code("ml", "UCUM", "milliliter")
_NUMBER_OF_LESIONS = Code("246206008", "SCT", "Number of lesions")
_QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")
_TYPE = Code("TYPE", PRIVATE_SCHEME, "Type of lesion")

_Group = (
    sr.VolumetricROIMeasurementsAndQualitativeEvaluations
    | sr.PlanarROIMeasurementsAndQualitativeEvaluations
    | sr.MeasurementsAndQualitativeEvaluations
)


def write_dicom_sr(path: Path, segmentation: Segmentation, sources: Sequence[Dataset], seg: Dataset | None) -> None:
    """Write the findings as a structured report beside the CT and its DICOM-SEG, whole or not at all.

    A lesion comes with its sizes in mm, mm² and ml, its density in HU (mean and standard deviation) and the probability
    of each type, the liver with its volume and the number of lesions; what is not known is left out. The report is
    complete, preliminary, and not verified by a reader. Patient and study are those of the SEG. UIDs follow from the
    content: the same report has the same UIDs, another one never.

    Args:
        path: the file.
        segmentation: what was found.
        sources: what `dicom.source_headers` gives for the scan; not changed.
        seg: what `write_dicom_seg` wrote for it; None: nothing was found, and the report says so.

    Raises:
        InputError: headers that a report cannot refer to.
    """
    with refused(path.parent, "DICOM headers that a report can refer to"):
        content = io.BytesIO()
        _Report(segmentation, sources, seg).document().save_as(content)
    with whole(path) as part:
        part.write_bytes(content.getbuffer())


@dataclass(frozen=True)
class _Report:
    """The report in the making; arguments as of `write_dicom_sr`."""

    segmentation: Segmentation
    sources: Sequence[Dataset]
    seg: Dataset | None

    def document(self) -> sr.ComprehensiveSR | sr.Comprehensive3DSR:
        """The whole document; its UIDs follow from study and content."""
        head = self.sources[0] if self.seg is None else self.seg
        content = self.content()
        text = json.dumps([head.StudyInstanceUID, content.to_json_dict()], sort_keys=True)
        identity = hashlib.sha256(text.encode()).hexdigest()
        scheme = CodingSchemeIdentificationItem(PRIVATE_SCHEME, "lesionseg", responsible_organization="lesionseg")
        document = (sr.ComprehensiveSR if self.flat else sr.Comprehensive3DSR)(
            evidence=[_evidence(dataset) for dataset in (*self.sources, self.seg) if dataset is not None],
            content=content,
            series_instance_uid=_uid(identity, "series"),
            series_number=SERIES_NUMBER + 1,
            sop_instance_uid=_uid(identity, "instance"),
            instance_number=1,
            manufacturer="lesionseg",
            manufacturer_model_name="lesionseg",
            software_versions=__version__,
            series_description=f"Lesions measured. {RESEARCH_USE_ONLY}",
            is_complete=True,
            coding_schemes=[scheme],
        )
        document.copy_patient_and_study_information(head)
        if "SpecificCharacterSet" in head:
            document.add(head["SpecificCharacterSet"])
        return document

    @cached_property
    def drawn(self) -> dict[int, _Drawn]:
        """Of each segment number where it is drawn; empty without a SEG."""
        return {} if self.seg is None else _drawn(self.seg)

    @property
    def flat(self) -> bool:
        """Whether it is a single slice."""
        return len(self.segmentation.scan.hu) == 1

    def content(self) -> Dataset:
        """The root of TID 1500. Its last row holds remarks, in ASCII, as any character set of a patient's name can."""
        device = sr.DeviceObserverIdentifyingAttributes(
            _uid("lesionseg", __version__),
            name=f"lesionseg {__version__}",
            manufacturer_name="lesionseg",
            model_name="lesionseg",
        )
        root = sr.MeasurementReport(
            sr.ObservationContext(observer_device_context=sr.ObserverContext(codes.DCM.Device, device)),
            codes.LN.CTUnspecifiedBodyRegion,
            [self.liver(), *map(self.lesion, self.segmentation.findings)],
        )[0]
        remarks = sr.ContainerContentItem(_QUALITATIVE_EVALUATIONS, relationship_type="CONTAINS")
        remarks.ContentSequence = sr.ContentSequence(
            [
                sr.TextContentItem(codes.DCM.Comment, text.encode("ascii", "replace").decode(), "CONTAINS")
                for text in self.remarks()
            ]
        )
        root.ContentSequence.append(remarks)
        return root

    def remarks(self) -> Iterator[str]:
        yield RESEARCH_USE_ONLY
        if not self.segmentation.findings:
            yield "No lesion was found."
        yield from self.segmentation.warnings

    def liver(self) -> _Group:
        """The liver with its lesions; where none was found, that nothing is known of lesions."""
        lesion, count = snomed(UNTYPED_LESION), len(self.segmentation.findings)
        if self.seg is None:
            unknown = sr.QualitativeEvaluation(lesion, codes.DCM.PresenceUndetermined)
            return self.group(
                1, "liver", qualitative_evaluations=[unknown], finding_sites=[sr.FindingSite(snomed(LIVER))]
            )
        return self.group(
            1,
            "liver",
            finding_category=codes.SCT.AnatomicalStructure,
            finding_type=snomed(LIVER),
            measurements=[
                *_measured(codes.SCT.Volume, self.segmentation.liver_ml, _MILLILITER),
                *_measured(_NUMBER_OF_LESIONS, count, codes.UCUM.NoUnits),
            ],
            qualitative_evaluations=[
                sr.QualitativeEvaluation(lesion, codes.SCT.Present if count else codes.SCT.Absent)
            ],
        )

    def lesion(self, finding: Finding) -> _Group:
        """The group of one lesion."""
        untyped = sr.QualitativeEvaluation(_TYPE, codes.SCT.Undetermined)
        return self.group(
            1 + finding.id,
            f"lesion {finding.id}",
            finding_category=codes.SCT.MorphologicallyAbnormalStructure,
            finding_type=snomed(LESION_IDS.get(finding.type, UNTYPED_LESION)),
            finding_sites=[sr.FindingSite(snomed(LIVER))],
            measurements=list(_sizes(finding, self.flat)) + list(_probabilities(finding)),
            qualitative_evaluations=[untyped] if finding.type == UNDETERMINED else None,
        )

    def group(self, number: int, name: str, **content: Any) -> _Group:
        """A measurement group on a segment; without a SEG on none (TID 1501)."""
        content["tracking_identifier"] = sr.TrackingIdentifier(self.tracking_uid(number), name)
        content["algorithm_id"] = self.algorithm()
        if self.seg is None:
            return sr.MeasurementsAndQualitativeEvaluations(**content)
        instance, drawn = (self.seg.SOPClassUID, self.seg.SOPInstanceUID), self.drawn[number]
        if self.flat:
            planar = sr.ReferencedSegmentationFrame(*instance, drawn.frames[0], number, drawn.sources()[0])
            del planar[0].ReferencedSOPSequence[0].ReferencedSegmentNumber  # not beside a frame number (PS3.3, 10.3.1)
            return sr.PlanarROIMeasurementsAndQualitativeEvaluations(referenced_segment=planar, **content)
        images, series = drawn.sources(), sr.SourceSeriesForSegmentation(self.sources[0].SeriesInstanceUID)
        source = {"source_images": images} if images else {"source_series": series}
        segment = sr.ReferencedSegment(*instance, number, **source)
        return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_segment=segment, **content)

    def tracking_uid(self, number: int) -> str:
        """That of the segment, where it has one."""
        if self.seg is None:
            return _uid(self.sources[0].SeriesInstanceUID, "liver")
        segment = self.seg.SegmentSequence[number - 1]
        return segment.get("TrackingUID") or _uid(self.seg.SOPInstanceUID, f"segment {number}")

    def algorithm(self) -> sr.AlgorithmIdentification:
        """TID 4019: the model by its identity, and how it was used."""
        used = {"model": self.segmentation.model.get("identity"), **self.segmentation.settings}
        return sr.AlgorithmIdentification(
            "lesionseg", __version__, [f"{name}: {json.dumps(value)}" for name, value in used.items()]
        )


def _sizes(finding: Finding, flat: bool) -> Iterator[sr.Measurement]:
    density, hounsfield = codes.DCM.AttenuationCoefficient, codes.UCUM.HounsfieldUnit
    largest_slice = None if flat else codes.SCT.Maximum
    yield from _measured(codes.SCT.LongAxis, finding.long_axis_mm, codes.UCUM.Millimeter)
    yield from _measured(codes.SCT.ShortAxis, finding.short_axis_mm, codes.UCUM.Millimeter)
    yield from _measured(codes.SCT.Area, finding.area_mm2, codes.UCUM.SquareMillimeter, largest_slice)
    yield from _measured(codes.SCT.Volume, finding.volume_ml, _MILLILITER)
    yield from _measured(density, finding.mean_hu, hounsfield, codes.SCT.Mean)
    yield from _measured(density, finding.sd_hu, hounsfield, codes.SCT.StandardDeviation)


def _probabilities(finding: Finding) -> Iterator[sr.Measurement]:
    for name, value in finding.probabilities.items():
        code = Code(f"P-{LESION_TYPES[name].code.value}", PRIVATE_SCHEME, f"Probability of {name}")
        yield from _measured(code, value, codes.UCUM.NoUnits)


def _measured(name: Code, value: float | None, unit: Code, derivation: Code | None = None) -> Iterator[sr.Measurement]:
    """One measurement, exact as a float and in six digits as viewers show it; none where the value is not known."""
    if value is not None and math.isfinite(value):
        measurement = sr.Measurement(name, float(value), unit, derivation=derivation)
        measurement[0].MeasuredValueSequence[0].NumericValue = f"{value:.6g}"
        yield measurement


def _evidence(dataset: Dataset) -> Dataset:
    """What highdicom must know of an instance, without the patient: it prints names that it takes for malformed."""
    evidence = Dataset()
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"):
        setattr(evidence, name, dataset[name].value)
    for name in REQUIRED:  # highdicom wants to find them; the true values are copied from the SEG as they are
        setattr(evidence, name, "")
    return evidence


class _Drawn(NamedTuple):
    """Where a segment is drawn: the numbers of its frames, from 1, and the class and frames of each source image."""

    frames: list[int]
    images: dict[str, tuple[str, list[int]]]

    def sources(self) -> list[sr.SourceImageForSegmentation]:
        return [sr.SourceImageForSegmentation(kind, uid, frames or None) for uid, (kind, frames) in self.images.items()]


def _drawn(seg: Dataset) -> dict[int, _Drawn]:
    """Of each segment number where it is drawn.

    Of highdicom's own ways to find that out one fails for a SEG with a single segment, and one keeps a single frame of
    an enhanced CT.
    """
    drawn: dict[int, _Drawn] = {}
    shared = seg.SharedFunctionalGroupsSequence[0]
    for i, own in enumerate(seg.PerFrameFunctionalGroupsSequence, 1):
        segment, derivation = (
            (own if name in own else shared).get(name)
            for name in ("SegmentIdentificationSequence", "DerivationImageSequence")
        )
        held = drawn.setdefault(int(segment[0].ReferencedSegmentNumber), _Drawn([], {}))
        held.frames.append(i)
        for image in derivation[0].SourceImageSequence if derivation else ():  # none: of no source that is known
            uid, kind = image.ReferencedSOPInstanceUID, image.ReferencedSOPClassUID
            _, frames = held.images.setdefault(uid, (kind, []))
            if "ReferencedFrameNumber" in image:
                frames.append(int(image.ReferencedFrameNumber))
    return drawn


def _uid(*words: str) -> str:
    return str(generate_uid(entropy_srcs=list(words)))
