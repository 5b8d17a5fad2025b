"""Stores of implants: whose slices they are, what they keep, and what may be tested on them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from made_cases import Made, source

from lesionseg.cli import main
from lesionseg.data import implants
from lesionseg.data.implanted import implant_store
from lesionseg.data.prepare import prepare
from lesionseg.data.records import CaseRecord
from lesionseg.data.store import Store
from lesionseg.errors import InputError
from lesionseg.evaluation.evaluate import evaluate
from lesionseg.labels import LESION_TYPES, LIVER, UNTYPED_LESION
from lesionseg.runs import RunInfo

SPACING_MM = (4.0, 2.5, 2.5)
AFFINE = np.array([[0, 0, 2.5, -40], [0, 2.5, 0, 12], [4.0, 0, 0, 300], [0, 0, 0, 1]])
#: The slices of each volume that hold a lesion or lie next to one.
TAKEN = {0, 1, 2}


def volume(seed: int) -> Made:
    """Eight slices of liver and noise, a lesion without type on the first two; nothing says that they are generated."""
    rng = np.random.default_rng(seed)
    hu, labels = rng.normal(-90, 12, (8, 64, 64)), np.zeros((8, 64, 64), np.uint8)
    labels[:, 8:56, 6:50] = LIVER
    hu[labels == LIVER] += 190
    labels[:2, 20:28, 20:28] = UNTYPED_LESION
    hu[labels == UNTYPED_LESION] -= 50
    return Made(hu.astype(np.int16), labels, SPACING_MM, AFFINE)


def volumes(folder, patients: str) -> Store:
    """A store with a volume for each letter; the same letter is the same patient."""
    sources = [source(folder / "in", f"{name}{i}", name, volume(ord(name) + i)) for i, name in enumerate(patients)]
    return prepare(sources, folder / "store", kind="lits", workers=1)


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Store:
    return volumes(tmp_path_factory.mktemp("real"), "ABCA")


@pytest.fixture(scope="module")
def made(real, tmp_path_factory) -> Store:
    return implant_store(real.path, tmp_path_factory.mktemp("made") / "store", workers=1)


def test_every_slice_without_lesion_becomes_one_of_the_same_patient(real, made):
    assert made.kind == "slices"
    assert not made.generated
    assert (made.content, real.content) == ("real CT with implanted lesions", "real CT")
    by_scan = {record.voxel_checksum: record for record in real.records}
    assert len(made.records) == 4 * (8 - len(TAKEN))
    for record in made.records:
        assert record.patient_id == by_scan[record.implanted_in].patient_id
        assert record.shape == (1, 64, 64)
        assert record.spacing_mm == SPACING_MM
        assert len(record.lesion_types) == 1
        assert all(lesion.diameter_mm for lesion in record.lesions)
    types = [record.lesion_types[0] for record in made.records]
    assert max(map(types.count, LESION_TYPES)) - min(map(types.count, LESION_TYPES)) <= 1
    for patient in {record.patient_id for record in made.records}:  # no patient gives the type away
        assert {r.lesion_types[0] for r in made.records if r.patient_id == patient} == set(LESION_TYPES)


def test_all_but_the_lesions_is_the_slice_at_its_place(real, made):
    by_scan = {record.voxel_checksum: record for record in real.records}
    seen = set()
    for record in made.records:
        old = by_scan[record.implanted_in]
        index = round((record.affine[2][3] - 300) / 4)
        np.testing.assert_allclose(record.affine, np.array(old.affine) + np.eye(4)[2][:, None] * [0, 0, 0, 4 * index])
        seen.add((record.implanted_in, index))
        before, after = real.hu(old.case_id)[index], made.hu(record.case_id)[0]
        labels = made.labels(record.case_id)[0]
        lesion = labels > LIVER
        assert lesion.any()
        assert np.array_equal(labels > 0, real.labels(old.case_id)[index] > 0)
        y, x = np.nonzero(before != after)
        assert (real.labels(old.case_id)[index][y, x] == LIVER).all()
        assert len(y) < 3 * lesion.sum() + 60  # a border beside it, no more
    assert seen == {(old.voxel_checksum, i) for old in real.records for i in range(8) if i not in TAKEN}


def test_a_seed_gives_the_same_store_and_a_number_takes_all_patients_in_turn(real, made, tmp_path):
    again = implant_store(real.path, tmp_path / "again", workers=1)
    other = implant_store(real.path, tmp_path / "other", seed=1, slices=7, workers=1)
    assert again.manifest_sha256 == made.manifest_sha256
    assert (tmp_path / "again.implants.png").stat().st_size > 10_000
    assert not {r.voxel_checksum for r in other.records} & {r.voxel_checksum for r in made.records}
    patients = [record.patient_id for record in other.records]
    assert sorted(map(patients.count, set(patients))) == [2, 2, 3]
    few = implant_store(real.path, tmp_path / "few", slices=5, workers=1)
    assert {r.case_id for r in few.records} <= {r.case_id for r in made.records}
    same = {record.case_id: record for record in made.records}
    assert all(same[record.case_id] == record for record in few.records)  # whatever else is taken


def test_an_interrupted_call_leaves_no_store_and_the_next_one_continues(real, made, tmp_path, monkeypatch):
    begun, implant = [], implants.implant

    def interrupted(*args):
        begun.append(args)
        if len(begun) == 4:
            raise KeyboardInterrupt
        return implant(*args)

    monkeypatch.setattr(implants, "implant", interrupted)
    command = ["implant", str(real.path), "-o", str(tmp_path / "store"), "--workers", "1"]
    assert main(command) == 130
    with pytest.raises(InputError, match="unfinished"):
        Store.open(tmp_path / "store")
    kept = {folder.name for folder in (tmp_path / "store" / "cases").iterdir()}
    assert len(kept) == 3
    assert main(command) == 0
    assert len(begun) >= 4 + len(made.records) - 3
    assert Store.open(tmp_path / "store", verify=True).manifest_sha256 == made.manifest_sha256


def without_liver(folder) -> Store:
    case = volume(0)
    case.labels[:] = 0
    with pytest.warns(UserWarning, match="no liver"):
        return prepare([source(folder / "in", "a", "b", case)], folder / "store", kind="lits", workers=1)


def full_of_lesions(folder) -> Store:
    case = volume(0)
    case.labels[:, 20:28, 20:28] = UNTYPED_LESION
    return prepare([source(folder / "in", "a", "b", case)], folder / "store", kind="lits", workers=1)


def narrow(folder) -> Store:
    case = volume(0)
    case.labels[:, :, 12:] = 0  # 15 mm of liver
    return prepare([source(folder / "in", "a", "b", case)], folder / "store", kind="lits", workers=1)


@pytest.mark.parametrize(
    ("make", "more", "says"),
    [
        (without_liver, [], "expected a liver in the labels; got none"),
        (full_of_lesions, [], "got none among 8 slices with liver"),
        (narrow, [], "liver without lesion and 24 mm wide"),
        (None, ["--slices", "0"], "expected 1 to 20"),
        (None, ["--slices", "21"], "expected 1 to 20"),
        (None, ["--exclude-trained", "nowhere"], "expected a run folder"),
        (None, ["--workers", "0"], "expected at least 1"),
    ],
)
def test_wrong_input_is_refused_on_one_line(make, more, says, real, tmp_path, capsys):
    store = real if make is None else make(tmp_path)
    capsys.readouterr()
    assert main(["implant", str(store.path), "-o", str(tmp_path / "out"), *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lesionseg: wrong input: ")
    assert says in line
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_generated_ct_and_the_folder_of_the_source_are_refused(real, lits_store, slices_store, tmp_path, capsys):
    for store in (lits_store, slices_store):
        assert main(["implant", str(store), "-o", str(tmp_path / "out")]) == 2
        assert "expected real CT; got CT of the phantom" in capsys.readouterr().err
    assert main(["implant", str(real.path), "-o", str(real.path.parent / "." / "store")]) == 2
    assert "got that of its source" in capsys.readouterr().err
    assert Store.open(real.path, verify=True).manifest_sha256 == real.manifest_sha256


def test_slices_that_are_implants_hold_lesions_and_take_no_more(made, tmp_path):
    with pytest.raises(InputError, match="none among 20 slices with liver"):
        implant_store(made.path, tmp_path / "out")


def test_a_record_names_the_scan_only_where_lesions_are_implanted(real, made):
    for store, fields in ((real, set()), (made, {"implanted_in"})):
        for record in store.records:
            written = record.to_json()
            assert set(json.loads(written)) & {"implanted_in"} == fields
            assert CaseRecord.from_json(written) == record
    record = made.records[0]
    assert record.scans == {record.voxel_checksum, record.implanted_in}
    assert real.records[0].scans == {real.records[0].voxel_checksum}


def test_a_net_is_not_tested_on_implants_in_what_it_was_pretrained_on(
    real, made, pretraining, finetuning, tmp_path, capsys
):
    pretrained = volumes(tmp_path / "A", "A")  # a scan of patient A; the other one of hers it has not seen
    alone = ["--data.folds", "1", "--data.inner_validation", "0"]
    assert main(pretraining(tmp_path / "start", "--data.store", str(pretrained.path), *alone)) == 0
    (seen,) = RunInfo.read(tmp_path / "start").trained_on
    quick = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--data.inner_validation", "0",
             "--model.init_args.weights", str(tmp_path / "start")]  # fmt: skip

    def fit(name, store, fold, folds):
        more = ["--data.store", str(store.path), "--data.folds", str(folds), "--data.fold", str(fold), *quick]
        return main(finetuning(tmp_path / name, *more, schedule="no_freezing"))

    capsys.readouterr()
    refused = [fold for fold in range(3) if fit(f"fold{fold}", made, fold, 3) == 2]
    assert len(refused) == 1  # where patient A is tested
    assert "expected test cases that the net never saw; got 5 that it was trained on" in capsys.readouterr().err
    others = implant_store(real.path, tmp_path / "others", exclude_trained=tmp_path / "start", workers=1)
    patients = {record.patient_id for record in real.records}
    left_out = {record.patient_id for record in real.records if record.voxel_checksum == seen}
    assert {record.patient_id for record in others.records} == patients - left_out
    assert fit("others0", others, 0, 2) == fit("others1", others, 1, 2) == 0
    run = RunInfo.read(tmp_path / "others0")
    assert run.implanted
    tested = set(json.loads((tmp_path / "others0" / "split.json").read_text())["test"])
    scans = {scan for record in others.records if record.case_id not in tested for scan in record.scans}
    assert set(run.trained_on) == {seen, *scans}
    with pytest.raises(InputError, match=r"expected patients that .* has not seen"):
        implant_store(pretrained.path, tmp_path / "none", exclude_trained=tmp_path / "start")


def test_nor_is_a_cascade_scored_on_them(real, made, make_model, tmp_path):
    model = make_model("typed")
    replace(model, trained_on=(real.records[0].voxel_checksum,)).save(tmp_path / "model")
    patient = real.records[0].patient_id
    count = sum(record.patient_id == patient for record in made.records)
    with pytest.raises(InputError, match=f"{count} of 20 cases of patients whose scans it was trained on"):
        evaluate(made.path, tmp_path / "model", tmp_path / "out", device="cpu")
