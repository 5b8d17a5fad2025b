"""Square crops around the lesions of a slice: where they lie, shaken for training, cut out of the input of a net.

A square is (row, column, side): its centre and its side in pixels, 0 at the outer edge of the first pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torchvision.ops import roi_align

from lesionseg.boxes import Box

#: Shown around a lesion on each side, as a share of the longer side of its bounding box.
MARGIN = 0.25
#: Least side of a square on the input of the net: a lesion of few pixels is shown with its surroundings.
LEAST_SIDE_PX = 16
#: How far a square is moved along each axis in training, and how much its side changes, either way, as shares of it.
SHIFT, ZOOM = 0.15, 0.2
#: Crops that are named at once: an untrained net finds many lesions.
AT_ONCE = 64


def lesion_squares(labelled: np.ndarray) -> Tensor:
    """Squares (n, 3) around the components 1 … n of a slice (H, W), each with its margin."""
    windows = ndimage.find_objects(labelled)
    sides = [max(rows.stop - rows.start, columns.stop - columns.start) * (1 + 2 * MARGIN) for rows, columns in windows]
    centres = [((rows.start + rows.stop) / 2, (columns.start + columns.stop) / 2) for rows, columns in windows]
    rows = [(*centre, side) for centre, side in zip(centres, sides, strict=True)]
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 3)


def on_input(squares: Tensor, box: Box, size_px: int) -> Tensor:
    """Squares of a slice as squares of the input of a net, to which a box of the slice is resized."""
    return (squares - squares.new_tensor([box.top, box.left, 0])) * (size_px / box.side)


def shaken(squares: Tensor) -> Tensor:
    """Squares moved and resized by chance, from torch's random stream: outlines drawn by a net are not exact either."""
    chance = 2 * torch.rand(squares.shape) - 1
    return squares + chance * squares.new_tensor([SHIFT, SHIFT, ZOOM]) * squares[:, 2:]


def type_scores(
    classifiers: Sequence[Callable[[Tensor], Tensor]],
    images: Tensor,
    owners: Tensor,
    squares: Tensor,
    size_px: int,
    *,
    mirror: bool = False,
) -> Tensor:
    """What classifiers say of crops, `AT_ONCE` of them at a time, and then of their mirror images (left-right).

    Args:
        classifiers: crops (m, C, size_px, size_px) → scores (m, types).
        images: (N, C, S, S), the inputs of a net.
        owners: (n,), which image each square lies on.
        squares: (n, 3), one or more.
        size_px: side of a crop.
        mirror: whether they see the mirror images too.

    Returns:
        Scores (views, n, types), on the device of the images.
    """
    found = []
    for own, places in zip(owners.split(AT_ONCE), squares.split(AT_ONCE), strict=True):
        crops = cut(images, own.to(images.device), places.to(images.device), size_px)
        views = [crops, crops.flip(-1)] if mirror else [crops]
        found.append(torch.stack([classifier(view) for view in views for classifier in classifiers]))
    return torch.cat(found, 1)


def cut(images: Tensor, owners: Tensor, squares: Tensor, size_px: int) -> Tensor:
    """Crops (n, C, size_px, size_px) of images (N, C, S, S), bilinear, averaged where they shrink.

    Args:
        images: the inputs of a net.
        owners: (n,), which image each square lies on.
        squares: (n, 3); those that reach over the edge of the image are moved inside.
        size_px: side of a crop.
    """
    edge = images.shape[-1]
    half = squares[:, 2:].clamp(min(LEAST_SIDE_PX, edge), edge) / 2
    centres = torch.minimum(torch.maximum(squares[:, :2], half), edge - half)
    corners = torch.cat([(centres - half).flip(1), (centres + half).flip(1)], 1)  # x before y
    places = torch.cat([owners[:, None].to(corners), corners], 1)
    # Half precision would move the squares by pixels, and roi_align may not know it.
    kind = torch.promote_types(images.dtype, places.dtype)
    return roi_align(images.to(kind), places.to(kind), size_px, aligned=True).to(images.dtype)
