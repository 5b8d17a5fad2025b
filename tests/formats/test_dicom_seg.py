import copy
import itertools
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import highdicom as hd
import nibabel as nib
import numpy as np
import pydicom
import pytest
import test_dicom
from pydicom.encaps import encapsulate
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import JPEG2000Lossless
from scipy.spatial.transform import Rotation
from test_dicom import NAME, PATIENT, SHAPE, SPACING, canonical_hu, ct, refused, save, stack, uid

from lesionseg import __version__
from lesionseg.formats import read_scan
from lesionseg.formats.dicom import source_headers
from lesionseg.formats.dicom_seg import write_dicom_seg
from lesionseg.formats.dicom_seg_read import read_dicom_seg, segment_labels
from lesionseg.labels import CODES, COLORS, LESION_IDS, LIVER, UNTYPED_LESION
from lesionseg.scan import Scan
from lesionseg.segmentation import RESEARCH_USE_ONLY, UNDETERMINED, Finding, Segmentation

TYPES = ("cyst", "hemangioma", "metastasis", UNDETERMINED, "lesion")
#: What a scanner states and de-identification may take away.
FULL = {
    "PatientBirthDate": "19500102", "PatientSex": "F", "StudyDate": "20200304", "StudyTime": "050607", "StudyID": "S1",
    "AccessionNumber": "A1", "ReferringPhysicianName": "Roe^Richard", "PositionReferenceIndicator": "XY",
}  # fmt: skip
RAS_TO_LPS = np.diag([-1, -1, 1, 1])
DCIODVFY = shutil.which("dciodvfy")
DCMQI = Path(sys.executable).with_name("segimage2itkimage")


def segmentation(scan, types=TYPES):
    """Liver on all slices but the first and the last, and a lesion of each type in it."""
    rng = np.random.default_rng(1)
    labels, ids = np.zeros(scan.hu.shape, np.uint8), np.zeros(scan.hu.shape, np.uint16)
    slices = slice(1, -1) if len(scan.hu) > 2 else slice(None)
    labels[slices] = rng.random(labels[slices].shape) < 0.7
    places = rng.permutation(np.flatnonzero(labels))
    for n, kind in enumerate(types, 1):
        ids.flat[places[3 * n : 3 * n + 3]] = n
        labels[ids == n] = LESION_IDS.get(kind, UNTYPED_LESION)
    findings = tuple(
        Finding(n, kind, {}, 3, 1, 1, 1, None, None, None, None, 0, 0, None, (0, 0, 0), (0, 0), 0)
        for n, kind in enumerate(types, 1)
    )
    return Segmentation(scan, labels, ids, findings, None, 0, {"identity": "0123456789ab"}, {})


def masks(found):
    """The segments as they must be read back."""
    return [found.labels > 0, *(found.lesion_ids == finding.id for finding in found.findings)]


def written(folder, slices, types=TYPES):
    """The scan of these slices, what was found in it, the file and what the writer returns."""
    path = save(folder / "ct", slices)
    scan = read_scan(path)
    found = segmentation(scan, types)
    return scan, found, folder / "seg.dcm", write_dicom_seg(folder / "seg.dcm", found, source_headers(path))


def full(slices):
    for ds in slices:
        for name, value in FULL.items():
            setattr(ds, name, value)
    return slices


def points(mask, affine):
    """Positions in the patient of the voxels of a mask, (n, 3) in mm, sorted."""
    places = np.round((np.argwhere(mask) @ affine[:3, :3].T) + affine[:3, 3], 3) + 0.0
    return places[np.lexsort(places.T)]


def by_hand(path):
    """Reader of its own: positions in the patient of every voxel of each segment."""
    ds = pydicom.dcmread(path)
    shared = ds.SharedFunctionalGroupsSequence[0]
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    between = np.array(shared.PixelMeasuresSequence[0].PixelSpacing, float)
    found = {item.SegmentNumber: [] for item in ds.SegmentSequence}
    frames = ds.pixel_array.reshape(-1, ds.Rows, ds.Columns)
    for groups, pixels in zip(ds.PerFrameFunctionalGroupsSequence, frames, strict=True):
        segment = (groups if "SegmentIdentificationSequence" in groups else shared).SegmentIdentificationSequence[0]
        start = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        for row, column in np.argwhere(pixels):
            place = start + cosines[:3] * column * between[1] + cosines[3:] * row * between[0]
            found[segment.ReferencedSegmentNumber].append(place)
    return [np.round(np.array(places), 3) + 0.0 for places in found.values()]


def orientations():
    """The 24 ways in which rows and columns can run along the patient axes; slices follow their normal."""
    axes = [sign * np.eye(3)[axis] for axis in range(3) for sign in (1, -1)]
    return [(rows, columns) for rows, columns in itertools.product(axes, axes) if rows @ columns == 0]


@pytest.mark.parametrize(("rows", "columns"), orientations(), ids=str)
def test_every_orientation_is_exact_for_three_readers(tmp_path, rows, columns):
    start, normal = np.array((-101.25, 37.5, 12.125)), np.cross(rows, columns)
    slices = [ct(pixels, start + normal * 2.5 * d, (*rows, *columns)) for d, pixels in enumerate(canonical_hu())]
    scan, found, path, _ = written(tmp_path, slices)
    volume = hd.seg.segread(path).get_volume()
    read = read_dicom_seg(path, scan, uid("frame"))
    assert len(read) == 1 + len(TYPES)
    for n, (mask, hand) in enumerate(zip(masks(found), by_hand(path), strict=True)):
        np.testing.assert_array_equal(read[n].mask, mask)
        expected = points(mask, scan.affine)
        np.testing.assert_allclose(hand[np.lexsort(hand.T)], expected, atol=1e-3)
        np.testing.assert_allclose(points(volume.array[..., n], volume.affine), expected, atol=1e-3)
        assert np.linalg.norm(hand.mean(0) - expected.mean(0)) < 0.01


@pytest.mark.skipif(not DCMQI.exists(), reason="dcmqi (segimage2itkimage) is not installed")
@pytest.mark.parametrize("only", [slice(None), slice(2, 3)], ids=["volume", "slice"])
def test_dcmqi_reads_the_same_voxels(tmp_path, only):
    _, columns = orientations()[0]
    slices = stack(orientation=(-1, 0, 0, *columns))[only]
    scan, found, path, _ = written(tmp_path, slices)
    command = [DCMQI, "--inputDICOM", path, "--outputDirectory", tmp_path, "-p", "read", "-t", "nii"]
    subprocess.run(command, check=True, capture_output=True)
    for n, mask in enumerate(masks(found), 1):
        image = nib.load(tmp_path / f"read-{n}.nii.gz")
        read = points(np.asarray(image.dataobj), RAS_TO_LPS @ image.affine)
        np.testing.assert_allclose(read, points(mask, scan.affine), atol=2e-3)


def judged(path):
    """What dciodvfy says of a file, line by line; nothing where it is not installed."""
    if not DCIODVFY:
        return []
    return subprocess.run([DCIODVFY, path], capture_output=True, text=True, check=False).stderr.splitlines()


def errors(path):
    return [line for line in judged(path) if line.startswith("Error")]


@pytest.mark.skipif(not DCIODVFY, reason="dciodvfy (dicom3tools) is not installed")
@pytest.mark.parametrize(
    ("name", "warnings"),
    [("full", set()), ("bare", {f"build DICOMDIR - Study {what}" for what in ("Date", "Time", "ID")})],
)
def test_dciodvfy_finds_no_error(tmp_path, name, warnings):
    """And warns only of what the CT does not say itself."""
    for only, types in ((slice(None), TYPES), (slice(2, 3), TYPES), (slice(None), ())):
        slices = full(stack()) if name == "full" else stack()
        _, _, path, _ = written(tmp_path / f"{only.start}{len(types)}", slices[only], types)
        assert errors(path) == []
        found = [line for line in judged(path) if line.startswith("Warning")]
        assert {next((known for known in warnings if known in line), line) for line in found} == warnings


def test_segments_say_what_they_are(tmp_path):
    scan, _, path, returned = written(tmp_path, full(stack()))
    seg = hd.seg.segread(path)
    assert seg.SOPInstanceUID == returned.SOPInstanceUID
    assert seg.segmentation_type.value == "BINARY"
    assert (seg.PatientName, seg.PatientID, seg.StudyDate) == (NAME, PATIENT, "20200304")
    assert (seg.StudyInstanceUID, seg.FrameOfReferenceUID) == (uid("study"), uid("frame"))
    assert seg.SeriesInstanceUID != uid("series")
    assert RESEARCH_USE_ONLY in seg.SeriesDescription
    assert seg.SegmentsOverlap == "YES"
    names = [seg.get_segment_description(n).segment_label for n in seg.segment_numbers]
    assert names == ["liver", "lesion 1: cyst", "lesion 2: hemangioma", "lesion 3: metastasis",
                     "lesion 4: undetermined", "lesion 5"]  # fmt: skip
    labels = [LIVER, *LESION_IDS.values(), UNTYPED_LESION, UNTYPED_LESION]
    for number, label in enumerate(labels, 1):
        segment = seg.get_segment_description(number)
        assert segment.segmented_property_type == Code(CODES[label].value, "SCT", "")
        color = hd.color.CIELabColor.from_rgb(*COLORS[label])
        assert tuple(segment.RecommendedDisplayCIELabValue) == color.value
        assert segment.algorithm_type.value == "AUTOMATIC"
        assert (segment.SegmentAlgorithmName, segment.algorithm_identification[0].AlgorithmVersion) == (
            "lesionseg",
            __version__,
        )
        if label == LIVER:
            assert segment.segmented_property_category == codes.SCT.AnatomicalStructure
        else:
            assert segment.segmented_property_category == codes.SCT.MorphologicallyAbnormalStructure
            assert segment.anatomic_regions == [codes.SCT.Liver]
            assert segment.tracking_id == f"lesion {number - 1}"
    assert len({segment.tracking_uid for segment in map(seg.get_segment_description, range(2, 7))}) == 5
    read = read_dicom_seg(path, scan)
    assert [(segment.label, segment.name) for segment in read] == list(zip(labels, names, strict=True))
    assert segment_labels(path) == {LIVER, *LESION_IDS.values(), UNTYPED_LESION}


def test_codes_are_those_of_the_standard():
    """Against pydicom's table of PS3.16, which is made from the standard itself."""
    listed = [codes.SCT.Liver, codes.SCT.Cyst, codes.SCT.Hemangioma, codes.SCT.Metastasis, codes.SCT.Lesion]
    assert [code.value for code in CODES.values()] == [code.value for code in listed]
    assert [code.meaning for code in CODES.values()] == [code.meaning for code in listed]


def test_frames_refer_to_their_slice(tmp_path):
    """Also where the scanner rounds positions; slices without liver are not referred to."""
    slices = stack()
    for ds, rounding in zip(slices, (0, 0.1, -0.1, 0.1, 0), strict=True):
        ds.ImagePositionPatient = [-100, -50, float(ds.ImagePositionPatient[2]) + rounding]
    scan, found, path, seg = written(tmp_path, slices)
    sources = source_headers(tmp_path / "ct")
    places = {source.SOPInstanceUID: d for d, source in enumerate(sources)}
    for frame in seg.PerFrameFunctionalGroupsSequence:
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        place = frame.PlanePositionSequence[0].ImagePositionPatient
        d = places[source.ReferencedSOPInstanceUID]
        np.testing.assert_allclose(np.array(place, float), (scan.affine @ (d, 0, 0, 1))[:3], atol=1e-4)
    (series,) = seg.ReferencedSeriesSequence
    assert [item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence] == list(places)[1:-1]
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert (measures.SliceThickness, measures.SpacingBetweenSlices) == (3, SPACING[0])
    for segment, mask in zip(read_dicom_seg(path, scan), masks(found), strict=True):
        np.testing.assert_array_equal(segment.mask, mask)


def test_the_same_result_has_the_same_uids(tmp_path):
    _, found, path, first = written(tmp_path, stack())
    sources = source_headers(tmp_path / "ct")
    before = [copy.deepcopy(source) for source in sources]
    again = write_dicom_seg(path, found, sources)
    assert sources == before
    other = found.labels.copy()
    other[2, 0, 0] ^= 1
    changed = [
        write_dicom_seg(path, replace(found, labels=other), sources),
        write_dicom_seg(path, replace(found, model={"identity": "another"}), sources),
    ]
    for name in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert first[name] == again[name]
        assert len({seg[name].value for seg in (first, *changed)}) == 3
    assert sorted(tmp_path.iterdir()) == [tmp_path / "ct", path]


@pytest.mark.parametrize("thickness", [3.0, None])
def test_a_single_slice_of_any_thickness(tmp_path, thickness):
    slices = stack()[2:3]
    if thickness is None:
        del slices[0].SliceThickness
    scan, found, path, seg = written(tmp_path, slices)
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SliceThickness == (thickness or 1)  # the format demands one
    assert "SpacingBetweenSlices" not in measures
    assert errors(path) == []
    for segment, mask in zip(read_dicom_seg(path, scan), masks(found), strict=True):
        np.testing.assert_array_equal(segment.mask, mask)


def test_nothing_found_gives_no_file_and_liver_alone_gives_one_segment(tmp_path):
    scan, found, path, seg = written(tmp_path, stack(), types=())
    assert seg.segment_numbers == [1]
    (segment,) = read_dicom_seg(path, scan)
    np.testing.assert_array_equal(segment.mask, found.labels > 0)
    path.unlink()
    assert write_dicom_seg(path, replace(found, labels=found.labels * 0), source_headers(tmp_path / "ct")) is None
    assert not path.exists()


def rounded(source):
    """Positions as a writer rounds them, within the tenth of a voxel that is let pass."""
    moves = np.random.default_rng(0).uniform(-0.03, 0.03, (len(source.PerFrameFunctionalGroupsSequence), 3))
    for frame, move in zip(source.PerFrameFunctionalGroupsSequence, moves, strict=True):
        place = frame.PlanePositionSequence[0]
        place.ImagePositionPatient = (np.array(place.ImagePositionPatient, float) + move).round(3).tolist()


def stated_by_each_frame(source):
    shared = source.SharedFunctionalGroupsSequence[0]
    for n, frame in enumerate(source.PerFrameFunctionalGroupsSequence):
        for name in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
            frame[name] = copy.deepcopy(shared[name])
        frame.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, n % 2 * 0.00005, 0, 1, 0]
    del shared.PlaneOrientationSequence, shared.PixelMeasuresSequence


def ordered(order):
    def change(source):
        frames = source.PerFrameFunctionalGroupsSequence
        pixels = np.frombuffer(source.PixelData, "<u2").reshape(len(frames), -1)
        source.PerFrameFunctionalGroupsSequence, source.PixelData = [frames[i] for i in order], pixels[order].tobytes()

    return change


def thickness(value):
    def change(source):
        source.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness = value

    return change


def without_frame_of_reference(source):
    del source.FrameOfReferenceUID


ENHANCED = {
    "as it is": (),
    "rounded positions": (rounded,),
    "stated by each frame": (stated_by_each_frame,),
    "ascending": (ordered([4, 3, 2, 1, 0]),),
    "shuffled": (ordered([3, 0, 4, 1, 2]),),
    "no thickness": (thickness(None),),
    "a thickness of 0": (thickness(0),),
    "a thickness with a sign": (thickness(-3),),
    "no frame of reference": (without_frame_of_reference,),
    "all of it": (rounded, stated_by_each_frame, ordered([3, 0, 4, 1, 2])),
}


@pytest.mark.parametrize("kind", ENHANCED)
def test_an_enhanced_ct_is_referred_to_by_frame(tmp_path, kind):
    """Every frame of the SEG lies on, and names, the frame of the CT whose slice holds its mask: by bare pydicom."""
    path = test_dicom.TestEnhanced().file(tmp_path, canonical_hu())
    source = pydicom.dcmread(path)
    for change in ENHANCED[kind]:
        change(source)
    source.save_as(path)
    scan, headers = read_scan(path), source_headers(path)
    before, found = copy.deepcopy(headers), segmentation(scan)
    write_dicom_seg(tmp_path / "seg.dcm", found, headers)
    assert headers == before
    seg, source = pydicom.dcmread(tmp_path / "seg.dcm"), pydicom.dcmread(path)
    pixels = np.frombuffer(source.PixelData, "<u2").reshape(-1, *SHAPE[1:]).astype(int) - 1024
    bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")
    drawn = bits[: seg.NumberOfFrames * SHAPE[1] * SHAPE[2]].reshape(-1, *SHAPE[1:])
    seen = [np.zeros(SHAPE, bool) for _ in masks(found)]
    for groups, frame in zip(seg.PerFrameFunctionalGroupsSequence, drawn, strict=True):
        (image,) = groups.DerivationImageSequence[0].SourceImageSequence
        assert image.ReferencedSOPInstanceUID == source.SOPInstanceUID
        number = int(image.ReferencedFrameNumber) - 1
        theirs = source.PerFrameFunctionalGroupsSequence[number].PlanePositionSequence[0].ImagePositionPatient
        ours = groups.PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(np.array(ours, float), np.array(theirs, float), atol=0.1)
        (d,) = (d for d, plane in enumerate(scan.hu) if np.array_equal(plane, pixels[number]))
        seen[groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber - 1][d] |= frame.astype(bool)
    for one, mask in zip(seen, masks(found), strict=True):
        np.testing.assert_array_equal(one, mask)
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SliceThickness == (2.5 if kind in ("no thickness", "a thickness of 0") else 3)
    assert float(measures.SpacingBetweenSlices) == pytest.approx(2.5, abs=0.03)
    for segment, mask in zip(read_dicom_seg(tmp_path / "seg.dcm", scan), masks(found), strict=True):
        np.testing.assert_array_equal(segment.mask, mask)


@pytest.mark.parametrize(("stated", "written_mm"), [("3", 3), (None, 1), ("0", 1)])
def test_an_enhanced_ct_of_one_frame(tmp_path, stated, written_mm):
    path = test_dicom.TestEnhanced().file(tmp_path, canonical_hu()[:1], thickness=stated)
    seg = write_dicom_seg(tmp_path / "seg.dcm", segmentation(read_scan(path)), source_headers(path))
    measures = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SliceThickness == written_mm
    assert "SpacingBetweenSlices" not in measures


def test_the_seg_of_an_oblique_scan_lies_on_its_grid(tmp_path):
    """Whose cosines are rounded to three decimals; what other writers copy of them is read on the same grid."""
    turned = Rotation.from_euler("xyz", (14.2, -9.7, 21.3), degrees=True).as_matrix()
    cosines = turned[:, :2].T.ravel().round(3).tolist()
    hu = np.zeros((40, 64, 512), np.int16)
    slices = [ct(plane, (5.1 * d * turned[:, 2]).round(3), cosines) for d, plane in enumerate(hu)]
    scan, found, path, _ = written(tmp_path, slices, types=())
    seg = pydicom.dcmread(path)
    (orientation,) = seg.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    rows, columns = np.array(orientation.ImageOrientationPatient, float).reshape(2, 3)
    np.testing.assert_allclose([rows @ rows, columns @ columns, rows @ columns], [1, 1, 0], atol=1e-9)
    for groups in seg.PerFrameFunctionalGroupsSequence:
        assert len(groups.DerivationImageSequence[0].SourceImageSequence) == 1
        d = np.linalg.solve(scan.affine, [*groups.PlanePositionSequence[0].ImagePositionPatient, 1])[0]
        assert abs(d - round(d)) < 1e-6
    (segment,) = read_dicom_seg(path, scan)
    np.testing.assert_array_equal(segment.mask, found.labels > 0)
    orientation.ImageOrientationPatient = cosines
    seg.save_as(path)
    (segment,) = read_dicom_seg(path, scan)
    np.testing.assert_array_equal(segment.mask, found.labels > 0)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("charset", "name"),
    [("ISO_IR 192", "Müller^Jürgen"), (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"), (None, NAME)],
)
def test_sources_as_they_come(tmp_path, charset, name):
    """Names in any script are copied, invalid values are left out, a missing frame of reference is made up.

    The values are those that public CT holds.
    """
    slices = stack()
    for ds in slices:
        if charset:
            ds.SpecificCharacterSet = charset
        ds.PatientName, ds.PatientSex, ds.PatientAge, ds.PatientBirthDate = name, "UNKNOWN", "0Y", "19500102"
        ds.StudyDate, ds.StudyTime, ds.StudyID, ds.PatientIdentityRemoved = (
            "20201302",
            "25:61",
            "d6e8957745873602",
            "YES",
        )
        ds.StudyID += "88a3"
        del ds.FrameOfReferenceUID, ds.PatientID
    scan, found, path, _ = written(tmp_path, slices)
    seg = pydicom.dcmread(path)
    assert seg.PatientName == name
    for keyword in ("PatientID", "PatientSex", "StudyDate", "StudyTime", "StudyID"):
        assert seg[keyword].value in ("", None)
    assert (seg.PatientBirthDate, "PatientAge" in seg) == ("19500102", False)
    assert seg.FrameOfReferenceUID
    assert errors(path) == []
    np.testing.assert_array_equal(read_dicom_seg(path, scan)[0].mask, found.labels > 0)


def test_headers_of_another_scan_are_a_mistake_of_the_caller(tmp_path):
    scan = read_scan(save(tmp_path / "ct", stack()))
    sources = source_headers(tmp_path / "ct")
    for found, headers in ((segmentation(scan), sources[:-1]), (segmentation(replace(scan, affine=None)), sources)):
        with pytest.raises(ValueError, match="its own headers"):
            write_dicom_seg(tmp_path / "seg.dcm", found, headers)


@pytest.mark.parametrize("name", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
def test_sources_that_nothing_can_refer_to_are_refused(tmp_path, name):
    scan = read_scan(save(tmp_path / "ct", stack()))
    sources = source_headers(tmp_path / "ct")
    for source in sources:
        delattr(source, name)
    error = refused(lambda: write_dicom_seg(tmp_path / "seg.dcm", segmentation(scan), sources), name)
    assert error.code == "uid"
    assert not (tmp_path / "seg.dcm").exists()


class TestReading:
    @pytest.fixture(scope="class")
    def once(self, tmp_path_factory):
        return written(tmp_path_factory.mktemp("seg"), stack())

    @pytest.fixture
    def made(self, once, tmp_path):
        scan, found, path, seg = once
        return scan, found, Path(shutil.copy(path, tmp_path)), seg

    def changed(self, made, change):
        scan, _, path, _ = made
        ds = pydicom.dcmread(path)
        change(ds)
        ds.save_as(path)
        return lambda frame=None: read_dicom_seg(path, scan, frame)

    def test_on_the_scan_in_any_of_48_orientations(self, made):
        """As when the CT is given as NIfTI, whose axes may run in any direction."""
        scan, found, path, _ = made
        for order in itertools.permutations(range(3)):
            for flips in itertools.product((1, -1), repeat=3):
                turn = np.zeros((4, 4))
                turn[3, 3] = 1
                for new, old in enumerate(order):
                    turn[old, new] = flips[new]
                    turn[old, 3] = SHAPE[old] - 1 if flips[new] < 0 else 0
                back = [axis for axis in range(3) if flips[axis] < 0]
                turned = [np.flip(array.transpose(order), back) for array in (scan.hu, *masks(found))]
                other = Scan(turned[0], "turned", None, scan.affine @ turn)
                for segment, mask in zip(read_dicom_seg(path, other), turned[1:], strict=True):
                    np.testing.assert_array_equal(segment.mask, mask)

    def test_a_slice_of_the_series(self, made):
        """Its thickness of 3 mm is not the 2.5 mm from slice to slice."""
        scan, found, path, _ = made
        for d, thickness in itertools.product(range(len(scan.hu)), (0.5, 3.0, 5.0)):
            affine = scan.affine.copy()
            affine[:3, 3] += d * affine[:3, 0]
            affine[:3, 0] *= -thickness / SPACING[0]
            one = Scan(scan.hu[d : d + 1], "slice", None, affine)
            for segment, mask in zip(read_dicom_seg(path, one, uid("frame")), masks(found), strict=True):
                np.testing.assert_array_equal(segment.mask, mask[d : d + 1])

    def test_a_slice_without_frames_is_empty_only_where_it_is_known_to_belong(self, made):
        scan, _, path, _ = made
        affine = scan.affine.copy()
        affine[:3, 3] += 100 * affine[:3, 0]
        far = replace(scan, affine=affine)
        assert not any(segment.mask.any() for segment in read_dicom_seg(path, far, uid("frame")))
        assert refused(lambda: read_dicom_seg(path, far), "frames, all of other slices").code == "mask-geometry"
        refused(lambda: read_dicom_seg(path, far, uid("other")), "the frame of reference")

    def test_it_says_which_slices_beyond_the_scan_it_marks(self, made):
        """By the frames of the file that hold a pixel; an empty one marks nothing."""
        scan, _, path, _ = made
        ds = pydicom.dcmread(path)
        marked = {number: set() for number in range(1, 2 + len(TYPES))}
        frames = ds.pixel_array.copy()
        frames[0] = 0
        ds.PixelData = np.packbits(frames.ravel(), bitorder="little").tobytes()
        ds.save_as(path)
        for groups, pixels in zip(ds.PerFrameFunctionalGroupsSequence, frames, strict=True):
            if pixels.any():
                place = tuple(map(float, groups.PlanePositionSequence[0].ImagePositionPatient))
                marked[groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber].add(place)
        for d in range(len(scan.hu)):
            affine = scan.affine.copy()
            affine[:3, 3] += d * affine[:3, 0]
            one = replace(scan, hu=scan.hu[d : d + 1], affine=affine)
            for number, segment in enumerate(read_dicom_seg(path, one, uid("frame")), 1):
                assert segment.beyond == {place for place in marked[number] if not np.allclose(place, affine[:3, 3])}
        assert not any(segment.beyond for segment in read_dicom_seg(path, scan))

    def test_another_study_is_refused_where_no_frame_of_reference_decides(self, made):
        scan, _, path, _ = made
        read = self.changed(made, lambda ds: setattr(ds, "StudyInstanceUID", uid("other")))
        assert refused(read, "the study of its image; got another").code == "seg-source"
        assert read(uid("frame"))
        assert read_dicom_seg(path, replace(scan, study=None))
        assert read_dicom_seg(path, replace(scan, study=uid("other")))  # renewed in both alike
        self.changed(made, lambda ds: delattr(ds, "FrameOfReferenceUID"))
        assert refused(lambda: read(uid("frame"))).code == "seg-source"
        self.changed(made, lambda ds: delattr(ds, "StudyInstanceUID"))
        assert read(uid("frame"))

    def test_another_series_is_refused(self, made):
        def both(ds):
            ds.ReferencedSeriesSequence.append(copy.deepcopy(ds.ReferencedSeriesSequence[0]))
            ds.ReferencedSeriesSequence[1].SeriesInstanceUID = uid("other")

        scan, _, path, _ = made
        assert read_dicom_seg(path, scan, uid("frame"), uid("series"))
        for frame in (uid("frame"), None):
            error = refused(lambda frame=frame: read_dicom_seg(path, scan, frame, uid("other")), "series of its image")
            assert error.code == "seg-source"
        for change in (both, lambda ds: delattr(ds, "ReferencedSeriesSequence")):
            self.changed(made, change)
            assert read_dicom_seg(path, scan, uid("frame"), uid("other"))

    @pytest.mark.parametrize(
        ("index", "word"),
        [
            (np.diag([1, 1, -1, 1]), "6 voxels apart"),
            (np.eye(4) + 0.2 * np.eye(4, k=3), "0.2 voxels apart"),
            (np.diag([0.5, 1, 1, 1]), "got slices 2.5 mm apart"),
            (np.diag([1, 1.05, 1, 1]), "0.238 voxels apart"),
            (np.eye(4) + 0.05 * np.eye(4, k=1), "0.298 voxels apart"),
        ],
        ids=["mirrored", "shifted", "other slices", "resampled", "tilted"],
    )
    def test_another_grid_is_refused(self, made, index, word):
        scan, _, path, _ = made
        other = replace(scan, affine=scan.affine @ index)
        assert refused(lambda: read_dicom_seg(path, other, uid("frame")), word).code == "mask-geometry"

    def test_rounded_positions_are_taken(self, made):
        scan, found, path, _ = made
        other = replace(scan, affine=scan.affine + 0.03 * np.eye(4, k=3))
        np.testing.assert_array_equal(read_dicom_seg(path, other)[0].mask, found.labels > 0)

    def test_another_shape_and_an_unknown_place_are_refused(self, made):
        scan, _, path, _ = made
        small = replace(scan, hu=scan.hu[:, :-1])
        assert refused(lambda: read_dicom_seg(path, small), "6 x 7 pixels").code == "mask-shape"
        assert refused(lambda: read_dicom_seg(path, replace(scan, affine=None)), "place").code == "mask-geometry"

    def test_retired_codes_are_known(self, made):
        def change(ds):
            for item, value in zip(ds.SegmentSequence, ("T-62000", "M-3340A"), strict=False):
                code = item.SegmentedPropertyTypeCodeSequence[0]
                code.CodeValue, code.CodingSchemeDesignator = value, "SRT"

        assert [segment.label for segment in self.changed(made, change)()[:2]] == [LIVER, LESION_IDS["cyst"]]

    def test_unknown_codes_are_listed(self, made):
        def change(ds):
            for number, name in ((1, "spleen (left)"), (2, f"{NAME}")):
                item = ds.SegmentSequence[number]
                item.SegmentLabel = name
                item.SegmentedPropertyTypeCodeSequence[0].CodeValue = "78961009"

        error = refused(self.changed(made, change), "malformed (SCT 78961009)", "Liver (SCT 10200004) or Cyst")
        assert error.code == "seg-code"
        refused(lambda: segment_labels(made[2]), "78961009")

    @pytest.mark.parametrize(
        ("place", "code", "taken"),
        [
            ("region", codes.SCT.Liver, True),
            ("region", Code("T-62000", "SRT", "Liver"), True),
            ("region", codes.SCT.CouinaudHepaticSegmentVII, True),
            ("region", Code("69842003", "SCT", "Left lobe of liver"), True),
            ("region", codes.SCT.Abdomen, True),
            ("region", Code("T-D4000", "SRT", "Abdomen"), True),
            ("region", codes.SCT.LiverAndBiliaryStructure, True),
            ("region", codes.SCT.Kidney, False),
            ("region", Code("T-71000", "SRT", "Kidney"), False),
            ("region", codes.SCT.Lung, False),
            ("region", Code("10200004", "99LOCAL", "Liver"), False),
            ("structure", codes.SCT.Kidney, False),
            ("structure", codes.SCT.Liver, True),
            ("modifier", codes.SCT.Kidney, False),
            ("modifier", codes.SCT.Left, True),
        ],
        ids=str,
    )
    def test_lesions_of_another_organ_are_refused(self, made, place, code, taken):
        """Wherever the standard lets a segment say its organ (PS3.3 C.8.20.4); a liver may lie in any region."""

        def change(ds):
            for n, item in enumerate(ds.SegmentSequence):
                item.pop("AnatomicRegionSequence", None)
                kind = item.SegmentedPropertyTypeCodeSequence[0]
                target, name = {
                    "region": (item, "AnatomicRegionSequence"),
                    "structure": (item, "PrimaryAnatomicStructureSequence"),
                    "modifier": (kind, "SegmentedPropertyTypeModifierCodeSequence"),
                }[place]
                if n < 2:
                    setattr(target, name, [hd.sr.CodedConcept(*code[:3])])

        read = self.changed(made, change)
        if taken:
            assert len(read()) == 1 + len(TYPES)
            return
        told = f"lesion 1: cyst (region {code.scheme_designator} {code.value}); correct the codes"
        for look in (read, lambda: segment_labels(made[2])):
            error = refused(look, "lesions whose region is the liver (SCT 10200004)", f"got {told}")
            assert error.code == "seg-region"

    def test_two_segments_of_one_number_are_refused(self, made):
        """Whichever came last would win."""

        def change(ds):
            ds.SegmentSequence[2].SegmentNumber = 2
            for frame in ds.PerFrameFunctionalGroupsSequence:
                identity = frame.SegmentIdentificationSequence[0]
                if identity.ReferencedSegmentNumber == 3:
                    identity.ReferencedSegmentNumber = 2

        assert refused(self.changed(made, change), "segments of different numbers").code == "seg-number"

    def test_fractional_compressed_and_other_files_are_refused(self, made, tmp_path):
        def fractional(ds):
            ds.SegmentationType = "FRACTIONAL"

        def compressed(ds):
            ds.file_meta.TransferSyntaxUID = JPEG2000Lossless
            ds.PixelData = encapsulate([b"no JPEG at all"])

        assert refused(self.changed(made, compressed), "got JPEG2000Lossless").code == "transfer-syntax"
        assert refused(self.changed(made, fractional), "FRACTIONAL", "save it as BINARY").code == "seg-type"
        save(tmp_path, stack()[:1])
        told = "a DICOM-SEG (Segmentation Storage); got class CT Image"
        refused(lambda: read_dicom_seg(tmp_path / "003.dcm", made[0]), told)
        (tmp_path / "a.txt").write_text("no DICOM")
        refused(lambda: read_dicom_seg(tmp_path / "a.txt", made[0]), "a readable DICOM file")

    def test_a_binary_one_of_8_bits_is_told(self, made):
        read = self.changed(made, lambda ds: setattr(ds, "BitsAllocated", 8))
        assert refused(read, "of 1 bit a pixel; got 8 bits a pixel; save").code == "seg-type"

    @pytest.mark.parametrize(
        ("uid", "told"),
        [
            ("1.2.840.10008.5.1.4.1.1.66.7", "Label Map Segmentation Storage"),
            ("1.2.840.10008.5.1.4.1.1.481.3", "RT Structure Set Storage"),
            ("1.2.3.4", "1.2.3.4"),
            (NAME, "malformed"),
        ],
    )
    def test_another_class_is_told_by_its_name(self, made, uid, told):
        read = self.changed(made, lambda ds: setattr(ds, "SOPClassUID", uid))
        assert refused(read, f"a DICOM-SEG (Segmentation Storage); got class {told}; save").code == "format"

    @pytest.mark.parametrize(
        "change",
        [
            lambda ds: setattr(ds, "PixelData", ds.PixelData[:-4]),
            lambda ds: setattr(ds, "NumberOfFrames", 99),
            lambda ds: delattr(ds, "SegmentSequence"),
            lambda ds: setattr(ds.PerFrameFunctionalGroupsSequence[0].SegmentIdentificationSequence[0],
                               "ReferencedSegmentNumber", 77),
            lambda ds: setattr(ds.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0],
                               "ImagePositionPatient", ["1e308", "-50", "37.5"]),
        ],
        ids=["pixels cut short", "frames missing", "no segments", "unknown segment", "absurd position"],
    )  # fmt: skip
    def test_malformed_files_are_refused(self, made, change):
        refused(self.changed(made, change))

    def test_mutated_files_end_in_input_error_or_masks(self, made):
        scan, _, path, _ = made
        rng = np.random.default_rng(0)
        original, read = path.read_bytes(), 0
        for n in range(100):
            data = bytearray(original)
            for place in rng.integers(128, len(data), size=rng.integers(1, 6)):
                data[place] = rng.integers(256)
            path.write_bytes(data[: rng.integers(132, len(data))] if n % 3 == 0 else data)
            try:
                read_dicom_seg(path, scan)
                read += 1
            except Exception:
                refused(lambda: read_dicom_seg(path, scan))
        assert 0 < read < 100


def test_source_headers_come_in_the_order_of_the_scan(tmp_path):
    slices = stack()
    for d, ds in enumerate(slices):
        ds.InstanceNumber = d
    folder = save(tmp_path / "ct", slices[::-1])
    scan, sources = read_scan(folder), source_headers(folder)
    for d, source in enumerate(sources):
        np.testing.assert_allclose(np.array(source.ImagePositionPatient, float), (scan.affine @ (d, 0, 0, 1))[:3])
        assert "PixelData" not in source
    (single,) = source_headers(folder / "003.dcm")
    assert single.InstanceNumber == len(slices) - 1
    save(folder / "other", stack(series="other"))
    assert len(source_headers(folder, series=uid("other"))) == len(slices)
    assert len(source_headers(folder, files=sorted(folder.glob("*.dcm")))) == len(slices)
    assert refused(lambda: source_headers(folder)).code == "several-series"
