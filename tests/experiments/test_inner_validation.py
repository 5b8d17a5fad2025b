"""Rows by their inner validation, against the files of the runs read another way."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from lesionseg.cli import main

SCRIPT = Path(__file__).parents[2] / "experiments" / "inner_validation.py"


def printed(*words):
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, words)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory, finetuning):
    root = tmp_path_factory.mktemp("inner") / "finetune"
    short = ["--trainer.max_epochs", "2", "--trainer.check_val_every_n_epoch", "1"]
    for schedule in ("baseline", "no_freezing"):
        assert main(finetuning(root / schedule / "fold0-seed0", *short, schedule=schedule)) == 0
    return root


def test_the_last_validation_counts(root):
    rows = {line.split()[0]: line.split()[1:] for line in printed(root).stdout.splitlines()[2:]}
    assert set(rows) == {"baseline", "no_freezing"}
    for schedule, values in rows.items():
        with (root / schedule / "fold0-seed0" / "metrics.csv").open() as file:
            last = [line for line in csv.DictReader(file) if line["val/dice1"]][-1]
        assert float(values[0]) == pytest.approx(float(last["val/accuracy_all"]), abs=5e-4)
        assert float(values[2]) == pytest.approx(float(last["val/dice1"]), abs=5e-4)
        assert int(values[5]) == float(last["val/lesions_n"])
    figures = [float(values[0]) for values in rows.values()]
    assert figures == sorted(figures, reverse=True)


def test_an_inner_validation_without_a_lesion_is_told(root, tmp_path):
    shutil.copytree(root, tmp_path / "finetune")
    log = tmp_path / "finetune" / "baseline" / "fold0-seed0" / "metrics.csv"
    table = pd.read_csv(log)
    table["val/lesions_n"] = table["val/lesions_n"].where(table["val/lesions_n"].isna(), 0)
    table[["val/accuracy_all", "val/success_rate"]] = float("nan")
    table.to_csv(log, index=False)
    refused = printed(tmp_path / "finetune")
    assert refused.returncode == 2
    expected = "expected an inner validation with lesions; got none; set another data.split_seed"
    assert refused.stderr == f"lesionseg: wrong input: {log}: {expected}\n"


def test_a_run_without_its_log_is_told(root, tmp_path):
    shutil.copytree(root, tmp_path / "finetune")
    log = tmp_path / "finetune" / "baseline" / "fold0-seed0" / "metrics.csv"
    log.unlink()
    refused = printed(tmp_path / "finetune")
    assert refused.returncode == 2
    expected = "expected the log of the run; got FileNotFoundError; train it again"
    assert refused.stderr == f"lesionseg: wrong input: {log}: {expected}\n"


def test_a_folder_without_runs_is_refused(tmp_path):
    refused = printed(tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("lesionseg: wrong input: ")
    assert "Traceback" not in refused.stderr
