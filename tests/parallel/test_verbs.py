"""`prepare`, `segment` and `evaluate` on Dask, a worker killed in the middle: just what one process makes."""

import csv
import re
from functools import partial

import pytest
from data.made_cases import cohort
from test_segment import content, dicom, nifti

from lesionseg import parallel
from lesionseg.cli import main
from lesionseg.data.case_files import CASES
from lesionseg.data.prepare import prepare
from lesionseg.data.store import Store

QUICK = ("--formats", "nifti,csv,json")


def some(folder, pattern, n=2):
    """Whether a folder holds so many files or folders of a name."""
    return len(list(folder.glob(pattern))) >= n


def hidden(folder):
    return {path.name for path in folder.rglob(".*")} - {".lock", ".lesionseg.lock"}


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(path):
    """Of `summary.csv`, without the seconds."""
    with path.open() as file:
        return [{key: value for key, value in row.items() if not key.endswith("_s")} for row in csv.DictReader(file)]


def by_study(out):
    """What the terminal was told, heading by heading, without what differs: seconds, and the folder before a path."""
    return sorted(re.sub(r"[0-9.]+ s\b|/\S+/(?=in/)", "", part) for part in re.split(r"\n(?=\[)", out.split("\n\n")[0]))


@pytest.fixture(scope="module")
def model(make_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    make_model().save(folder)
    return folder


def test_prepare(address, one_killed, tmp_path):
    sources, store = cohort(tmp_path / "in", n=12, delay_s=0.1), tmp_path / "store"
    with one_killed(partial(some, store / CASES, "*")):
        made = prepare(sources, store, kind="lits", dask=address)
    assert made.manifest_sha256 == prepare(sources, tmp_path / "one", kind="lits", workers=1).manifest_sha256
    assert files(store) == files(tmp_path / "one")
    assert hidden(store) == set()
    Store.open(store, verify=True)


def test_segment(address, one_killed, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # the workers have another working directory
    for n in range(8):
        nifti(tmp_path / "in" / f"volume-{n}.nii", n)
    sorted(dicom(tmp_path / "in" / "gap", 3, "gap").iterdir())[1].unlink()
    command = ["segment", "in", "--model", str(model), *QUICK]
    with one_killed(partial(some, tmp_path / "out", "volume-*")):
        assert main([*command, "-o", "out", "--dask", address]) == 2
    told = capsys.readouterr()
    assert main([*command, "-o", "one", "--workers", "1"]) == 2
    assert rows(tmp_path / "out" / "summary.csv") == rows(tmp_path / "one" / "summary.csv")
    assert content(tmp_path / "out") == content(tmp_path / "one")
    assert by_study(told.out) == by_study(capsys.readouterr().out)
    assert hidden(tmp_path / "out") == set()
    assert main([*command, "-o", "out", "--dask", address]) == 2
    assert capsys.readouterr().out.count("  done already\n") == 8


def test_evaluate(address, one_killed, model, slices_store, tmp_path, monkeypatch):
    command = ["evaluate", str(slices_store), "--model", str(model), "--submission"]
    with one_killed(partial(some, tmp_path / "out" / CASES, "*.json")):
        assert main([*command, "-o", str(tmp_path / "out"), "--dask", address]) == 0
    assert main([*command, "-o", str(tmp_path / "one"), "--workers", "1"]) == 0
    assert files(tmp_path / "out") == files(tmp_path / "one")
    monkeypatch.setattr(parallel, "SECONDS_TO_START", 0.0)
    assert main([*command, "-o", str(tmp_path / "two"), "--workers", "2"]) == 0
    assert files(tmp_path / "two") == files(tmp_path / "one")
