"""What made a result: no more than is told on purpose."""

import getpass
import re
import socket

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


def test_outside_a_checkout_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "__file__", str(tmp_path / "lesionseg" / "provenance.py"))
    assert provenance()["commit"] is None
