import itertools
import math

import gdcm
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from lesionseg.errors import InputError
from lesionseg.formats.dicom import PADDING_HU, PHANTOM_MARK, read_dicom_file, read_dicom_series
from lesionseg.scan import Case, to_canonical

SHAPE = (5, 6, 7)
SPACING = (2.5, 0.8, 0.7)
NAME, PATIENT = "Doe^Marker", "MARKER-4711"


def uid(*words):
    return generate_uid(entropy_srcs=list(map(str, words)))


def canonical_hu(shape=SHAPE):
    return np.random.default_rng(3).integers(-1000, 1500, shape).astype(np.int16)


def ct(pixels, position, orientation=(1, 0, 0, 0, 1, 0), spacing=SPACING[1:], series="series", intercept=-1024):
    """A single CT slice that stores HU - intercept."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = uid(series, position)
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = CTImageStorage, meta.MediaStorageSOPInstanceUID, "CT"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = uid("study"), uid(series), uid("frame")
    ds.PatientName, ds.PatientID, ds.Manufacturer = NAME, PATIENT, "A scanner"
    ds.ImageType, ds.InstanceNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], 1
    ds.ImagePositionPatient, ds.ImageOrientationPatient = list(map(float, position)), list(map(float, orientation))
    ds.PixelSpacing, ds.SliceThickness = list(spacing), 3.0
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.RescaleSlope, ds.RescaleIntercept = 1, intercept
    ds.PixelData = (pixels.astype(np.int32) - intercept).astype("<u2").tobytes()
    return ds


def stack(hu=None, **options):
    """Slices of an axial scan, D upwards."""
    hu = canonical_hu() if hu is None else hu
    return [ct(pixels, (-100, -50, 30 + SPACING[0] * d), **options) for d, pixels in enumerate(hu)]


def save(folder, slices):
    folder.mkdir(parents=True, exist_ok=True)
    for n, ds in enumerate(slices):
        path = folder / f"{(7 * n + 3) % 101:03}.dcm"
        if ds.file_meta.TransferSyntaxUID == ExplicitVRBigEndian:
            pydicom.dcmwrite(path, ds, implicit_vr=False, little_endian=False, force_encoding=True)
        else:
            ds.save_as(path, enforce_file_format=True)
    return folder


def canonical(scan):
    return to_canonical(Case(scan, np.zeros(scan.hu.shape, np.uint8), "p")).scan


def refused(call, *words):
    with pytest.raises(InputError) as error:
        call()
    message = str(error.value)
    assert "expected" in message
    assert "\n" not in message
    assert NAME not in message
    assert PATIENT not in message
    for word in words:
        assert word in message
    return error.value


def right_handed_grids():
    """The 24 ways to lay rows, columns and slices along the patient axes, as signed permutation matrices (d, h, w)."""
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            grid = np.zeros((3, 3))
            grid[list(axes), range(3)] = signs
            yield grid


@pytest.mark.parametrize("grid", list(right_handed_grids()), ids=str)
def test_a_scan_cut_along_any_axes_is_voxel_exact(tmp_path, grid):
    """grid[:, a] is the direction of array axis a in canonical indices (D, H, W); the 48 include descending slices."""
    whole = canonical_hu()
    axes = [int(np.flatnonzero(grid[:, a])[0]) for a in range(3)]
    flips = [a for a in range(3) if grid[axes[a], a] < 0]
    cut = np.flip(whole.transpose(axes), flips)
    lps = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]])  # canonical (D, H, W) to patient (L, P, S)
    start = np.array([SHAPE[axes[a]] - 1 if a in flips else 0 for a in range(3)])
    origin = np.zeros(3)
    origin[axes] = start * np.array(SPACING)[axes]
    rows, columns = lps @ grid[:, 2], lps @ grid[:, 1]
    spacing = [SPACING[axes[1]], SPACING[axes[2]]]
    slices = [
        ct(cut[d], lps @ (origin + grid[:, 0] * d * SPACING[axes[0]]), (*rows, *columns), spacing)
        for d in range(len(cut))
    ]
    scan = canonical(read_dicom_series(save(tmp_path / "ct", slices)))
    np.testing.assert_array_equal(scan.hu, whole)
    assert scan.spacing_mm == pytest.approx(SPACING)
    np.testing.assert_allclose(scan.affine[:3, :3], lps * np.array(SPACING), atol=1e-6)
    np.testing.assert_allclose(scan.affine[:3, 3], 0, atol=1e-6)


def test_names_order_and_other_files_do_not_matter(tmp_path):
    folder = save(tmp_path / "patient" / "ct", stack()[::-1])
    (folder / "notes.txt").write_text("not DICOM")
    (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (folder / ".hidden.dcm").write_bytes(b"")
    capture = stack(series="report")[0]
    capture.SOPClassUID, capture.Modality = SecondaryCaptureImageStorage, "OT"
    capture.save_as(folder / "report.dcm")
    scan = read_dicom_series(tmp_path / "patient")
    assert scan.scan_id == "patient"
    assert not scan.generated
    np.testing.assert_array_equal(canonical(scan).hu, canonical_hu())


def test_rescale_and_padding_go_slice_by_slice(tmp_path):
    hu = canonical_hu()
    hu[:, 0, 0] = np.arange(len(hu)) - 2000
    slices = [ct(pixels, (0, 0, -3 * d), intercept=-3000 - d) for d, pixels in enumerate(hu)]
    for d, ds in enumerate(slices):
        ds.PixelPaddingValue = 1000 + d + d  # stored value of HU d - 2000
    expected = hu.copy()
    expected[:, 0, 0] = PADDING_HU
    np.testing.assert_array_equal(canonical(read_dicom_series(save(tmp_path / "ct", slices))).hu, expected[::-1])


def test_padding_ranges_and_signed_pixels(tmp_path):
    hu = canonical_hu((1, 6, 7))
    hu[0, 0, :3] = -2000, -1990, -1989
    ds = ct(hu[0], (0, 0, 0), intercept=0)
    ds.PixelRepresentation, ds.PixelData = 1, hu.astype("<i2").tobytes()
    ds.PixelPaddingValue, ds.PixelPaddingRangeLimit = -2000, -1990
    ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    expected = hu.copy()
    expected[0, 0, :2] = PADDING_HU
    np.testing.assert_array_equal(read_dicom_file(tmp_path / "a.dcm").hu, expected)


@pytest.mark.parametrize(("ends", "padded"), [((0,), False), ((-499,), False), ((-2000, 0), False), ((-500,), True)])
def test_what_may_be_tissue_is_no_padding(tmp_path, ends, padded):
    """A file rewritten in signed HU that keeps the padding of its original: 0 HU is water."""
    hu = canonical_hu((1, 6, 7))
    hu[0, 0, :4] = 0, -499, -500, -2000
    ds = ct(hu[0], (0, 0, 0), intercept=0)
    ds.PixelRepresentation, ds.PixelData = 1, hu.astype("<i2").tobytes()
    for name, end in zip(("PixelPaddingValue", "PixelPaddingRangeLimit"), ends, strict=False):
        setattr(ds, name, end)
    ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    expected = np.where(hu == -500, PADDING_HU, hu) if padded else hu
    np.testing.assert_array_equal(read_dicom_file(tmp_path / "a.dcm").hu, expected)


@pytest.mark.parametrize(("value", "told"), [("", None), ([0, 1], "one number as PixelPaddingValue; got another")])
def test_a_padding_value_that_is_none_or_several(tmp_path, value, told):
    hu = canonical_hu((1, 6, 7))
    ds = ct(hu[0], (0, 0, 0))
    ds.add_new(0x00280120, "US", value)
    ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    if told:
        assert refused(lambda: read_dicom_file(tmp_path / "a.dcm"), told).code == "padding"
    else:
        np.testing.assert_array_equal(read_dicom_file(tmp_path / "a.dcm").hu, hu)


def test_fractional_slope_is_rounded(tmp_path):
    stored = np.arange(42).reshape(6, 7)
    ds = ct(stored - 1024, (0, 0, 0))
    ds.RescaleSlope = 3.3
    ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_dicom_file(tmp_path / "a.dcm").hu[0], np.rint(stored * 3.3 - 1024))


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEGLSLossless,
        JPEG2000Lossless,
    ],
    ids=lambda syntax: syntax.name,
)
def test_transfer_syntaxes_are_voxel_exact(tmp_path, syntax):
    slices = stack(canonical_hu((3, 64, 64)))
    for ds in slices:
        if syntax.is_compressed and syntax != DeflatedExplicitVRLittleEndian:
            ds.compress(syntax, generate_instance_uid=False)
        elif syntax == ExplicitVRBigEndian:
            ds.file_meta.TransferSyntaxUID = syntax
            ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
        else:
            ds.file_meta.TransferSyntaxUID = syntax
    scan = read_dicom_series(save(tmp_path / "ct", slices))
    np.testing.assert_array_equal(canonical(scan).hu, canonical_hu((3, 64, 64)))


@pytest.fixture
def jpeg_lossless(tmp_path):
    """Folder of a series that only gdcm decodes."""
    folder = save(tmp_path / "ct", stack(canonical_hu((3, 64, 64))))
    for path in folder.iterdir():
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(path))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(str(path))
        assert writer.Write()
    return folder


def test_decoding_imports_nothing_from_the_folder_one_stands_in(jpeg_lossless, tmp_path, monkeypatch):
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "pydicom.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path / "planted")
    np.testing.assert_array_equal(canonical(read_dicom_series(jpeg_lossless)).hu, canonical_hu((3, 64, 64)))
    assert not (tmp_path / "ran").exists()


def test_jpeg_lossless_is_decoded_and_a_broken_stream_is_refused(jpeg_lossless):
    folder = jpeg_lossless
    path = next(folder.iterdir())
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == JPEGLosslessSV1
    np.testing.assert_array_equal(canonical(read_dicom_series(folder)).hu, canonical_hu((3, 64, 64)))
    data = bytearray(path.read_bytes())
    start = data.index(b"\xff\xd8\xff")
    data[start + 4 : start + 40] = bytes(36)
    path.write_bytes(data)
    assert refused(lambda: read_dicom_series(folder), "JPEG lossless").code == "unreadable"


def test_a_syntax_without_decoder_is_refused(tmp_path):
    ds = stack()[0]
    ds.PixelData = encapsulate([b"no JPEG at all"])
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.55"
    ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    refused(lambda: read_dicom_file(tmp_path / "a.dcm"), "no decoder for JPEG Full Progression")


@pytest.mark.parametrize("implicit", [True, False])
def test_a_file_without_preamble_is_dicom_too(tmp_path, implicit):
    ds = stack()[0]
    plain = Dataset()
    plain.update(ds)
    pydicom.dcmwrite(tmp_path / "old", plain, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    assert (tmp_path / "old").read_bytes()[128:132] != b"DICM"
    np.testing.assert_array_equal(read_dicom_file(tmp_path / "old").hu[0], canonical_hu()[0])


class TestSlice:
    def read(self, tmp_path, ds):
        ds.save_as(tmp_path / "slice.dcm", enforce_file_format=True)
        return read_dicom_file(tmp_path / "slice.dcm")

    def test_geometry(self, tmp_path):
        scan = self.read(tmp_path, ct(canonical_hu()[0], (-10, 20, 33), (1, 0, 0, 0, -1, 0)))
        np.testing.assert_array_equal(scan.hu[0], canonical_hu()[0])
        assert scan.scan_id == "slice"
        assert scan.spacing_mm == pytest.approx((3.0, 0.8, 0.7))
        for d, h, w in itertools.product((0, 1), repeat=3):
            x, y, z = (scan.affine @ (d, h, w, 1))[:3]
            np.testing.assert_allclose((x, y, abs(z - 33)), (-10 + 0.7 * w, 20 - 0.8 * h, 3.0 * d))

    def test_a_thickness_with_a_sign_is_a_thickness(self, tmp_path):
        ds = stack()[0]
        ds.SliceThickness = -3.0
        assert self.read(tmp_path, ds).spacing_mm[0] == 3.0

    def test_unknown_thickness_is_nan(self, tmp_path):
        ds = stack()[0]
        del ds.SliceThickness
        scan = self.read(tmp_path, ds)
        assert np.isnan(scan.spacing_mm[0])
        assert scan.spacing_mm[1:] == pytest.approx(SPACING[1:])
        assert np.linalg.norm(scan.affine[:3, 0]) == pytest.approx(1)

    def test_spacing_between_slices_does_not_stand_for_the_thickness(self, tmp_path):
        ds = stack()[0]
        ds.SpacingBetweenSlices = 7.0
        assert self.read(tmp_path, ds).spacing_mm[0] == 3.0

    def test_slices_may_lie_behind_a_link(self, tmp_path):
        slices = stack()
        folder = save(tmp_path / "ct", slices[:2])
        (folder / "linked").symlink_to(save(tmp_path / "disk", slices[2:]))
        assert len(read_dicom_series(folder).hu) == len(slices)

    def test_a_scan_knows_its_study(self, tmp_path):
        ds = stack()[0]
        assert self.read(tmp_path, ds).study == ds.StudyInstanceUID
        ds.StudyInstanceUID = ""
        assert self.read(tmp_path, ds).study is None

    def test_a_folder_with_one_slice_is_a_slice(self, tmp_path):
        scan = read_dicom_series(save(tmp_path / "ct", stack()[:1]))
        assert scan.hu.shape == (1, *SHAPE[1:])
        assert scan.spacing_mm[0] == 3.0

    def test_phantom_is_known_by_its_manufacturer(self, tmp_path):
        ds = stack()[0]
        ds.Manufacturer = PHANTOM_MARK
        assert self.read(tmp_path, ds).generated


def set_all(**attributes):
    def change(slices):
        for ds in slices:
            for name, value in attributes.items():
                setattr(ds, name, value)
        return slices

    return change


def set_one(**attributes):
    def change(slices):
        set_all(**attributes)(slices[2:3])
        return slices

    return change


def without(name, which=slice(None)):
    def change(slices):
        for ds in slices[which]:
            delattr(ds, name)
        return slices

    return change


def tilt(slices):
    angle = np.radians(10)
    return set_all(ImageOrientationPatient=[1, 0, 0, 0, np.cos(angle), -np.sin(angle)])(slices)


def gap(slices):
    return slices[:2] + slices[3:]


def double(slices):
    twin = ct(canonical_hu()[0], slices[0].ImagePositionPatient)
    twin.SOPInstanceUID = uid("twin")
    return [*slices, twin]


def move(slices):
    slices[2].ImagePositionPatient = [-99, *slices[2].ImagePositionPatient[1:]]
    return slices


def shift(slices):
    slices[2].ImagePositionPatient = [-100, -50, float(slices[2].ImagePositionPatient[2]) + 0.4]
    return slices


def turn(slices):
    return set_one(ImageOrientationPatient=[0, 1, 0, 1, 0, 0])(slices)


def small(slices):
    slices[2] = ct(canonical_hu()[2, :-1], slices[2].ImagePositionPatient)
    return slices


def colour(slices):
    for ds in slices:
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    return slices


def cut_short(slices):
    slices[2].PixelData = slices[2].PixelData[:-2]
    return slices


def lying_syntax(slices):
    for ds in slices:
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.Rows = 600
    return slices


FAULTS = {
    "rescale missing on all slices": (without("RescaleSlope"), "rescale", "no RescaleSlope"),
    "rescale missing on one slice": (without("RescaleIntercept", slice(2, 3)), "rescale", "no RescaleIntercept"),
    "slope of zero": (set_all(RescaleSlope=0), "rescale", "RescaleSlope of 0"),
    "not Hounsfield units": (set_all(RescaleType="Z_EFF"), "rescale", "Z_EFF"),
    "MONOCHROME1": (set_all(PhotometricInterpretation="MONOCHROME1"), "photometric", "MONOCHROME1"),
    "colour": (colour, "photometric", "RGB"),
    "two patients by id": (set_one(PatientID="other"), "mixed", "one patient"),
    "two patients by name": (set_one(PatientName="Other^Name"), "mixed", "one patient"),
    "two studies": (set_one(StudyInstanceUID="1.2.3"), "mixed", "one study"),
    "two frames of reference": (set_one(FrameOfReferenceUID="1.2.3"), "mixed", "frame of reference"),
    "two spacings": (set_one(PixelSpacing=[0.9, 0.9]), "mixed", "pixel spacing"),
    "two sizes": (small, "mixed", "rows and columns"),
    "derived among originals": (set_one(ImageType=["DERIVED", "PRIMARY", "AXIAL"]), "mixed", "DERIVED"),
    "localizer": (set_one(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localizer", "localizer"),
    "other modality": (set_all(Modality="MR", SOPClassUID=MRImageStorage), "not-ct", "MR"),
    "modality differs from the class": (set_all(Modality="PT"), "not-ct", "PT"),
    "one slice of another modality": (set_one(Modality="MR"), "not-ct", "MR"),
    "no pixels": (without("PixelData", slice(2, 3)), "no-pixels", "pixels"),
    "pixels cut short": (cut_short, "unreadable", "decoded"),
    "more rows than pixels": (lying_syntax, "unreadable", "decoded"),
    "high bit apart from the bits stored": (set_all(HighBit=14), "bits", "high bit 14 of 16"),
    "absurd size": (set_all(Rows=60000, Columns=60000), "size", "60000"),
    "no position": (without("ImagePositionPatient", slice(2, 3)), "geometry", "ImagePositionPatient"),
    "no orientation": (without("ImageOrientationPatient"), "geometry", "ImageOrientationPatient"),
    "no spacing": (without("PixelSpacing"), "geometry", "PixelSpacing"),
    "orientation that is none": (set_all(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "geometry", "right angles"),
    "spacing of zero": (set_all(PixelSpacing=[0, 0]), "geometry", "PixelSpacing"),
    "gantry tilt": (tilt, "positions", "10° from the normal: gantry tilt"),
    "gap": (gap, "positions", "5 mm after 32.5"),
    "double": (double, "positions", "1 slice at a position already taken (30"),
    "sideways": (move, "positions", "sideways"),
    "uneven": (shift, "positions", "uneven"),
    "one turned": (turn, "orientation", "one orientation"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_refused_with_their_reason(tmp_path, fault):
    change, code, word = FAULTS[fault]
    folder = save(tmp_path / "ct", change(stack()))
    assert refused(lambda: read_dicom_series(folder), word).code == code


def test_rounded_positions_and_orientations_are_read(tmp_path):
    slices = stack()
    for ds, rounding in zip(slices, (0, 0.1, -0.1, 0.1, 0), strict=True):
        ds.ImagePositionPatient = [-100, -50, float(ds.ImagePositionPatient[2]) + rounding]
    slices[1].ImageOrientationPatient = [0.99999, 0, 0, 0, 1, 0.00001]
    np.testing.assert_array_equal(canonical(read_dicom_series(save(tmp_path / "ct", slices))).hu, canonical_hu())


def test_frame_of_reference_may_be_missing(tmp_path):
    folder = save(tmp_path / "ct", without("FrameOfReferenceUID")(stack()))
    np.testing.assert_array_equal(canonical(read_dicom_series(folder)).hu, canonical_hu())


def test_several_series_are_listed_and_one_can_be_named(tmp_path):
    save(tmp_path / "study" / "a", stack())
    save(tmp_path / "study" / "b", stack(canonical_hu()[:3] + np.int16(1), series="other"))
    error = refused(
        lambda: read_dicom_series(tmp_path / "study"),
        "5 slices",
        "3 slices",
        "0.8 x 0.7 mm in plane, one every 2.5 mm",
        "--series",
    )
    assert error.code == "several-series"
    assert uid("other")[-8:] in str(error)
    scan = read_dicom_series(tmp_path / "study", series=uid("other")[-8:])
    np.testing.assert_array_equal(canonical(scan).hu, canonical_hu()[:3] + 1)
    refused(lambda: read_dicom_series(tmp_path / "study", series="nonsense"), "nonsense", "got 0 of 2")


@pytest.mark.parametrize("name", ["PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"])
def test_a_series_without_geometry_is_listed_too(tmp_path, name):
    save(tmp_path / "study" / "a", stack())
    save(tmp_path / "study" / "b", set_all(**{name: None})(stack(series="other")))
    error = refused(lambda: read_dicom_series(tmp_path / "study"), "0.8 x 0.7 mm in plane, one every 2.5 mm")
    assert error.code == "several-series"


def localizer(series="scout"):
    ds = stack(series=series)[0]
    ds.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    return ds


def test_a_series_of_localizers_is_no_choice(tmp_path):
    save(tmp_path / "study" / "scout", [localizer()])
    refused(lambda: read_dicom_series(tmp_path / "study"), "an axial image; got a localizer")
    save(tmp_path / "study" / "ct", stack())
    np.testing.assert_array_equal(canonical(read_dicom_series(tmp_path / "study")).hu, canonical_hu())


def test_blanked_uids_are_named_as_the_reason(tmp_path):
    slices = stack()
    for ds in slices:
        ds.SOPClassUID = ds.SeriesInstanceUID = ""
        ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    folder = tmp_path / "ct"
    folder.mkdir()
    for n, ds in enumerate(slices):
        ds.save_as(folder / f"{n}.dcm")
    refused(lambda: read_dicom_series(folder), "modality CT, without SOPClassUID")


def test_folders_without_ct(tmp_path):
    (tmp_path / "empty").mkdir()
    assert refused(lambda: read_dicom_series(tmp_path / "empty"), "no DICOM file").code == "no-dicom"
    folder = save(tmp_path / "ct", stack())
    (folder / "broken.dcm").write_bytes(b"")
    assert refused(lambda: read_dicom_series(folder), "broken.dcm", "an empty file").code == "unreadable"


def frame_tilt(frames):
    for d, frame in enumerate(frames):
        x, _, z = frame.PlanePositionSequence[0].ImagePositionPatient
        frame.PlanePositionSequence[0].ImagePositionPatient = [x, -50 + d * SPACING[0] * math.tan(math.radians(2)), z]


def frames_uneven(frames):
    """Each step within a fifth of the mean, by which highdicom would take them for a regular stack."""
    z = 30.0
    for frame, step in zip(frames, (2.3, 2.3, 2.7, 2.7, 0), strict=True):
        frame.PlanePositionSequence[0].ImagePositionPatient = [-100, -50, z]
        z -= step


def frame_at(d, position):
    def change(frames):
        frames[d].PlanePositionSequence[0].ImagePositionPatient = position

    return change


def frame_turned(frames):
    frames[2].PlaneOrientationSequence = Sequence([Dataset()])
    frames[2].PlaneOrientationSequence[0].ImageOrientationPatient = [0, 1, 0, 1, 0, 0]


def frame_of_other_pixels(frames):
    frames[2].PixelMeasuresSequence = Sequence([Dataset()])
    frames[2].PixelMeasuresSequence[0].PixelSpacing = [0.9, 0.9]


def frame_nowhere(frames):
    del frames[2].PlanePositionSequence


FRAME_FAULTS = {
    "gantry tilt": (frame_tilt, "positions", "2° from the normal: gantry tilt"),
    "uneven": (frames_uneven, "positions", "uneven"),
    "sideways": (frame_at(2, [-99, -50, 25]), "positions", "sideways"),
    "gap": (frame_at(4, [-100, -50, 17.5]), "positions", "missing slices"),
    "double": (frame_at(4, [-100, -50, 22.5]), "positions", "1 slice at a position already taken (22.5"),
    "one turned": (frame_turned, "orientation", "one orientation"),
    "two spacings": (frame_of_other_pixels, "mixed", "one pixel spacing"),
    "no position": (frame_nowhere, "geometry", "ImagePositionPatient"),
}


class TestEnhanced:
    def file(self, tmp_path, hu, *, kind="HU", frame_type="ORIGINAL", padding=None, thickness="3", change=None):
        ds = stack()[0]
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
        ds.ImageType = [frame_type, "PRIMARY", "VOLUME", "NONE"]
        ds.NumberOfFrames, ds.InstanceNumber = len(hu), 1
        shared, orientation, measures, transform = Dataset(), Dataset(), Dataset(), Dataset()
        orientation.ImageOrientationPatient = ds.ImageOrientationPatient
        measures.PixelSpacing, measures.SliceThickness = ds.PixelSpacing, thickness
        transform.RescaleSlope, transform.RescaleIntercept, transform.RescaleType = 1, -1024, kind
        shared.PlaneOrientationSequence = Sequence([orientation])
        shared.PixelMeasuresSequence = Sequence([measures])
        if kind is not None:
            shared.PixelValueTransformationSequence = Sequence([transform])
        frames = []
        for d in range(len(hu)):
            frame, place, content = Dataset(), Dataset(), Dataset()
            place.ImagePositionPatient = [-100.0, -50.0, 30 - SPACING[0] * d]
            content.DimensionIndexValues = [d + 1]
            frame.PlanePositionSequence, frame.FrameContentSequence = Sequence([place]), Sequence([content])
            frames.append(frame)
        if change:
            change(frames)
        ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = Sequence([shared]), Sequence(frames)
        organization, index = Dataset(), Dataset()
        organization.DimensionOrganizationUID = index.DimensionOrganizationUID = uid("dimension")
        index.DimensionIndexPointer, index.FunctionalGroupPointer = 0x00200032, 0x00209113
        ds.DimensionOrganizationSequence, ds.DimensionIndexSequence = Sequence([organization]), Sequence([index])
        for name in ("RescaleSlope", "RescaleIntercept", "ImagePositionPatient", "ImageOrientationPatient",
                     "PixelSpacing", "SliceThickness"):  # fmt: skip
            delattr(ds, name)
        if padding is not None:
            ds.PixelPaddingValue = padding
        ds.PixelData = (hu.astype(np.int32) + 1024).astype("<u2").tobytes()
        ds.save_as(tmp_path / "enhanced.dcm", enforce_file_format=True)
        return tmp_path / "enhanced.dcm"

    def test_frames_become_a_scan(self, tmp_path):
        path = self.file(tmp_path, canonical_hu()[::-1])
        for scan in (read_dicom_file(path), read_dicom_series(tmp_path)):
            np.testing.assert_array_equal(canonical(scan).hu, canonical_hu())
            assert canonical(scan).spacing_mm == pytest.approx(SPACING)

    def test_refused_with_the_reason(self, tmp_path):
        hu = canonical_hu()
        assert refused(lambda: read_dicom_file(self.file(tmp_path, hu, kind="US")), "RescaleType US").code == "rescale"
        assert refused(lambda: read_dicom_file(self.file(tmp_path, hu, kind=None)), "no RescaleSlope").code == "rescale"

    @pytest.mark.parametrize("fault", FRAME_FAULTS)
    def test_frames_off_a_regular_grid_are_refused_as_slices_are(self, tmp_path, fault):
        change, code, word = FRAME_FAULTS[fault]
        path = self.file(tmp_path, canonical_hu(), change=change)
        assert refused(lambda: read_dicom_file(path), word).code == code

    @pytest.mark.parametrize(("thickness", "depth_mm"), [("3", 3), ("-3", 3), (None, math.nan)])
    def test_one_frame_is_as_thick_as_it_states(self, tmp_path, thickness, depth_mm):
        scan = read_dicom_file(self.file(tmp_path, canonical_hu()[:1], thickness=thickness))
        assert scan.spacing_mm == pytest.approx((depth_mm, *SPACING[1:]), nan_ok=True)
        assert np.linalg.norm(scan.affine[:3, 0]) == pytest.approx(1 if math.isnan(depth_mm) else depth_mm)

    def test_a_file_without_frame_of_reference_and_shared_functions_is_read(self, tmp_path):
        path = self.file(tmp_path, canonical_hu()[::-1])
        ds = pydicom.dcmread(path)
        for frame in ds.PerFrameFunctionalGroupsSequence:
            frame.update(ds.SharedFunctionalGroupsSequence[0])
        del ds.SharedFunctionalGroupsSequence, ds.FrameOfReferenceUID
        ds.save_as(path)
        np.testing.assert_array_equal(canonical(read_dicom_file(path)).hu, canonical_hu())

    def test_fewer_places_than_frames_are_refused(self, tmp_path):
        path = self.file(tmp_path, canonical_hu(), change=lambda frames: frames.pop())
        assert refused(lambda: read_dicom_file(path), "places of 5 frames; got 4").code == "geometry"

    def test_padding_becomes_air(self, tmp_path):
        hu = canonical_hu()
        hu[1, 2, 3] = 1500
        path = self.file(tmp_path, hu, padding=1500 + 1024)
        expected = hu.copy()
        expected[1, 2, 3] = PADDING_HU
        np.testing.assert_array_equal(canonical(read_dicom_file(path)).hu, expected[::-1])


def test_mutated_files_end_in_input_error_or_a_scan(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "mutated.dcm"
    stack()[0].save_as(path, enforce_file_format=True)
    original = path.read_bytes()
    read, messages = 0, ""
    for n in range(300):
        data = bytearray(original)
        for place in rng.integers(128, len(data), size=rng.integers(1, 6)):
            data[place] = rng.integers(256)
        path.write_bytes(data[: rng.integers(132, len(data))] if n % 3 == 0 else data)
        try:
            read_dicom_file(path)
            read += 1
        except InputError as error:
            messages += str(error)
    assert 0 < read < 300
    assert NAME not in messages
    assert PATIENT not in messages
