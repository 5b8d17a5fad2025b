"""Which studies an input holds: the ways in which folders of users look."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from formats.test_dicom import NAME, PATIENT, canonical_hu, localizer, save, stack, uid
from pydicom.uid import MRImageStorage, SecondaryCaptureImageStorage

from lesionseg.errors import InputError
from lesionseg.studies import LABEL_MAP, MOST_NAME_BYTES, RECORD, find_studies

HU = canonical_hu()


def nifti(path, array=HU):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([0.7, 0.8, 2.5, 1])), path)
    return path


def study(name, series="series", **options):
    """A CT series of the study of this name."""
    slices = stack(series=f"{name} {series}", **options)
    for ds in slices:
        ds.StudyInstanceUID = uid(name)
    return slices


def end(name):
    return uid(name)[-8:].strip(".")


def names(path, series=None):
    return [found.name for found in find_studies(path, series).studies]


def refused(path, *words, series=None):
    with pytest.raises(InputError) as error:
        find_studies(path, series)
    for word in words:
        assert word in str(error.value)
    assert NAME not in str(error.value)
    assert PATIENT not in str(error.value)
    return error.value.code


def test_a_file_is_named_by_its_stem(tmp_path):
    (ct,) = find_studies(nifti(tmp_path / "my scan.nii.gz")).studies
    assert (ct.name, ct.dicom) == ("my_scan", False)
    scan, warnings = ct.read()
    assert scan.hu.shape == HU.shape[::-1]
    assert warnings == ()
    folder = save(tmp_path / "ct", stack())
    for name, expected in (("IM0001.dcm", "IM0001"), ("1.2.840.5", "1.2.840.5")):
        os.rename(next(folder.iterdir()), folder / name)
        (slice_,) = find_studies(folder / name).studies
        assert (slice_.name, slice_.dicom) == (expected, True)
        assert slice_.read()[0].hu.shape == (1, 6, 7)


@pytest.mark.parametrize("name", ["none.nii.gz", "none.dcm", "notes.txt", "image.png"])
def test_a_file_that_is_no_ct_is_refused(tmp_path, name):
    if not name.startswith("none"):
        (tmp_path / name).write_text("notes")
    assert refused(tmp_path / name, name) in ("missing-file", "format")


def test_series_of_a_file_make_no_sense(tmp_path):
    refused(nifti(tmp_path / "a.nii"), "the file a.nii", series="123")


def test_a_folder_of_one_series_takes_its_name_from_the_study_uid(tmp_path):
    (ct,) = find_studies(save(tmp_path / "Doe_John", stack())).studies
    assert ct.name == f"study-{uid('study')[-8:]}"
    np.testing.assert_array_equal(np.sort(ct.read()[0].hu, None), np.sort(HU, None))


def test_one_patient_with_nested_series_folders(tmp_path):
    save(tmp_path / "p" / "a" / "deep" / "ct", study("one"))
    report = study("one", "report")[0]
    report.SOPClassUID, report.Modality = SecondaryCaptureImageStorage, "OT"
    save(tmp_path / "p" / "a" / "dose", [report])
    (ct,) = find_studies(tmp_path).studies
    assert (ct.name, ct.path, len(ct.files)) == ("p_a", tmp_path / "p" / "a", 6)
    assert ct.remarks == ()
    assert ct.read()[0].hu.shape[0] == 5


def test_several_series_ask_for_one(tmp_path):
    save(tmp_path / "arterial", study("one", "arterial"))
    save(tmp_path / "venous", study("one", "venous", hu=HU + np.int16(1)))
    save(
        tmp_path / "scout",
        [ds for ds in study("one", "scout")[:1] if setattr(ds, "ImageType", localizer().ImageType) is None],
    )
    (both,) = find_studies(tmp_path).studies
    with pytest.raises(InputError, match="--series") as error:
        both.read()
    assert error.value.code == "several-series"
    tail = uid("one venous")[-6:]
    (venous,) = find_studies(tmp_path, tail).studies
    assert venous.series == uid("one venous")
    scan, warnings = venous.read()
    np.testing.assert_array_equal(np.sort(scan.hu, None), np.sort(HU + 1, None))
    assert warnings == ("Not segmented: 1 other CT series and 1 localizer series of the study.",)
    assert venous.name == both.name
    assert venous.place != both.place


def test_a_scout_beside_a_series_is_passed_over_and_said(tmp_path):
    scout = localizer()
    scout.StudyInstanceUID = uid("one")
    save(tmp_path / "scout", [scout])
    save(tmp_path / "ct", study("one"))
    (ct,) = find_studies(tmp_path).studies
    scan, warnings = ct.read()
    assert scan.hu.shape[0] == 5
    assert warnings == ("Not segmented: 1 localizer series of the study.",)


def test_a_series_among_many_studies(tmp_path):
    for name in ("one", "two"):
        save(tmp_path / name, study(name))
    nifti(tmp_path / "x.nii")
    (two,) = find_studies(tmp_path, uid("two series")[-12:]).studies
    assert (two.name, two.series) == ("two", uid("two series"))
    assert refused(tmp_path, "0 of 2", uid("two series")[-8:], series="nonsense") == "several-series"
    refused(tmp_path, "of 2", series="")
    only_nifti = nifti(tmp_path / "n" / "x.nii").parent
    refused(only_nifti, "no DICOM file of a CT", series="1")


def test_many_studies_are_named_by_their_folders(tmp_path):
    save(tmp_path / "patient 1" / "2020", study("one"))
    save(tmp_path / "patient 1" / "2021" / "ct", study("two"))
    save(tmp_path / "both", study("three"))
    for n, ds in enumerate(study("four")):
        ds.save_as(tmp_path / "both" / f"other{n}", enforce_file_format=True)
    nifti(tmp_path / "a.nii.gz")
    nifti(tmp_path / "sub" / "a.nii.gz")
    assert names(tmp_path) == sorted([
        "a", "sub_a", "patient_1_2020", "patient_1_2021_ct", f"both_study-{end('three')}", f"both_study-{end('four')}",
    ])  # fmt: skip
    for found in find_studies(tmp_path).studies:
        assert found.read()[0].hu.size == HU.size


def test_two_studies_never_share_a_name(tmp_path):
    for path in ("a_b.nii.gz", "a/b.nii.gz", "A/b.nii", "c.nii", "c.nii.gz"):
        nifti(tmp_path / path)
    found = names(tmp_path)
    assert len({name.casefold() for name in found}) == 5
    assert all(name[:-7] in ("a_b", "A_b", "c") for name in found)
    os.chdir(tmp_path)
    assert names(Path(".")) == found


def test_names_are_file_names(tmp_path):
    long = "ä" * 100
    nifti(tmp_path / long / "-.nii")
    nifti(tmp_path / "=1+1;'x" / "-a b.nii")
    found = names(tmp_path)
    assert all(len(name.encode()) <= MOST_NAME_BYTES for name in found)
    assert found == ["1_1_x_-a_b", "ä" * (MOST_NAME_BYTES // 2)]


def test_masks_are_no_ct(tmp_path):
    mask = np.zeros((40, 40, 6), np.uint8)
    mask[5:30, 5:30], mask[10:14, 10:14] = 1, 2
    nifti(tmp_path / "segmentation-0.nii.gz", mask)
    nifti(tmp_path / "grey.nii.gz", np.random.default_rng(0).integers(0, 900, (20, 20, 4)).astype(np.int16))
    raw = np.random.default_rng(0).integers(24, 1264, (20, 20, 4)).astype(np.int16)
    raw[:4] = -2000  # padding outside of the reconstruction
    nifti(tmp_path / "raw.nii.gz", raw)
    codes = ("no-negative-hu", "no-negative-hu", LABEL_MAP)
    for found, code in zip(find_studies(tmp_path).studies, codes, strict=True):
        with pytest.raises(InputError, match="fat and air lie below 0") as error:
            found.read()
        assert error.value.code == code


def test_coarse_grey_values_are_said(tmp_path):
    coarse = (hu_of_soft_tissue() // 32 * 32).astype(np.int16)
    for name, array, expected in (("a", hu_of_soft_tissue(), 0), ("b", coarse, 1), ("c", coarse * 0 - 1, 0)):
        (found,) = find_studies(nifti(tmp_path / f"{name}.nii", array)).studies
        assert sum("32 HU apart" in text for text in found.read()[1]) == expected


def hu_of_soft_tissue():
    return np.random.default_rng(0).integers(-100, 200, (30, 30, 40)).astype(np.int16)


def test_what_is_passed_over_is_said(tmp_path):
    save(tmp_path / "ct", study("ct"))
    for n in (1, 2):
        mr = study(f"mr{n}")
        for ds in mr:
            ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = MRImageStorage
            ds.Modality = "MR"
        save(tmp_path / f"mr{n}", mr)
    nifti(tmp_path / "earlier" / "segmentation.nii.gz").with_name(RECORD).write_text("{}")
    nifti(tmp_path / "earlier" / "deeper" / "x.nii.gz")
    nifti(tmp_path / ".hidden" / "x.nii.gz")
    nifti(tmp_path / "._x.nii.gz")
    found = find_studies(tmp_path)
    assert [ct.name for ct in found.studies] == ["ct"]
    assert found.passed_over == ("1 folder of earlier results", "2 DICOM studies without CT (MR)")
    assert refused(tmp_path / "mr1", "modality MR") == "not-ct"
    assert refused(tmp_path / "earlier", "only 1 folder of earlier results") == "no-study"


@pytest.fixture
def close(monkeypatch):
    """Closes folders as their permissions would; those do not bind the user that tests may run as."""
    closed, scandir = [], os.scandir

    def refusing(path):
        if Path(path) in closed:
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)

    def close(path):
        path.mkdir(parents=True, exist_ok=True)
        closed.append(path)

    return close


def test_a_folder_that_cannot_be_read_stops_only_the_ct_around_it(tmp_path, close):
    nifti(tmp_path / "volume.nii")
    save(tmp_path / "one" / "ct", study("one"))
    save(tmp_path / "two" / "a", study("two"))
    save(tmp_path / "two" / "b", study("two", "more"))
    before = {found.name: found.fingerprint() for found in find_studies(tmp_path).studies}
    for path in ("closed", "two/c", "lost+found"):
        close(tmp_path / path)
    found = find_studies(tmp_path)
    assert found.passed_over == (
        "closed, a folder that cannot be read",
        f"{Path('two', 'c')}, a folder that cannot be read",
    )
    one, two, volume = found.studies
    assert (one.name, two.name, volume.name) == ("one_ct", "two", "volume")
    assert one.read()[0].hu.shape[0] == 5
    assert volume.read()[0].hu.size == HU.size
    with pytest.raises(InputError, match="may hold slices of this study") as error:
        two.read()
    assert error.value.where == str(tmp_path / "two" / "c")
    assert {found.name for found in found.studies if found.fingerprint() != before[found.name]} == {"two"}


def test_an_input_that_cannot_be_read_is_told(tmp_path, close):
    close(tmp_path / "in")
    with pytest.raises(PermissionError):
        find_studies(tmp_path / "in")


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "scan.nrrd").write_text("NRRD")
    assert refused(tmp_path, "a CT in NIfTI or DICOM", "neither") == "no-study"


@pytest.mark.parametrize("content", [b"", b"\0" * 128 + b"DICM" + b"\xff" * 40])
def test_an_unreadable_file_spoils_the_ct_beside_it_and_no_other(tmp_path, content):
    save(tmp_path / "one", study("one"))
    report = study("report")[:1]
    report[0].SOPClassUID, report[0].Modality = SecondaryCaptureImageStorage, "OT"
    save(tmp_path / "one" / "sub", report)
    save(tmp_path / "two", study("two"))
    (tmp_path / "one" / "broken.dcm").write_bytes(content)
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "broken.dcm").write_bytes(content)
    alone, one, two = find_studies(tmp_path).studies
    assert (alone.name, one.name, two.name) == ("alone", "one", "two")
    assert two.read()[0].hu.shape[0] == 5
    for found in (alone, one):
        with pytest.raises(InputError, match=r"broken\.dcm"):
            found.read()


def test_blanked_uids_go_by_folder(tmp_path):
    for name in ("a", "b"):
        slices = study(name)
        for ds in slices:
            ds.StudyInstanceUID = ds.SeriesInstanceUID = ""
        save(tmp_path / name, slices)
    for found in find_studies(tmp_path).studies:
        assert found.read()[0].hu.shape[0] == 5
    assert names(tmp_path) == ["a", "b"]
    assert names(tmp_path / "a") == ["study"]


def test_a_series_under_two_study_uids_is_not_torn_apart(tmp_path):
    slices = study("one")
    slices[-1].StudyInstanceUID = uid("two")
    (found,) = find_studies(save(tmp_path / "ct", slices)).studies
    with pytest.raises(InputError, match="one study in all slices"):
        found.read()


def test_links_are_followed_and_not_for_ever(tmp_path):
    nifti(tmp_path / "store" / "a.nii")
    cohort = tmp_path / "cohort"
    cohort.mkdir()
    (cohort / "patient").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "loop").symlink_to(cohort)
    (cohort / "gone.nii.gz").symlink_to(tmp_path / "nothing")
    gone, patient = find_studies(cohort).studies
    assert (gone.name, patient.name) == ("gone", "patient_a")
    assert patient.read()[0].hu.size == HU.size
    with pytest.raises(OSError, match="No such file"):
        gone.fingerprint()


def test_a_fingerprint_changes_with_the_files_alone(tmp_path):
    path = nifti(tmp_path / "a" / "x.nii")
    (found,) = find_studies(path).studies
    first = found.fingerprint()
    os.chdir(tmp_path)
    assert find_studies(Path("a/x.nii")).studies[0].fingerprint() == first
    os.rename(tmp_path / "a", tmp_path / "b")
    (moved,) = find_studies(tmp_path / "b" / "x.nii").studies
    assert moved.fingerprint() == first
    assert moved.place != found.place
    os.utime(moved.path, (1, 1))
    assert moved.fingerprint() != first


def test_no_message_names_the_patient(tmp_path, capfd):
    """A broken length lets the modality swallow what follows it."""
    slices = study("mr")
    for ds in slices:
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = MRImageStorage
        ds.Modality = NAME
    save(tmp_path / "mr", slices)
    save(tmp_path / "ct", study("ct"))
    assert find_studies(tmp_path).passed_over == ("1 DICOM study without CT (malformed)",)
    assert NAME not in "".join(capfd.readouterr())
