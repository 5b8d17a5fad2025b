"""What W&B is told of a run: its figures, and nothing of a patient, a path, a user or a machine."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from wandb_log import history, records, values

from lesionseg.callbacks.loggers import run_loggers
from lesionseg.cli import main
from lesionseg.data.prepare import prepare
from lesionseg.data.slices import cases
from lesionseg.data.store import Store
from lesionseg.run_weights import weights_sha256
from lesionseg.runs import RunInfo

#: In the table, in the names of the files and in those of their folder.
PATIENT = ("Quxmueller", "Erika19630412", "MRN00427719", "wilhelmine")
PLACE = ("hospital-share", "study-of-2019", "run-of-dr-x", "home-of-dr-x")
#: One validation, so that all is logged that a run ever logs.
EVERY = ("--trainer.check_val_every_n_epoch", "1")
USER = ("user-of-dr-x", "workstation-of-dr-x")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source") / PLACE[0] / PATIENT[3]
    folder.mkdir(parents=True)
    rng, lines = np.random.default_rng(0), ["patient_id,image,mask,liver_mask,window_low_hu,window_high_hu"]
    for i in range(4):
        liver, lesion = np.zeros((2, 32, 32), np.uint8)
        liver[4:28, 4:28], lesion[10:16, 10:16] = 1, i % 3 + 1
        for name, array in (("ct", rng.integers(80, 200, liver.shape)), ("liver", liver), ("mask", lesion)):
            Image.fromarray(array.astype(np.uint8)).save(folder / f"{PATIENT[2]}-{name}{i}.png")
        files = ",".join(f"{PATIENT[2]}-{name}{i}.png" for name in ("ct", "mask", "liver"))
        lines.append(f"{PATIENT[0]}^{PATIENT[1]}-{i},{files},-200,250")
    (folder / "slices.csv").write_text("\n".join(lines) + "\n")
    sources = cases(folder / "slices.csv")
    return prepare(sources, folder.parent / PLACE[1], kind="slices", workers=1).path


def offline(**more: str) -> dict[str, str]:
    """The environment of a process that has a W&B process of its own, whatever this one has come by in other tests."""
    inherited = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    return {**inherited, **more, "WANDB_MODE": "offline"}


@pytest.fixture(scope="module")
def run(tmp_path_factory, finetuning, store) -> Path:
    """Folder of a run logged offline, by a process of its own."""
    base = tmp_path_factory.mktemp("runs")
    folder, home = base / PLACE[2], base / PLACE[3]
    home.mkdir()
    named = {"HOME": str(home), "USER": USER[0], "LOGNAME": USER[0], "HOSTNAME": USER[1]}
    environment = offline(**named)
    args = finetuning(folder, "--data.store", str(store), "--trainer.max_epochs", "1", *EVERY, schedule="baseline")
    command = [sys.executable, "-m", "lesionseg.cli", *args]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "wandb" not in done.stdout + done.stderr
    return folder


def told(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder, its own name in front; where a link leads, too."""
    return {
        path: str(path.relative_to(folder)).encode()
        + (os.readlink(path).encode() if path.is_symlink() else b"")
        + (path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


def hits(files: dict[Path, bytes], words: tuple[str, ...]) -> list[tuple[str, str]]:
    forms = {word: (word.encode(), word.encode("utf-16-le")) for word in words}
    return [
        (word, path.name) for path, content in files.items() for word in words if any(f in content for f in forms[word])
    ]


def test_the_markers_are_planted(store):
    """Or else nothing could be found: the key beside the store holds the names, the store none of them."""
    key = store.with_name(f"{store.name}.key.csv").read_text()
    assert all(word in key for word in PATIENT[:2])
    assert len(Store.open(store).records) == 4
    assert hits(told(store), PATIENT) == []


def test_no_file_of_a_run_names_a_patient(run):
    files = told(run)
    assert len(files) > 10
    assert hits(files, PATIENT) == []


def test_wandb_learns_the_figures(run):
    (log,) = (run / "wandb").rglob("*.wandb")
    info, (told_run,) = RunInfo.read(run), [r.run for r in records(log) if r.WhichOneof("record_type") == "run"]
    assert (told_run.display_name, told_run.run_group) == ("baseline-fold0-seed0", info.config_sha256[:12])
    assert (told_run.job_type, list(told_run.tags)) == ("typed", ["baseline", "fold0", "seed0"])
    assert values(told_run.config.update)["fingerprint"] == info.fingerprint
    rule = {
        k: v
        for r in records(log)
        if r.WhichOneof("record_type") == "config"
        for k, v in values(r.config.update).items()
    }
    assert (rule["ranks"], rule["slices_a_step"], rule["steps_an_epoch"]) == (1, 2, 1)
    csv = pd.read_csv(run / "metrics.csv")
    for name in csv.columns.drop(["epoch", "step"]):
        logged = [entry[name] for entry in history(log) if name in entry]
        numbers = [float(value) for value in logged]  # NaN comes as a text
        assert numbers == pytest.approx(csv[name].dropna().tolist() or [np.nan], rel=1e-6, nan_ok=True)


def test_wandb_gets_overlays_and_the_lesion_table(run):
    (log,) = (run / "wandb").rglob("*.wandb")
    files = log.parent / "files"
    merged = {key: value for entry in history(log) for key, value in entry.items()}
    for kind in ("reference", "prediction"):
        mask = files / merged[f"overlays/slice0/masks/{kind}/path"]
        assert set(np.unique(np.asarray(Image.open(mask)))) <= {0, 1, 2, 3, 4}
    sheet = np.asarray(Image.open(files / merged["overlays/burned_in/path"]))
    assert np.array_equal(sheet, np.asarray(Image.open(run / "overlays" / "epoch-000.png")))
    table = (files / merged["val/lesions/path"]).read_text()
    rows = [re.findall("<td>(.*?)</td>", row, flags=re.DOTALL) for row in table.split("<tr")[2:]]
    assert {row[7] for row in rows} <= {record.patient_id for record in Store.open(store_of(run)).records}
    assert {row[0] for row in rows} <= {"hit", "miss", "false positive"}
    reference = [row for row in rows if row[0] != "false positive"]
    assert len(reference) == pd.read_csv(run / "metrics.csv")["val/lesions_n"].max() > 0
    assert all(
        (row[3] == "") == (row[2] == "") for row in reference
    )  # a probability where, and only where, it is named
    assert all(0 < float(row[3]) <= 1 for row in reference if row[3])


def test_a_run_and_the_net_that_started_it_share_a_hash(run):
    (log,) = (run / "wandb").rglob("*.wandb")
    summaries = [values(r.summary.update) for r in records(log) if r.WhichOneof("record_type") == "summary"]
    (logged,) = {summary["net_sha256"] for summary in summaries if "net_sha256" in summary}
    assert logged == weights_sha256(run)


def store_of(run: Path) -> Path:
    return Path(yaml.safe_load((run / "config.yaml").read_text())["data"]["store"])


def test_wandb_learns_nothing_of_patients_places_users_machines_and_the_command_line(run):
    files = told(run / "wandb")
    host = socket.gethostname()
    options = ("lesionseg.cli", "--data", "--config", "default_root_dir", "lesion.yaml", sys.executable)
    words = (*PATIENT, *PLACE, *USER, *options, *[host] * (len(host) > 5))
    assert hits(files, words) == []
    assert hits(told(run.parent / PLACE[3]), (*PATIENT, *PLACE, *USER)) == []


def test_each_training_of_a_process_is_a_run_of_its_own_in_wandb(tmp_path, finetuning, store):
    """As in a notebook: whole when it has ended, and W&B's process gone. The second one fails."""
    options = ("--data.store", str(store), "--trainer.max_epochs", "2")
    lines = [finetuning(tmp_path / name, *options, "--name", name, schedule="baseline") for name in ("first", "second")]
    lines[1] += ["--model.lr", "1e30"]
    code = (
        "import json, os, psutil, sys; from lesionseg.cli import main\n"
        "first, second = json.loads(sys.argv[1])\n"
        "before, hooks = set(os.environ), (sys.exit, sys.excepthook)\n"
        "assert main(first) == 0\n"
        "failed = main(second)\n"
        "assert {name for name in os.environ if name.startswith('WANDB')} <= before\n"
        "assert (sys.exit, sys.excepthook) == hooks and not psutil.Process().children(recursive=True)\n"
        "os._exit(failed)"
    )
    command = [sys.executable, "-c", code, json.dumps(lines)]
    done = subprocess.run(command, env=offline(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    for name, status in (("first", 0), ("second", 1)):
        (log,) = (tmp_path / name / "wandb").rglob("*.wandb")
        (told_run,) = [r.run for r in records(log) if r.WhichOneof("record_type") == "run"]
        assert told_run.display_name == f"{name}-fold0-seed0"
        (left,) = [r.exit for r in records(log) if r.WhichOneof("record_type") == "exit"]
        assert left.exit_code == status


def test_the_log_is_whole_when_a_command_ends_that_shares_wandbs_process(tmp_path, finetuning, store):
    """As one that a notebook starts which has used W&B, whose process is here killed when the command has ended."""
    line = finetuning(tmp_path / "run", "--data.store", str(store), "--trainer.max_epochs", "1", schedule="baseline")
    code = (
        "import json, psutil, subprocess, sys, wandb; wandb.setup()\n"
        "status = subprocess.call([sys.executable, '-m', 'lesionseg.cli', *json.loads(sys.argv[1])])\n"
        "[child.kill() for child in psutil.Process().children(recursive=True)]\n"
        "sys.exit(status)"
    )
    command = [sys.executable, "-c", code, json.dumps(line)]
    done = subprocess.run(command, env=offline(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (log,) = (tmp_path / "run" / "wandb").rglob("*.wandb")
    assert [r.exit.exit_code for r in records(log) if r.WhichOneof("record_type") == "exit"] == [0]


def test_a_run_of_the_users_own_goes_on(tmp_path, finetuning, store):
    line = finetuning(tmp_path / "run", "--data.store", str(store), "--trainer.max_epochs", "1", schedule="baseline")
    code = (
        "import json, sys, wandb; from lesionseg.cli import main\n"
        f"run = wandb.init(dir={str(tmp_path)!r})\n"
        "failed = main(json.loads(sys.argv[1]))\n"
        "run.log({'mine': 1})\n"
        "sys.exit(failed + (wandb.run is not run))"
    )
    command = [sys.executable, "-c", code, json.dumps(line)]
    done = subprocess.run(command, env=offline(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (log,) = (tmp_path / "wandb").rglob("*.wandb")
    assert any("mine" in entry for entry in history(log))
    assert any("train/loss" in entry for entry in history(log))


@pytest.mark.parametrize(
    ("mode", "goes_on", "earlier", "expected"),
    [
        ("online", True, ("run-20260101_000000-first123", "run-20260102_000000-later456"), "later456"),
        ("online", True, ("offline-run-20260101_000000-first123",), None),  # it was not uploaded: nothing to go on with
        ("online", False, ("run-20260101_000000-first123",), None),
        ("offline", True, ("run-20260101_000000-first123",), None),
        ("online", True, (), None),
    ],
)
def test_a_run_that_goes_on_online_is_one_run_in_wandb(tmp_path, run, monkeypatch, mode, goes_on, earlier, expected):
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path))
    monkeypatch.setattr("wandb.setup", lambda settings: None)
    for name in earlier:
        (tmp_path / "wandb" / name).mkdir(parents=True)
    with run_loggers(tmp_path, RunInfo.read(run), tmp_path / "last.ckpt" if goes_on else None) as (_, logger):
        assert logger.version == expected


def test_nothing_is_left_for_wandb_where_it_is_disabled(pretrained):
    """As for every other test; see tests/conftest.py."""
    assert (pretrained / "metrics.csv").exists()
    assert not list(pretrained.glob("wandb*"))


def test_a_run_that_goes_on_keeps_what_it_logged_up_to_its_checkpoint(tmp_path, finetuning, monkeypatch):
    """The log of a run that was killed may be ahead of its checkpoint."""
    run = tmp_path / "run"
    args = finetuning(run, schedule="baseline")

    def stop(task):
        if task.current_epoch == 3:
            with (run / "metrics.csv").open("a") as log:
                log.write(log_ahead(run))
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lesionseg.tasks.LesionTask.on_train_epoch_start", stop)
        assert main(args) == 130
    before = (run / "metrics.csv").read_text().splitlines()
    assert main(args) == 0
    after = (run / "metrics.csv").read_text().splitlines()
    columns = [line.split(",").index("train/loss") for line in (before[0], after[0])]
    losses = [
        [value for line in lines[1:] if (value := line.split(",")[column])]
        for lines, column in zip((before, after), columns, strict=True)
    ]
    assert losses[0][-1] == "99"
    assert losses[1][:3] == losses[0][:3]
    assert len(losses[1]) == 6
    assert "99" not in losses[1]


def log_ahead(run: Path) -> str:
    """A row of a step after the checkpoint, in the columns that the log has by now."""
    header = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    row = {"epoch": "3", "step": "10", "train/loss": "99"}
    return ",".join(row.get(name, "") for name in header) + "\n"
