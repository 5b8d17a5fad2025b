"""`fit`, `validate` and `test` by the real command line on the real YAML: what a run leaves, continues and refuses."""

import contextlib
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
import yaml
from torch import nn

from lesionseg import run_cli, run_folder, training
from lesionseg.callbacks import checkpoints, guards
from lesionseg.callbacks.guards import ENDING
from lesionseg.cli import main
from lesionseg.data.store import Store
from lesionseg.errors import InputError
from lesionseg.request import done_in
from lesionseg.results import read_run
from lesionseg.run_folder import WRITTEN, claimed, held_run, set_aside
from lesionseg.run_weights import weights_sha256
from lesionseg.runs import RunInfo
from lesionseg.schedules import FreezeSchedule
from lesionseg.tasks import LesionTask

EPOCHS, STEPS = 6, 3
ROOT = Path(__file__).parent.parent


def forward_with_dropout(self, images):
    """A net that draws random numbers: they must be the same after an interruption."""
    return nn.functional.dropout(self.net(images), 0.1, self.training)


@pytest.fixture(scope="module", autouse=True)
def dropout():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LesionTask, "forward", forward_with_dropout)
        yield


@pytest.fixture(scope="module", autouse=True)
def every_epoch_is_saved():
    """However quick it is: which ones are, tests/callbacks/test_checkpoints.py tells."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "SHARE", 1)
        yield


@pytest.fixture(scope="module")
def command(finetuning, pretrained):
    return lambda run, *more, **kinds: finetuning(run, "--model.init_args.weights", str(pretrained), *more, **kinds)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, command):
    """A run that nothing interrupted. Do not change it: copy it."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert main(command(run)) == 0
    return run


@pytest.fixture
def copy(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "run"))


WANDB_GONE = "W&B's process has ended: from here on, the figures of this run are in metrics.csv alone"
WANDB_LACKS = "W&B has not all of this run; metrics.csv has"


def load(run, name="last"):
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def written(run):
    return (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns


def refused(capsys, args):
    """The one line that a refused command leaves on stderr."""
    capsys.readouterr()
    assert main(args) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("lesionseg: wrong input: ")
    return lines[0]


def assert_same_run(run, whole):
    """Weights, running statistics, optimizer, checkpoints, tables: all that a run leaves."""
    one, other = load(run), load(whole)
    assert (one["epoch"], one["global_step"]) == (other["epoch"], other["global_step"]) == (EPOCHS - 1, EPOCHS * STEPS)
    assert any("running_var" in name for name in one["state_dict"])
    for key in ("state_dict", "optimizer_states"):
        assert_equal_states(one[key], other[key])
    assert_equal_states(load(run, "best")["state_dict"], load(whole, "best")["state_dict"])
    for table in ("slices.csv", "lesions.csv", "schedule.json", "split.json"):
        assert (run / table).read_bytes() == (whole / table).read_bytes()
    assert RunInfo.read(run).state == "finished"


def assert_equal_states(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal_states(a, b)
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


# ---- what a run leaves ----


def test_a_run_says_what_it_is(whole, pretrained, slices_store):
    run, held = RunInfo.read(whole), RunInfo.read(pretrained)
    assert (run.name, run.state, run.target, run.fold, run.folds, run.seed) == (
        "hierarchical_unfreezing", "finished", "typed", 0, 4, 0,
    )  # fmt: skip
    assert (run.epochs, run.encoder, run.encoder_weights, run.generated) == (EPOCHS, "tu-test_resnet", None, True)
    assert run.weights_sha256 == weights_sha256(pretrained)
    store, parts = Store.open(slices_store), json.loads((whole / "split.json").read_text())
    voxels = {record.case_id: record.voxel_checksum for record in store.records}
    assert run.store_sha256 == store.manifest_sha256
    assert set(run.trained_on) == {*held.trained_on, *(voxels[c] for c in parts["train"] + parts["validation"])}
    assert len(held.trained_on) == 2  # of three volumes, one is the test part
    assert sorted(parts["train"] + parts["validation"] + parts["test"]) == sorted(voxels)
    assert str(whole.parent) not in (whole / "run.json").read_text()


def test_the_schedule_lies_beside_it(whole):
    stages = {name: [start, 1] for name, start in zip(
        ("stage4", "stage3", "stage2", "stage1", "stem"), (0.1667, 0.3333, 0.5, 0.6667, 0.8333), strict=True
    )}  # fmt: skip
    blocks = ["stem", "stage1", "stage2", "stage3", "stage4", "decoder", "head"]
    schedule = FreezeSchedule.parse({**stages, "decoder": "always", "head": "always"}).resolve(EPOCHS, blocks)
    assert json.loads((whole / "schedule.json").read_text()) == json.loads(schedule.to_json())


def test_the_tables_hold_every_slice_of_the_test_part(whole, slices_store):
    result, parts = read_run(whole), json.loads((whole / "split.json").read_text())
    records = {record.case_id: record for record in Store.open(slices_store).records}
    assert sorted(result.slices.case_id.unique()) == parts["test"]
    assert set(result.slices.slice) == {0}
    patients = {case: records[case].patient_id for case in parts["test"]}
    for table in (result.slices, result.lesions):
        assert dict(zip(table.case_id, table.patient_id, strict=True)).items() <= patients.items()
    types = {record.case_id: record.lesion_types for record in records.values()}
    reference = result.lesions[result.lesions.kind == "reference"]
    assert all(lesion_type in types[case] for case, lesion_type in zip(reference.case_id, reference.type, strict=True))
    assert set(reference.case_id) == {case for case in parts["test"] if types[case]}
    row, record = result.lesions.iloc[0], records[result.lesions.case_id[0]]
    assert row.area_mm2 == pytest.approx(row.area_px * record.spacing_mm[1] * record.spacing_mm[2])


def test_the_log_holds_every_epoch_and_the_figures_of_the_tables(whole):
    log, slices = pd.read_csv(whole / "metrics.csv"), read_run(whole).slices
    assert log.dropna(subset="train/loss").epoch.tolist() == list(range(EPOCHS))
    validated = log.dropna(subset="val/dice1_n")
    assert validated.epoch.tolist() == [1, 3, 5]
    test = log.dropna(subset="test/slices_n").iloc[0]
    for figure in ("dice1", "dice2"):
        assert slices[slices.figure == figure].value.mean() == pytest.approx(test[f"test/{figure}"])
    false_positives = slices[slices.figure == "false_positives"].value
    assert false_positives.mean() == pytest.approx(test["test/false_positives_per_slice"])
    assert load(whole, "best")["epoch"] == validated.set_index("epoch")["val/dice1"].idxmax()


def test_last_is_whole_and_best_holds_the_weights_alone(whole):
    last, best = load(whole), load(whole, "best")
    assert "optimizer_states" in last
    assert "optimizer_states" not in best
    assert last["lesionseg"] == best["lesionseg"]
    assert last["lesionseg"]["encoder"] == "tu-test_resnet"
    assert not list((whole / "checkpoints").glob("*v1*"))


# ---- done, changed ----


def test_the_same_command_again_does_nothing(whole, command, capsys):
    before = written(whole)
    assert main(command(whole)) == 0
    assert "done already" in capsys.readouterr().out
    assert written(whole) == before


def test_the_fingerprint_has_the_last_word(copy, command, tmp_path):
    """Workers in a YAML file: another request, the same run."""
    (tmp_path / "more.yaml").write_text("data:\n  num_workers: 1\n")
    before, request = written(copy), RunInfo.read(copy).request_sha256
    again = command(copy, "--config", str(tmp_path / "more.yaml"))
    assert main(again) == 0
    assert written(copy) == before
    assert RunInfo.read(copy).request_sha256 != request  # the next time, it is told at once


def test_the_config_it_leaves_asks_for_the_same_run(copy, capsys):
    before = written(copy)
    assert main(["fit", "--config", str(copy / "config.yaml"), "--trainer.default_root_dir", str(copy)]) == 0
    assert written(copy) == before


@pytest.mark.parametrize("more", [("--data.fold", "1"), ("--trainer.limit_test_batches", "1")])
def test_a_changed_run_takes_the_place_of_the_earlier_one(copy, command, more, caplog):
    (copy / "worst").mkdir(exist_ok=True)
    (copy / "worst" / "stale.png").touch()
    before = RunInfo.read(copy)
    assert main(command(copy, *more, "--trainer.max_epochs", "6")) == 0
    assert f"of other settings, data or weights in {copy} gives way once this one has a checkpoint" in caplog.text
    after = RunInfo.read(copy)
    assert after.state == "finished"
    assert after.fingerprint != before.fingerprint
    assert after.fold == int(more[1]) * (more[0] == "--data.fold")
    assert not (copy / "worst" / "stale.png").exists()


def test_an_unfinished_run_of_other_settings_does_not_go_without_a_word(copy, command, caplog):
    replace(RunInfo.read(copy), state="running").write(copy)
    assert main(command(copy, "--data.fold", "1")) == 0
    assert f"an unfinished run of other settings, data or weights in {copy} gives way once this one" in caplog.text


def test_an_earlier_run_stays_where_the_new_one_is_refused(copy, command, capsys, tmp_path):
    (tmp_path / "wrong.yaml").write_text("schedule:\n  trains:\n    encodr: always\n    decoder: always\n")
    before = written(copy)
    line = refused(capsys, command(copy, "--config", str(tmp_path / "wrong.yaml")))
    assert "encodr" in line
    assert "stem, stage1, stage2, stage3, stage4, decoder, head" in line
    assert written(copy) == before


def test_an_earlier_run_stays_where_its_weights_do_not_fit_the_new_net(copy, command, capsys):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    line = refused(capsys, command(copy, "--model.init_args.encoder", "resnet18"))
    assert "expected at least 90% of the encoder" in line
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_a_checkpoint_holds_no_path(whole):
    for name in ("last", "best"):
        assert str(whole.parent).encode() not in (whole / "checkpoints" / f"{name}.ckpt").read_bytes()


def test_a_run_that_has_moved_goes_on_as_before(tmp_path, command, whole, monkeypatch):
    with monkeypatch.context() as patch:
        at_step(patch, 5 * STEPS, interrupt)
        assert main(command(tmp_path / "run")) == 130
    (tmp_path / "run").rename(tmp_path / "moved")
    assert main(command(tmp_path / "moved")) == 0
    assert_same_run(tmp_path / "moved", whole)


# ---- interrupted, continued ----


def at_step(patch, step, act, hook="on_train_batch_start"):
    """Let something happen before a training step."""

    def hooked(self, *_):
        if self.trainer.global_step == step:
            act(self)

    patch.setattr(LesionTask, hook, hooked, raising=False)


def interrupt(*_):
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("step", "saved"),
    [
        pytest.param(0, 1, id="first-batch"),
        pytest.param(STEPS + 1, STEPS + 2, id="mid-epoch"),
        pytest.param(2 * STEPS - 1, 2 * STEPS, id="last-batch"),
        pytest.param(3 * STEPS, 3 * STEPS + 1, id="block-thawed"),
    ],
)
def test_ctrl_c_within_an_epoch_and_the_same_command_goes_on(
    tmp_path, command, whole, monkeypatch, capsys, step, saved
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, step, interrupt)
        assert main(command(run)) == 130
    assert "the same command continues" in capsys.readouterr().err
    assert RunInfo.read(run).state == "running"
    assert load(run)["global_step"] == saved
    assert main(command(run)) == 0
    assert_same_run(run, whole)
    assert_same_log(run, whole)


@pytest.mark.parametrize("batch", [0, 1])
def test_where_two_batches_make_a_step_it_ends_with_a_step(tmp_path, command, monkeypatch, batch):
    """Gradients are no part of a checkpoint: saved between the two, the next step would be of one batch alone."""

    def by_two(run):
        return command(
            tmp_path / run, "--trainer.accumulate_grad_batches", "2", "--trainer.check_val_every_n_epoch", "1"
        )

    assert main(by_two("through")) == 0
    seen = []

    def hooked(self, *_):
        seen.append(None)
        if len(seen) == batch + 1:
            interrupt()

    with monkeypatch.context() as patch:
        patch.setattr(LesionTask, "on_train_batch_start", hooked, raising=False)
        assert main(by_two("run")) == 130
    assert load(tmp_path / "run")["global_step"] == 1
    assert main(by_two("run")) == 0
    assert_equal_states(load(tmp_path / "run")["state_dict"], load(tmp_path / "through")["state_dict"])


def test_a_run_that_goes_on_by_other_code_says_so(tmp_path, command, monkeypatch):
    run, short = tmp_path / "run", ("--trainer.max_epochs", "6", "--trainer.limit_val_batches", "0")
    for commit, step in (
        ("aaaaaaaaaaaa", STEPS),
        ("aaaaaaaaaaaa", 2 * STEPS),
        ("bbbbbbbbbbbb", 3 * STEPS),
        ("c", None),
    ):
        with monkeypatch.context() as patch:
            patch.setattr("lesionseg.provenance._commit", lambda commit=commit: commit)
            if step is not None:
                at_step(patch, step, interrupt)
            assert main(command(run, *short)) == (0 if step is None else 130)
    assert RunInfo.read(run).commit == "aaaaaaaaaaaa, then bbbbbbbbbbbb, then c"


@pytest.mark.parametrize(
    ("row", "more", "warned"),
    [("freeze_encoder", (), True), ("no_freezing", (), False), ("freeze_encoder", ("pretrained",), False)],
)
def test_blocks_frozen_with_random_weights_are_warned_of(tmp_path, finetuning, pretrained, recwarn, row, more, warned):
    weights = ("--model.init_args.weights", str(pretrained)) if more else ()
    assert main(finetuning(tmp_path / "run", *weights, "--trainer.fast_dev_run", "1", schedule=row)) == 0
    said = "stem, stage1, stage2, stage3, stage4 begin frozen with random weights"
    assert any(said in str(each.message) for each in recwarn) == warned
    lacks = "a fine-tuning from no pretraining, as model.init_args.weights names none"
    assert any(lacks in str(each.message) for each in recwarn) != bool(more)


def test_a_new_head_that_never_trains_is_warned_of(tmp_path, command, recwarn):
    more = ("--schedule.trains.head", "never", "--trainer.fast_dev_run", "1")
    assert main(command(tmp_path / "run", *more, schedule="no_freezing")) == 0
    (said,) = (text for each in recwarn if "begin frozen" in (text := str(each.message)))
    assert said.startswith("head begin frozen with random weights")


def test_a_classifier_whose_head_alone_is_new_is_warned_of_where_it_never_trains(tmp_path, command, recwarn):
    more = ("--schedule.trains.classifier", "never", "--trainer.fast_dev_run", "1")
    assert main(command(tmp_path / "run", *more, schedule="crop_classifier")) == 0
    (said,) = (text for each in recwarn if "begin frozen" in (text := str(each.message)))
    assert said.startswith("classifier begin frozen with random weights")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ((), None),
        (("--data.input.size_px", "64"), None),
        (("--data.input.low_hu", "-1000", "--data.input.region", "slice"),
         "data.input.region liver, not slice, data.input.low_hu -200.0, not -1000.0"),
    ],
)  # fmt: skip
def test_a_start_that_was_fed_otherwise_is_warned_of(tmp_path, command, recwarn, pretrained, more, told):
    assert main(command(tmp_path / "run", *more, "--trainer.fast_dev_run", "1", schedule="no_freezing")) == 0
    said = [text for each in recwarn if " was trained with " in (text := str(each.message))]
    assert said == ([f"{pretrained} was trained with {told}: a block that is frozen cannot adapt"] if told else [])


def test_a_start_that_looked_for_the_liver_is_warned_of(tmp_path, pretraining, finetuning, recwarn):
    assert main(pretraining(tmp_path / "liver", net="liver")) == 0
    start = ("--model.init_args.weights", str(tmp_path / "liver"), "--trainer.fast_dev_run", "1")
    assert main(finetuning(tmp_path / "run", *start, schedule="no_freezing")) == 0
    assert any("data.target liver, not typed: a block" in str(each.message) for each in recwarn)


def test_callbacks_that_a_schedule_cannot_stand_beside_are_refused(tmp_path, command, capsys):
    config = tmp_path / "more.yaml"
    for name, options, reason in (
        ("GradientAccumulationScheduler", "{scheduling: {0: 1, 1: 2}}", "would forget"),
        ("StochasticWeightAveraging", "{swa_lrs: 0.1}", "another number of epochs"),
        ("BackboneFinetuning", "{}", "freezes by itself"),
        ("EMAWeightAveraging", "{decay: 0.9}", "would not test"),
        ("LearningRateFinder", "{}", "the schedule sets back"),
        ("BatchSizeFinder", "{}", "another batch than the run says"),
    ):
        config.write_text(
            f"trainer:\n  callbacks:\n  - class_path: pytorch_lightning.callbacks.{name}\n    init_args: {options}\n"
        )
        line = refused(capsys, command(tmp_path / "run", "--config", str(config)))
        assert f"trainer.callbacks: expected none that the schedule cannot stand beside; got {name}, " in line
        assert reason in line
    assert not (tmp_path / "run").exists()


def test_a_log_from_before_the_first_step_stays_when_a_run_goes_on(tmp_path, command, monkeypatch):
    """A validation between batches whose gradients add up."""
    odd = ("--trainer.accumulate_grad_batches", "3", "--trainer.val_check_interval", "1",
           "--trainer.check_val_every_n_epoch", "1")  # fmt: skip
    assert main(command(tmp_path / "through", *odd)) == 0
    with monkeypatch.context() as patch:
        at_step(patch, 4, interrupt)
        assert main(command(tmp_path / "run", *odd)) == 130
    assert main(command(tmp_path / "run", *odd)) == 0
    logs = [pd.read_csv(tmp_path / name / "metrics.csv") for name in ("run", "through")]
    before = [log[log.step < 3] for log in logs]  # at its batch the stopped run left a validation out
    assert before[0].step.min() == -1
    pd.testing.assert_frame_equal(*before)


def test_a_classifier_of_crops_that_trains_alone_passes_batches_without_lesions(tmp_path, command):
    alone = yaml.safe_load((ROOT / "experiments" / "schedules" / "crop_classifier.yaml").read_text())
    alone["schedule"] = {"trains": {"encoder": "never", "decoder": "never", "head": "never", "classifier": "always"}}
    config = tmp_path / "alone.yaml"
    config.write_text(yaml.safe_dump(alone))
    more = ("--config", str(config), "--data.batch_size", "2", "--data.keep_empty", "1")
    assert main(command(tmp_path / "run", *more, schedule="crop_classifier")) == 0


def test_a_run_that_a_callback_ends_early_is_not_finished(tmp_path, command, capsys):
    """Its schedule was made for all of the epochs, which the tables tell."""
    run, config = tmp_path / "run", tmp_path / "early.yaml"
    config.write_text(
        "trainer:\n  callbacks:\n  - class_path: pytorch_lightning.callbacks.EarlyStopping\n"
        "    init_args: {monitor: val/dice1, mode: min, patience: 1, min_delta: 1.0}\n"
    )
    line = refused(capsys, command(run, "--config", str(config)))
    assert "expected the 6 epochs that the schedule is made for; got 4, as a callback of trainer.callbacks" in line
    assert RunInfo.read(run).state == "running"
    assert not (run / "lesions.csv").exists()


def test_a_run_that_is_at_work_is_left_alone_by_a_second_command(tmp_path, command, whole, monkeypatch, capsys):
    run, said = tmp_path / "run", []

    def a_second_command(_):
        other = [sys.executable, "-m", "lesionseg.cli", *command(run)]
        done = subprocess.run(other, capture_output=True, text=True, cwd=ROOT)
        said.append((done.returncode, done.stderr.splitlines()[-1]))

    with monkeypatch.context() as patch:
        at_step(patch, STEPS + 1, a_second_command)
        assert main(command(run)) == 0
    line = f"lesionseg: wrong input: {run}: expected one training of a run at a time; got another at work; "
    assert said == [(2, line + "wait until it ends, or name another --trainer.default_root_dir")]
    assert_same_run(run, whole)


@pytest.mark.parametrize("tail", [b"7,", b"7,0.1,0.2,0.3,0.4,0.5,0.6\0\0", b"\xff"])
def test_a_log_that_was_torn_is_no_hindrance(tmp_path, command, whole, monkeypatch, tail):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, 3 * STEPS, interrupt)
        assert main(command(run)) == 130
    log = run / "metrics.csv"
    log.write_bytes(log.read_bytes().rstrip()[:-4] + tail)
    assert main(command(run)) == 0
    assert_same_run(run, whole)


OTHER = ("--trainer.max_epochs", str(EPOCHS + 1))


def tree(folder):
    """Every file below a folder, by its content; the lock is no part of a run."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def raises(*_):
    raise ValueError("a step that cannot be done")


def test_a_run_writes_what_is_moved_aside(whole):
    assert {path.name for path in whole.iterdir()} - {".lock"} <= set(WRITTEN)


@pytest.mark.parametrize("fails", ["in its first step", "as it is a trial"])
def test_a_run_without_a_checkpoint_leaves_the_one_before(copy, command, monkeypatch, fails):
    (copy / "notes.md").write_text("mine")
    before = tree(copy)
    if fails == "as it is a trial":
        assert main(command(copy, "--trainer.fast_dev_run", "true", schedule="baseline")) == 0
    else:
        with monkeypatch.context() as patch:
            at_step(patch, 0, raises)
            with pytest.raises(ValueError, match="cannot be done"):
                main(command(copy, *OTHER))
    assert tree(copy) == before
    assert main(command(copy)) == 0  # done already
    assert tree(copy) == before


def test_a_run_with_a_checkpoint_takes_the_place_of_the_one_before_but_not_of_the_files_of_its_user(
    copy, command, monkeypatch
):
    (copy / "notes.md").write_text("mine")
    with monkeypatch.context() as patch:
        at_step(patch, STEPS + 1, interrupt)
        assert main(command(copy, *OTHER)) == 130
    assert (RunInfo.read(copy).epochs, RunInfo.read(copy).state) == (EPOCHS + 1, "running")
    assert not (copy / ".earlier").exists()
    assert (copy / "notes.md").read_text() == "mine"


@pytest.mark.parametrize("moment", range(12))
def test_a_kill_while_a_run_is_moved_aside_or_back_loses_none_of_it(copy, monkeypatch, moment):
    """After any number of moves and removals; the next command for the same run finds it finished, and whole."""
    before, held, moves = tree(copy), held_run(copy), []
    assert held.state == "finished"

    class Killed(BaseException):
        pass

    def counted(real):
        def counting(*args, **kinds):
            if len(moves) == moment:
                raise Killed
            moves.append(args)
            return real(*args, **kinds)

        return counting

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", counted(Path.rename))
        patch.setattr(Path, "unlink", counted(Path.unlink))
        try:
            set_aside(copy)
            (copy / "run.json").write_text(json.dumps(asdict(replace(held, state="running", fingerprint="other"))))
            run_folder._settle(copy)
        except Killed:
            pass
    assert held_run(copy) == held
    with claimed(copy, held):
        assert tree(copy) == before


def test_a_run_whose_store_is_prepared_anew_meanwhile_does_not_finish(
    tmp_path, slices_store, command, monkeypatch, capsys
):
    store, run = Path(shutil.copytree(slices_store, tmp_path / "store")), tmp_path / "run"

    def prepare_anew(_):
        manifest = store / "manifest.json"
        manifest.write_text(manifest.read_text() + "\n")

    with monkeypatch.context() as patch:
        at_step(patch, STEPS, prepare_anew)
        line = refused(capsys, command(run, "--data.store", str(store)))
    assert f"{store}: expected the store as it was when it was opened; got one that was prepared anew" in line
    assert RunInfo.read(run).state == "running"


def test_of_several_run_folders_on_a_command_line_the_last_counts(copy, command, tmp_path):
    words = command(copy)
    assert done_in(words) == str(copy)
    assert done_in([*words, "--trainer.default_root_dir", str(tmp_path / "new")]) is None


def test_weights_that_are_not_finite_are_neither_saved_nor_tested(tmp_path, command, monkeypatch, caplog):
    """A gradient can be infinite where the loss is not."""
    run = tmp_path / "run"

    def spoil(task):
        next(task.net.segmentation_head.parameters()).register_hook(lambda gradient: gradient / 0)

    with monkeypatch.context() as patch:
        at_step(patch, 3 * STEPS - 1, spoil)
        assert main(command(run)) == 1
    assert all(tensor.isfinite().all() for tensor in load(run)["state_dict"].values())
    assert RunInfo.read(run).state == "running"
    assert main(command(run)) == 0


def test_a_trial_run_is_not_finished(tmp_path, command):
    assert main(command(tmp_path / "run", "--trainer.fast_dev_run", "true", schedule="baseline")) == 0
    assert RunInfo.read(tmp_path / "run").state == "running"


@pytest.mark.parametrize(
    "schedule", ["freeze_encoder", "surgical_stem", "crop_classifier", "y_net", "deep_supervision"]
)
@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_a_run_ends_in_other_precisions(tmp_path, command, precision, schedule):
    """With validation, test and pictures."""
    run = tmp_path / "run"
    assert main(command(run, "--trainer.precision", precision, "--trainer.max_epochs", "2", schedule=schedule)) == 0
    assert RunInfo.read(run).state == "finished"
    assert list((run / "worst").glob("*.png"))


def test_a_run_of_halves_is_logged_and_is_the_start_of_another(tmp_path, pretraining, finetuning, monkeypatch):
    """W&B names the weights by their hash."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    halves = ("--trainer.precision", "bf16-true", "--trainer.max_epochs", "1")
    assert main(pretraining(tmp_path / "first", *halves)) == 0
    start = ("--model.init_args.weights", str(tmp_path / "first"))
    assert main(finetuning(tmp_path / "second", *start, *halves, schedule="no_freezing")) == 0
    assert RunInfo.read(tmp_path / "second").weights_sha256 == weights_sha256(tmp_path / "first")


def test_one_slice_of_one_feature_is_too_few_for_batch_norm(tmp_path, command, capsys):
    line = refused(capsys, command(tmp_path / "run", "--data.batch_size", "1", schedule="baseline"))
    assert "data.batch_size: expected several values of each feature" in line


def test_no_progress_bar_is_drawn_where_none_is_wanted(tmp_path, command, monkeypatch):
    wanted = []
    monkeypatch.setattr(run_cli, "progress_bar", lambda bar: wanted.append(bar) or [])
    for given in ("true", "false"):
        trial = ["--trainer.fast_dev_run", "true", "--trainer.enable_progress_bar", given]
        assert main(command(tmp_path / given, *trial, schedule="baseline")) == 0
    assert wanted == [True, False]


def test_a_gpu_whose_memory_is_full_is_told_in_a_line(tmp_path, command, monkeypatch, capsys):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has none. See the manual.")

    with monkeypatch.context() as patch:
        at_step(patch, 1, full)
        line = refused(capsys, command(tmp_path / "run"))
    assert "expected a step that fits into the memory of the GPU; got CUDA out of memory; lower it" in line


def test_a_gpu_whose_driver_is_too_old_is_left_alone(tmp_path, command, monkeypatch):
    """Lightning counts it all the same, and then asks it for its name and for random numbers."""

    def too_old(*_):
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Please update")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: os.environ["CUDA_VISIBLE_DEVICES"] != "")
    for asked in ("init", "get_device_name", "get_rng_state_all"):
        monkeypatch.setattr(torch.cuda, asked, too_old)
    with pytest.warns(UserWarning, match="GPU is left alone, as torch cannot use it: The NVIDIA driver on your system"):
        assert main(command(tmp_path / "run", "--trainer.max_epochs", "2", schedule="freeze_encoder")) == 0
    assert RunInfo.read(tmp_path / "run").machine.startswith("CPU only")


def test_ddp_by_its_name_knows_frozen_blocks(tmp_path, command):
    one = ("--trainer.strategy", "ddp", "--trainer.devices", "1", "--trainer.max_epochs", "2")
    assert main(command(tmp_path / "run", *one, schedule="freeze_encoder")) == 0


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_store_that_is_damaged_is_named_whoever_reads_it(tmp_path, finetuning, slices_store, capsys, workers):
    store = shutil.copytree(slices_store, tmp_path / "store")
    for file in store.rglob("hu.npy"):
        with file.open("r+b") as opened:
            opened.seek(10)
            opened.write(b"?")
    more = ("--data.store", str(store), "--model.init_args.transfer", "false", "--data.num_workers", workers)
    line = refused(capsys, finetuning(tmp_path / "run", *more))
    assert "hu.npy: expected int16 array of shape" in line


def test_implants_are_the_same_when_a_run_goes_on(tmp_path, command, whole, monkeypatch):
    def implanting(run):
        return command(tmp_path / run, "--data.implant_probability", "0.7")

    assert main(implanting("through")) == 0
    with monkeypatch.context() as patch:
        at_step(patch, 2 * STEPS + 1, interrupt)
        assert main(implanting("resumed")) == 130
    assert main(implanting("resumed")) == 0
    assert_same_run(tmp_path / "resumed", tmp_path / "through")
    ours, plain = (load(run)["state_dict"] for run in (tmp_path / "through", whole))
    assert not all(torch.equal(ours[name], plain[name]) for name in plain)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_other_signals_too_and_all_are_given_back(tmp_path, command, monkeypatch, name):
    """What comes again at once, from `make` or `torchrun`, is the same signal."""
    before = [signal.getsignal(number) for number in ENDING]
    with monkeypatch.context() as patch:
        at_step(patch, 1, lambda task: [os.kill(os.getpid(), getattr(signal, name)) for _ in range(2)])
        assert main(command(tmp_path / "run")) == 130
    assert load(tmp_path / "run")["global_step"] == 2
    assert [signal.getsignal(number) for number in ENDING] == before


def test_a_second_ctrl_c_ends_at_once(tmp_path, command, monkeypatch):
    def twice(_):
        interrupt()
        interrupt()

    with monkeypatch.context() as patch:
        patch.setattr(guards, "ONE_SIGNAL_S", -1)
        at_step(patch, STEPS + 1, twice)
        assert main(command(tmp_path / "run")) == 130
    assert load(tmp_path / "run")["global_step"] == STEPS  # of the epoch before


@pytest.mark.parametrize(
    ("hook", "step", "epochs_done"),
    [
        pytest.param("on_train_epoch_start", 2 * STEPS, 2, id="between-epochs"),
        pytest.param("on_validation_epoch_start", EPOCHS * STEPS, 6, id="after-the-last-batch"),
        pytest.param("on_test_batch_start", EPOCHS * STEPS, 6, id="in-the-test"),
    ],
)
def test_ctrl_c_elsewhere(tmp_path, command, whole, monkeypatch, hook, step, epochs_done):
    run = tmp_path / "run"
    twice = hook == "on_train_epoch_start"  # at once: from the checkpoint of the epoch before
    with monkeypatch.context() as patch:
        patch.setattr(guards, "ONE_SIGNAL_S", -1)
        at_step(patch, step, lambda _: [interrupt() for _ in range(1 + twice)], hook)
        assert main(command(run)) == 130
    assert load(run)["global_step"] == epochs_done * STEPS
    assert RunInfo.read(run).state == "running"
    assert main(command(run)) == 0
    assert_same_run(run, whole)
    assert_same_log(run, whole)


def assert_same_log(run, whole):
    one, other = (pd.read_csv(folder / "metrics.csv").dropna(axis=1, how="all") for folder in (run, whole))
    pd.testing.assert_frame_equal(one, other)


def beside_itself(args, step, act, share=1, **environment):
    """The command in a process of its own, in which something happens before a step; checkpoints have a share of it."""
    code = f"""
import multiprocessing, os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_training import LesionTask, at_step, checkpoints, forward_with_dropout, main
import pytest
patch = pytest.MonkeyPatch()
patch.setattr(checkpoints, "SHARE", {share})
patch.setattr(LesionTask, "forward", forward_with_dropout)
at_step(patch, {step}, lambda task: {act})
sys.exit(main(sys.argv[1:]))
"""
    environment = {**os.environ, **environment}
    environment.pop("WANDB_SERVICE", None)  # of a process of W&B that this one has: it is to have its own
    words = [sys.executable, "-c", code, *args]
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def end_job():
    """As SLURM and systemd do: a signal to every process of a job. The training gets it from `make` once more."""
    training = psutil.Process()
    others = training.children(recursive=True)
    assert len(others) >= 2, others
    assert any("wandb" in other.name() for other in others), others
    for process in (*others, training, training):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()


@pytest.mark.parametrize(("share", "epochs"), [(1, 3), (1e-9, 1)], ids=["every epoch", "seldom"])
def test_killed_in_the_middle_it_goes_on_from_the_last_epoch_that_was_saved(tmp_path, command, whole, share, epochs):
    run = tmp_path / "run"
    done = beside_itself(command(run), 3 * STEPS + 1, "os.kill(os.getpid(), signal.SIGKILL)", share)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert load(run)["global_step"] == epochs * STEPS
    best = run / "checkpoints" / "best.ckpt"
    assert load(run, "best")["epoch"] < epochs if share == 1 else not best.exists()  # it is written with the last one
    assert main(command(run)) == 0
    assert_same_run(run, whole)
    assert_same_log(run, whole)


@pytest.mark.parametrize("damage", [lambda data: data[:-5000], lambda data: b"", None], ids=["cut", "empty", "gone"])
def test_from_a_last_checkpoint_that_cannot_be_read_it_goes_on_from_the_one_before(
    tmp_path, command, whole, monkeypatch, caplog, damage
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, 3 * STEPS + 1, interrupt)
        assert main(command(run)) == 130
    last = run / "checkpoints" / "last.ckpt"
    assert load(run, "previous")["global_step"] == 3 * STEPS
    last.unlink() if damage is None else last.write_bytes(damage(last.read_bytes()))
    with monkeypatch.context() as patch, caplog.at_level("INFO"):  # and stopped again before it has saved anything
        patch.setattr(guards, "ONE_SIGNAL_S", -1)
        at_step(patch, 3 * STEPS, lambda _: [interrupt() for _ in range(2)], "on_train_epoch_start")
        assert main(command(run)) == 130
    assert not last.exists()  # or the next save would put it in the place of the one that can be read
    assert load(run, "previous")["global_step"] == 3 * STEPS
    with caplog.at_level("INFO"):
        assert main(command(run)) == 0
    assert "from the checkpoint before, as checkpoints/last.ckpt cannot be read" in caplog.text
    assert_same_run(run, whole)
    assert_same_log(run, whole)
    assert not (run / "checkpoints" / "previous.ckpt").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="readers elsewhere cannot tell who sends a signal")
@pytest.mark.parametrize("step", [STEPS + 1, 2 * STEPS - 1], ids=["in an epoch", "at the end of one"])
def test_a_signal_to_every_process_of_a_job_is_no_loss(tmp_path, command, whole, step):
    """The readers and W&B's process get it too; what comes at the end of an epoch is written before the run ends."""
    run = tmp_path / "run"
    act = "__import__('test_training').end_job()"
    done = beside_itself(command(run, "--data.num_workers", "1"), step, act, WANDB_MODE="offline")
    assert done.returncode == 130, done.stderr
    told = [
        line for line in done.stderr.splitlines() if line.startswith(("lesionseg: ", "Traceback", "SIGTERM", "W&B"))
    ]
    assert told[0] == "SIGTERM: saving after this batch; once more to stop at once"
    assert told[1:-1] == [WANDB_GONE if step == 2 * STEPS - 1 else WANDB_LACKS]
    assert told[-1] == "lesionseg: interrupted; the same command continues"
    assert load(run)["global_step"] == step + 1
    assert main(command(run)) == 0
    assert_same_run(run, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_in_the_test_is_an_interrupt_too(tmp_path, command, whole, monkeypatch, number):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, EPOCHS * STEPS, lambda task: os.kill(os.getpid(), number), "on_test_batch_start")
        assert main(command(run)) == 130
    assert main(command(run)) == 0
    assert_same_run(run, whole)


def test_a_run_outlives_the_process_of_wandb(tmp_path, command, whole):
    run = tmp_path / "run"
    kill = "[child.kill() for child in __import__('psutil').Process().children(recursive=True)]"
    done = beside_itself(command(run), STEPS + 1, kill, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines().count(WANDB_GONE) == 1
    assert "Traceback" not in done.stderr
    assert_same_run(run, whole)
    assert_same_log(run, whole)


def test_a_reader_of_slices_that_is_killed_ends_the_run_in_one_line_and_it_goes_on(tmp_path, command, whole):
    run = tmp_path / "run"
    kill = "[child.kill() for child in multiprocessing.active_children()]"
    done = beside_itself(command(run, "--data.num_workers", "1"), 2 * STEPS, kill)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("lesionseg: ")]
    assert line.startswith("lesionseg: failed: a process that reads the slices was killed")
    assert "Traceback" not in done.stderr
    assert main(command(run)) == 0
    assert_same_run(run, whole)


def test_a_reader_that_ends_later_cannot_raise_once_more(monkeypatch):
    """As torch's handler did at the end of a process, where that of the trainer had been cut short by another one."""

    def killed(*_):
        signal.signal(signal.SIGCHLD, lambda *_: 1 / 0)
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    before = signal.getsignal(signal.SIGCHLD)
    monkeypatch.setattr(training, "RunCLI", killed)
    try:
        with pytest.raises(ChildProcessError, match="a process that reads the slices was killed"):
            training.run(["fit"])
        os.kill(os.getpid(), signal.SIGCHLD)
    finally:
        signal.signal(signal.SIGCHLD, before)


def state_of_the_process():
    """Command line, hook, and how many filters there are of warnings and of what Lightning says."""
    loggers = [logging.getLogger(name) for name in training._TALKATIVE]
    return list(sys.argv), sys.unraisablehook, len(warnings.filters), [len(logger.filters) for logger in loggers]


@pytest.mark.parametrize("error", [None, InputError("x", expected="y", got="z", remedy="w"), KeyboardInterrupt()])
def test_a_run_is_quiet_and_leaves_the_process_as_it_was(monkeypatch, error):
    seen = []

    def cli(args, ending):
        seen.append(state_of_the_process())
        if error is not None:
            raise error

    monkeypatch.setattr(training, "RunCLI", cli)
    before = state_of_the_process()
    for _ in range(3):
        with contextlib.nullcontext() if error is None else pytest.raises(type(error)):
            training.run(["fit", "--quickly"])
    assert state_of_the_process() == before
    assert seen == [seen[0]] * 3
    argv, hook, warned, said = seen[0]
    assert (argv[1:], hook) == (["fit", "--quickly"], training._unraisable)
    assert warned == before[2] + len(training._NO_WARNING)
    assert said == [number + 1 for number in before[3]]


@pytest.mark.parametrize(
    ("text", "told"), [("DataLoader worker (pid 7) is killed by signal: Killed.", False), ("x", True)]
)
def test_a_killed_reader_is_no_noise_where_python_cannot_raise_it(capsys, monkeypatch, text, told):
    """As in a lock that is given back around a fork: torch's handler of signals raises wherever Python is."""

    class Noisy:
        def __del__(self):
            raise RuntimeError(text)

    monkeypatch.setattr(sys, "unraisablehook", training._unraisable)
    Noisy()
    assert ("RuntimeError" in capsys.readouterr().err) == told


def test_without_a_checkpoint_that_can_be_read_a_run_is_left_as_it_is(tmp_path, command, monkeypatch, capsys):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, 1, interrupt)
        assert main(command(run)) == 130
    (run / "checkpoints" / "last.ckpt").write_bytes(b"")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    line = refused(capsys, command(run))
    assert line.endswith("last.ckpt: expected the last checkpoint of this run; got an empty file; "
                         "remove the run folder, and train it again")  # fmt: skip
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_kill_while_a_checkpoint_is_written_leaves_the_earlier_one(tmp_path):
    """Also where the run lies on another disk than the system's temporary files."""
    code = f"""
import os, signal
from lesionseg.callbacks import checkpoints
path = {str(tmp_path / "checkpoints" / "last.ckpt")!r}
writer = checkpoints.WholeCheckpoints(".", "f")
writer.save_checkpoint({{"epoch": 1}}, path)
writer.save_checkpoint({{"epoch": 2}}, path)
def dies(file):
    os.ftruncate(file, 100)
    os.kill(os.getpid(), signal.SIGKILL)
os.fsync = dies
writer.save_checkpoint({{"epoch": 3}}, path)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [load(tmp_path, name)["epoch"] for name in ("previous", "last")] == [1, 2]


def test_a_loss_that_is_not_finite_ends_the_run_before_it_reaches_a_checkpoint(
    tmp_path, command, whole, monkeypatch, capsys
):
    run, kept = tmp_path / "run", []

    def spoil(task):
        kept.append((run / "checkpoints" / "last.ckpt").read_bytes())
        task.net.segmentation_head[0].bias.data[0] = math.inf

    with monkeypatch.context() as patch:
        at_step(patch, 2 * STEPS + 1, spoil)
        assert main(command(run)) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    parts = json.loads((run / "split.json").read_text())
    assert line.startswith("lesionseg: failed: the loss is not finite in epoch 3 on cases ")
    assert 1 <= sum(case in line for case in parts["train"]) <= 2
    assert not any(case in line for case in parts["validation"] + parts["test"])
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == kept[0]
    assert RunInfo.read(run).state == "running"
    assert main(command(run)) == 0
    assert_same_run(run, whole)


# ---- test, validate ----


def test_a_finished_run_is_tested_again(copy, whole, command):
    for table in ("slices.csv", "lesions.csv"):
        (copy / table).unlink()
    assert main(["test", *command(copy)[1:]]) == 0
    for table in ("slices.csv", "lesions.csv", "run.json", "metrics.csv"):
        assert (copy / table).read_bytes() == (whole / table).read_bytes()


def test_a_run_that_other_code_tests_again_says_so(copy, command, monkeypatch):
    before = RunInfo.read(copy)
    monkeypatch.setattr("lesionseg.provenance._commit", lambda: "bbbbbbbbbbbb")
    assert main(["test", *command(copy)[1:]]) == 0
    assert RunInfo.read(copy) == replace(before, commit=f"{before.commit}, then bbbbbbbbbbbb")


def test_a_finished_run_is_validated_again(copy, whole, command):
    assert main(["validate", *command(copy)[1:]]) == 0
    assert (copy / "slices.csv").read_bytes() == (whole / "slices.csv").read_bytes()


def test_without_an_inner_validation_there_is_nothing_to_validate(tmp_path, command, capsys):
    none = ("--data.inner_validation", "0")
    assert main(command(tmp_path / "run", *none)) == 0
    line = refused(capsys, ["validate", *command(tmp_path / "run", *none)[1:]])
    assert "expected an inner validation; got data.inner_validation = 0" in line


@pytest.mark.parametrize("verb", ["fit", "test", "validate"])
def test_a_run_of_another_split_neither_goes_on_nor_is_tested(copy, command, capsys, verb):
    """As a version that splits the same patients in another way would have left it."""
    if verb == "fit":
        _unfinish(copy)
    split = copy / "split.json"
    parts = json.loads(split.read_text())
    parts["train"][0], parts["test"][0] = parts["test"][0], parts["train"][0]
    split.write_text(json.dumps(parts))
    before = split.read_bytes()
    line = refused(capsys, [verb, *command(copy)[1:]])
    assert "split.json: expected the parts that this version makes of the store; got others" in line
    assert split.read_bytes() == before


@pytest.mark.parametrize("verb", ["test", "validate"])
def test_a_run_is_not_tested_with_other_options(copy, command, capsys, verb):
    """Its training cases would be in the test part of another fold."""
    before = (copy / "slices.csv").read_bytes()
    line = refused(capsys, [verb, *command(copy, "--data.fold", "1")[1:]])
    assert "expected the options of its fit" in line
    assert (copy / "slices.csv").read_bytes() == before


def test_a_run_that_has_not_finished_is_not_tested(copy, command, capsys):
    _unfinish(copy)
    assert "expected a finished run" in refused(capsys, ["test", *command(copy)[1:]])


def _unfinish(run):
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**info, "state": "running"}))


# ---- refused ----


def test_no_run_folder(command, capsys):
    args = command(Path("unused"))
    at = args.index("--trainer.default_root_dir")
    assert "--trainer.default_root_dir: expected the run folder" in refused(capsys, args[:at] + args[at + 2 :])


def test_a_folder_of_something_else(command, capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert "got a folder with other files" in refused(capsys, command(tmp_path))
    assert "got a file" in refused(capsys, command(tmp_path / "notes.txt"))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--data.store", "nowhere"], ["nowhere: expected a prepared store", "make one by prepare"]),
        (["--model.init_args.weights", "nowhere"], ["nowhere: expected a run folder; got no such folder"]),
        (["--data.foldd", "1"], ["--data.foldd", "perhaps data.fold or data.folds"]),
        (["--data.folds", "many"], ["--data.folds: expected int; got many"]),
        (["--data.folds"], ["--data.folds: expected one argument"]),
        (["--data.folds", "9"], ["expected 1 to 5 folds for 5 patients"]),
        (["--data.fold", "4"], ["fold: expected 0 to 3; got 4"]),
        (["--data.input.size_px", "40"], ["multiple of 32", "got 40"]),
        (["--data.input.size_px", "0"], ["multiple of 32", "got 0"]),
        (["--data.input.region", "box"], ["--data.input.region: expected Literal['slice', 'liver']; got box"]),
        (["--data.batch_size", "0"], ["data.batch_size: expected 1 or more; got 0"]),
        (["--data.keep_empty", "1.5"], ["data.keep_empty: expected 0 to 1; got 1.5"]),
        (["--model.init_args.lr", "-1"], ["model.lr: expected 0 or more; got -1.0"]),
        (["--model.init_args.loss", "mse"], ["model.loss: expected weighted_ce or dice_ce; got mse"]),
        (["--model.init_args.encoder", "resnet19"], ["got 'resnet19'", "close names: resnet18"]),
        (
            ["--model.init_args.encoder", "tu-coatnet_nano_rw_224"],
            ["data.input.size_px: expected a size that tu-coatnet_nano_rw_224 takes; got 32 (The size of tensor a"],
        ),
        (["--model.init_args.depth", "5"], ["depth"]),
        (["--model.class_path", "lesionseg.tasks.Nothing"], ["--model", "lesionseg.tasks.Nothing"]),
        (["--trainer.max_epochs", "5"], ["schedule: expected", "got 5"]),
        (["--seed_everything", "-1"], ["seed_everything: expected 0 to 4294967295; got -1"]),
        (["--data.split_seed", "-1"], ["data.split_seed: expected 0 to 4294967295; got -1"]),
        (
            ["--trainer.limit_train_batches", "0"],
            ["trainer.limit_train_batches: expected a batch to train on; got 0 of 3"],
        ),
        (["--trainer.limit_train_batches", "0.1"], ["expected a share that is one of 3 batches at least; got 0.1"]),
        (["--trainer.limit_val_batches", "0.01"], ["trainer.limit_val_batches: expected a share that is one of"]),
        (["--trainer.limit_test_batches", "0.01"], ["trainer.limit_test_batches: expected a share that is one of"]),
        (
            ["--trainer.overfit_batches", "1"],
            ["trainer.overfit_batches: expected 0, as every epoch has an order of its"],
        ),
        (["--trainer.val_check_interval", "1000"], ["expected 1 to 3, the batches of an epoch; got 1000"]),
        (["--trainer.val_check_interval", "0"], ["expected 1 to 3, the batches of an epoch; got 0"]),
        (["--trainer.max_time", "00:00:01:00"], ["trainer.max_time: expected none, as the schedule needs its epochs"]),
        (["--trainer.accumulate_grad_batches", "0"], ["trainer.accumulate_grad_batches: expected 1 or more; got 0"]),
        (["--trainer.check_val_every_n_epoch", "0"], ["trainer.check_val_every_n_epoch: expected 1 or more; got 0"]),
        (["--trainer.fast_dev_run", "1"], ["trainer.fast_dev_run: expected a schedule of one epoch", "leave it out"]),
        (["--trainer.accelerator", "tpu"], ["trainer: expected settings for this machine"]),
        (["--trainer.devices", "x"], ["trainer: expected settings for this machine"]),
        (["--trainer.logger", "false"], ["trainer.logger: expected nothing", "got False", "WANDB_MODE=disabled"]),
        (["--cell", "one"], ["--cell: expected number/total@side-by-side; got 'one'"]),
        (["more"], ["unknown key more"]),
    ],
)
def test_wrong_options_are_one_line_and_leave_nothing(command, capsys, tmp_path, monkeypatch, more, parts):
    monkeypatch.setenv("WANDB_MODE", "offline")  # as it is for a user
    line = refused(capsys, command(tmp_path / "run", *more))
    assert [part for part in parts if part not in line] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("data:\n  fold: 0\n  fold: 1\n", ["expected each key once; got 'fold' again in line 3"]),
        ("data:\n  foldd: 1\n", ["data.foldd", "perhaps data.fold or data.folds"]),
        ("modle:\n  lr: 1\n", ["modle"]),
        ("data:\n  fold: first\n", ["data.fold: expected int; got first"]),
        ("data: [\n", ["expected YAML; got while parsing"]),
        ("- data\n", ["expected keys with values; got a list"]),
        ("name: 2001-13-45\n", ["expected YAML; got month must be in 1..12"]),
        (f"name: {'[' * 3000}\n", ["expected YAML"]),
        ("name: &a [*a]\n", ["aliases"]),
        (None, ["expected a YAML file", "No such file"]),
    ],
)
def test_a_wrong_config_is_named(command, capsys, tmp_path, text, parts):
    path = tmp_path / "wrong.yaml"
    if text is not None:
        path.write_text(text)
    line = refused(capsys, command(tmp_path / "run", "--config", str(path)))
    assert str(path) in line
    assert [part for part in parts if part not in line] == []
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("form", ["-c {}", "--config={}"])
def test_a_config_is_read_in_whatever_form_it_is_named(command, capsys, tmp_path, form):
    path = tmp_path / "twice.yaml"
    path.write_text("name: a\nname: b\n")
    line = refused(capsys, command(tmp_path / "run", *form.format(path).split()))
    assert f"{path}: expected each key once; got 'name' again in line 2" in line


def test_weights_of_a_run_that_has_not_finished(command, pretrained, capsys, tmp_path):
    start = Path(shutil.copytree(pretrained, tmp_path / "start"))
    _unfinish(start)
    line = refused(capsys, command(tmp_path / "run", "--model.init_args.weights", str(start)))
    assert f"{start}: expected a finished run" in line


def test_weights_of_the_baseline_may_be_missing(finetuning, tmp_path):
    """The grid names them for every row; the row without transfer does not look."""
    quick = ["--trainer.max_epochs", "1", "--trainer.limit_test_batches", "1", "--model.init_args.weights", "nowhere"]
    assert main(finetuning(tmp_path / "run", *quick, schedule="baseline")) == 0
    assert RunInfo.read(tmp_path / "run").weights_sha256 is None


def test_real_ct_is_not_fine_tuned_from_generated_ct(command, pretrained, png_store, capsys, tmp_path):
    line = refused(capsys, command(tmp_path / "run", "--data.store", str(png_store)))
    assert f"{pretrained}: expected weights trained on real CT" in line
    assert "make pretrain LITS=" in line


def test_what_a_net_was_pretrained_on_is_not_its_test(finetuning, capsys, tmp_path):
    start, target = tmp_path / "start", ["--data.target", "lesion"]
    quick = ["--trainer.max_epochs", "1", "--trainer.limit_test_batches", "1", *target]
    assert main(finetuning(start, *quick, schedule="baseline")) == 0
    weights = ["--model.init_args.weights", str(start)]
    line = refused(capsys, finetuning(tmp_path / "run", *weights, "--data.fold", "1", schedule="no_freezing"))
    assert "expected test cases that the net never saw" in line
    assert not (tmp_path / "run").exists()
    assert main(finetuning(tmp_path / "run", *weights, *quick[:4], schedule="no_freezing")) == 0  # the same fold
    again = ["--model.init_args.weights", str(tmp_path / "run")]  # what the start of the start has seen counts too
    assert set(RunInfo.read(start).trained_on) == set(RunInfo.read(tmp_path / "run").trained_on)
    refused(capsys, finetuning(tmp_path / "third", *again, "--data.fold", "2", schedule="no_freezing"))


def test_an_inner_validation_that_a_start_has_learned_from_is_told_and_noted(finetuning, capsys, tmp_path):
    start, quick = tmp_path / "start", ["--trainer.max_epochs", "1", "--trainer.limit_test_batches", "1"]
    assert main(finetuning(start, *quick, schedule="baseline")) == 0
    parts = json.loads((start / "split.json").read_text())
    assert RunInfo.read(start).known_before == ()
    capsys.readouterr()
    with pytest.warns(UserWarning, match="cases of the inner validation have trained the net that this one starts"):
        assert main(finetuning(tmp_path / "run", *quick, "--model.init_args.weights", str(start),
                               schedule="no_freezing")) == 0  # fmt: skip
    assert RunInfo.read(tmp_path / "run").known_before == tuple(parts["validation"])


# ---- paced schedules ----


@pytest.fixture(scope="module")
def paced(tmp_path_factory, command):
    """Clock, plateau and pull to the start together: a command line, and its run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("paced")
    schedule = {"trains": {"stage2": [0.8334, 1], "encoder": "always", "decoder": "always", "head": "always"},
                "clock": {"warm_up": 0.2}, "plateau": {"patience": 1, "min_delta": 1.0}}  # fmt: skip
    settings = {"schedule": schedule, "model": {"init_args": {"l2_sp": 0.01}}}
    (folder / "paced.yaml").write_text(yaml.safe_dump(settings))
    paced = lambda run: command(run, "--config", str(folder / "paced.yaml"), schedule="no_freezing")  # noqa: E731
    assert main(paced(folder / "run")) == 0
    return paced, folder / "run"


def test_a_plateau_is_looked_for_after_every_epoch(paced):
    """Whatever `check_val_every_n_epoch` says: no figure is better by 1, so that stage2 thaws before epoch 2, not 5."""
    steps = json.loads((paced[1] / "schedule.json").read_text())["steps"]
    assert [(step["start"], step["rates"]["stage2"]) for step in steps] == [(0, 0), (2, 1)]
    assert pd.read_csv(paced[1] / "metrics.csv").dropna(subset="val/dice1_n").epoch.tolist() == list(range(EPOCHS))


@pytest.mark.parametrize("step", [2 * STEPS - 1, 2 * STEPS + 1])
def test_a_paced_run_goes_on_bit_for_bit(tmp_path, paced, monkeypatch, step):
    """Stopped after the epoch that makes the plateau, and within the first in which the block trains."""
    command, whole = paced
    with monkeypatch.context() as patch:
        at_step(patch, step, interrupt)
        assert main(command(tmp_path / "run")) == 130
    assert main(command(tmp_path / "run")) == 0
    assert_same_run(tmp_path / "run", whole)


def test_a_plateau_without_an_inner_validation_is_refused(paced, tmp_path, capsys):
    line = refused(capsys, [*paced[0](tmp_path / "run"), "--data.inner_validation", "0"])
    assert "schedule.plateau: expected an inner validation" in line
    assert not (tmp_path / "run").exists()
