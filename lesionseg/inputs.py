"""All that training and inference must agree on: HU window, 2.5-D neighbours, what is cut, and its inverse."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lesionseg.boxes import Box, crop, overlap, slice_box

#: CUDA smooths by weights in the 48 KB of a block's shared memory, where those of a larger factor have no room.
MOST_SHRUNK_ON_CUDA = 94


@dataclass(frozen=True)
class InputSpec:
    """How a slice becomes the input of a network; it travels in the checkpoint.

    Attributes:
        size_px: side of the square network input.
        region: the whole slice (padded to a square) or the liver box of the scan.
        low_hu: Hounsfield units below this are clipped.
        high_hu: Hounsfield units above this are clipped.
        mean_hu: subtracted after clipping. Window, mean and scale are those of the reference code.
        scale_hu: divided by after subtraction.
    """

    size_px: int
    region: Literal["slice", "liver"]
    low_hu: float = -200.0
    high_hu: float = 250.0
    mean_hu: float = 95.0
    scale_hu: float = 35.0

    def __post_init__(self) -> None:
        if not (type(self.size_px) is int and 32 <= self.size_px <= 4096) or self.size_px % 32:
            allowed = "a multiple of 32 (five halvings in the U-net) up to 4096"
            raise ValueError(f"size_px must be {allowed}, got {self.size_px}")
        if not -math.inf < self.low_hu < self.high_hu < math.inf:
            raise ValueError(f"low_hu must be below high_hu, got {self.low_hu} and {self.high_hu}")
        if not (math.isfinite(self.mean_hu) and 0 < self.scale_hu < math.inf):
            raise ValueError(f"mean_hu must be finite, scale_hu above 0, got {self.mean_hu} and {self.scale_hu}")

    def normalize(self, hu: np.ndarray) -> np.ndarray:
        """Window and scale HU of any shape; float32, same shape."""
        image = np.array(hu, dtype=np.float32)
        np.clip(image, self.low_hu, self.high_hu, out=image)  # before: of integers, it would make doubles
        image -= self.mean_hu
        image /= self.scale_hu
        return image

    def box(self, liver_box: Box | None, height: int, width: int) -> Box:
        """The square this input is cut from, in a slice of (height, width); without a liver box, the whole slice."""
        if self.region == "liver" and liver_box is not None:
            return liver_box
        return slice_box(height, width)

    def encode(self, slices: np.ndarray, box: Box) -> Tensor:
        """HU of a slice and its neighbours (C, H, W) → network input (C, size_px, size_px), float32."""
        image = torch.from_numpy(self.normalize(crop(slices, box, fill=self.low_hu)))
        return resize(image, self.size_px)

    def encode_labels(self, labels: np.ndarray, box: Box) -> Tensor:
        """Label ids or class indices of a slice (H, W) → the same cut at network size (size_px, size_px), uint8."""
        return resize_labels(torch.from_numpy(crop(labels, box, fill=0)), self.size_px)

    def decode(self, scores: Tensor, box: Box, height: int, width: int) -> Tensor:
        """Class scores of the network (C, size_px, size_px) → class indices on the slice (height, width), uint8.

        Scores are brought back to the pixels of the slice before the largest is taken. Outside the box: background.
        """
        classes = resize(scores.float(), box.side).max(0).indices  # many times faster than argmax(0) on the CPU
        return paste(classes.to(torch.uint8), box, height, width)


def neighbours(volume: np.ndarray, index: int) -> np.ndarray:
    """Slice `index` of a volume (D, H, W) with the ones before and after, (3, H, W); edge slices are repeated.

    A view of the volume, but at its edges.
    """
    last = len(volume) - 1
    if 0 < index < last:
        return volume[index - 1 : index + 2]
    return np.stack([volume[max(index - 1, 0)], volume[index], volume[min(index + 1, last)]])


def paste(patch: Tensor, box: Box, height: int, width: int) -> Tensor:
    """Put a box (…, side, side) back on a slice of zeros (…, height, width): the inverse of `crop`."""
    out = patch.new_zeros((*patch.shape[:-2], height, width))
    inside, place = overlap(box, height, width)
    out[(..., *inside)] = patch[(..., *place)]
    return out


def resize(image: Tensor, side: int) -> Tensor:
    """Bilinear resize of (C, S, S) to (C, side, side), smoothed before shrinking; the identity at equal size."""
    if image.shape[-2:] == (side, side):
        return image
    # A liver of one pixel, as a net may find in a scan without one.
    taken = image.cpu() if image.shape[-1] > MOST_SHRUNK_ON_CUDA * side else image
    return functional.interpolate(taken[None], (side, side), mode="bilinear", antialias=True)[0].to(image.device)


def resize_labels(labels: Tensor, side: int) -> Tensor:
    """Nearest-neighbour resize of class indices (H, W) to (side, side), by pixel centres."""
    if labels.shape[-2:] == (side, side):
        return labels
    resized = functional.interpolate(labels[None, None].to(torch.uint8), (side, side), mode="nearest-exact")
    return resized[0, 0].to(labels.dtype)
