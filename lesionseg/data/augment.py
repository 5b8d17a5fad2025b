"""Augmentation of a training sample, a pure function of its seed; MONAI moves, in the ranges of the reference code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from monai.transforms import RandAffine
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes; the defaults are those of the authors' code for arXiv 1907.13409.

    Attributes:
        rotation_degrees: largest rotation, either way.
        zoom: largest relative change of size, either way.
        shift: largest displacement as a share of the side, either way, for each axis.
        flip: mirror left and right in half of the samples (the reference does so for the lesion net only).
        grey_level: largest relative change of contrast, either way.
        salt_pepper: largest share of pixels set to the darkest or brightest value of the image.
    """

    rotation_degrees: float = 15.0
    zoom: float = 0.10
    shift: float = 0.05
    flip: bool = True
    grey_level: float = 0.10
    salt_pepper: float = 0.05

    def __call__(self, image: Tensor, target: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Change an image (C, S, S) and its class indices (S, S) alike; the same seed gives the same result."""
        rng = np.random.default_rng(seed)
        image, target = self._move(image, target, seed)
        if self.flip and rng.random() < 0.5:
            image, target = image.flip(-1), target.flip(-1)
        image = image * float(1 + rng.uniform(-self.grey_level, self.grey_level))
        return self._salt_and_pepper(image, rng), target

    def _move(self, image: Tensor, target: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        side = image.shape[-1]
        affine = RandAffine(
            prob=1.0,
            rotate_range=np.deg2rad(self.rotation_degrees),
            scale_range=(self.zoom, self.zoom),
            translate_range=(self.shift * side, self.shift * side),
            padding_mode="border",
        ).set_random_state(seed=seed % 2**32)
        moved = affine(image, mode="bilinear")
        labels = affine(target[None].float(), mode="nearest", randomize=False)
        # MONAI's own tensors carry their history into the net, at a cost in every layer.
        return moved.as_subclass(Tensor), labels.as_subclass(Tensor)[0].to(target.dtype)

    def _salt_and_pepper(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        share = rng.uniform(0, self.salt_pepper)
        draw = torch.from_numpy(rng.random(image.shape[-2:], dtype=np.float32))
        low, high = image.amin(), image.amax()
        image = torch.where(draw < share / 2, low, image)
        return torch.where(draw > 1 - share / 2, high, image)
