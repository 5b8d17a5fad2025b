import copy
import logging
import resource
import shutil
import subprocess

import highdicom as hd
import numpy as np
import pydicom
import pytest
import test_dicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    generate_uid,
)

from lesionseg import __version__
from lesionseg.errors import InputError
from lesionseg.findings import measure_findings
from lesionseg.formats import read_scan
from lesionseg.formats.dicom import source_headers
from lesionseg.formats.dicom_seg import write_dicom_seg
from lesionseg.formats.dicom_sr import write_dicom_sr
from lesionseg.labels import CODES, LESION_IDS, LESION_TYPES, LIVER, UNTYPED_LESION
from lesionseg.segmentation import RESEARCH_USE_ONLY, UNDETERMINED, Segmentation

SHAPE = (8, 40, 48)
TYPES = ("metastasis", "cyst", UNDETERMINED)
VOTES = ((0.05, 0.15, 0.8), (0.9, 0.07, 0.03), (0.4, 0.3, 0.3))
MODEL = {"identity": "0123456789ab"}
SETTINGS = {"tta": False, "thresholds": {"liver": 0.5}}


def uid(*words):
    return generate_uid(entropy_srcs=list(map(str, words)))


def source(pixels, d, name="Doe^Jane", **more):
    """A single CT slice."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = CTImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = uid("slice", d)
    ds.Modality, ds.Manufacturer, ds.ImageType = "CT", "A scanner", ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = uid("study"), uid("series"), uid("frame")
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = name, "4711", "19500102", "F"
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20200304", "050607", "S1", "A1"
    ds.PatientAge, ds.StudyDescription, ds.ReferringPhysicianName = "070Y", "CT abdomen", "Roe^Richard"
    ds.InstanceNumber, ds.SliceThickness, ds.PixelSpacing = d + 1, 3.0, [0.8, 0.7]
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [-15.0, -20.0, 2.5 * d], [1, 0, 0, 0, 1, 0]
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = *pixels.shape, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, -1024, "HU"
    ds.PixelData = (pixels.astype(np.int32) + 1024).astype("<u2").tobytes()
    for keyword, value in more.items():
        setattr(ds, keyword, value)
    return ds


class Study:
    """A CT on disk, what was found in it, and its DICOM-SEG."""

    def __init__(self, folder, depth=SHAPE[0], liver=True, types=TYPES, votes=VOTES, **more):
        rng = np.random.default_rng(7)
        hu = rng.integers(-50, 150, (depth, *SHAPE[1:])).astype(np.int16)
        (folder / "ct").mkdir(parents=True)
        for d, pixels in enumerate(hu):
            source(pixels, d, **more).save_as(folder / "ct" / f"{d}.dcm", enforce_file_format=True)
        self.scan = read_scan(folder / "ct")
        self.sources = source_headers(folder / "ct")
        ids = np.zeros(self.scan.hu.shape, np.uint16)
        for number, box in enumerate(((slice(1, 7), 9, 19), (slice(2, 4), 22, 30), (slice(0, 3), 30, 34)), 1):
            planes, top, bottom = box
            ids[planes if depth > 1 else slice(0, 1), top:bottom, 12 : 12 + 3 * number] = number * (
                number <= len(types)
            )
        labels = np.zeros_like(ids, np.uint8)
        if liver:
            labels[:, 5:36, 8:40] = LIVER
            labels[ids > 0] = np.array([0, *(LESION_IDS.get(name, UNTYPED_LESION) for name in types)])[ids[ids > 0]]
        ids[labels == 0] = 0
        votes = [dict(zip(LESION_TYPES, vote, strict=True)) if vote else {} for vote in votes[: len(types)]]
        findings = measure_findings(self.scan, ids, types, votes) if liver else ()
        voxel_ml = 0.8 * 0.7 * 2.5 / 1000
        liver_ml = None if depth == 1 else float(np.count_nonzero(labels) * voxel_ml)
        self.found = Segmentation(
            self.scan, labels, ids, findings, liver_ml, 0, MODEL, SETTINGS, ("A warning: 3 µm.",) if liver else ()
        )
        self.seg = write_dicom_seg(folder / "seg.dcm", self.found, self.sources)
        self.path = folder / "report.sr.dcm"

    def write(self):
        write_dicom_sr(self.path, self.found, self.sources, self.seg)
        return self.path


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    study = Study(tmp_path_factory.mktemp("volume"))
    study.write()
    return study


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    study = Study(tmp_path_factory.mktemp("flat"), depth=1)
    study.write()
    return study


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    study = Study(tmp_path_factory.mktemp("empty"), types=())
    study.write()
    return study


@pytest.fixture(scope="module")
def lost(tmp_path_factory):
    study = Study(tmp_path_factory.mktemp("lost"), liver=False)
    assert study.seg is None
    study.write()
    return study


STUDIES = ("volume", "flat", "empty", "lost")
SCT, UCUM, DCM = "SCT", "UCUM", "DCM"


@pytest.fixture(params=STUDIES)
def study(request):
    return request.getfixturevalue(request.param)


def code(item):
    """Value and scheme of the first item of a code sequence."""
    return str(item[0].CodeValue), str(item[0].CodingSchemeDesignator)


def items(node):
    """Every content item below a node, with bare pydicom."""
    for item in node.get("ContentSequence", ()):
        yield item
        yield from items(item)


def groups(path):
    """What a reader without highdicom finds: of each group its measurements, codes, texts and image references."""
    out = []
    for group in items(pydicom.dcmread(path)):
        if group.ValueType != "CONTAINER" or code(group.ConceptNameCodeSequence) != ("125007", DCM):
            continue
        held = {"NUM": {}, "CODE": {}, "TEXT": {}, "UIDREF": {}, "IMAGE": {}}
        for item in group.ContentSequence:
            name = code(item.ConceptNameCodeSequence)
            if item.ValueType == "NUM":
                how = [code(mod.ConceptCodeSequence) for mod in item.get("ContentSequence", ())]
                value = item.MeasuredValueSequence[0]
                exact = value.FloatingPointValue
                assert str(value.NumericValue) == f"{exact:.6g}"
                unit = code(value.MeasurementUnitsCodeSequence)
                assert unit[1] == UCUM
                held["NUM"][(*name, *how)] = (exact, unit[0])
            elif item.ValueType == "CODE":
                held["CODE"][name] = code(item.ConceptCodeSequence)
            elif item.ValueType == "TEXT":
                held["TEXT"].setdefault(name[0], []).append(item.TextValue)
            elif item.ValueType == "UIDREF":
                held["UIDREF"][name[0]] = item.UID
            elif item.ValueType == "IMAGE":
                held["IMAGE"].setdefault(name[0], []).append(item.ReferencedSOPSequence[0])
        out.append(held)
    return out


def sct(label):
    return CODES[label].value, SCT


def expected_measurements(finding, flat):
    """The table of the module's docstring, said once more in plain codes."""
    maximum = () if flat else (("56851009", SCT),)
    held = {
        ("103339001", SCT): (finding.long_axis_mm, "mm"),
        ("103340004", SCT): (finding.short_axis_mm, "mm"),
        ("42798000", SCT, *maximum): (finding.area_mm2, "mm2"),
        ("118565006", SCT): (finding.volume_ml, "ml"),
        ("112031", DCM, ("373098007", SCT)): (finding.mean_hu, "[hnsf'U]"),
        ("112031", DCM, ("386136009", SCT)): (finding.sd_hu, "[hnsf'U]"),
    }
    for name, value in finding.probabilities.items():
        held["P-" + LESION_TYPES[name].code.value, "99LESIONSEG"] = (value, "1")
    return {name: value for name, value in held.items() if value[0] is not None}


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy of dicom3tools")
def test_dciodvfy_finds_no_error_and_one_kind_of_warning(study):
    said = subprocess.run(["dciodvfy", study.path], capture_output=True, text=True, check=False)
    lines = (said.stdout + said.stderr).splitlines()
    assert lines[0] == ("ComprehensiveSR" if len(study.scan.hu) == 1 else "Comprehensive3DSR")
    private = "Warning - Unrecognized defined term <99LESIONSEG> for value 1 of attribute <Coding Scheme Designator>"
    assert set(lines[1:]) == {private}
    assert said.returncode == 0


@pytest.mark.parametrize("name", ["volume", "flat"])
def test_values_read_with_bare_pydicom_are_those_of_the_findings(request, name):
    study = request.getfixturevalue(name)
    liver, *lesions = groups(study.path)
    assert len(lesions) == len(study.found.findings) == 3
    volume = {("118565006", SCT): (study.found.liver_ml, "ml")} if name == "volume" else {}
    assert liver["NUM"] == {**volume, ("246206008", SCT): (3, "1")}
    assert liver["CODE"] == {
        ("276214006", SCT): ("91723000", SCT),
        ("121071", DCM): sct(LIVER),
        sct(UNTYPED_LESION): ("52101004", SCT),
    }
    for group, finding in zip(lesions, study.found.findings, strict=True):
        assert group["NUM"] == expected_measurements(finding, name == "flat")
        assert len(group["NUM"]) == (9 if name == "volume" else 8)
        undetermined = {("TYPE", "99LESIONSEG"): ("373068000", SCT)} if finding.type == UNDETERMINED else {}
        assert group["CODE"] == {
            ("276214006", SCT): ("49755003", SCT),
            ("121071", DCM): sct(LESION_IDS.get(finding.type, UNTYPED_LESION)),
            ("363698007", SCT): sct(LIVER),
            **undetermined,
        }
        assert group["TEXT"]["112039"] == [f"lesion {finding.id}"]
        assert group["TEXT"]["111001"] == ["lesionseg"]
        assert group["TEXT"]["111003"] == [__version__]
        assert group["TEXT"]["111002"] == ['model: "0123456789ab"', "tta: false", 'thresholds: {"liver": 0.5}']


def test_highdicom_reads_a_volume_back(volume):
    report = hd.sr.srread(volume.path)
    assert report.SOPClassUID == Comprehensive3DSRStorage
    held = report.content.get_volumetric_roi_measurement_groups()
    assert [group.tracking_identifier for group in held] == ["liver", "lesion 1", "lesion 2", "lesion 3"]
    for number, group in enumerate(held, 1):
        segment = group.referenced_segment
        assert segment.referenced_sop_instance_uid == volume.seg.SOPInstanceUID
        assert segment.referenced_segment_numbers == [number]
    for group, finding in zip(held[1:], volume.found.findings, strict=True):
        planes = {
            volume.sources[d].SOPInstanceUID
            for d in np.flatnonzero((volume.found.lesion_ids == finding.id).any((1, 2)))
        }
        images = group.referenced_segment.source_images_for_segmentation
        assert {image.referenced_sop_instance_uid for image in images} == planes
        assert all(image.referenced_frame_numbers is None for image in images)
        assert [site.topographical_modifier for site in group.finding_sites] == [None]
        measured = group.get_measurements()
        assert [measure.value for measure in measured] == [
            value for value, _ in expected_measurements(finding, flat=False).values()
        ]
    assert not report.content.get_planar_roi_measurement_groups()


def test_highdicom_reads_a_slice_back(flat):
    report = hd.sr.srread(flat.path)
    assert report.SOPClassUID == ComprehensiveSRStorage
    held = report.content.get_planar_roi_measurement_groups()
    assert [group.tracking_identifier for group in held] == ["liver", "lesion 1", "lesion 2", "lesion 3"]
    frames = flat.seg.PerFrameFunctionalGroupsSequence
    for number, group in enumerate(held, 1):
        frame = group.referenced_segmentation_frame
        (place,) = frame.referenced_frame_numbers
        assert frames[place - 1].SegmentIdentificationSequence[0].ReferencedSegmentNumber == number
        source_image = frame.source_image_for_segmentation
        assert source_image.referenced_sop_instance_uid == flat.sources[0].SOPInstanceUID
        assert source_image.referenced_frame_numbers is None


def test_frames_of_an_enhanced_ct_are_named(tmp_path):
    path = test_dicom.TestEnhanced().file(tmp_path, test_dicom.canonical_hu())
    scan, sources = read_scan(path), source_headers(path)
    labels = np.ones(scan.hu.shape, np.uint8)
    ids = np.zeros(scan.hu.shape, np.uint16)
    ids[1:3, 2:4, 2:5] = 1
    labels[ids > 0] = UNTYPED_LESION
    found = Segmentation(scan, labels, ids, measure_findings(scan, ids, ["lesion"], [{}]), 1.0, 0, {}, {})
    write_dicom_sr(tmp_path / "sr.dcm", found, sources, write_dicom_seg(tmp_path / "seg.dcm", found, sources))
    liver, lesion = groups(tmp_path / "sr.dcm")
    for group, frames in ((liver, [1, 2, 3, 4, 5]), (lesion, [2, 3])):
        (image,) = group["IMAGE"]["121233"]
        assert image.ReferencedSOPInstanceUID == sources[0].SOPInstanceUID
        assert sorted(image.ReferencedFrameNumber) == frames
    held = hd.sr.srread(tmp_path / "sr.dcm").content.get_volumetric_roi_measurement_groups()
    assert [group.referenced_segment.referenced_segment_numbers for group in held] == [[1], [2]]


def test_a_seg_that_names_no_source_image_is_reported_with_the_series(tmp_path):
    study = Study(tmp_path)
    study.seg = copy.deepcopy(study.seg)
    for frame in study.seg.PerFrameFunctionalGroupsSequence:
        frame.DerivationImageSequence = []
    study.write()
    for group in groups(study.path):
        assert list(group["IMAGE"]) == ["121191"]
        assert group["UIDREF"]["121232"] == study.sources[0].SeriesInstanceUID


def test_segments_are_tracked_by_one_uid_in_both_files(volume):
    for group, segment in zip(groups(volume.path)[1:], volume.seg.SegmentSequence[1:], strict=True):
        assert group["UIDREF"]["112040"] == segment.TrackingUID
        assert group["TEXT"]["112039"] == [segment.TrackingID]
    assert len({group["UIDREF"]["112040"] for group in groups(volume.path)}) == 4


def test_a_liver_without_lesions_says_that_there_are_none(empty):
    (liver,) = groups(empty.path)
    assert liver["NUM"] == {("118565006", SCT): (empty.found.liver_ml, "ml"), ("246206008", SCT): (0, "1")}
    assert liver["CODE"][sct(UNTYPED_LESION)] == ("272519000", SCT)
    assert liver["IMAGE"]["121191"][0].ReferencedSegmentNumber == 1
    assert len(liver["IMAGE"]["121233"]) == len(empty.sources)
    assert "No lesion was found." in remarks(empty.path)


def test_without_a_liver_nothing_is_claimed(lost):
    (group,) = groups(lost.path)
    assert group["NUM"] == group["IMAGE"] == {}
    assert group["CODE"] == {("363698007", SCT): sct(LIVER), sct(UNTYPED_LESION): ("121059", DCM)}
    assert len(hd.sr.srread(lost.path).content.get_image_measurement_groups()) == 1


def remarks(path):
    """The texts of the last container of the root."""
    last = pydicom.dcmread(path).ContentSequence[-1]
    assert code(last.ConceptNameCodeSequence) == ("C0034375", "UMLS")
    return [item.TextValue for item in last.ContentSequence]


def test_it_says_what_it_is(study):
    report = pydicom.dcmread(study.path)
    assert remarks(study.path)[0] == RESEARCH_USE_ONLY
    assert remarks(study.path)[-1] == ("A warning: 3 ?m." if study.seg else "No lesion was found.")
    assert RESEARCH_USE_ONLY in report.SeriesDescription
    flags = (report.CompletionFlag, report.VerificationFlag, report.PreliminaryFlag)
    assert flags == ("COMPLETE", "UNVERIFIED", "PRELIMINARY")
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    texts = [item.TextValue for item in items(report) if item.ValueType == "TEXT"]
    assert f"lesionseg {__version__}" in texts  # the observer
    assert report.SoftwareVersions == __version__
    scheme = report.CodingSchemeIdentificationSequence[0]
    assert scheme.CodingSchemeDesignator == "99LESIONSEG"


def test_all_it_refers_to_is_listed_as_evidence(study):
    report = pydicom.dcmread(study.path)
    named = {
        instance.ReferencedSOPInstanceUID
        for study_item in report.CurrentRequestedProcedureEvidenceSequence
        for series in study_item.ReferencedSeriesSequence
        for instance in series.ReferencedSOPSequence
    }
    files = {ds.SOPInstanceUID for ds in (*study.sources, *([study.seg] if study.seg else []))}
    assert named == files
    used = {
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in items(report) if item.ValueType == "IMAGE"
    }
    assert used <= named


def test_patient_and_study_are_those_of_the_ct(study):
    report, ct = pydicom.dcmread(study.path), study.sources[0]
    patient = "PatientName PatientID PatientBirthDate PatientSex PatientAge"
    study_of = "StudyInstanceUID StudyDate StudyTime StudyID StudyDescription AccessionNumber ReferringPhysicianName"
    for name in (*patient.split(), *study_of.split()):
        assert report[name].value == ct[name].value, name
    assert report.SeriesInstanceUID not in {ct.SeriesInstanceUID, study.seg and study.seg.SeriesInstanceUID}
    assert report.Modality == "SR"


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 100", "Müller^Jürgen"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("ISO_IR 192", "Wang^XiaoDong=王^小东"),
        ("ISO_IR 144", "Люкceмбypг"),
        ("ISO_IR 6", "no caret, which highdicom takes for malformed"),
    ],
)
@pytest.mark.parametrize("name_of", ["seg", "source"])
def test_names_in_any_character_set_are_kept_and_not_printed(
    volume, lost, tmp_path, caplog, capfd, name_of, charset, name
):
    study = copy.copy(volume if name_of == "seg" else lost)
    head = copy.deepcopy(study.seg or study.sources[0])
    head.SpecificCharacterSet, head.PatientName = charset, name
    head.save_as(tmp_path / "head.dcm")
    head = pydicom.dcmread(tmp_path / "head.dcm")
    with caplog.at_level(logging.DEBUG):
        sources, seg = (study.sources, head) if name_of == "seg" else ([head, *study.sources[1:]], None)
        write_dicom_sr(tmp_path / "report.dcm", study.found, sources, seg)
    report = pydicom.dcmread(tmp_path / "report.dcm")
    assert str(report.PatientName) == name
    assert report.SpecificCharacterSet == charset
    assert (tmp_path / "report.dcm").read_bytes().count(head["PatientName"].value.original_string) == 1
    printed = "".join([caplog.text, *capfd.readouterr()])
    assert not any(part in printed for part in name.replace("=", "^").split("^"))


def test_same_content_same_uids_other_content_other_uids(volume, tmp_path):
    first = pydicom.dcmread(volume.path)
    write_dicom_sr(tmp_path / "again.dcm", volume.found, volume.sources, volume.seg)
    again = pydicom.dcmread(tmp_path / "again.dcm")
    assert (again.SOPInstanceUID, again.SeriesInstanceUID) == (first.SOPInstanceUID, first.SeriesInstanceUID)
    changed = copy.copy(volume.found)
    object.__setattr__(changed, "settings", {"tta": True})
    write_dicom_sr(tmp_path / "other.dcm", changed, volume.sources, volume.seg)
    other = pydicom.dcmread(tmp_path / "other.dcm")
    assert other.SOPInstanceUID != first.SOPInstanceUID
    assert other.SeriesInstanceUID != first.SeriesInstanceUID
    assert {path.name for path in tmp_path.iterdir()} == {"again.dcm", "other.dcm"}


def test_sources_are_left_as_they_are(volume):
    before = [copy.deepcopy(ds) for ds in (*volume.sources, volume.seg)]
    volume.write()
    assert [*volume.sources, volume.seg] == before


def test_types_that_the_model_does_not_name_have_no_probability(tmp_path):
    study = Study(tmp_path, types=("lesion", "lesion"), votes=(None, None))
    for group in groups(study.write())[1:]:
        assert group["CODE"]["121071", DCM] == sct(UNTYPED_LESION)
        assert ("TYPE", "99LESIONSEG") not in group["CODE"]
        assert len(group["NUM"]) == 6


def test_a_full_disk_leaves_the_earlier_file_and_nothing_else(volume, tmp_path):
    path = tmp_path / "report.dcm"
    path.write_bytes(b"earlier")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            write_dicom_sr(path, volume.found, volume.sources, volume.seg)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_headers_without_uids_are_refused_in_one_line(tmp_path):
    study = Study(tmp_path, depth=2, liver=False)
    del study.sources[0].SeriesInstanceUID
    with pytest.raises(InputError, match="headers that a report can refer to") as error:
        study.write()
    assert "Doe" not in str(error.value)
    assert not study.path.exists()
