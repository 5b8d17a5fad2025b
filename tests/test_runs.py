"""What a run folder says of itself, and what is refused."""

import hashlib

import pytest
import torch

from lesionseg.errors import InputError
from lesionseg.runs import RunInfo, tensors_sha256


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"null", b"\xff\xfe", b"[" * 100_000, b'{"name": 1}', b'{"trained_on": 1}'],
    ids=["empty", "a list", "no fields", "null", "no UTF-8", "nested without end", "few fields", "a wrong field"],
)
def test_a_garbled_run_json_is_refused(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a run\.json that cannot be read"):
        RunInfo.read(tmp_path)


def test_tensors_are_hashed_by_name_and_bytes_whatever_their_type_and_layout():
    tensors = {
        "b": torch.arange(6.0).reshape(2, 3).T,
        "a": torch.tensor(7),
        "c": torch.zeros(0, 3),
        "d": torch.tensor([True, False]),
    }
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].numpy().tobytes())
    assert tensors_sha256(tensors) == digest.hexdigest()
    half = torch.tensor([1.0, -2.5, 3e38], dtype=torch.bfloat16)
    digest = hashlib.sha256(b"x" + half.view(torch.int16).numpy().tobytes())
    assert tensors_sha256({"x": half}) == digest.hexdigest()
