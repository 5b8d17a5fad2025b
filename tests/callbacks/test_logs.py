"""What a run logs, against figures worked out here from its checkpoints and tables; and that it changes nothing."""

import json
import os
import signal
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from wandb.sdk.artifacts.exceptions import WaitTimeoutError

from lesionseg.callbacks import lesion_logs, net_artifact, overlays
from lesionseg.callbacks.logs import logs
from lesionseg.callbacks.net_artifact import NetArtifact, artifact_name
from lesionseg.callbacks.overlays import SLICES, Overlays
from lesionseg.callbacks.worst_lesions import PICTURES
from lesionseg.cli import main
from lesionseg.compare import compare
from lesionseg.networks import blocks, build_unet
from lesionseg.ranks import TIMEOUT
from lesionseg.run_weights import read_net, tensors_sha256, weights_sha256
from lesionseg.tasks import LesionTask

EPOCHS, STEPS = 6, 3
BLOCKS = ("stem", "stage1", "stage2", "stage3", "stage4", "decoder", "head")
TYPES = ("cyst", "hemangioma", "metastasis")


@pytest.fixture(scope="module")
def command(finetuning, pretrained):
    return lambda run, *more: finetuning(run, "--model.init_args.weights", str(pretrained), *more)


@pytest.fixture(scope="module")
def noted():
    """What the run below is seen to do from outside: gradients of each epoch's last batch, and slices noted for W&B."""
    return {"gradients": [], "slices": []}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, command, noted):
    """A run that nothing interrupted."""
    run = tmp_path_factory.mktemp("logged") / "hierarchical_unfreezing" / "fold0-seed0"

    def note(task):
        if task.trainer.is_last_batch:
            held = {name: p.grad.clone() for name, p in task.net.named_parameters() if p.grad is not None}
            noted["gradients"].append(held)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LesionTask, "on_after_backward", note)
        patch.setattr(lesion_logs, "_probabilities", lambda *slice_: noted["slices"].append(slice_) or [])
        assert main(command(run)) == 0
    return run


def epochs(run) -> pd.DataFrame:
    """`metrics.csv`, the last value of each column in each epoch of the training."""
    return pd.read_csv(run / "metrics.csv").groupby("epoch").last().loc[: EPOCHS - 1]


def members(run) -> dict[str, list[str]]:
    """Names of the parameters of each block."""
    description = read_net(run)[0]
    net = build_unet(
        description["encoder"],
        classes=len(description["classes"]),
        encoder_weights=None,
        decoder_channels=description["decoder_channels"],
    )
    return {name: [path for path, _ in block.parameters] for name, block in blocks(net).items()}


def length(tensors) -> float:
    return float(np.sqrt(sum((tensor.double() ** 2).sum() for tensor in tensors)))


def test_rate_flag_and_phase_follow_the_schedule(whole):
    log, steps = epochs(whole), json.loads((whole / "schedule.json").read_text())["steps"]
    rates = pd.DataFrame([step["rates"] for step in steps for _ in range(step["start"], step["stop"])])
    for block in BLOCKS:
        assert log[f"trains/{block}"].tolist() == (rates[block] > 0).astype(float).tolist()
        assert log[f"lr/{block}"].tolist() == pytest.approx((1e-3 * rates[block]).tolist(), rel=1e-6)
    assert log.phase.tolist() == [0, 1, 2, 3, 4, 5]


def test_drift_is_that_of_the_last_checkpoint_from_the_pretraining(whole, pretrained):
    log, now, before = epochs(whole), read_net(whole)[1], read_net(pretrained)[1]
    for block, names in members(whole).items():
        if block != "head":  # the pretraining had another one
            expected = length(now[n] - before[n] for n in names) / length(before[n] for n in names)
            assert log[f"drift/{block}"].iloc[-1] == pytest.approx(expected, rel=1e-5)
    assert (log["drift/head"] > 0).all()


def test_a_block_drifts_only_while_it_trains(whole):
    log = epochs(whole)
    for block in BLOCKS:
        moved = log[f"drift/{block}"].diff().fillna(log[f"drift/{block}"]) != 0
        assert moved.tolist() == (log[f"trains/{block}"] == 1).tolist()


def test_gradient_norms_are_those_of_the_last_batch(whole, noted):
    log = epochs(whole)
    assert len(noted["gradients"]) == EPOCHS
    for block, names in members(whole).items():
        expected = [length(held[n] for n in names if n in held) for held in noted["gradients"]]
        assert log[f"grad_norm/{block}"].tolist() == pytest.approx(expected, rel=1e-5)
    assert log["grad_norm/stem"].tolist()[:5] == [0] * 5


def test_the_parts_of_the_loss_add_up(whole):
    log = epochs(whole)
    parts = log[["train/loss_dice", "train/loss_cross_entropy"]]
    assert parts.notna().all(axis=None)
    assert parts.sum(axis=1).tolist() == pytest.approx(log["train/loss"].tolist(), rel=1e-5)


def test_the_confusion_holds_every_lesion_of_the_inner_validation(whole):
    log = epochs(whole).iloc[1::2]
    cells = log[[name for name in log if name.startswith("val/confusion/")]]
    assert cells.shape[1] == 3 * 4
    assert cells.sum(axis=1).tolist() == log["val/lesions_n"].tolist()
    right = sum(log[f"val/confusion/{name}/{name}"] for name in TYPES) / log["val/lesions_n"]
    missed = sum(log[f"val/confusion/{name}/missed"] for name in TYPES) / log["val/lesions_n"]
    assert right.tolist() == pytest.approx(log["val/accuracy_all"].tolist())
    assert (1 - missed).tolist() == pytest.approx(log["val/success_rate"].tolist())


def test_nothing_is_worked_out_for_wandb_where_it_is_disabled(whole, noted):
    assert noted["slices"] == []


def test_all_figures_of_the_inner_validation_are_logged(whole):
    log = epochs(whole).iloc[1::2]
    names = ("dice1", "dice2", "success_rate", "accuracy_all", "accuracy_found", "false_positives_per_slice")
    assert {f"val/{name}" for name in (*names, *(f"dice_{name}" for name in TYPES))} <= set(log)


def test_overlays_of_the_same_slices_after_each_validation(whole):
    sheets = sorted(path.name for path in (whole / "overlays").iterdir())
    assert sheets == ["epoch-001.png", "epoch-003.png", "epoch-005.png"]
    pictures = [np.asarray(Image.open(whole / "overlays" / name)) for name in sheets]
    foreground = json.loads((whole / "split.json").read_text())["validation"]  # a lesion on each slice of this phantom
    assert len(pictures[0]) == 256 * min(SLICES, len(foreground))
    references = [picture[:, :256] for picture in pictures]
    assert np.array_equal(references[0], references[2])  # the reference stays; the prediction need not
    assert not np.array_equal(pictures[0], pictures[2])


def test_the_worst_lesions_are_pictured(whole):
    lesions = pd.read_csv(whole / "lesions.csv", keep_default_na=False)
    wrong = lesions[(lesions.kind == "reference") & (lesions.type != lesions.predicted_type)]
    largest = wrong.sort_values("area_px", ascending=False).head(PICTURES)  # one spacing in this phantom
    pictured = {path.stem for path in (whole / "worst").iterdir()}
    assert len(pictured) == len(largest) > 0
    assert min(wrong.set_index("lesion_id").loc[sorted(pictured)].area_px) >= largest.area_px.min()


def test_the_page_of_a_comparison_shows_what_a_run_left(whole, tmp_path):
    compare(whole.parents[1], tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/svg+xml") == 1
    assert "No drift" not in page
    assert page.count('<figure><img src="data:image/png') == len(list((whole / "worst").iterdir()))


def test_logging_changes_nothing_that_is_trained(tmp_path, command, whole, monkeypatch):
    assert len(logs(tmp_path)) > 3
    monkeypatch.setattr("lesionseg.callbacks.of_a_run.logs", lambda folder: [])
    run = tmp_path / "run"
    assert main(command(run)) == 0
    assert not (run / "overlays").exists()
    bare, logged = (torch.load(r / "checkpoints" / "last.ckpt", weights_only=True) for r in (run, whole))
    assert bare["state_dict"].keys() == logged["state_dict"].keys()
    assert all(torch.equal(bare["state_dict"][name], logged["state_dict"][name]) for name in bare["state_dict"])
    moments = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (bare, logged)]
    assert moments[0].keys() == moments[1].keys()
    assert all(torch.equal(moments[0][i]["exp_avg_sq"], moments[1][i]["exp_avg_sq"]) for i in moments[0])
    for table in ("slices.csv", "lesions.csv", "run.json"):
        assert (run / table).read_bytes() == (whole / table).read_bytes()


def test_a_run_that_goes_on_in_mid_epoch_logs_what_the_uninterrupted_one_did(tmp_path, command, whole, monkeypatch):
    """Drift is from the start of the training, not from where it goes on; phases are counted on."""
    run = tmp_path / "run"

    def interrupt(task, *_):
        if task.trainer.global_step == 3 * STEPS + 1:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(LesionTask, "on_train_batch_start", interrupt, raising=False)
        assert main(command(run)) == 130
    assert main(command(run)) == 0
    one, other = epochs(run), epochs(whole)
    columns = [name for name in other if name.startswith(("drift/", "lr/", "trains/", "grad_norm/", "val/", "phase"))]
    assert len(columns) > 40
    pd.testing.assert_frame_equal(one[columns], other[columns], check_exact=True)


def test_the_net_is_an_artifact_by_its_content_and_by_a_neutral_path(tmp_path, whole):
    pytest.importorskip("wandb")
    description, tensors = read_net(whole)
    sha256 = tensors_sha256(tensors)
    assert sha256 == weights_sha256(whole)  # what the config of a run that starts from it holds
    artifact = net_artifact.net_artifact(tmp_path, tensors, description, sha256)
    assert artifact.name == artifact_name(sha256)
    (entry,) = artifact.manifest.entries.values()
    assert entry.path == "net.safetensors"
    assert str(whole) not in entry.local_path
    assert artifact.metadata["net_sha256"] == sha256
    content = (tmp_path / "net.safetensors").read_bytes()
    assert str(whole.parent).encode() not in content


def test_a_loss_of_one_part_is_logged_once(tmp_path, finetuning):
    run = tmp_path / "run"
    short = ["--model.init_args.loss", "weighted_ce", "--trainer.max_epochs", "1"]
    assert main(finetuning(run, *short, schedule="baseline")) == 0
    names = [name for name in pd.read_csv(run / "metrics.csv") if name.startswith("train/")]
    assert names == ["train/loss"]


def test_what_a_sanity_check_shows_is_no_figure_of_the_run(tmp_path, finetuning, monkeypatch):
    """Here the only validation: the epoch has none."""
    run, noted = tmp_path / "run", []
    monkeypatch.setattr(lesion_logs, "told_to_wandb", lambda _: True)
    monkeypatch.setattr(lesion_logs, "_probabilities", lambda *slice_: noted.append(slice_) or [])
    short = ["--trainer.max_epochs", "1", "--trainer.num_sanity_val_steps", "1"]
    assert main(finetuning(run, *short, schedule="baseline")) == 0
    log = pd.read_csv(run / "metrics.csv")
    assert log.step.min() >= 0
    assert not [name for name in log if name.startswith("val/")]
    assert not noted
    assert not (run / "overlays").exists()


@pytest.mark.parametrize("first", [True, False])
def test_the_slices_of_overlays_are_found_once_a_validation_on_the_first_rank_alone(tmp_path, monkeypatch, first):
    found, drawn = [], []
    monkeypatch.setattr(overlays, "fixed_positions", lambda part: found.append(part) or [1, 2])
    view = SimpleNamespace(hu=None, reference=None, predicted=None, box=None)
    monkeypatch.setattr(overlays, "views", lambda *given: drawn.append(given[-1]) or [view])
    monkeypatch.setattr(overlays, "side_by_side", lambda *_: np.zeros((1, 1, 3), np.uint8))
    trainer = SimpleNamespace(
        state=SimpleNamespace(fn="fit"), sanity_checking=False, is_global_zero=first, current_epoch=0, loggers=[],
        datamodule=SimpleNamespace(validation="part"),
    )  # fmt: skip
    callback = Overlays(tmp_path)
    callback.on_validation_epoch_start(trainer, None)
    for position in range(3):
        batch = SimpleNamespace(places=[SimpleNamespace(position=position)])
        callback.on_validation_batch_end(trainer, None, {"classes": [torch.zeros(1, 1)]}, batch)
    callback.on_validation_epoch_end(trainer, None)
    assert found == ["part"] * first
    assert [set(known) for known in drawn] == [{1, 2}] * first


def test_a_net_that_wandb_does_not_take_in_time_is_left_out(monkeypatch, caplog):
    """Sooner than the other ranks cease to wait."""
    asked = []

    def wait(timeout=None):
        asked.append(timeout)
        raise WaitTimeoutError("Artifact upload wait timed out, failed to fetch Artifact response")

    run = SimpleNamespace(summary={}, offline=False, log_artifact=lambda artifact: SimpleNamespace(wait=wait))
    monkeypatch.setattr(net_artifact, "wandb_run", lambda trainer: nullcontext(run))
    task = nn.ModuleDict({"net": nn.Linear(1, 1)})
    task.description = {}
    with caplog.at_level("INFO"):
        NetArtifact().on_fit_end(None, task)
    assert 0 < asked[0] < TIMEOUT.total_seconds()
    assert "the net is not in W&B: Artifact upload wait timed out" in caplog.text
