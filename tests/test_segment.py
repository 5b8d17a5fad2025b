"""The verb: what lands in the output, what is refused, and that nothing half-written is ever there."""

import csv
import gc
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
import weakref

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from formats.test_dicom import NAME, PATIENT, save, stack, uid
from matplotlib.figure import Figure

from lesionseg import cascade_folder as built_in
from lesionseg import parallel
from lesionseg import segment as module
from lesionseg.cascade import Cascade
from lesionseg.cli import main
from lesionseg.deliver import FORMATS
from lesionseg.formats import read_scan
from lesionseg.formats.dicom_seg_read import read_dicom_seg
from lesionseg.labels import LIVER
from lesionseg.model import Model
from lesionseg.segment import Wish, segment_studies
from lesionseg.segmentation import Segmentation
from lesionseg.studies import RECORD, find_studies

NIFTI_FILES = {"segmentation.nii.gz", "segmentation.ctbl", "lesions.csv", "lesions.json", "report.html", RECORD}
DICOM_FILES = NIFTI_FILES | {"segmentation.dcm", "report.sr.dcm"}
#: Where the formats do not matter.
QUICK = ("--formats", "nifti,csv")
QUICK_FILES = {"segmentation.nii.gz", "segmentation.ctbl", "lesions.csv", RECORD}
#: RAS, of a scan with 0.8 x 0.7 mm pixels, 2.5 mm apart.
AFFINE = np.array([[-0.8, 0, 0, 90], [0, -0.7, 0, 70], [0, 0, 2.5, -300], [0, 0, 0, 1]])


def hu(seed=0, depth=4, side=48):
    """Noise with structure, so that nets of random weights find something."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 120, (depth, side // 8, side // 8)).repeat(8, 1).repeat(8, 2)
    return (coarse + rng.normal(0, 20, coarse.shape)).astype(np.int16)


def nifti(path, seed=0, affine=AFFINE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(hu(seed, **options).T, affine), path)
    return path


def dicom(folder, seed=0, name="one"):
    slices = stack(hu(seed), series=name)
    for ds in slices:
        ds.StudyInstanceUID = uid(name)
    return save(folder, slices)


@pytest.fixture(scope="module")
def model(make_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    make_model().save(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def built_once():
    """The nets of a model are built once, not for every command, and in no further process."""
    built = {}

    def cascade(held, **options):
        key = (held.identity, *options.items())
        return built[key] if key in built else built.setdefault(key, Cascade(held, **options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(built_in, "Cascade", cascade)
        patch.setattr(parallel, "SECONDS_TO_START", math.inf)  # all in this process, however long it takes
        yield


@pytest.fixture
def run(model, tmp_path, capsys):
    """The command line: exit status, stdout, stderr; the output is tmp_path/out."""

    def call(path, *options, output="out"):
        status = main(["segment", str(path), "-o", str(tmp_path / output), "--model", str(model), *map(str, options)])
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def cohort(tmp_path):
    """Folders as a user may have them: two NIfTI, a mask, a DICOM study, one with a gap."""
    root = tmp_path / "in"
    for n in (0, 1):
        nifti(root / f"volume-{n}.nii.gz", n)
    mask = np.zeros((48, 48, 4), np.uint8)
    mask[8:30, 8:30] = 1
    nib.save(nib.Nifti1Image(mask, AFFINE), root / "segmentation-0.nii.gz")
    dicom(root / "patient" / "ct", 2)
    sorted(dicom(root / "gap", 3, "gap").iterdir())[1].unlink()
    return root


def files(folder):
    return {path.name for path in folder.iterdir()}


def content(folder):
    """What must be equal between equal results: all but the times."""
    names = ("segmentation.nii.gz", "lesions.csv", "segmentation.ctbl")
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.name in names
    }


def test_nifti(run, model, tmp_path):
    path = nifti(tmp_path / "ct.nii.gz")
    status, out, err = run(path, "--probabilities")
    assert (status, err) == (0, "")
    folder = tmp_path / "out" / "ct"
    maps = {f"probability_{name}.nii.gz" for name in Model.load(model).classes}
    assert files(folder) == NIFTI_FILES | maps
    expected = Cascade.load(model).segment(read_scan(path), probabilities=True)
    assert expected.findings
    labels = nib.load(folder / "segmentation.nii.gz")
    np.testing.assert_array_equal(np.asarray(labels.dataobj), expected.labels.T)
    np.testing.assert_array_equal(labels.affine, nib.load(path).affine)
    mean = nib.load(folder / "probability_liver.nii.gz").get_fdata()
    np.testing.assert_array_equal(mean, expected.probabilities[LIVER].T)
    with (folder / "lesions.csv").open() as file:
        assert [int(row["voxels"]) for row in csv.DictReader(file)] == [f.voxels for f in expected.findings]
    seconds = json.loads((folder / "lesions.json").read_text())["seconds"]
    assert list(seconds) == ["read", "liver net", "lesion nets", "measures"]
    assert "4 slices of 48 x 48, voxels of 2.5 x 0.7 x 0.8 mm" in out
    assert f"{len(expected.findings)} lesion" in out
    assert "write" in out
    assert "Research use only" in out
    assert files(tmp_path / "out") == {"ct", ".lesionseg.lock"}


def test_dicom_series(run, tmp_path):
    folder = dicom(tmp_path / "in" / "patient" / "ct")
    status, out, err = run(tmp_path / "in")
    assert (status, err) == (0, "")
    result = tmp_path / "out" / "patient_ct"
    assert files(result) == DICOM_FILES
    scan = read_scan(folder)
    labels = sitk.ReadImage(str(result / "segmentation.nii.gz"))
    segments = read_dicom_seg(result / "segmentation.dcm", scan)
    assert segments[0].label == LIVER
    np.testing.assert_array_equal(sitk.GetArrayFromImage(labels) > 0, segments[0].mask)
    np.testing.assert_allclose(labels.TransformIndexToPhysicalPoint((0, 0, 0)), scan.affine[:3, 3], atol=1e-4)
    seg, report = (pydicom.dcmread(result / name) for name in ("segmentation.dcm", "report.sr.dcm"))
    assert seg.StudyInstanceUID == report.StudyInstanceUID == uid("one")
    for name in NIFTI_FILES:
        text = (result / name).read_bytes()
        assert NAME.encode() not in text
        assert PATIENT.encode() not in text
    assert NAME not in out
    assert PATIENT not in out


def test_one_slice_of_dicom(run, tmp_path):
    path = sorted(dicom(tmp_path / "ct").iterdir())[2]
    status, out, _ = run(path)
    assert status == 0
    assert files(tmp_path / "out" / path.stem) == DICOM_FILES
    assert "1 slice of 48 x 48" in out


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("nifti", {"segmentation.nii.gz", "segmentation.ctbl"}),
        ("csv,json", {"lesions.csv", "lesions.json"}),
        ("html", {"report.html"}),
        ("dicom-seg", {"segmentation.dcm"}),
        ("dicom-sr", {"segmentation.dcm", "report.sr.dcm"}),
    ],
)
def test_formats_asked_for(run, tmp_path, asked, expected):
    dicom(tmp_path / "in" / "ct")
    assert run(tmp_path / "in", "--formats", asked)[0] == 0
    assert files(tmp_path / "out" / "ct") == expected | {RECORD}


def test_formats_that_do_not_fit_are_refused(run, tmp_path):
    path = nifti(tmp_path / "ct.nii.gz")
    for asked, word in (("dicom-seg,nifti", "DICOM input for dicom-seg; got NIfTI"), ("dicom,nifti", "got 'dicom'")):
        status, _, err = run(path, "--formats", asked)
        assert (status, len(err.splitlines())) == (2, 1)
        assert word in err
    assert not (tmp_path / "out").exists()


def test_the_help_names_the_formats(capsys):
    with pytest.raises(SystemExit):
        main(["segment", "--help"])
    assert ",".join(FORMATS) in capsys.readouterr().out


def test_headers_without_uids_cost_the_dicom_formats_alone(run, tmp_path):
    slices = stack(hu())
    for ds in slices:
        ds.StudyInstanceUID = ""
    save(tmp_path / "in" / "ct", slices)
    status, _, err = run(tmp_path / "in")
    assert status == 0
    assert "No DICOM-SEG and no DICOM SR" in err
    folder = tmp_path / "out" / "ct"
    assert files(folder) == NIFTI_FILES
    assert "No DICOM-SEG" in (folder / "lesions.json").read_text()
    status, _, err = run(tmp_path / "in", "--formats", "dicom-seg", output="other")
    assert status == 2


def test_what_a_reader_should_know_is_said_everywhere(run, tmp_path):
    path = nifti(tmp_path / "ct.nii", affine=np.eye(4))
    status, out, err = run(path)
    assert status == 0
    assert "spacing unknown" in out
    assert "lesionseg: ct: the header gives no spacing" in err
    assert "all sizes are in pixels" in err
    for name in ("lesions.json", "report.html"):
        text = (tmp_path / "out" / "ct" / name).read_text()
        assert "all sizes are in pixels" in text
        assert "ct.nii" not in text  # no name of a file: some hold that of the patient


def told_at_the_end(what):
    return f"lesionseg: {what}, see summary.csv; the same command takes them up again\n"


def test_many_studies(run, cohort, tmp_path):
    status, out, err = run(cohort)
    assert (status, err) == (2, told_at_the_end("1 of 5 refused"))
    output = tmp_path / "out"
    assert files(output) == {"volume-0", "volume-1", "patient_ct", "summary.csv", ".lesionseg.lock"}
    assert files(output / "patient_ct") == DICOM_FILES
    assert files(output / "volume-1") == NIFTI_FILES
    with (output / "summary.csv").open() as file:
        rows = {row["study"]: row for row in csv.DictReader(file)}
    assert {name: row["ending"] for name, row in rows.items()} == {
        "gap": "refused", "patient_ct": "segmented", "segmentation-0": "passed over", "volume-0": "segmented",
        "volume-1": "segmented",
    }  # fmt: skip
    assert "5 mm after" in rows["gap"]["reason"]
    assert str(cohort) not in (output / "summary.csv").read_text()
    assert f"refused: {cohort / 'gap'}: expected" in out
    assert rows["segmentation-0"]["reason"] == "a label map of values 0 to 1"
    assert rows["volume-0"]["slices"] == "4"
    assert float(rows["volume-0"]["segment_s"]) > 0
    assert "3 segmented, 1 refused, 1 passed over" in out.replace("1 refused, 3 segmented", "3 segmented, 1 refused")
    assert all(line.count("\n") == 0 for line in out.splitlines())


def test_names_that_are_not_utf_8_stop_nothing(run, tmp_path):
    """As of folders from an older Windows: `Müller` in Latin-1."""
    foreign = tmp_path / "in" / os.fsdecode(b"M\xfcller")
    nifti(foreign / "ct.nii")
    nifti(foreign / "m-ller.nii", 1)
    nifti(tmp_path / "in" / "M_ller_ct.nii", 2)  # the same name as the first
    dicom(foreign / "dicom", 3)
    sorted(dicom(foreign / "gap", 4, "gap").iterdir())[1].unlink()
    (tmp_path / "in" / os.fsdecode(b"\xe4.nii")).write_bytes(b"none")
    status, out, err = run(tmp_path / "in")
    assert (status, err) == (2, told_at_the_end("2 of 6 refused"))
    assert "4 segmented" in out
    assert "2 refused" in out
    assert "M\\udcfcller" in out
    assert len(files(tmp_path / "out")) == 6
    status, out, _ = run(foreign / "ct.nii", output=os.fsdecode(b"\xfc"))
    assert status == 0
    assert files(tmp_path / os.fsdecode(b"\xfc") / "ct") == NIFTI_FILES


def test_what_is_done_is_not_done_again(run, cohort, tmp_path, monkeypatch):
    shutil.rmtree(cohort / "gap")
    assert run(cohort, *QUICK)[0] == 0
    output, first = tmp_path / "out", (tmp_path / "out" / "summary.csv").read_text()
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.nii.gz")}
    status, out, _ = run(cohort, *QUICK, "--batch-size", 3)
    assert status == 0
    assert out.count("  done already\n") == 3
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.nii.gz")} == before
    lesions = [row["lesions"] for row in csv.DictReader((output / "summary.csv").open())]
    assert lesions == [row["lesions"] for row in csv.DictReader(first.splitlines())]
    nifti(cohort / "volume-1.nii.gz", 7)
    (output / "volume-0" / "lesions.csv").unlink()
    out = run(cohort, *QUICK)[1]
    assert (out.count("  done already\n"), out.count("  4 slices")) == (1, 2)
    assert files(output / "volume-0") == QUICK_FILES
    out = run(cohort, *QUICK, "--tta")[1]
    assert (out.count("  done already\n"), out.count("  4 slices")) == (0, 3)
    monkeypatch.setattr("lesionseg.segment.source_sha256", lambda: "0" * 64)
    out = run(cohort, *QUICK, "--tta")[1]
    assert (out.count("  done already\n"), out.count("  4 slices")) == (0, 3)


def summary(output):
    with (output / "summary.csv").open() as file:
        return {row["study"]: row for row in csv.DictReader(file)}


def test_the_summary_keeps_earlier_calls_and_their_seconds(run, tmp_path):
    for n, name in enumerate(("a", "b", "c", "d")):
        nifti(tmp_path / ("one" if n < 2 else "two") / f"{name}.nii", n)
    assert run(tmp_path / "two", *QUICK)[0] == 0
    first = summary(tmp_path / "out")
    assert run(tmp_path / "one", *QUICK)[0] == 0
    both = summary(tmp_path / "out")
    assert list(both) == ["a", "b", "c", "d"]
    assert {name: both[name] for name in first} == first
    for _ in range(2):
        assert run(tmp_path / "one", *QUICK)[0] == 0
    again = summary(tmp_path / "out")
    assert {row["ending"] for row in (again["a"], again["b"])} == {"done already"}
    for name in ("a", "b"):
        assert {**again[name], "ending": "segmented"} == both[name]
        assert float(again[name]["segment_s"]) > 0


def test_the_summary_says_what_the_folders_hold(run, tmp_path):
    """Also of a study that is segmented alone after it: by a liver that is given, and by another look."""
    paths = [nifti(tmp_path / "in" / f"{name}.nii", n) for n, name in enumerate("ab")]
    assert run(tmp_path / "in", *QUICK)[0] == 0
    first = summary(tmp_path / "out")
    assert {(row["liver"], row["tta"]) for row in first.values()} == {("predicted", "False")}
    assert len({row["model"] for row in first.values()} - {""}) == 1
    liver = nib.Nifti1Image(np.ones((48, 48, 4), np.uint8), nib.load(paths[0]).affine)
    nib.save(liver, tmp_path / "liver.nii")
    assert run(paths[0], *QUICK, "--tta", "--liver-mask", tmp_path / "liver.nii")[0] == 0
    again = summary(tmp_path / "out")
    with (tmp_path / "out" / "a" / "lesions.csv").open() as file:
        assert int(again["a"]["lesions"]) == len(list(csv.DictReader(file)))
    assert (again["a"]["liver"], again["a"]["tta"], again["a"]["model"]) == ("given", "True", first["a"]["model"])
    assert again["b"] == first["b"]


def test_a_single_study_neither_begins_a_summary_nor_minds_that_of_a_user(run, tmp_path):
    path = nifti(tmp_path / "a.nii")
    assert run(path, *QUICK)[0] == 0
    assert not (tmp_path / "out" / "summary.csv").exists()
    (tmp_path / "out" / "summary.csv").write_text("patient,age\n")
    assert run(path, *QUICK, "--tta")[0] == 0
    assert (tmp_path / "out" / "summary.csv").read_text() == "patient,age\n"


def test_results_of_earlier_files_are_told_where_a_study_is_refused(run, tmp_path):
    paths = [nifti(tmp_path / "in" / f"{name}.nii", n) for n, name in enumerate("abc")]
    paths[2].write_bytes(b"none")
    assert run(tmp_path / "in", *QUICK)[0] == 2
    paths[0].write_bytes(paths[0].read_bytes()[:-100])
    status, out, _ = run(tmp_path / "in", *QUICK)
    assert status == 2
    reasons = {name: row["reason"] for name, row in summary(tmp_path / "out").items()}
    assert reasons["a"].endswith("; its folder holds an earlier result")
    assert "earlier result" not in reasons["b"] + reasons["c"]
    assert out.count("; its folder holds an earlier result\n") == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "".join(f"{line},mine\n" for line in text.splitlines()),
        lambda text: text.replace("study,", "\ufeffstudy,", 1),
        lambda text: text + "a,b\n",
        lambda text: "",
    ],
)
def test_a_summary_that_a_user_changed_is_left(run, tmp_path, change):
    for n in (0, 1):
        nifti(tmp_path / "in" / f"{n}.nii", n)
    run(tmp_path / "in", *QUICK)
    path = tmp_path / "out" / "summary.csv"
    path.write_text(changed := change(path.read_text()))
    status, _, err = run(tmp_path / "in", *QUICK)
    assert status == 2
    assert "summary.csv" in err
    assert path.read_text() == changed


def test_another_model_segments_again(run, make_model, tmp_path):
    path = nifti(tmp_path / "ct.nii.gz")
    run(path, *QUICK)
    make_model(temperature=2.0).save(tmp_path / "other")
    assert "  4 slices" in run(path, *QUICK, "--model", tmp_path / "other")[1]
    assert "  done already" in run(path, *QUICK, "--model", tmp_path / "other")[1]


def test_what_a_user_put_there_is_not_replaced(run, tmp_path):
    path = nifti(tmp_path / "ct.nii.gz")
    run(path, *QUICK)
    corrected = tmp_path / "out" / "ct" / "segmentation.nii.gz"
    corrected.write_bytes(b"corrected by hand")
    assert "  done already" in run(path, *QUICK)[1]
    for options in ([*QUICK, "--tta"], ["--formats", "csv"]):
        status, _, err = run(path, *options)
        assert status == 2
        assert "files changed or added since (segmentation.nii.gz)" in err
    assert corrected.read_bytes() == b"corrected by hand"
    (corrected.parent / "notes").mkdir()
    assert "(notes, segmentation.nii.gz)" in run(path, *QUICK, "--tta")[2]


@pytest.mark.parametrize("name", [".notes", ".git", "._.txt", ".DS_Store"])
def test_hidden_files_are_a_user_s_but_for_those_of_finder(run, tmp_path, name):
    path = nifti(tmp_path / "ct.nii.gz")
    run(path, *QUICK)
    (tmp_path / "out" / "ct" / name).write_text("dear")
    status, out, err = run(path, *QUICK, "--tta")
    if name in ("._.txt", ".DS_Store"):
        assert "4 slices" in out
    else:
        assert status == 2
        assert f"files changed or added since ({name})" in err
        assert (tmp_path / "out" / "ct" / name).read_text() == "dear"


def test_a_changed_record_is_not_replaced(run, tmp_path):
    path = nifti(tmp_path / "ct.nii.gz")
    run(path, *QUICK)
    record = tmp_path / "out" / "ct" / RECORD
    content = json.loads(record.read_text())
    content["facts"]["lesions"] += 1
    record.write_text(json.dumps(content, indent=1) + "\n")
    status, _, err = run(path, *QUICK)
    assert status == 2
    assert f"a changed {RECORD}" in err
    assert json.loads(record.read_text()) == content


def test_other_things_in_the_output_are_left(run, tmp_path):
    nifti(tmp_path / "a" / "ct.nii.gz")
    nifti(tmp_path / "b" / "ct.nii.gz", 1)
    run(tmp_path / "a" / "ct.nii.gz", *QUICK)
    before = content(tmp_path / "out")
    status, _, err = run(tmp_path / "b" / "ct.nii.gz", *QUICK)
    assert status == 2
    assert "the results of a study elsewhere that has the same name" in err
    assert content(tmp_path / "out") == before
    (tmp_path / "mine" / "ct").mkdir(parents=True)
    (tmp_path / "mine" / "ct" / "thesis.txt").write_text("dear")
    status, _, err = run(tmp_path / "a" / "ct.nii.gz", output="mine")
    assert status == 2
    assert "something else" in err
    assert files(tmp_path / "mine" / "ct") == {"thesis.txt"}
    (tmp_path / "mine" / "summary.csv").write_text("patient,age\n")
    nifti(tmp_path / "a" / "more.nii.gz")
    status, _, err = run(tmp_path / "a", output="mine")
    assert status == 2
    assert "summary.csv" in err
    assert (tmp_path / "mine" / "summary.csv").read_text() == "patient,age\n"


def test_another_study_of_equal_name_size_and_time_is_not_done(run, tmp_path):
    paths = [nifti(tmp_path / name / "ct.nii", seed) for seed, name in enumerate(("P1", "P2"))]
    for path in paths:
        os.utime(path, (1, 1))
    assert run(paths[0], *QUICK)[0] == 0
    before = content(tmp_path / "out")
    status, out, err = run(paths[1], *QUICK)
    assert status == 2
    assert "done already" not in out
    assert "a study elsewhere that has the same name" in err
    assert content(tmp_path / "out") == before


def test_places_for_the_output(run, tmp_path):
    nifti(tmp_path / "in" / "ct.nii.gz")
    for output in ("in", "in/out"):
        status, _, err = run(tmp_path / "in", output=output)
        assert status == 2
        assert "an output outside the input" in err
    assert files(tmp_path / "in") == {"ct.nii.gz"}
    (tmp_path / "file").write_text("")
    assert "expected a folder; got a file" in run(tmp_path / "in", output="file")[2]
    assert run(tmp_path / "in" / "ct.nii.gz", output="in/deep/er")[0] == 0


def test_a_single_bad_study_leaves_nothing(run, tmp_path):
    (tmp_path / "ct.nii.gz").write_bytes(b"none")
    status, _, err = run(tmp_path / "ct.nii.gz")
    assert (status, len(err.splitlines())) == (2, 1)
    assert err.startswith("lesionseg: wrong input:")
    assert not (tmp_path / "out").exists()
    for missing in ("--model", "--liver-mask"):
        path = nifti(tmp_path / "good.nii.gz")
        status, _, err = run(path, missing, tmp_path / "none")
        assert status == 2
        assert str(tmp_path / "none") in err
    assert "device" in run(path, "--device", "abacus")[2]
    assert not (tmp_path / "out").exists()


def test_several_series_and_the_one_that_is_named(run, tmp_path):
    save(tmp_path / "in" / "a", stack(hu(0), series="a"))
    save(tmp_path / "in" / "b", stack(hu(1), series="b"))
    status, _, err = run(tmp_path / "in")
    assert status == 2
    assert "(CT, 4 slices, 0.8 x 0.7 mm in plane, one every 2.5 mm)" in err
    assert "--series" in err
    status, _, err = run(tmp_path / "in", "--series", uid("b")[-8:], "--formats", "html")
    assert status == 0
    assert "Not segmented: 1 other CT series of the study." in err
    (folder,) = (path for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert "Not segmented: 1 other CT series" in (folder / "report.html").read_text()


class TestLiverMask:
    @pytest.fixture
    def mask(self, tmp_path):
        """As an array (D, H, W), and a function that writes it times a value, with another value in it."""
        array = np.zeros((4, 48, 48), np.uint8)
        array[1:3, 10:40, 5:35] = 1

        def write(liver=1, inner=None, affine=AFFINE):
            values = array * np.uint8(liver)
            values[1, 20:24, 20:24] = liver if inner is None else inner
            nib.save(nib.Nifti1Image(values.T, affine), tmp_path / "mask.nii.gz")
            return tmp_path / "mask.nii.gz"

        return array > 0, write

    @pytest.mark.parametrize("values", [{}, {"inner": 2}, {"liver": 5}, {"liver": 255}])
    def test_nifti_replaces_the_net(self, run, tmp_path, mask, values):
        path = nifti(tmp_path / "ct.nii.gz")
        status, _, _ = run(path, "--liver-mask", mask[1](**values), "--formats", "nifti,json")
        assert status == 0
        folder = tmp_path / "out" / "ct"
        np.testing.assert_array_equal(np.asarray(nib.load(folder / "segmentation.nii.gz").dataobj).T > 0, mask[0])
        assert json.loads((folder / "lesions.json").read_text())["settings"]["liver"] == "given"

    def test_another_mask_of_equal_size_and_time_is_another(self, run, tmp_path, mask):
        path, written = nifti(tmp_path / "ct.nii.gz"), []
        for liver in (1, 2):
            plain = nib.load(mask[1](liver))
            nib.save(plain, tmp_path / "mask.nii")
            os.utime(tmp_path / "mask.nii", (1, 1))
            written.append(run(path, "--liver-mask", tmp_path / "mask.nii", *QUICK)[1])
        assert "done already" not in written[1]
        assert (
            "done already"
            in run(path, "--liver-mask", shutil.copy(tmp_path / "mask.nii", tmp_path / "x.nii"), *QUICK)[1]
        )

    def test_a_seg_replaces_the_net(self, run, tmp_path):
        dicom(tmp_path / "in" / "ct")
        run(tmp_path / "in")
        seg = tmp_path / "out" / "ct" / "segmentation.dcm"
        assert run(tmp_path / "in", "--liver-mask", seg, output="again")[0] == 0
        first, again = (tmp_path / name / "ct" / "segmentation.nii.gz" for name in ("out", "again"))
        np.testing.assert_array_equal(*(np.asarray(nib.load(path).dataobj) > 0 for path in (first, again)))

    @pytest.mark.parametrize(
        ("values", "word"),
        [
            ({"liver": 7, "inner": 5}, "the values 5, 7"),
            ({"liver": 2, "inner": 3}, "the values 2, 3"),
            ({"liver": 0}, "an empty mask"),
            ({"affine": np.diag([0.8, 0.7, 2.5, 1])}, "voxels apart"),
        ],
    )
    def test_what_is_no_liver_is_refused(self, run, tmp_path, mask, values, word):
        status, _, err = run(nifti(tmp_path / "ct.nii.gz"), "--liver-mask", mask[1](**values))
        assert status == 2
        assert word in err
        assert not (tmp_path / "out").exists()

    def test_of_one_study_alone(self, run, cohort, mask):
        status, _, err = run(cohort, "--liver-mask", mask[1]())
        assert status == 2
        assert "a single study" in err


def test_faults_of_every_kind_stop_no_other_study(cohort, tmp_path, capsys, model):
    cascade = Cascade(Model.load(model))
    faults = {
        "gap": None,
        "patient_ct": RuntimeError("CUDA error:\n launch failed"),
        "volume-0": KeyError(f"a bug that quotes {NAME}"),
        "volume-1": MemoryError(),
    }

    def segmenter(scan, liver):
        if fault := faults.get(scan.scan_id):
            raise fault
        return cascade.segment(scan, liver=liver)

    outcomes = segment_studies(find_studies(cohort), tmp_path / "out", segmenter, Wish())
    reasons = {outcome.study: (outcome.ending, outcome.told or outcome.reason) for outcome in outcomes}
    assert reasons["patient_ct"] == ("failed", "RuntimeError: CUDA error: launch failed")
    assert reasons["volume-0"] == ("failed", "KeyError; segment it alone with --debug to see where")
    assert reasons["volume-1"][0] == "refused"
    assert "--batch-size" in reasons["volume-1"][1]
    assert "equal distances" in reasons["gap"][1]
    assert NAME not in "".join(capsys.readouterr())
    assert files(tmp_path / "out") == {"summary.csv", ".lesionseg.lock"}


def segmented_or_killed(scan, liver):
    if scan.scan_id == "volume-1":
        os.kill(os.getpid(), signal.SIGKILL)
    labels = (scan.hu > 50).astype(np.uint8)
    return Segmentation(
        scan, labels, np.zeros_like(labels, np.uint16), [], 12.0, 0, model={}, settings={}, warnings=("Look.",)
    )


def test_studies_side_by_side(cohort, tmp_path, capsys, monkeypatch):
    """In two processes, one of which is killed over a study: the lines of each study together, all others segmented."""
    monkeypatch.setattr(parallel, "SECONDS_TO_START", 0.0)
    found, wish = find_studies(cohort), Wish(("nifti", "csv"))
    outcomes = segment_studies(found, tmp_path / "out", segmented_or_killed, wish, workers=2)
    out, err = capsys.readouterr()
    told = {part.splitlines()[0].split()[1]: part.splitlines()[1:] for part in out.split("\n\n")[0].split("[") if part}
    endings = {outcome.study: outcome.ending for outcome in outcomes}
    assert endings.pop("volume-1") == "failed"
    assert "killed, most likely for memory" in told["volume-1"][0]
    assert endings == {"gap": "refused", "patient_ct": "segmented", "segmentation-0": "passed over",
                       "volume-0": "segmented"}  # fmt: skip
    assert [len(told[name]) for name in ("patient_ct", "volume-0", "gap")] == [3, 3, 1]
    assert sorted(err.splitlines()) == [f"lesionseg: {name}: Look." for name in ("patient_ct", "volume-0")]
    assert files(tmp_path / "out") == {"patient_ct", "volume-0", "summary.csv", ".lesionseg.lock"}
    assert {name: row["ending"] for name, row in summary(tmp_path / "out").items()} == {**endings, "volume-1": "failed"}


def test_a_full_disk_is_a_failure(cohort, tmp_path, run, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "deliver", full)
    status, out, err = run(cohort)
    assert status == 1
    assert "failed: OSError: [Errno 28] No space left on device" in out
    assert err.endswith(told_at_the_end("3 of 5 failed") + told_at_the_end("1 of 5 refused"))
    assert files(tmp_path / "out") == {"summary.csv", ".lesionseg.lock"}
    assert "No space left" in (tmp_path / "out" / "summary.csv").read_text()
    assert run(cohort / "volume-0.nii.gz", output="single")[0] == 1
    assert not (tmp_path / "single").exists()


def test_only_label_maps_is_wrong_input(run, tmp_path):
    for n in (0, 1):
        (tmp_path / "in").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(np.eye(4, dtype=np.uint8)[:, :, None], AFFINE), tmp_path / "in" / f"{n}.nii")
    assert run(tmp_path / "in")[0] == 2


def test_one_segment_at_a_time(run, tmp_path):
    from lesionseg.study_folder import locked

    path = nifti(tmp_path / "ct.nii.gz")
    with locked(tmp_path / "out"):
        status, _, err = run(path)
    assert status == 2
    assert "one `lesionseg segment` at a time" in err


def test_memory_holds_one_study_at_a_time(tmp_path, model):
    cascade, alive = Cascade(Model.load(model)), []
    for n in range(3):
        nifti(tmp_path / "in" / f"{n}.nii", n)
    gc.collect()

    def segmenter(scan, liver):
        assert not any(reference() is not None for reference in alive)
        assert not any(type(held) is Figure for held in gc.get_objects())  # of the page
        found = cascade.segment(scan, liver=liver)
        alive.extend([weakref.ref(found), weakref.ref(scan)])
        return found

    outcomes = segment_studies(find_studies(tmp_path / "in"), tmp_path / "out", segmenter, Wish(("html",)))
    assert [outcome.ending for outcome in outcomes] == ["segmented"] * 3
    assert [outcome.facts["lesions"] > 0 for outcome in outcomes] == [True] * 3


class TestInterrupted:
    """Real signals to a real process: a fork of this one, as loading torch anew would take seconds."""

    @pytest.fixture
    def start(self, cohort, model, tmp_path):
        shutil.rmtree(cohort / "gap")

        def child(log, options):
            sys.settrace(None)  # a signal within the tracer of coverage leaves its lock held for ever
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
            args = ["segment", str(cohort), "-o", str(tmp_path / "out"), "--model", str(model), *options]
            os._exit(main(args))

        def begin(log, *options):
            signal.signal(signal.SIGINT, signal.default_int_handler)
            process = multiprocessing.get_context("fork").Process(target=child, args=(log, options))
            process.start()
            return process

        return begin

    def test_ctrl_c_leaves_whole_folders_and_continues(self, start, cohort, run, tmp_path):
        log = tmp_path / "log"
        log.touch()
        process = start(log, *QUICK)
        while "[3/4]" not in log.read_text():
            assert process.is_alive()
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGINT)
        process.join(60)
        assert process.exitcode == 130
        output = tmp_path / "out"
        assert files(output) == {"patient_ct", "summary.csv", ".lesionseg.lock"}
        assert files(output / "patient_ct") == QUICK_FILES
        status, out, _ = run(cohort, *QUICK)
        assert status == 0
        assert out.count("  done already\n") == 1
        run(cohort, *QUICK, output="whole")
        assert content(output) == content(tmp_path / "whole")

    def test_kills_at_random_moments(self, start, cohort, run, tmp_path):
        (cohort / "volume-1.nii.gz").unlink()
        began = time.monotonic()
        run(cohort, output="whole")
        whole, took = content(tmp_path / "whole"), time.monotonic() - began
        moments = random.Random(0)
        for _ in range(5):
            process = start(tmp_path / "log")
            time.sleep(moments.uniform(0, took))
            process.kill()
            process.join()
            for folder in (tmp_path / "out").glob("[!.]*/") if (tmp_path / "out").exists() else ():
                assert files(folder) in (NIFTI_FILES, DICOM_FILES)
        assert run(cohort)[0] == 0
        assert content(tmp_path / "out") == whole
        assert not list((tmp_path / "out").glob(".lesionseg-*"))
