"""The tables of a test run, against counts made by hand from the same masks."""

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
from scipy import ndimage

from lesionseg.callbacks.results import Results
from lesionseg.data.datamodule import LesionDataModule
from lesionseg.data.store import Store
from lesionseg.inputs import InputSpec
from lesionseg.labels import TARGETS
from lesionseg.results import LESION_COLUMNS, SLICE_COLUMNS
from lesionseg.tasks import LesionTask, LiverTask

SIZE = 32
SMALL = {"encoder": "tu-test_resnet", "decoder_channels": (8, 8, 8, 8, 8)}


def run_test_part(folder, store, net, predict, monkeypatch, **options):
    """Test a net that predicts `predict(reference)` on every slice of the test part."""
    data = LesionDataModule(store, net.target.name, net.spec, batch_size=4, **options)
    monkeypatch.setattr(net, "predict_slices", lambda batch: [predict(reference) for reference in batch.references])
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[Results(folder)],
    )  # fmt: skip
    (logged,) = trainer.test(net, data, verbose=False)
    return data, logged


def read(folder, name, columns):
    table = pd.read_csv(folder / name)
    assert list(table.columns) == list(columns)
    return table


def lesion_net(target):
    return LesionTask(input=InputSpec(SIZE, "liver"), target=target, **SMALL)


def test_all_found_and_named_right(tmp_path, slices_store, monkeypatch):
    data, logged = run_test_part(tmp_path, slices_store, lesion_net("typed"), lambda r: r.clone(), monkeypatch, folds=2)
    slices, lesions = read(tmp_path, "slices.csv", SLICE_COLUMNS), read(tmp_path, "lesions.csv", LESION_COLUMNS)
    assert sorted(set(slices.case_id)) == list(data.split.test)
    wide = slices.pivot_table(index=["case_id", "slice"], columns="figure", values="value", dropna=False)
    assert set(wide.columns) >= {"dice1", "dice2", "false_positives"}
    assert (wide.false_positives == 0).all()
    assert set(wide.dice2) == {1}
    assert (lesions.kind == "reference").all()
    assert (lesions.found == 1).all()
    assert (lesions.overlap == 1).all()
    assert (lesions.type == lesions.predicted_type).all()
    assert logged["test/dice1"] == logged["test/success_rate"] == logged["test/accuracy_all"] == 1


def test_each_lesion_of_the_masks_is_a_row_with_its_area(tmp_path, slices_store, monkeypatch):
    """Nothing is predicted: every lesion is missed. Areas by scipy from the store."""
    liver_alone = lambda reference: reference.clamp(max=1)  # noqa: E731
    data, logged = run_test_part(tmp_path, slices_store, lesion_net("typed"), liver_alone, monkeypatch, folds=2)
    store, expected = Store.open(slices_store), []
    for record in store.records:
        if record.case_id in data.split.test:
            marked = np.asarray(store.labels(record.case_id)[0]) > 1
            components, n = ndimage.label(marked, np.ones((3, 3)))
            areas = ndimage.sum_labels(marked, components, range(1, n + 1)).astype(int)
            mm2 = record.spacing_mm[1] * record.spacing_mm[2]
            expected += [(record.case_id, record.patient_id, area, round(area * mm2, 6)) for area in areas]
    lesions = read(tmp_path, "lesions.csv", LESION_COLUMNS)
    columns = zip(lesions.case_id, lesions.patient_id, lesions.area_px, lesions.area_mm2.round(6), strict=True)
    assert sorted(columns) == sorted(expected)
    assert lesions.lesion_id.is_unique
    assert (lesions.found == 0).all()
    assert lesions.predicted_type.isna().all()
    assert logged["test/success_rate"] == 0
    assert logged["test/lesions_n"] == len(expected)


def test_what_is_no_lesion_is_a_false_positive(tmp_path, png_store, monkeypatch):
    """A block in the corner of every slice, far from the lesion; the spacing of a PNG is not known."""

    def corner(reference):
        predicted = reference.clone()
        predicted[0:2, 0:3] = TARGETS["typed"].classes.index("metastasis")
        return predicted

    run_test_part(tmp_path, png_store, lesion_net("typed"), corner, monkeypatch, folds=2)
    slices, lesions = read(tmp_path, "slices.csv", SLICE_COLUMNS), read(tmp_path, "lesions.csv", LESION_COLUMNS)
    extra = lesions[lesions.kind == "false_positive"]
    assert len(extra) == len(set(slices.case_id)) == 3
    assert (extra.area_px == 6).all()
    assert (extra.predicted_type == "metastasis").all()
    assert extra.type.isna().all()
    assert (slices[slices.figure == "false_positives"].value == 1).all()
    assert lesions.area_mm2.isna().all()


def test_slices_without_lesion_stand_in_the_table_too(tmp_path, lits_store, monkeypatch):
    data, _ = run_test_part(tmp_path, lits_store, lesion_net("lesion"), lambda r: r.clone(), monkeypatch, folds=3)
    records = {record.case_id: record for record in data.store.records}
    places = {(case, index) for case in data.split.test for index in records[case].liver_slices}
    slices = read(tmp_path, "slices.csv", SLICE_COLUMNS)
    assert set(zip(slices.case_id, slices.slice, strict=True)) == places
    figures = slices.pivot_table(index=["case_id", "slice"], columns="figure", values="value", dropna=False)
    with_lesion = {(case, index) for case in data.split.test for index in records[case].lesion_slices}
    assert set(figures.dice1.dropna().index) == with_lesion
    assert with_lesion < places


def test_no_lesion_anywhere_leaves_a_table_of_no_rows(tmp_path, png_store, monkeypatch):
    """References without lesions: the columns stay."""
    monkeypatch.setattr("lesionseg.metrics.compare_slice", _on_liver_alone)
    run_test_part(tmp_path, png_store, lesion_net("typed"), lambda r: r.clamp(max=1), monkeypatch, folds=2)
    assert len(read(tmp_path, "lesions.csv", LESION_COLUMNS)) == 0
    assert len(read(tmp_path, "slices.csv", SLICE_COLUMNS))


def _on_liver_alone(predicted, reference, *args):
    from lesionseg.lesions import compare_slice

    return compare_slice(np.minimum(predicted, 1), np.minimum(reference, 1), *args)


def test_the_liver_net_leaves_the_dice_of_each_case(tmp_path, lits_store, monkeypatch):
    """The prediction is the liver one pixel to the right; Dice in 3-D by numpy."""
    net = LiverTask(input=InputSpec(SIZE, "slice"), target="liver", **SMALL)
    data, logged = run_test_part(tmp_path, lits_store, net, lambda r: r.roll(1, dims=1), monkeypatch, folds=3)
    cases = read(tmp_path, "cases.csv", ["case_id", "patient_id", "liver_dice"])
    assert list(cases.case_id) == list(data.split.test)
    for row in cases.itertuples():
        liver = np.asarray(data.store.labels(row.case_id)) > 0
        moved = np.roll(liver, 1, axis=2)
        dice = 2 * (liver & moved).sum() / (liver.sum() + moved.sum())
        assert 0.5 < row.liver_dice < 1
        assert row.liver_dice == pytest.approx(dice, abs=1e-12)
        assert row.patient_id == data.records[row.case_id].patient_id
    assert logged["test/liver_dice"] == pytest.approx(cases.liver_dice.mean(), abs=1e-6)
    assert not (tmp_path / "slices.csv").exists()


def test_a_second_test_starts_from_nothing(tmp_path, png_store, monkeypatch):
    net = lesion_net("typed")
    for _ in range(2):
        run_test_part(tmp_path, png_store, net, lambda r: r.clone(), monkeypatch, folds=2)
    assert len(read(tmp_path, "lesions.csv", LESION_COLUMNS)) == 3
