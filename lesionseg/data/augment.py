"""Augmentation of a training sample, a pure function of its seed, in the ranges of the reference code."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


class Move(NamedTuple):
    """Where a sample's pixels come from: mirrored, zoomed, shifted, turned, in this order, around the middle.

    The order and the signs are those of MONAI's `Affine`, of which this is the part that is needed, many times faster.

    Attributes:
        angle: of the turn, in radians.
        zoom: factor along (H, W).
        shift: along (H, W), as a share of the side.
        mirrored: left and right.
    """

    angle: float
    zoom: tuple[float, float]
    shift: tuple[float, float]
    mirrored: bool

    def matrix(self) -> Tensor:
        """(2, 3), place (x, y, 1) in the moved image → (x, y) in the image; both run from -1 to 1, as in torch."""
        sin, cos = math.sin(self.angle), math.cos(self.angle)
        (zoom_y, zoom_x), (shift_y, shift_x) = self.zoom, (2 * share for share in self.shift)
        zoom_x = -zoom_x if self.mirrored else zoom_x
        return torch.tensor(
            [
                [cos * zoom_x, sin * zoom_y, cos * shift_x + sin * shift_y],
                [-sin * zoom_x, cos * zoom_y, cos * shift_y - sin * shift_x],
            ]
        )

    def __call__(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Move an image (C, S, S), bilinear, and its class indices (S, S), nearest; the border is repeated outwards."""
        of_x, of_y, offset = self.matrix().T
        centres = _centres(len(target))
        # (S, S, 2), as of torch's `affine_grid`, which takes several times as long for it: pairs (x, y) are added as
        # complex numbers are, a row of them at once.
        along_x, along_y = torch.view_as_complex(centres * of_x), torch.view_as_complex(centres * of_y + offset)
        grid = torch.view_as_real(along_x + along_y[:, None])
        return _sampled(image, grid, "bilinear"), _sampled(target[None].float(), grid, "nearest")[0].to(target.dtype)


@cache
def _centres(side: int) -> Tensor:
    """Places of the pixels along a side, from -1 to 1, (S, 1)."""
    return ((torch.arange(side) * 2 + 1) / side - 1)[:, None]


def _sampled(image: Tensor, grid: Tensor, mode: str) -> Tensor:
    return functional.grid_sample(image[None], grid[None], mode=mode, padding_mode="border", align_corners=False)[0]


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes; the defaults are those of the authors' code for arXiv 1907.13409.

    Attributes:
        rotation_degrees: largest rotation, either way.
        zoom: largest relative change of size, either way, for each axis.
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
        image, target = self.move(rng)(image, target)
        image *= 1 + rng.uniform(-self.grey_level, self.grey_level)
        self.salt_and_pepper(image, rng)
        return image, target

    def move(self, rng: np.random.Generator) -> Move:
        """Draw a move."""
        angle = math.radians(rng.uniform(-self.rotation_degrees, self.rotation_degrees))
        zoom_y, zoom_x = (1 + rng.uniform(-self.zoom, self.zoom, 2)).tolist()
        shift_y, shift_x = rng.uniform(-self.shift, self.shift, 2).tolist()
        return Move(angle, (zoom_y, zoom_x), (shift_y, shift_x), self.flip and rng.random() < 0.5)

    def salt_and_pepper(self, image: Tensor, rng: np.random.Generator) -> None:
        """In place. Drawing which pixels change takes a few random numbers; drawing for each whether it does, many."""
        pixels = image.shape[-2] * image.shape[-1]
        changed = rng.choice(pixels, rng.binomial(pixels, rng.uniform(0, self.salt_pepper)), replace=False)
        dark = rng.binomial(len(changed), 0.5)
        low, high = image.aminmax()
        flat, places = image.view(len(image), pixels), torch.from_numpy(changed)
        flat.index_fill_(1, places[:dark], low).index_fill_(1, places[dark:], high)
