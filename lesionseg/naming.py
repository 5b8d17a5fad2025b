"""Lesions of a slice whose pixels have no types: named all alike by the slice, or each by a crop around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lesionseg.boxes import Box
from lesionseg.crops import lesion_squares, on_input, type_scores
from lesionseg.labels import LESION_TYPES
from lesionseg.lesions import FIRST_TYPE, components


class NamedSlice(NamedTuple):
    """What is said of the lesions of a slice (H, W).

    Attributes:
        number: int64 (H, W), which component (8-neighbourhood) each lesion pixel is of, from 1 on; 0 elsewhere.
        scores: (views, n + 1, n_types), what each view (a net, or its mirror image) says of the type of each component;
            row 0: of all else.
    """

    number: Tensor
    scores: Tensor

    def shares(self, temperature: float = 1.0) -> Tensor:
        """Probabilities of the types, (n + 1, n_types): means over the views of the softmax of scores / temperature."""
        return (self.scores / temperature).softmax(-1).mean(0)

    def types(self) -> Tensor:
        """Class index of the most probable type of each lesion pixel, uint8 (H, W); of no meaning elsewhere."""
        return (FIRST_TYPE + self.shares().argmax(1)).to(torch.uint8)[self.number]

    def on(self, maps: Tensor) -> Tensor:
        """Probabilities (3, H, W) of background, liver and lesion → those with every type, (2 + n_types, H, W).

        That of lesion is shared: where it is the largest, none of its shares need be.
        """
        return torch.cat([maps[:FIRST_TYPE], maps[FIRST_TYPE] * self.shares()[self.number].movedim(-1, 0)])


class SliceInput(NamedTuple):
    """A slice as nets see it: the input (3, S, S), and the box of the slice that it shows."""

    image: Tensor
    box: Box


def by_slice(plane: Tensor, scores: Sequence[Tensor]) -> NamedSlice:
    """The lesions of class indices (H, W) by the scores (n_types,) that each view gives to the slice."""
    number, n = _numbered(plane)
    return NamedSlice(number, torch.stack(list(scores))[:, None].expand(-1, n + 1, -1))


def by_crops(
    plane: Tensor, classifiers: Sequence[Callable[[Tensor], Tensor]], seen: SliceInput, crop_px: int, *, mirror: bool
) -> NamedSlice:
    """The lesions of class indices (H, W) by crops of what the nets have seen, see `crops.type_scores`.

    All else has every type alike: no crop shows it.
    """
    number, n = _numbered(plane)
    scores = seen.image.new_zeros(len(classifiers) * (1 + mirror), n + 1, len(LESION_TYPES))
    if n:
        squares = on_input(lesion_squares(number.cpu().numpy()), seen.box, seen.image.shape[-1])
        owners = torch.zeros(n, dtype=torch.int64)
        with torch.inference_mode():
            found = type_scores(classifiers, seen.image[None], owners, squares, crop_px, mirror=mirror)
        scores[:, 1:] = found.float()
    return NamedSlice(number, scores)


def _numbered(plane: Tensor) -> tuple[Tensor, int]:
    number, n = components(plane.cpu().numpy() == FIRST_TYPE)
    return torch.from_numpy(number).to(plane.device, torch.int64), n
