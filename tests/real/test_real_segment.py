"""`lesionseg segment` on real CT that others made. `LESIONSEG_REAL` names the folder; without it all are skipped.

The nets are random ones: what they find is nonsense, on which grid it lands is not.
"""

import csv
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from lesionseg.cli import main
from lesionseg.formats import read_scan
from lesionseg.formats.dicom_seg_read import read_dicom_seg
from lesionseg.formats.nifti import read_nifti_labels
from lesionseg.model import Thresholds

ROOT = os.environ.get("LESIONSEG_REAL")
pytestmark = [pytest.mark.real, pytest.mark.skipif(not ROOT, reason="LESIONSEG_REAL names no folder")]
REAL = Path(ROOT or ".")
DICOM = REAL / "dicom"
SYNTAXES = DICOM / "transfer_syntaxes" / "testImages"


@pytest.fixture(scope="module")
def model(make_model, tmp_path_factory):
    """Of large lesions only, so that there are few."""
    folder = tmp_path_factory.mktemp("model") / "model"
    make_model(thresholds=Thresholds(min_lesion_mm2=3000, min_lesion_mm3=30000)).save(folder)
    return folder


@pytest.fixture
def run(model, tmp_path, capsys):
    def call(path, *options, output="out"):
        status = main(["segment", str(path), "-o", str(tmp_path / output), "--model", str(model), *map(str, options)])
        return status, *capsys.readouterr()

    return call


def endings(output):
    with (output / "summary.csv").open() as file:
        return {row["study"]: row["ending"] for row in csv.DictReader(file)}


def labels_of(folder, scan):
    return read_nifti_labels(folder / "segmentation.nii.gz", scan, range(6))


def test_chaos(run, tmp_path):
    status, out, err = run(DICOM / "chaos_3")
    assert (status, err) == (0, "")
    assert "78 slices of 512 x 512, voxels of 2 x 0.727 x 0.727 mm" in out
    folder, scan = tmp_path / "out" / "Data_3D_DICOM_anon", read_scan(DICOM / "chaos_3" / "Data_3D" / "DICOM_anon")
    labels, segments = labels_of(folder, scan), read_dicom_seg(folder / "segmentation.dcm", scan)
    np.testing.assert_array_equal(labels > 0, segments[0].mask)
    assert len(segments) > 1
    for segment in segments[1:]:
        np.testing.assert_array_equal(labels[segment.mask], segment.label)
    ct = pydicom.dcmread(next((DICOM / "chaos_3").rglob("*.dcm")), stop_before_pixels=True)
    for name in ("segmentation.dcm", "report.sr.dcm"):
        held = pydicom.dcmread(folder / name)
        assert (held.StudyInstanceUID, held.PatientID) == (ct.StudyInstanceUID, ct.PatientID)
    run(DICOM / "chaos_3" / "Data_3D" / "DICOM_anon", "--liver-mask", folder / "segmentation.dcm", output="again")
    (again,) = (path for path in (tmp_path / "again").iterdir() if path.is_dir())
    np.testing.assert_array_equal(labels_of(again, scan) > 0, labels > 0)


def test_a_slice_in_every_transfer_syntax(run, tmp_path):
    """Each file is given by itself; the folder holds one slice sixteen times, which is no volume."""
    run(SYNTAXES / "CTImage.dcm")
    original = np.asarray(nib.load(tmp_path / "out" / "CTImage" / "segmentation.nii.gz").dataobj)
    assert original.any()
    segmented = []
    for path in sorted(SYNTAXES.glob("CTImage.dcm_*")):
        status, _, err = run(path, "--formats", "nifti", output=path.name)
        if status:
            assert "can be decoded" in err
            continue
        segmented.append(path.name)
        assert ("32 HU apart" in err) == ("JPEGProcess1T" in path.name)  # of 8 bits
        (found,) = (tmp_path / path.name).glob("*/segmentation.nii.gz")
        if not any(lossy in path.name for lossy in ("Lossy", "JPEG2000Transfer", "JPEGProcess1T")):
            np.testing.assert_array_equal(np.asarray(nib.load(found).dataobj), original)
    assert len(segmented) == 12
    assert run(DICOM / "transfer_syntaxes", output="all")[0] == 2
    assert set(endings(tmp_path / "all").values()) == {"segmented", "refused"}


def test_totalsegmentator(run, tmp_path):
    status, out, _ = run(REAL / "nifti_totalsegmentator")
    assert status == 2
    assert endings(tmp_path / "out") == {
        "example_ct": "segmented", "example_ct_sm": "segmented", "example_seg": "passed over",
        "example_seg_dicom": "passed over", "example_ct_dicom": "refused",
    }  # fmt: skip
    assert "without SOPClassUID" in out
    scan = read_scan(REAL / "nifti_totalsegmentator" / "example_ct_sm.nii.gz")
    assert labels_of(tmp_path / "out" / "example_ct_sm", scan).any()


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("gantry_tilt_ge", ["18.5° from the normal: gantry tilt", "uneven distances"]),
        ("tcga_lihc_awkward", ["000000.dcm", "an empty file"]),
        ("dicom2nifti_cases/failing/gantrytilting", ["14° from the normal: gantry tilt"]),
        ("dicom2nifti_cases/failing/notavolume", ["3 slices at a position already taken"]),
        ("dicom2nifti_cases/failing/sliceincrement/001", ["10 mm after 28.11"]),
        ("dicom2nifti_cases/failing/slicecount/001", ["modality MR"]),
        ("dicom2nifti_cases/failing/sliceorientation", ["modality MR"]),
    ],
)
def test_awkward_studies_are_refused_with_the_true_reason(run, tmp_path, folder, words):
    status, _, err = run(DICOM / folder)
    assert (status, len(err.splitlines())) == (2, 1)
    for word in words:
        assert word in err
    assert not (tmp_path / "out").exists()


def test_the_gaps_of_tcga_are_named_once_the_empty_file_is_gone(run, tmp_path):
    (tmp_path / "in").mkdir()
    for path in (DICOM / "tcga_lihc_awkward").iterdir():
        if path.stat().st_size:
            shutil.copy(path, tmp_path / "in")
    status, out, err = run(tmp_path / "in")
    assert status == 2
    assert "passed over: 1 DICOM study without CT (OT)" in out
    assert "16 mm after" in err


def test_all_that_fails_at_once(run, tmp_path):
    """Six series, one of them beside its NIfTI: each with its own reason, none stops another."""
    status, out, _ = run(DICOM / "dicom2nifti_cases" / "failing")
    assert status == 2
    ended = endings(tmp_path / "out")
    assert [name for name, ending in ended.items() if ending == "segmented"] == [
        "sliceincrement_002_ground_truth", "sliceincrement_002_ground_truth_reoriented",
    ]  # fmt: skip
    assert set(ended.values()) == {"segmented", "refused"}
    assert "DICOM studies without CT (MR)" in out
    assert len(set(out.splitlines())) > len(ended)


def test_a_lits_folder(run, tmp_path):
    """Masks lie beside the volumes."""
    (tmp_path / "in").mkdir()
    for name in ("volume-0.nii.gz", "segmentation-0.nii.gz"):
        (tmp_path / "in" / name).symlink_to((REAL / "lits" / name).resolve())
    assert run(tmp_path / "in", "--formats", "nifti,csv")[0] == 0
    assert endings(tmp_path / "out") == {"segmentation-0": "passed over", "volume-0": "segmented"}
    mask = tmp_path / "in" / "segmentation-0.nii.gz"
    assert run(tmp_path / "in" / "volume-0.nii.gz", "--liver-mask", mask, "--formats", "nifti", output="given")[0] == 0
    scan = read_scan(tmp_path / "in" / "volume-0.nii.gz")
    given = labels_of(tmp_path / "given" / "volume-0", scan)
    np.testing.assert_array_equal(given > 0, read_nifti_labels(mask, scan, range(3)) > 0)


def test_a_liver_that_dcmqi_wrote(run, tmp_path):
    source = REAL / "dicom_seg_dcmqi"
    assert run(source / "ct-3slice", "--liver-mask", source / "liver.dcm")[0] == 0
    scan = read_scan(source / "ct-3slice")
    (folder,) = (path for path in (tmp_path / "out").iterdir() if path.is_dir())
    (liver,) = read_dicom_seg(source / "liver.dcm", scan)
    np.testing.assert_array_equal(labels_of(folder, scan) > 0, liver.mask)
