"""What made a result: no more than is told on purpose."""

import getpass
import re
import socket
import subprocess

import pytest
import torch

from lesionseg import __version__
from lesionseg import provenance as module
from lesionseg.provenance import provenance


def test_commit_version_and_kind_of_machine():
    found = provenance()
    assert set(found) == {"commit", "version", "machine"}
    assert found["version"] == __version__
    assert found["commit"] is None or re.fullmatch(r"[0-9a-f]{12}(-dirty)?", found["commit"])
    assert ("CPU only" in found["machine"]) == (not torch.cuda.is_available())
    assert not {socket.gethostname(), getpass.getuser()} & set(re.findall(r"[\w-]+", found["machine"]))


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with the package in it, from which `provenance` believes to come, and git in it."""

    def git(*words):
        named = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", tmp_path, *named, *words], check=True, capture_output=True)

    package = tmp_path / "lesionseg"
    package.mkdir()
    (package / "provenance.py").touch()
    monkeypatch.setattr(module, "__file__", str(package / "provenance.py"))
    git("init")
    return tmp_path, git


def test_a_commit_is_dirty_with_changed_files_and_with_new_ones_of_the_package(checkout):
    root, git = checkout
    (root / "notes.txt").touch()
    git("add", ".")
    git("commit", "-m", "one")
    clean = provenance()["commit"]
    (root / "untracked.txt").touch()
    assert provenance()["commit"] == clean
    assert re.fullmatch("[0-9a-f]{12}", clean)
    (root / "lesionseg" / "mine.py").touch()
    assert provenance()["commit"] == f"{clean}-dirty"
    (root / "lesionseg" / "mine.py").unlink()
    (root / "notes.txt").write_text("changed")
    assert provenance()["commit"] == f"{clean}-dirty"


def test_the_commit_of_something_else_around_the_package_is_none(checkout):
    root, git = checkout
    (root / ".gitignore").write_text("lesionseg\n")
    git("add", ".")
    git("commit", "-m", "a manuscript")
    assert provenance()["commit"] is None


def test_outside_a_checkout_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "__file__", str(tmp_path / "lesionseg" / "provenance.py"))
    assert provenance()["commit"] is None
