import csv
import hashlib
import json
from collections import Counter
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import CTImageStorage

from lesionseg.errors import InputError
from lesionseg.phantom import write
from lesionseg.phantom.patient import draw_patient
from lesionseg.phantom.write import (
    LEVEL_SHARE,
    MASK_IDS,
    choose_heights,
    slices_per_patient,
    write_phantom,
    write_slices,
)

SIZE = 64


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("phantom") / "made"
    write_phantom(output, volumes=2, slices=7, size=SIZE, seed=3)
    return output


@pytest.fixture(scope="module")
def rows(phantom) -> list[dict[str, str]]:
    with (phantom / "slices" / "slices.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_lits_layout_as_nibabel_reads_it(phantom):
    for number in range(2):
        volume = nib.load(phantom / "lits" / f"volume-{number}.nii.gz")
        mask = nib.load(phantom / "lits" / f"segmentation-{number}.nii.gz")
        assert volume.shape == mask.shape
        assert volume.shape[:2] == (SIZE, SIZE)
        assert 20 <= volume.shape[2] <= 48
        assert np.array_equal(volume.affine, mask.affine)
        assert np.array_equal(volume.get_qform(), volume.get_sform())
        assert volume.get_data_dtype() == mask.get_data_dtype() == np.int16
        assert volume.header["descrip"].tobytes().rstrip(b"\0") == b"lesionseg phantom"
        hu, labels = np.asarray(volume.dataobj), np.asarray(mask.dataobj)
        assert set(np.unique(labels)) == {0, 1, 2}
        assert hu.min() >= -1024
        assert hu[0, 0, 0] < -900
        assert 95 < hu[labels == 1].mean() < 125
        assert not labels[:, :, [0, -1]].any()


def test_lits_affine_puts_the_liver_on_the_patients_right(phantom):
    mask = nib.load(phantom / "lits" / "segmentation-0.nii.gz")
    volume = np.asarray(nib.load(phantom / "lits" / "volume-0.nii.gz").dataobj)
    to_world = partial(nib.affines.apply_affine, mask.affine)
    liver = to_world(np.argwhere(np.asarray(mask.dataobj) > 0)).mean(0)
    bone = to_world(np.argwhere(volume > 350)).mean(0)
    lung = to_world(np.argwhere((volume < -700) & (volume > -920))).mean(0)
    assert liver[0] > 25  # x of a RAS affine grows towards the patient's right
    assert bone[1] < liver[1]  # the spine lies behind
    assert lung[2] > liver[2]  # the lungs above


def test_table_lists_every_file_once(phantom, rows):
    assert list(rows[0]) == ["patient_id", "image", "mask", "liver_mask"]
    assert len(rows) == 7
    listed = [row[column] for row in rows for column in ("image", "mask", "liver_mask")]
    assert len(set(listed)) == 21
    found = {str(p.relative_to(phantom / "slices")) for p in (phantom / "slices").rglob("*") if p.is_file()}
    assert found == {*listed, "slices.csv"}
    per_patient = Counter(row["patient_id"] for row in rows)
    assert max(per_patient.values()) <= 4


def test_slices_are_valid_ct_images(phantom, rows):
    seen = set()
    for row in rows:
        file = pydicom.dcmread(phantom / "slices" / row["image"])
        assert file.file_meta.MediaStorageSOPClassUID == file.SOPClassUID == CTImageStorage
        assert (file.Modality, file.Manufacturer) == ("CT", "lesionseg phantom")
        assert file.PatientID == row["patient_id"]
        assert [float(v) for v in file.ImageOrientationPatient] == [1, 0, 0, 0, 1, 0]
        spacing, (x, y, _) = file.PixelSpacing, file.ImagePositionPatient
        assert x == pytest.approx(-(SIZE - 1) / 2 * spacing[1], abs=1e-3)
        assert y == pytest.approx(-(SIZE - 1) / 2 * spacing[0], abs=1e-3)
        assert 340 <= spacing[0] * SIZE <= 440
        assert file.SliceThickness in (2.5, 3.0, 5.0)
        hu = file.pixel_array * float(file.RescaleSlope) + float(file.RescaleIntercept)
        assert hu.shape == (SIZE, SIZE)
        assert hu[0].mean() < -900
        seen.add(file.SOPInstanceUID)
    assert len(seen) == len(rows)


def test_slices_of_a_patient_share_study_and_frame_of_reference(phantom, rows):
    files = [pydicom.dcmread(phantom / "slices" / row["image"], stop_before_pixels=True) for row in rows]
    for uid in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        patients = {(file.PatientID, file[uid].value) for file in files}
        assert len(patients) == len({file.PatientID for file in files})
    places = {(file.PatientID, float(file.ImagePositionPatient[2])) for file in files}
    assert len(places) == len(files)


def test_masks_hold_types_inside_the_liver(phantom, rows):
    types = set()
    for row in rows:
        mask = np.asarray(Image.open(phantom / "slices" / row["mask"]))
        liver = np.asarray(Image.open(phantom / "slices" / row["liver_mask"]))
        assert mask.dtype == liver.dtype == np.uint8
        assert set(np.unique(liver)) == {0, 1}
        assert not mask[liver == 0].any()
        types |= set(np.unique(mask).tolist())
    assert types == {0, *MASK_IDS.values()}
    assert MASK_IDS == {"cyst": 1, "hemangioma": 2, "metastasis": 3}


def test_every_slice_has_a_lesion_and_cysts_are_darkest(tmp_path):
    values: dict[int, list[float]] = {1: [], 2: [], 3: []}
    for folder in ("images", "masks", "livers"):
        (tmp_path / folder).mkdir()
    empty = 0
    for number in range(9):
        for row in write_slices(tmp_path, number, 2, 128, 0).rows:
            file = pydicom.dcmread(tmp_path / row["image"])
            mask = np.asarray(Image.open(tmp_path / row["mask"]))
            empty += not mask.any()
            for value in np.unique(mask[mask > 0]).tolist():
                values[value].append(float(file.pixel_array[mask == value].mean() - 1024))
    cyst, hemangioma, metastasis = (np.mean(values[i]) for i in (1, 2, 3))
    assert empty == 0  # every slice cuts a lesion
    assert cyst < 60 < metastasis < 105
    assert cyst < metastasis - 15
    assert hemangioma > cyst + 25
    assert abs(hemangioma - metastasis) < 45


def test_cysts_of_lits_like_volumes_are_left_unlabelled(tmp_path):
    written = [write.write_volume(tmp_path, number, 48, 0) for number in _volumes_with_cysts(2)]
    cysts = [lesion for patient in written for lesion in patient.lesions if lesion[0] == "cyst"]
    others = [lesion for patient in written for lesion in patient.lesions if lesion[0] != "cyst"]
    assert cysts
    assert not any(labelled for _, _, labelled in cysts)
    assert all(labelled for _, _, labelled in others)
    assert {kind for kind, _, _ in others} <= {"hcc", "metastasis"}


def _volumes_with_cysts(count: int) -> list[int]:
    """Numbers of the first volumes of seed 0 whose patient has a cyst."""
    numbers = (n for n in range(100) if "cyst" in write._lits_kinds(np.random.default_rng([0, 0, n])))
    return [next(numbers) for _ in range(count)]


def test_summary_says_version_arguments_and_lesions(phantom):
    record = json.loads((phantom / "phantom.json").read_text())
    assert record["phantom_version"] == write.PHANTOM_VERSION
    assert record["arguments"] == {"volumes": 2, "slices": 7, "size": SIZE, "seed": 3}
    assert record["slices"]["slices"] == 7
    assert record["slices"]["patients"] == len(slices_per_patient(7, 3))
    assert set(record["slices"]["lesions"]) == set(MASK_IDS)
    assert sum(record["lits"]["lesions"].get("metastasis", {}).values()) >= 1


def test_same_seed_same_bytes_and_another_seed_another_patient(phantom, tmp_path):
    write_phantom(tmp_path / "again", volumes=2, slices=7, size=SIZE, seed=3)
    assert digest(tmp_path / "again") == digest(phantom)
    write_phantom(tmp_path / "other", volumes=0, slices=7, size=SIZE, seed=4)
    first, other = (digest(folder / "slices" / "images") for folder in (phantom, tmp_path / "other"))
    assert not set(first.values()) & set(other.values())


def test_processes_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "cores", lambda: 2)
    write_phantom(tmp_path / "many", volumes=0, slices=20, size=32, seed=1)
    monkeypatch.setattr(write, "cores", lambda: 1)
    write_phantom(tmp_path / "one", volumes=0, slices=20, size=32, seed=1)
    assert digest(tmp_path / "many") == digest(tmp_path / "one")


def test_slices_per_patient():
    counts = slices_per_patient(240, 0)
    assert sum(counts) == 240
    assert set(counts[:-1]) == {2, 3, 4}
    assert 70 <= len(counts) <= 90
    assert slices_per_patient(0, 0) == []


def test_heights_cut_lesions_and_keep_apart():
    rng = np.random.default_rng(0)
    for seed in range(6):
        patient = draw_patient(np.random.default_rng(seed), ["metastasis"] * (1 + seed % 3))
        heights = choose_heights(rng, patient.lesions, 4, 3.0)
        assert len(heights) == 4
        for height in heights:
            assert any(abs(height - e.center_mm[0]) <= LEVEL_SHARE * e.diameter_mm for e in patient.lesions)
        if max(e.diameter_mm for e in patient.lesions) > 25:
            assert np.diff(heights).min() > 1.5


def test_an_earlier_phantom_is_replaced_and_nothing_else(phantom, tmp_path):
    output = tmp_path / "out"
    for seed in (0, 1):
        write_phantom(output, volumes=0, slices=2, size=32, seed=seed)
    assert json.loads((output / "phantom.json").read_text())["arguments"]["seed"] == 1
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="name another folder"):
        write_phantom(foreign, volumes=0, slices=2, size=32, seed=0)
    assert (foreign / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign", "out"]


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(write, "write_slices", fail)
    with pytest.raises(OSError, match="disk full"):
        write_phantom(tmp_path / "out", volumes=0, slices=2, size=32, seed=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "value"), [("volumes", -1), ("slices", -1), ("size", 8), ("seed", -1), ("slices", 0)])
def test_numbers_out_of_range_are_refused(tmp_path, name, value):
    arguments = {"volumes": 0, "slices": 2, "size": 32, "seed": 0} | {name: value}
    with pytest.raises(InputError, match="expected at least"):
        write_phantom(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()
