"""Real CT that others made, with its known oddities. `LESIONSEG_REAL` names the folder; without it all are skipped."""

import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage

from lesionseg.data import lits
from lesionseg.errors import InputError
from lesionseg.formats import read_scan
from lesionseg.formats.dicom import read_dicom_series
from lesionseg.formats.nifti import read_nifti, read_nifti_labels
from lesionseg.formats.png import read_png_labels
from lesionseg.labels import LIVER, UNTYPED_LESION
from lesionseg.scan import Case, canonical_axes, to_canonical

ROOT = os.environ.get("LESIONSEG_REAL")
pytestmark = [pytest.mark.real, pytest.mark.skipif(not ROOT, reason="LESIONSEG_REAL names no folder")]
REAL = Path(ROOT or ".")
DICOM = REAL / "dicom"
SYNTAXES = DICOM / "transfer_syntaxes" / "testImages"


def refused(path, *words):
    with pytest.raises(InputError) as error:
        read_scan(path)
    for word in words:
        assert word in str(error.value)
    return error.value.code


def test_chaos_agrees_with_its_ground_truth():
    root = DICOM / "chaos_3" / "Data_3D"
    scan = read_scan(root / "DICOM_anon")
    liver = np.concatenate([read_png_labels(path) for path in sorted((root / "Ground").iterdir())]) > 0
    if scan.affine[2, 0] > 0:  # the masks run from the head down
        liver = liver[::-1]
    assert scan.spacing_mm == pytest.approx((2.0, 0.7265625, 0.7265625))
    assert liver.sum() == 1_342_595
    assert scan.hu[liver].mean() == pytest.approx(141, abs=5)
    case = to_canonical(Case(scan, liver.astype(np.uint8), "chaos"))
    assert canonical_axes(case.scan.affine) == ((0, 1, 2), (False, False, False))
    assert case.scan.hu[case.labels > 0].mean() == pytest.approx(141, abs=5)
    columns = np.flatnonzero(case.labels.any((0, 1)))
    assert columns.mean() < case.labels.shape[2] / 2  # the liver lies on the patient's right, the left of the image


LOSSLESS = ["LittleEndianExplicit", "LittleEndianImplicit", "BigEndianExplicit", "DeflatedExplicit", "RLELossless",
            "JPEGLSLossless", "JPEG2000LosslessOnly", "JPEGProcess14SV1", "JPEGProcess14Transfer"]  # fmt: skip


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_transfer_syntaxes_equal_the_original(name):
    (path,) = SYNTAXES.glob(f"CTImage.dcm_{name}*")
    np.testing.assert_array_equal(read_scan(path).hu, read_scan(SYNTAXES / "CTImage.dcm").hu)


@pytest.mark.parametrize("name", ["JPEGLSLossy", "JPEG2000Transfer"])
def test_near_lossless_transfer_syntaxes_are_near(name):
    (path,) = SYNTAXES.glob(f"CTImage.dcm_{name}*")
    difference = np.abs(read_scan(path).hu.astype(int) - read_scan(SYNTAXES / "CTImage.dcm").hu)
    assert np.percentile(difference, 99.9) <= 10


@pytest.mark.parametrize("name", ["JPEGProcess2_4", "JPEGProcess6_8", "JPEGProcess10_12"])
def test_retired_12_bit_syntaxes_are_refused(name):
    (path,) = SYNTAXES.glob(f"CTImage.dcm_{name}*")
    assert refused(path, "can be decoded") == "unreadable"


@pytest.mark.parametrize(
    ("folder", "code", "words"),
    [
        ("gantry_tilt_ge", "positions", ["18.5° from the normal: gantry tilt", "uneven distances"]),
        ("tcga_lihc_awkward", "unreadable", ["000000.dcm", "an empty file"]),
        ("dicom2nifti_cases/failing/gantrytilting/001", "positions", ["14° from the normal: gantry tilt"]),
        ("dicom2nifti_cases/failing/notavolume/001", "positions", ["3 slices at a position already taken"]),
        ("dicom2nifti_cases/failing/sliceincrement/001", "positions", ["10 mm after 28.11"]),
        ("dicom2nifti_cases/failing/sliceincrement/002", "positions", ["gantry tilt", "uneven distances"]),
        ("dicom2nifti_cases/failing/slicecount/001", "not-ct", ["modality MR"]),
        ("dicom2nifti_cases/failing/sliceorientation/001", "not-ct", ["modality MR"]),
        ("dicom2nifti_cases/generic/compressed/001", "not-ct", ["modality MR"]),
        ("transfer_syntaxes", "several-series", ["16 slices"]),
        ("pydicom_data/data_store/data/eCT_Supplemental.dcm", "rescale", ["RescaleType US"]),
        ("transfer_syntaxes/testImages/CT0012.fragmented_no_bot_jpeg_baseline.51.dcm", "rescale", ["RescaleType US"]),
    ],
)
def test_awkward_files_are_refused_with_the_true_reason(folder, code, words):
    assert refused(DICOM / folder, *words) == code


def test_gaps_are_named_once_the_empty_file_is_gone(tmp_path):
    for path in (DICOM / "tcga_lihc_awkward").iterdir():
        if path.stat().st_size:
            shutil.copy(path, tmp_path)
    assert refused(tmp_path, "34 slices", "mostly 8 mm", "16 mm after", "6 mm after") == "positions"


def as_ct(source, target):
    """A copy that says CT and HU; the compressed pixels stay as they are."""
    target.mkdir()
    for path in source.glob("*.dcm"):
        ds = pydicom.dcmread(path)
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
        ds.Modality, ds.RescaleSlope, ds.RescaleIntercept = "CT", 1, 0
        ds.save_as(target / path.name)
    return target


@pytest.mark.parametrize(
    "name", ["compressed", "compressed_rle", "compressed_jpegls", "compressed_j2k", "compressed_jpeg"]
)
def test_compressed_series_equal_their_nifti(tmp_path, name):
    """The series are MR; declared CT they must give the voxels, at the places, of the NIfTI beside them."""
    folder = DICOM / "dicom2nifti_cases" / "generic" / name
    scan = read_dicom_series(as_ct(folder / "001", tmp_path / "ct"))
    reference = nib.load(folder / "001_ground_truth.nii.gz")
    expected = Case(read_nifti(folder / "001_ground_truth.nii.gz")[0], np.zeros(reference.shape[::-1], np.uint8), "p")
    found = Case(scan, np.zeros(scan.hu.shape, np.uint8), "p")
    np.testing.assert_array_equal(to_canonical(found).scan.hu, to_canonical(expected).scan.hu)
    np.testing.assert_allclose(to_canonical(found).scan.affine, to_canonical(expected).scan.affine, atol=1e-3)


def test_failing_orientation_is_refused_even_as_ct(tmp_path):
    source = DICOM / "dicom2nifti_cases" / "failing" / "sliceorientation" / "001"
    assert refused(as_ct(source, tmp_path / "ct"), "one") in ("mixed", "orientation")


def test_single_slices_with_oddities():
    data = DICOM / "pydicom_data" / "data_store" / "data"
    # JPEG 2000 whose codestream says unsigned though the pixels are signed
    np.testing.assert_array_equal(read_scan(data / "693_J2KR.dcm").hu, read_scan(data / "693_UNCR.dcm").hu)
    assert read_scan(data / "693_UNCR.dcm").hu.min() == -1024  # padding of -2000 became air
    flipped = read_scan(data / "explicit_VR-UN.dcm")
    assert flipped.affine[1, 1] < 0  # orientation [1, 0, 0, 0, -1, 0]
    assert np.isnan(flipped.spacing_mm[0])


def test_totalsegmentator_nifti():
    folder = REAL / "nifti_totalsegmentator"
    scan, warnings = read_nifti(folder / "example_ct_sm.nii.gz")
    labels = read_nifti_labels(folder / "example_seg.nii.gz", scan, range(256))
    assert warnings == ()
    assert scan.spacing_mm == pytest.approx((3, 3, 3), rel=1e-3)
    assert (labels == 5).sum() == 38_634
    assert 30 < scan.hu[labels == 5].mean() < 80  # without contrast medium


def test_lits_folder(tmp_path):
    groups = tmp_path / "groups.csv"
    groups.write_text("case,patient\nvolume-0,a\nvolume-1,a\nvolume-6,b\nvolume-8,b\n")
    sources = lits.cases(REAL / "lits", groups=groups)
    assert [source.source_id for source in sources] == [f"volume-{n}" for n in (0, 1, 2, 5, 6, 8)]
    assert len({source.patient_id for source in sources}) == 4
    case = sources[0].read()
    assert case.scan.spacing_mm == pytest.approx((5, 0.75, 0.75))
    assert set(np.unique(case.labels)) == {0, LIVER, UNTYPED_LESION}
    assert (case.labels == UNTYPED_LESION).any((1, 2)).sum() == 16
    assert 80 < case.scan.hu[case.labels == LIVER].mean() < 160
