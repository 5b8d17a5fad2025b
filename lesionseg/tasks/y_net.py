"""`YNetTask`: a U-net with a second head that says which lesion types a slice holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lesionseg.data.dataset import Batch
from lesionseg.lesions import FIRST_TYPE
from lesionseg.tasks.base import refuse_negative
from lesionseg.tasks.two_step import TwoStepTask, without_types
from lesionseg.unet import Naming


class YNetTask(TwoStepTask):
    """Lesion or not of every pixel, and the types of the slice from the deepest feature of the same encoder.

    The two-headed net that arXiv 2004.12352 compares its joint net with; the architecture is arXiv 1806.01313.

    - Training: a slice has a type if one pixel of its input has it, so that a slice may have several types or none; the
      loss of a type is binary cross-entropy, the mean over slices and types. (The reference has one type a slice.)
    - Prediction: every lesion of a slice is given the type with the highest score on that slice. So of a slice that
      holds two types, only the lesions of one can be named rightly; the scores do not say where a type lies.

    Args:
        classification_weight: of the loss of the types beside that of the pixels.
        args: of `LesionTask`.
        kwargs: of `LesionTask`.
    """

    naming = Naming("slice")

    def __init__(self, *args: Any, classification_weight: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        refuse_negative(classification_weight=classification_weight)
        self.classification_weight = classification_weight

    def configure_net(self, encoder: str, **options: Any) -> nn.Module:
        """A U-net with a head for the slice."""
        return super().configure_net(encoder, slice_types=len(self.target.lesion_types), **options)

    def forward(self, images: Tensor) -> Tensor:
        """Scores of the pixels (N, 3, S, S) of images (N, 3, S, S)."""
        return self.net(images)[0]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Of the pixels without types, and of the types of the slices, weighted."""
        scores, types = self.net(batch.images, deep=True)
        held = types_held(batch.targets, types.shape[1]).to(types)
        return {
            "segmentation": self.segmentation_loss(scores, without_types(batch.targets)),
            "types": self.classification_weight * functional.binary_cross_entropy_with_logits(types, held),
        }

    def predict_slices(self, batch: Batch) -> list[Tensor]:
        """Lesions as the pixels say, all of a slice named alike."""
        scores, types = self.net(batch.images)
        best = (FIRST_TYPE + types.argmax(1)).to(torch.uint8)
        return [
            torch.where(plane == FIRST_TYPE, kind, plane)
            for plane, kind in zip(self.on_slices(scores, batch), best, strict=True)
        ]


def types_held(targets: Tensor, n_types: int) -> Tensor:
    """Which types each slice holds, boolean (N, n_types), from class indices (N, S, S)."""
    return torch.stack([(targets == FIRST_TYPE + i).flatten(1).any(1) for i in range(n_types)], 1)
