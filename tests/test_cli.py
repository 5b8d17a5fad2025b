"""The command line: exit status, one line for wrong input, and nothing heavy before it is needed."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from lesionseg import __version__, cli
from lesionseg.cli import main
from lesionseg.data.store import Store
from lesionseg.device import Inference
from lesionseg.errors import InputError

VERBS = ("phantom", "prepare", "check", "fit", "validate", "test", "compare", "export", "segment", "implant")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Three slices of three patients as PNG, with a cyst, a hemangioma and a metastasis as 1, 2, 3."""
    folder, rng = tmp_path_factory.mktemp("table"), np.random.default_rng(0)
    lines = ["patient_id,image,mask,liver_mask,spacing_mm,window_low_hu,window_high_hu"]
    for i in range(3):
        liver, lesion = np.zeros((2, 48, 48), np.uint8)
        liver[8:40, 6:34] = 1
        lesion[14:20, 12:18] = i + 1
        hu = np.where(liver, 110, -60) + rng.normal(0, 12, liver.shape) - 60 * (lesion > 0)
        for name, array in (("image", (hu + 200) / 450 * 255), ("liver", liver), ("mask", lesion)):
            Image.fromarray(array.astype(np.uint8)).save(folder / f"{name}{i}.png")
        lines.append(f"patient{i},image{i}.png,mask{i}.png,liver{i}.png,0.8,-200,250")
    (folder / "slices.csv").write_text("\n".join(lines) + "\n")
    return folder / "slices.csv"


def run(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "lesionseg.cli", *args], capture_output=True, text=True, check=False)


def exit_status(*args: str) -> int:
    """Of argparse, which leaves by an exception."""
    with pytest.raises(SystemExit) as left:
        main(args)
    return int(left.value.code or 0)


def test_help_lists_every_verb(capsys):
    assert exit_status("--help") == 0
    words = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert sorted(word for word in words if word in VERBS) == sorted(VERBS)


@pytest.mark.parametrize("args", [*((verb,) for verb in VERBS), ("prepare", "lits"), ("prepare", "slices")])
def test_every_verb_explains_itself(args, capsys):
    assert exit_status(*args, "--help") == 0
    assert f"lesionseg {' '.join(args)}" in capsys.readouterr().out


def test_version(capsys):
    assert exit_status("--version") == 0
    assert capsys.readouterr().out == f"lesionseg {__version__}\n"


@pytest.mark.parametrize(
    "args", [(), ("frobnicate",), ("prepare",), ("prepare", "lits"), ("phantom", "a", "--sise", "3")]
)
def test_a_command_line_that_does_not_parse_is_wrong_input(args, capsys):
    assert exit_status(*args) == 2
    assert "usage: lesionseg" in capsys.readouterr().err


def test_nothing_heavy_is_loaded_for_help_or_a_wrong_verb():
    code = """
import sys
from lesionseg.arguments import TRAINING_VERBS
from lesionseg.cli import main
verbs = ("phantom", "prepare", "implant", "check", "compare", "segment", *TRAINING_VERBS)
for args in (["--help"], ["--version"], ["frobnicate"], ["phantom", "--size", "x"], *([v, "--help"] for v in verbs)):
    try:
        main(args)
    except SystemExit:
        pass
heavy = {"torch", "monai", "pytorch_lightning", "highdicom", "pydicom", "nibabel", "sklearn", "matplotlib", "pandas"}
print("loaded:", sorted({*heavy, "scipy", "wandb"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded: []"


def test_wrong_input_is_one_line_and_status_2(tmp_path):
    done = run("prepare", "slices", str(tmp_path / "none.csv"), "-o", str(tmp_path / "store"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"lesionseg: wrong input: {tmp_path / 'none.csv'}: expected ")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("a", expected="b", got="c", remedy="d"), 2, "lesionseg: wrong input: a: expected b; got c; d"),
        (OSError(28, "No space left on device"), 1, "lesionseg: failed: [Errno 28] No space left on device"),
        (FloatingPointError("loss is nan"), 1, "lesionseg: failed: loss is nan"),
        (KeyboardInterrupt(), 130, "lesionseg: interrupted; the same command continues"),
    ],
)
def test_how_a_verb_ends_decides_the_status(error, status, line, monkeypatch, capsys):
    def fails(options):
        raise error

    monkeypatch.setitem(cli.VERBS, "compare", fails)
    assert main(["compare", "runs", "-o", "out"]) == status
    assert capsys.readouterr().err == line + "\n"
    for args in (["--debug", "compare", "runs", "-o", "out"], ["compare", "runs", "-o", "out", "--debug"]):
        assert main(args) == status
        shown = capsys.readouterr().err
        assert shown.startswith("Traceback (most recent call last):")
        assert shown.endswith(line + "\n")


def test_a_mistake_of_ours_is_not_passed_off_as_wrong_input(monkeypatch):
    def fails(options):
        raise KeyError("bug")

    monkeypatch.setitem(cli.VERBS, "compare", fails)
    with pytest.raises(KeyError):
        main(["compare", "runs", "-o", "out"])


def test_slices_are_prepared_checked_and_not_prepared_twice(table, tmp_path, capsys):
    store = tmp_path / "store"
    assert main(["prepare", "slices", str(table), "-o", str(store), "--workers", "1"]) == 0
    first = Store.open(store)
    assert sorted(name for record in first.records for name in record.lesion_types) == [
        "cyst",
        "hemangioma",
        "metastasis",
    ]
    times = {path: path.stat().st_mtime_ns for path in store.rglob("*.npy")}
    assert main(["prepare", "slices", str(table), "-o", str(store), "--workers", "1"]) == 0
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*.npy")} == times
    capsys.readouterr()
    assert main(["check", str(store), "-o", str(tmp_path / "sheet.png")]) == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert min(sheet.size) > 100


def test_options_reach_the_door(table, tmp_path):
    store = tmp_path / "store"
    groups, salt = tmp_path / "groups.csv", tmp_path / "salt"
    groups.write_text("case,patient\nimage0.png,joined\nimage1.png,joined\n")
    salt.write_bytes(b"secret")
    options = ["--groups", str(groups), "--exclude", "image2.png", "--labels", "cyst=2,hemangioma=1"]
    assert main(["prepare", "slices", str(table), "-o", str(store), "--workers", "1", *options]) == 0
    records = Store.open(store).records
    assert len({record.patient_id for record in records}) == 1
    assert sorted(name for record in records for name in record.lesion_types) == ["cyst", "hemangioma"]
    assert (
        main(["prepare", "slices", str(table), "-o", str(store), "--workers", "1", *options, "--salt-file", str(salt)])
        == 0
    )
    assert {r.case_id for r in records}.isdisjoint(r.case_id for r in Store.open(store).records)


@pytest.mark.parametrize("labels", ["cyst", "cyst=", "cyst=one", "cyst=1,cyst=2", "cyst=-1", "", "cyst=1,"])
def test_label_values_that_do_not_parse_are_refused(labels, table, tmp_path, capsys):
    assert main(["prepare", "slices", str(table), "-o", str(tmp_path / "store"), "--labels", labels]) == 2
    assert "--labels: expected name=value" in capsys.readouterr().err


@pytest.mark.parametrize("labels", ["tumour=1", "cyst=1,metastasis=1", "cyst=0"])
def test_label_values_that_make_no_sense_are_refused(labels, table, tmp_path, capsys):
    assert main(["prepare", "slices", str(table), "-o", str(tmp_path / "store"), "--labels", labels]) == 2
    assert "wrong input: labels: expected" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b""])
def test_a_salt_file_without_salt_is_refused(content, table, tmp_path, capsys):
    if content is not None:
        (tmp_path / "salt").write_bytes(content)
    args = ["prepare", "slices", str(table), "-o", str(tmp_path / "store"), "--salt-file", str(tmp_path / "salt")]
    assert main(args) == 2
    assert "a file of secret bytes" in capsys.readouterr().err


def test_a_liver_net_that_is_not_there_is_refused(table, tmp_path, capsys):
    args = ["prepare", "slices", str(table), "-o", str(tmp_path / "store"), "--liver", str(tmp_path / "none")]
    assert main(args) == 2
    assert "expected a run folder; got no such folder" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("device", "more", "workers"), [("cpu", (), None), ("meta", (), 1), ("meta", ("--workers", "2"), 2)]
)
def test_one_process_prepares_where_the_liver_net_has_a_gpu(table, tmp_path, monkeypatch, device, more, workers):
    seen = []
    monkeypatch.setattr("lesionseg.liver_predictor.LiverPredictor", lambda run: None)
    monkeypatch.setattr("lesionseg.device.inference_on", lambda: Inference(torch.device(device)))
    monkeypatch.setattr("lesionseg.data.prepare.prepare", lambda *_, **options: seen.append(options["workers"]))
    assert main(["prepare", "slices", str(table), "-o", str(tmp_path / "store"), "--liver", "run", *more]) == 0
    assert seen == [workers]


def test_check_finds_wrong_input(table, tmp_path, capsys):
    wrong = table.with_name("wrong.csv")
    wrong.write_text(table.read_text().replace("image1.png", "missing.png"))
    assert main(["check", str(wrong), "-o", str(tmp_path / "sheet.png")]) == 2
    assert "missing.png" in capsys.readouterr().out


def test_compare_without_runs_is_wrong_input(tmp_path, capsys):
    assert main(["compare", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_phantom_and_lits(tmp_path):
    made, store = tmp_path / "made", tmp_path / "store"
    assert main(["phantom", str(made), "--volumes", "1", "--slices", "0", "--size", "64"]) == 0
    assert main(["prepare", "lits", str(made / "lits"), "-o", str(store), "--workers", "1"]) == 0
    assert json.loads((store / "manifest.json").read_text())["kind"] == "lits"
