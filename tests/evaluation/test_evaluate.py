"""`lesionseg evaluate`: from a store and a model folder to figures, refusals and files."""

import json
import math
import multiprocessing
import os
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from lesionseg import parallel
from lesionseg.boxes import liver_box
from lesionseg.cascade import Cascade
from lesionseg.cli import INTERRUPTED, WRONG_INPUT, main
from lesionseg.data.store import Store
from lesionseg.errors import InputError
from lesionseg.evaluation import folder as module
from lesionseg.evaluation.evaluate import evaluate, kept
from lesionseg.evaluation.figures import CASCADE, PREDICTED_BOX, REFERENCE_BOX
from lesionseg.labels import LESION_TYPES, TARGETS
from lesionseg.lesions import Counts
from lesionseg.metrics import LesionFigures
from lesionseg.model_net import Net
from lesionseg.results import read_run
from lesionseg.runs import RunInfo
from lesionseg.scan import Scan

EVERY_FILE = {".lock", "request.json", "cases", "cases.csv", "lesions.csv", "evaluation.json", "evaluation.md"}


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """However long it takes: some tests change what the cascade does."""
    monkeypatch.setattr(parallel, "SECONDS_TO_START", math.inf)


@pytest.fixture(scope="module")
def folder_of(make_model, tmp_path_factory):
    """Saves a model made by `make_model`."""

    def save(*args, **fields):
        folder = tmp_path_factory.mktemp("model") / "model"
        make_model(*args, **fields).save(folder)
        return folder

    return save


@pytest.fixture(scope="module")
def typed(folder_of):
    return folder_of("typed")


@pytest.fixture(scope="module")
def untyped(folder_of):
    return folder_of("lesion")


@pytest.fixture(scope="module")
def evaluated(slices_store, typed, tmp_path_factory):
    """Folder and figures of the typed model on slices."""
    folder = tmp_path_factory.mktemp("evaluated") / "out"
    return folder, evaluate(slices_store, typed, folder, device="cpu", submission=True)


def segmented(store, model):
    """Every case of a store with what the cascade makes of it."""
    store, cascade = Store.open(store), Cascade.load(model, device="cpu")
    for record in store.records:
        affine = None if record.affine is None else np.array(record.affine)
        scan = Scan(np.array(store.hu(record.case_id)), "x", record.spacing_mm, affine, record.generated)
        yield record, cascade, cascade.segment(scan), np.array(store.labels(record.case_id))


def test_reference_boxes_give_the_very_tables_of_the_run(make_model, pretrained, lits_store, tmp_path):
    """On slices the net has not seen: what training reports is where the comparison of boxes begins."""
    seen = RunInfo.read(pretrained).trained_on
    model = replace(make_model("lesion"), lesions=(Net.from_run(pretrained),), trained_on=seen, generated=True)
    model.save(tmp_path / "model")
    evaluate(lits_store, tmp_path / "model", tmp_path / "out", device="cpu", exclude_trained=True)
    run, compared = read_run(pretrained), 0
    for case_id, rows in run.slices.groupby("case_id"):
        kept = json.loads((tmp_path / "out" / "cases" / f"{case_id}.json").read_text())["tables"][REFERENCE_BOX]
        own = {(row["slice_key"], row["figure"]): row["value"] for row in kept["slices"]}
        theirs = {(row.slice, row.figure): None if math.isnan(row.value) else row.value for row in rows.itertuples()}
        assert own == pytest.approx(theirs, abs=0)
        compared += len(own)
    assert compared == len(run.slices) > 0


@pytest.mark.parametrize(
    ("store", "model"), [("lits_store", "typed"), ("slices_store", "typed"), ("slices_store", "untyped")]
)
def test_figures_follow_from_what_the_cascade_gives(store, model, request, tmp_path):
    store, model = request.getfixturevalue(store), request.getfixturevalue(model)
    content = evaluate(store, model, tmp_path / "out", device="cpu")
    name_types = store == request.getfixturevalue("slices_store") and model == request.getfixturevalue("typed")
    types = (*LESION_TYPES, "undetermined") if name_types else ("lesion",)
    figures = {way: LesionFigures(types) for way in (REFERENCE_BOX, PREDICTED_BOX, CASCADE)}
    lesion_dice, liver_dice, key = [], [], 0
    for record, cascade, found, labels in segmented(store, model):
        lesion_dice.append(Counts.of(found.labels > 1, labels > 1).dice)
        liver_dice.append(Counts.of(found.labels > 0, labels > 0).dice)
        boxes = {REFERENCE_BOX: record.liver_box, PREDICTED_BOX: liver_box(found.labels > 0)}
        slices = np.array(record.liver_slices)
        maps = {way: cascade.find_lesions(found.scan.hu, slices, box).classes for way, box in boxes.items()}
        fold = np.array([0, 1, 2, 3, 4, 5] if name_types else [0, 1, 2, 2, 2, 2])
        for index in record.liver_slices:
            key += 1
            for way, predicted in {**maps, CASCADE: found.labels}.items():
                figures[way].update(fold[predicted[index]], fold[labels[index]], key)
    assert content["volumes"]["lesion_dice_per_case"]["estimate"] == pytest.approx(np.nanmean(lesion_dice))
    assert content["volumes"]["liver_dice_per_case"]["estimate"] == pytest.approx(np.nanmean(liver_dice))
    for way, expected in figures.items():
        for figure, value in expected.compute().items():
            if figure in content["slices"][way]:
                assert content["slices"][way][figure]["estimate"] == pytest.approx(value, nan_ok=True), (way, figure)
    assert (content["confusion"] is not None) == name_types


def test_what_is_written(evaluated, slices_store, typed):
    folder, content = evaluated
    assert {path.name for path in folder.iterdir()} == EVERY_FILE | {"submission"}
    store = Store.open(slices_store)
    cases, lesions = pd.read_csv(folder / "cases.csv"), pd.read_csv(folder / "lesions.csv")
    assert cases.case_id.tolist() == [record.case_id for record in store.records]
    assert (lesions[lesions.kind == "reference"].groupby("case_id").size() > 0).sum() == len(cases)
    assert (cases.reference_lesions.sum(), cases.predicted_lesions.sum()) == tuple(
        lesions.kind.value_counts()[["reference", "predicted"]]
    )
    assert cases.lesion_dice.mean() == pytest.approx(content["volumes"]["lesion_dice_per_case"]["estimate"])
    written = json.loads((folder / "evaluation.json").read_text())
    assert written["volumes"]["lesion_recall_any"]["n"] == len(lesions[lesions.kind == "reference"])
    assert "trained_on" not in json.dumps(written["model"])
    text = (folder / "evaluation.md").read_text()
    assert text.startswith("# The whole cascade evaluated (generated CT)")
    for part in (
        "Research use only",
        "reference box",
        "predicted box",
        "whole cascade",
        "undetermined",
        "Only 5 patients",
    ):
        assert part in text


def test_no_file_names_a_patient_or_a_place(evaluated, phantom_root):
    folder, _ = evaluated
    table = pd.read_csv(phantom_root / "slices" / "slices.csv", dtype=str)
    names = {
        *table.patient_id,
        *(image.split(".")[0].split("/")[-1] for image in table.image),
        str(phantom_root.parent),
    }
    for path in folder.rglob("*"):
        text = path.name + ("" if path.is_dir() else path.read_bytes().decode("latin-1"))
        assert not [name for name in names if name in text]


def test_submission_holds_the_classes_of_the_challenge_on_the_stored_grid(evaluated, slices_store, typed):
    folder, _ = evaluated
    for record, _, found, _ in segmented(slices_store, typed):
        path = folder / "submission" / f"test-segmentation-{record.case_id}.nii"
        image = nib.load(path)
        values = np.asarray(image.dataobj).transpose(2, 1, 0)
        assert image.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(values, TARGETS["lesion"].apply(found.labels))
        for index in ((0, 0, 0), (0, 5, 0), (0, 0, 7)):
            lps = np.array(record.affine)[:3] @ [*index, 1]
            np.testing.assert_allclose(image.affine[:3] @ [*index[::-1], 1], lps * (-1, -1, 1), atol=1e-3)


def test_an_interrupted_evaluation_continues(slices_store, typed, tmp_path, monkeypatch, evaluated):
    command = ["evaluate", str(slices_store), "--model", str(typed), "-o", str(tmp_path / "out"), "--device", "cpu"]
    calls, segment = [], Cascade.segment

    def counted(self, scan, **options):
        if len(calls) == 5 and not (tmp_path / "go on").exists():
            raise KeyboardInterrupt
        calls.append(scan.scan_id)
        return segment(self, scan, **options)

    monkeypatch.setattr(Cascade, "segment", counted)
    assert main(command) == INTERRUPTED
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".lock", "request.json", "cases"}
    (tmp_path / "go on").touch()
    assert main(command) == 0
    assert len(calls) == len(set(calls)) == 12
    assert main(command) == 0
    assert len(calls) == 12
    for name in ("cases.csv", "lesions.csv", "evaluation.md"):
        assert (tmp_path / "out" / name).read_text() == (evaluated[0] / name).read_text()
    assert main([*command, "--submission"]) == 0  # the label maps are not kept: all cases once more
    assert len(list((tmp_path / "out" / "submission").iterdir())) == 12


def test_a_torn_score_is_made_again(evaluated, slices_store, typed):
    folder, content = evaluated
    path = sorted((folder / "cases").iterdir())[0]
    whole = path.read_text()
    for torn in (whole[: len(whole) // 2], "[1]"):
        path.write_text(torn)
        again = evaluate(slices_store, typed, folder, device="cpu")
        assert repr(again["volumes"]) == repr(content["volumes"])
        assert path.read_text() == whole


def dies(arguments, step, name):
    """`evaluate` in a process that is killed when it is about to do a step with a path of that name."""
    done = getattr(Path, step)

    def dying(path, *args, **options):
        if name in (path.name, *(other.name for other in args if isinstance(other, Path))):
            os.kill(os.getpid(), signal.SIGKILL)
        return done(path, *args, **options)

    setattr(Path, step, dying)
    evaluate(*arguments, device="cpu")


@pytest.mark.parametrize(
    ("step", "name", "left"),
    [
        ("replace", "request.json", {".lock", ".request.json.PID"}),
        ("mkdir", "cases", {".lock", "request.json"}),
        (
            "replace",
            "lesions.csv",
            EVERY_FILE - {"lesions.csv", "evaluation.json", "evaluation.md"} | {".lesions.csv.PID"},
        ),
    ],
)
def test_killed_at_any_moment_it_continues(step, name, left, evaluated, slices_store, typed, tmp_path):
    folder = tmp_path / "out"
    if name == "lesions.csv":  # the scores are there: a net is slow in a fork
        shutil.copytree(evaluated[0] / "cases", folder / "cases")
        shutil.copy(evaluated[0] / "request.json", folder)
    arguments = (slices_store, typed, folder)
    process = multiprocessing.get_context("fork").Process(target=dies, args=(arguments, step, name))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert {path.name.replace(str(process.pid), "PID") for path in folder.iterdir()} == left
    assert repr(evaluate(*arguments, device="cpu")) == repr(evaluated[1])
    assert {path.name for path in folder.iterdir()} == EVERY_FILE


def test_one_evaluation_at_a_time(evaluated, slices_store, typed, tmp_path, monkeypatch, capsys):
    folder, said, segment = tmp_path / "out", [], Cascade.segment
    command = ["evaluate", str(slices_store), "--model", str(typed), "-o", str(folder), "--device", "cpu"]

    def while_another_begins(self, scan, **options):
        if not said:
            said.append(main(command))
            said.append(capsys.readouterr().err)
        return segment(self, scan, **options)

    monkeypatch.setattr(Cascade, "segment", while_another_begins)
    assert main(command) == 0
    line = (
        "expected one `lesionseg evaluate` at a time; got another at work; wait until it ends, or name another folder"
    )
    assert said == [WRONG_INPUT, f"lesionseg: wrong input: {folder}: {line}\n"]
    assert (folder / "evaluation.md").read_text() == (evaluated[0] / "evaluation.md").read_text()


def test_another_evaluation_that_was_there_just_now_keeps_its_folder(slices_store, typed, tmp_path, monkeypatch):
    request, one_at_a_time = tmp_path / "out" / "request.json", module.one_at_a_time

    def held_after_another(folder, *args):
        folder.mkdir()
        request.write_text("another")
        return one_at_a_time(folder, *args)

    monkeypatch.setattr(module, "one_at_a_time", held_after_another)
    with pytest.raises(InputError, match="got one of another store"):
        evaluate(slices_store, typed, tmp_path / "out", device="cpu")
    assert request.read_text() == "another"


def test_a_score_that_goes_before_it_is_pooled_is_told(slices_store, typed, tmp_path, monkeypatch):
    first = Store.open(slices_store).records[0].case_id
    cases, segment = tmp_path / "out" / "cases", Cascade.segment

    def segmented(self, scan, **options):
        (cases / f"{first}.json").unlink(missing_ok=True)
        return segment(self, scan, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Cascade, "segment", segmented)
        with pytest.raises(
            InputError, match=r"cases: expected scores of 12 cases; got 11 that can be read; give the co"
        ):
            evaluate(slices_store, typed, tmp_path / "out", device="cpu")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".lock", "request.json", "cases"}
    assert len(evaluate(slices_store, typed, tmp_path / "out", device="cpu")["facts"]) > 0
    assert len(list(cases.iterdir())) == 12


@pytest.mark.parametrize("what", ["another model", "another setting", "another source", "other files", "a file"])
def test_a_folder_holds_one_evaluation(what, evaluated, slices_store, typed, untyped, tmp_path, monkeypatch):
    folder = evaluated[0] if what.startswith("another") else tmp_path / "out"
    if what == "other files":
        folder.mkdir()
        (folder / "notes.txt").touch()
    if what == "a file":
        folder.touch()
    if what == "another source":  # scores of earlier code would stand under the commit of this one
        monkeypatch.setattr("lesionseg.evaluation.folder.source_sha256", lambda: "0" * 64)
    model = untyped if what == "another model" else typed
    with pytest.raises(InputError, match="a new folder, or one of this evaluation"):
        evaluate(slices_store, model, folder, device="cpu", tta=what == "another setting")
    if what == "other files":
        assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_patients_the_model_has_seen_are_refused_or_left_out(slices_store, folder_of, tmp_path, capsys):
    records = Store.open(slices_store).records
    patient = Counter(record.patient_id for record in records).most_common(1)[0][0]
    theirs = [record for record in records if record.patient_id == patient]
    assert len(theirs) > 1
    model = folder_of("typed", trained_on=(theirs[0].voxel_checksum, "0" * 64))  # one scan is enough to know a patient
    command = ["evaluate", str(slices_store), "--model", str(model), "-o", str(tmp_path / "out"), "--device", "cpu"]
    assert main(command) == WRONG_INPUT
    message = capsys.readouterr().err
    assert f"{len(theirs)} of 12 cases of patients" in message
    assert "--exclude-trained" in message
    assert not (tmp_path / "out").exists()
    assert main([*command, "--exclude-trained"]) == 0
    assert set(pd.read_csv(tmp_path / "out" / "cases.csv").patient_id) == {r.patient_id for r in records} - {patient}
    assert f"Left out: {len(theirs)} cases" in (tmp_path / "out" / "evaluation.md").read_text()


def test_a_store_the_model_has_seen_whole_is_refused(slices_store, folder_of, tmp_path):
    model = folder_of("typed", trained_on=tuple(r.voxel_checksum for r in Store.open(slices_store).records))
    with pytest.raises(InputError, match=r"12 of 12 cases .* evaluate it on another store"):
        evaluate(slices_store, model, tmp_path / "out", device="cpu", exclude_trained=True)


def test_a_model_of_the_phantom_is_not_scored_on_real_ct(png_store, folder_of, tmp_path):
    with pytest.raises(InputError, match="expected generated CT"):
        evaluate(png_store, folder_of("typed", generated=True), tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_slices_of_unknown_spacing_have_no_figure_in_mm(png_store, typed, tmp_path):
    content = evaluate(png_store, typed, tmp_path / "out", device="cpu", submission=True)
    for figure in ("liver_assd_mm", "lesion_assd_mm"):
        assert content["volumes"][figure]["n"] == 0
    assert content["volumes"]["lesion_dice_per_case"]["n"] == 6
    assert any("6 cases of unknown spacing" in fact for fact in content["facts"])
    assert content["facts"][0].startswith("Data: real CT, 6 cases of 6 patients")


def test_where_no_liver_is_found_all_is_missed(slices_store, make_model, tmp_path):
    model = make_model("typed")
    tensors = {**model.liver.tensors, "segmentation_head.0.bias": torch.tensor([0.0, -1e6])}
    replace(model, liver=replace(model.liver, tensors=tensors)).save(tmp_path / "model")
    content = evaluate(slices_store, tmp_path / "model", tmp_path / "out", device="cpu")
    assert content["volumes"]["liver_dice_per_case"]["estimate"] == 0
    assert content["volumes"]["lesion_recall_any"]["estimate"] == 0
    assert content["volumes"]["burden_error_absolute"]["n"] == 12
    assert content["volumes"]["liver_assd_mm"]["n"] == 0
    for way in (PREDICTED_BOX, CASCADE):
        assert content["slices"][way]["success_rate"]["estimate"] == 0
    assert content["slices"][REFERENCE_BOX]["success_rate"]["n"] == content["slices"][CASCADE]["success_rate"]["n"]


def test_livers_from_a_net_are_no_reference(slices_store, typed, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    (store / "cases").symlink_to(slices_store / "cases")
    manifest = json.loads((slices_store / "manifest.json").read_text())
    for case in manifest["cases"]:
        case["liver_predicted"] = True
    (store / "manifest.json").write_text(json.dumps(manifest))
    content = evaluate(store, typed, tmp_path / "out", device="cpu")
    for figure in ("liver_dice_per_case", "liver_assd_mm", "burden_error_rmse"):
        assert content["volumes"][figure]["n"] == 0
    assert any(fact.startswith("12 cases have no reference liver") for fact in content["facts"])


@pytest.mark.parametrize("name", ["hu.npy", "labels.npy"])
def test_a_case_whose_voxels_were_changed_is_refused(slices_store, typed, tmp_path, name):
    store = Path(shutil.copytree(slices_store, tmp_path / "store"))
    file = sorted(store.rglob(name))[3]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"expected checksum .* got other voxels; remove"):
        evaluate(store, typed, tmp_path / "out", device="cpu")


def test_a_memory_that_is_full_is_told_in_a_line(slices_store, typed, tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Cascade, "segment", full)
    with pytest.raises(InputError, match=r"expected a scan that fits into memory; .*--batch-size"):
        evaluate(slices_store, typed, tmp_path / "out", device="cpu")


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"liver": null}', '{"tables": 1}'])
def test_what_is_no_score_is_none(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    assert kept(tmp_path / "x.json") is None


def test_predicting_the_reference_is_perfect(slices_store, typed, tmp_path, monkeypatch):
    """A check of the chain from files to figures: labels of the store in the place of what the nets say."""
    store, segment = Store.open(slices_store), Cascade.segment

    def perfect(self, scan):
        labels = np.array(store.labels(scan.scan_id))
        found = segment(self, scan, liver=labels > 0)
        from lesionseg.findings import measure_findings
        from lesionseg.matching import number_lesions

        ids = number_lesions(labels > 1).astype(np.uint16)
        findings = measure_findings(scan, ids, ["cyst"] * int(ids.max()), [{}] * int(ids.max()))
        return replace(found, labels=labels, lesion_ids=ids, findings=findings)

    monkeypatch.setattr(Cascade, "segment", perfect)
    content = evaluate(slices_store, typed, tmp_path / "out", device="cpu")
    for name, figure in content["volumes"].items():
        expected = 0 if "assd" in name or "burden" in name else 1
        assert figure["estimate"] == expected, name
    for figure in ("dice1", "dice2", "success_rate", "accuracy_all"):
        assert content["slices"][CASCADE][figure]["estimate"] == 1
    boxes = [content["slices"][way]["dice1"]["estimate"] for way in (REFERENCE_BOX, PREDICTED_BOX)]
    assert boxes[0] == boxes[1]
