"""The rows with other nets by the real command line: tables, comparison, an interruption, export."""

import json
import os
import signal
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch

from lesionseg.cascade import Cascade
from lesionseg.cli import main
from lesionseg.data.store import Store
from lesionseg.labels import LESION_TYPES, is_liver
from lesionseg.metrics import LesionFigures
from lesionseg.model_net import Net
from lesionseg.results import FALSE_POSITIVE, REFERENCE, read_run
from lesionseg.runs import RunInfo
from lesionseg.tasks import CropClassifierTask, YNetTask

ROWS = ("no_freezing", "y_net", "crop_classifier", "deep_supervision")
SHORT = ("--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1", "--data.inner_validation", "0")


@pytest.fixture(scope="module")
def fit(finetuning, pretrained):
    def fit(run, row):
        weights = ["--model.init_args.weights", str(pretrained)]
        return main(finetuning(run, *weights, *SHORT, schedule=row))

    return fit


@pytest.fixture(scope="module")
def grid(tmp_path_factory, fit):
    """One cell a row. Not to be changed."""
    root = tmp_path_factory.mktemp("rows") / "finetune"
    for row in ROWS:
        assert fit(root / row / "fold0-seed0", row) == 0
    return root


def test_they_are_rows_of_one_comparison(grid, tmp_path):
    assert main(["compare", str(grid), "--output", str(tmp_path / "out")]) == 0
    assert set(pd.read_csv(tmp_path / "out" / "table.csv").schedule) == set(ROWS)
    runs = [read_run(grid / row / "fold0-seed0") for row in ROWS]
    assert len({run.info.config_sha256 for run in runs}) == 1
    assert len({run.info.fingerprint for run in runs}) == len(ROWS)
    tested = ["case_id", "patient_id", "slice", "figure"]
    assert all(run.slices[tested].equals(runs[0].slices[tested]) for run in runs)


def test_every_part_of_the_loss_is_logged(grid):
    for row in ("y_net", "crop_classifier"):
        log = pd.read_csv(grid / row / "fold0-seed0" / "metrics.csv").dropna(subset="train/loss").iloc[0]
        assert log["train/loss"] == pytest.approx(log["train/loss_segmentation"] + log["train/loss_types"], rel=1e-5)
    assert "train/loss_segmentation" not in pd.read_csv(grid / "no_freezing" / "fold0-seed0" / "metrics.csv")


@pytest.mark.parametrize(("row", "task"), [("y_net", YNetTask), ("crop_classifier", CropClassifierTask)])
def test_an_interrupted_run_goes_on_to_the_same_weights_and_tables(grid, fit, tmp_path, monkeypatch, row, task):
    def stop(self, *_):
        if self.trainer.global_step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(task, "on_train_batch_start", stop, raising=False)
        assert fit(tmp_path / "run", row) == 130
    assert RunInfo.read(tmp_path / "run").state == "running"
    assert fit(tmp_path / "run", row) == 0
    whole = grid / row / "fold0-seed0"
    one, other = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (tmp_path / "run", whole))
    assert all(torch.equal(one["state_dict"][name], tensor) for name, tensor in other["state_dict"].items())
    for table in ("slices.csv", "lesions.csv", "schedule.json"):
        assert (tmp_path / "run" / table).read_bytes() == (whole / table).read_bytes()
    assert json.loads((whole / "schedule.json").read_text())["steps"][0]["rates"]["classifier"] == 1


@pytest.fixture(scope="module")
def liver(tmp_path_factory, pretraining):
    run = tmp_path_factory.mktemp("liver") / "run"
    assert main(pretraining(run, net="liver")) == 0
    return run


@pytest.mark.parametrize("row", ROWS)
def test_what_is_exported_finds_and_names_what_the_run_was_tested_with(grid, liver, slices_store, tmp_path, row):
    run = grid / row / "fold0-seed0"
    words = ["export", "--liver", str(liver), "--lesion", str(run), "--output", str(tmp_path / "model")]
    assert main(words) == 0
    cascade, store = Cascade.load(tmp_path / "model"), Store.open(slices_store)
    tested, figures = read_run(run), LesionFigures(tuple(LESION_TYPES))
    for position, case in enumerate(dict.fromkeys(tested.slices.case_id)):
        found = cascade.find_lesions(store.scan(case).hu, np.array([0]), store.record(case).liver_box).classes
        figures.update(found[0], store.labels(case)[0], position)
    figures.compute()
    slices, lesions = pd.DataFrame(figures.slice_rows()), pd.DataFrame(figures.lesion_rows())
    assert slices.figure.tolist() == tested.slices.figure.tolist()
    np.testing.assert_allclose(slices.value, tested.slices.value, atol=0.01)  # batches of another size round otherwise
    for column in ("type", "found", "predicted_type"):
        of_reference = [table[table.kind == REFERENCE][column].tolist() for table in (lesions, tested.lesions)]
        assert of_reference[0] == of_reference[1]
    of_others = [Counter(table[table.kind == FALSE_POSITIVE].predicted_type) for table in (lesions, tested.lesions)]
    assert (of_others[0] - of_others[1]).total() <= 1
    assert (of_others[1] - of_others[0]).total() <= 1
    segmented = cascade.segment(store.scan(case), liver=is_liver(store.labels(case)), probabilities=True)
    np.testing.assert_allclose(segmented.probabilities.sum(0).max(), 1, atol=0.01)
    assert {round(sum(finding.probabilities.values()), 6) for finding in segmented.findings} <= {1}


def test_a_deeply_supervised_net_is_exported_without_its_further_heads(grid):
    run = grid / "deep_supervision" / "fold0-seed0"
    net = Net.from_run(run)
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    held = {name.removeprefix("net.") for name in state if name.startswith("net.")}
    assert held - set(net.tensors) == {f"deep_heads.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")}
    assert net.build()(torch.zeros(1, 3, 32, 32)).shape == (1, 5, 32, 32)
