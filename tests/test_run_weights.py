"""The weights of a run: their hash."""

import hashlib

import torch

from lesionseg.run_weights import tensors_sha256


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
