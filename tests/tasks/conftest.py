"""What the tests of every task share."""

from collections.abc import Callable

import pytest
import torch

from lesionseg.boxes import Box
from lesionseg.data.dataset import Batch, Place


@pytest.fixture
def tiny_batch() -> Callable[..., Batch]:
    """Slices of 64 pixels, each its own input: a liver, and lesions of the types asked for, of a brightness each."""

    def make(*types: tuple[int, ...]) -> Batch:
        generator = torch.Generator().manual_seed(0)
        images, targets = torch.zeros(len(types), 3, 64, 64), torch.zeros(len(types), 64, 64, dtype=torch.int64)
        for image, target, kinds in zip(images, targets, types, strict=True):
            target[4:60, 4:60] = 1
            for place, kind in enumerate(kinds):
                target[10 + 24 * place : 26 + 24 * place, 20:36] = kind
            image[:] = target * 1.0 - 1 + 0.1 * torch.randn(64, 64, generator=generator)
        n = len(types)
        references = list(targets.to(torch.uint8))
        return Batch(images, targets, references, [Box(0, 0, 64)] * n, [Place(i, i, 0) for i in range(n)])

    return make
