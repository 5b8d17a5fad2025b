import pickle

import nibabel as nib
import numpy as np
import pytest

from lesionseg.data import lits
from lesionseg.errors import InputError
from lesionseg.labels import BACKGROUND, LIVER, UNTYPED_LESION

AFFINE = np.diag([-0.7, -0.7, 2.0, 1.0])


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def add(root, number, folder="", suffix=".nii", affine=AFFINE, mask_affine=None):
    hu = np.random.default_rng(number).integers(-100, 200, (5, 4, 3)).astype(np.int16)
    mask = (np.arange(60).reshape(5, 4, 3) % 3).astype(np.float32)
    save(root / folder / f"volume-{number}{suffix}", hu, affine)
    save(root / folder / f"segmentation-{number}{suffix}", mask, affine if mask_affine is None else mask_affine)
    return hu, mask


def codes(root, **options):
    return [problem.code for problem in lits.find(root, **options)[1]]


def test_folders_of_any_nesting_in_the_order_of_numbers(tmp_path):
    add(tmp_path, 10, "batch 1")
    hu, mask = add(tmp_path, 9, "a/b/c", ".nii.gz")
    add(tmp_path, 100)
    (tmp_path / "test-volume-3.nii").touch()
    (tmp_path / "._volume-7.nii").touch()
    sources = lits.cases(tmp_path)
    assert [source.source_id for source in sources] == ["volume-9", "volume-10", "volume-100"]
    assert [source.patient_id for source in sources] == ["volume-9", "volume-10", "volume-100"]
    assert sources[0].files == tuple(tmp_path / "a/b/c" / f"{kind}-9.nii.gz" for kind in ("volume", "segmentation"))
    case = pickle.loads(pickle.dumps(sources[0])).read()
    np.testing.assert_array_equal(case.scan.hu, hu.T)
    names = np.array([BACKGROUND, LIVER, UNTYPED_LESION])
    np.testing.assert_array_equal(case.labels, names[mask.T.astype(int)])
    assert case.scan.scan_id == "volume-9"
    assert case.warnings == ()
    assert not case.liver_predicted


def test_a_batch_may_lie_behind_a_link(tmp_path):
    add(tmp_path / "LiTS", 1, "batch 1")
    add(tmp_path / "disk", 2)
    (tmp_path / "LiTS" / "batch 2").symlink_to(tmp_path / "disk")
    assert [source.source_id for source in lits.cases(tmp_path / "LiTS")] == ["volume-1", "volume-2"]


def test_a_closed_folder_is_told(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    add(tmp_path, 1)
    monkeypatch.setattr("os.scandir", refuse)
    assert codes(tmp_path) == ["unreadable"]


def test_decathlon(tmp_path):
    for number in (2, 11):
        for folder in ("imagesTr", "labelsTr"):
            save(tmp_path / "Task03_Liver" / folder / f"liver_{number}.nii.gz", np.ones((5, 4, 3), np.uint8))
            (tmp_path / "Task03_Liver" / folder / f"._liver_{number}.nii.gz").touch()
    save(tmp_path / "Task03_Liver" / "imagesTs" / "liver_3.nii.gz", np.ones((5, 4, 3), np.uint8))
    sources = lits.cases(tmp_path)
    assert [source.source_id for source in sources] == ["liver_2", "liver_11"]
    assert (sources[0].read().labels == LIVER).all()
    add(tmp_path, 2)
    assert codes(tmp_path) == ["no-cases"]


def test_groups_and_exclude(tmp_path):
    for number in range(4):
        add(tmp_path, number)
    table = tmp_path / "groups.csv"
    table.write_text("patient,case\nanna,volume-0\nanna,volume-1\nbert,volume-3\n", encoding="utf-8-sig")
    sources = lits.cases(tmp_path, groups=table, exclude=["volume-1"])
    expected = [("volume-0", "anna"), ("volume-2", "volume-2"), ("volume-3", "bert")]
    assert [(source.source_id, source.patient_id) for source in sources] == expected
    assert sources[0].read().patient_id == "anna"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("case,patient\nvolume-7,a\n", "groups.csv:2.*volume-7"),
        ("case,patient\nvolume-0,a\nvolume-0,b\n", "groups.csv:3.*twice"),
        ("case,patient\nvolume-0,\n", "without patient"),
        ("volume,patient\nvolume-0,a\n", "columns case,patient"),
        ("case,patient\nvolume-0,a,b\n", "groups.csv:2.*2 cells.*got 3"),
        ("case,case\nvolume-0,a\n", "each column once"),
        ("", "empty table"),
        (None, "No such file"),
    ],
)
def test_wrong_groups_are_refused(tmp_path, text, word):
    add(tmp_path, 0)
    table = tmp_path / "groups.csv"
    if text is not None:
        table.write_text(text)
    with pytest.raises(InputError, match=word):
        lits.cases(tmp_path, groups=table)


def test_groups_that_are_not_text_are_refused(tmp_path):
    add(tmp_path, 0)
    (tmp_path / "groups.csv").write_bytes(b"case,patient\nvolume-0,\xff\xfe\n")
    with pytest.raises(InputError, match="UTF-8"):
        lits.cases(tmp_path, groups=tmp_path / "groups.csv")


def test_every_problem_of_a_folder_is_found_at_once(tmp_path):
    for number in range(4):
        add(tmp_path, number)
    add(tmp_path, 3, "again")
    (tmp_path / "segmentation-0.nii").unlink()
    (tmp_path / "volume-1.nii").unlink()
    sources, problems = lits.find(tmp_path, exclude=["volume-99"])
    assert [problem.code for problem in problems] == ["exclude", "unpaired", "doubled", "doubled"]
    assert "alone: volume 0, segmentation 1;" in str(problems[1])
    assert "again/volume-3.nii and volume-3.nii" in str(problems[2])
    assert [source.source_id for source in sources] == ["volume-2"]
    with pytest.raises(InputError, match="volume-99"):
        lits.cases(tmp_path, exclude=["volume-99"])
    assert codes(tmp_path, exclude=["volume-0", "volume-1", "volume-3"]) == []


def test_folders_without_cases(tmp_path):
    assert codes(tmp_path) == codes(tmp_path / "missing") == ["no-cases"]
    save(tmp_path / "scan.nii", np.ones((5, 4, 3), np.uint8))
    with pytest.raises(InputError, match="1 other NIfTI file"):
        lits.cases(tmp_path)


def test_identity_affine_passes_with_one_warning_unless_strict(tmp_path):
    add(tmp_path, 28, affine=np.eye(4))
    case = lits.cases(tmp_path)[0].read()
    assert case.scan.affine is None
    assert len(case.warnings) == 1
    strict = lits.cases(tmp_path, strict=True)[0]
    assert strict.options != lits.cases(tmp_path)[0].options
    with pytest.raises(InputError, match="identity"):
        strict.read()


def test_flipped_mask_is_refused(tmp_path):
    add(tmp_path, 0, mask_affine=AFFINE @ np.diag([-1, 1, 1, 1]))
    with pytest.raises(InputError, match=r"segmentation-0\.nii.*voxels apart"):
        lits.cases(tmp_path)[0].read()
