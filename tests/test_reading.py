"""Files of torch: what is in them, or `InputError`; nothing else, and nothing of theirs is run."""

import numpy as np
import pytest
import torch

from lesionseg.errors import InputError
from lesionseg.reading import read_torch


class Bomb:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def path(tmp_path):
    torch.save({"state": {"a": torch.arange(40.0), "b": torch.ones(3, dtype=torch.int64)}, "epoch": 3}, tmp_path / "a")
    return tmp_path / "a"


def refused(path):
    with pytest.raises(InputError) as error:
        read_torch(path, expected="a checkpoint", remedy="train again")
    return str(error.value).removeprefix(f"{path}: expected a checkpoint; got ").removesuffix("; train again")


def test_what_was_saved_is_read(path):
    held = read_torch(path, expected="a checkpoint", remedy="train again")
    assert held["epoch"] == 3
    assert torch.equal(held["state"]["a"], torch.arange(40.0))


def test_other_files_are_refused_in_a_line(path, tmp_path):
    whole = path.read_bytes()
    assert refused(tmp_path / "none") == "no such file"
    for content, got in (
        (b"", "an empty file"),
        (b"no torch at all", "none of torch, or one that holds more than tensors and plain data"),
        (whole[:-200], "PytorchStreamReader failed reading zip archive: failed finding central directory"),
    ):
        path.write_bytes(content)
        assert refused(path) == got
    path.unlink()
    path.mkdir()
    assert "Is a directory" in refused(path)


def test_code_in_a_file_is_not_run(path, tmp_path):
    torch.save({"state": Bomb(tmp_path / "ran")}, path)
    assert refused(path) == "none of torch, or one that holds more than tensors and plain data"
    assert not (tmp_path / "ran").exists()


def test_mutated_files_end_in_input_error_or_data(path):
    rng, whole, refusals = np.random.default_rng(0), path.read_bytes(), 0
    for _ in range(400):
        data = bytearray(whole)
        for place in rng.integers(len(data), size=rng.integers(1, 8)):
            data[place] = rng.integers(256)
        path.write_bytes(data)
        try:
            read_torch(path, expected="a checkpoint", remedy="train again")
        except InputError:
            refusals += 1
    assert refusals > 40
