"""`Unet`: the U-net of segmentation-models-pytorch with outputs at more decoder depths and a head for the slice."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import segmentation_models_pytorch as smp
from segmentation_models_pytorch.base import ClassificationHead
from segmentation_models_pytorch.base.initialization import initialize_head
from torch import Tensor, nn

from lesionseg.norms import keep_no_frozen_input

#: Channels after each of the five decoder steps, deepest first.
DECODER_CHANNELS = (256, 128, 64, 32, 16)
#: Decoder steps (of five, deepest first) that deep supervision gives outputs to: at strides 8, 4 and 2.
DEEP_STEPS = (1, 2, 3)
#: The part that deep supervision adds; it serves training alone.
DEEP_HEADS = "deep_heads"
#: Share of the pooled feature that is dropped before a type is named in training: the default of smp.
DROPOUT = 0.2


@dataclass(frozen=True)
class Naming:
    """What names the lesions that a net finds.

    Attributes:
        by: `pixels`: each has the class of a type; `slice`: a second head names all lesions of a slice alike
            (`slice_types` of `Unet`); `crops`: a second net names each from a crop around it (`add_crop_classifier`).
        crop_px: side of a crop as the classifier sees it, a multiple of 32, 64 to 1024; 0: there are no crops.
    """

    by: Literal["pixels", "slice", "crops"] = "pixels"
    crop_px: int = 0

    def __post_init__(self) -> None:
        if self.by not in ("pixels", "slice", "crops") or type(self.crop_px) is not int:
            raise ValueError(f"lesions named by {self.by!r}, crops of {self.crop_px!r} pixels")
        # at 32 the deepest feature of one crop is one pixel: no batch norm
        if (not 64 <= self.crop_px <= 1024 or self.crop_px % 32) if self.by == "crops" else self.crop_px:
            raise ValueError(f"lesions named by {self.by}, crops of {self.crop_px} pixels")


class Unet(smp.Unet):
    """Class scores of every pixel; on demand those of coarser depths, and scores of the whole slice.

    Without either part it is `smp.Unet`: the same tensors by name, the same initial weights from the same seed.

    Args:
        encoder: a name that smp knows.
        classes: of the pixels.
        encoder_weights: as smp takes them.
        decoder_channels: as in `DECODER_CHANNELS`.
        deep_supervision: also a 1×1 convolution after each of `DEEP_STEPS`, as in the code for arXiv 1907.13409.
        slice_types: outputs of a second head (mean, dropout, linear layer) on the deepest feature of the encoder: the
            other arm of a Y-Net (arXiv 1806.01313); 0: none.
    """

    def __init__(
        self,
        encoder: str,
        *,
        classes: int,
        encoder_weights: str | bool | None,
        decoder_channels: Sequence[int] = DECODER_CHANNELS,
        deep_supervision: bool = False,
        slice_types: int = 0,
    ) -> None:
        super().__init__(
            encoder,
            encoder_weights=encoder_weights,
            decoder_channels=tuple(decoder_channels),
            classes=classes,
            aux_params={"classes": slice_types, "dropout": DROPOUT} if slice_types else None,
        )
        steps = DEEP_STEPS if deep_supervision else ()
        self.deep_heads = nn.ModuleList(nn.Conv2d(decoder_channels[step], classes, 1) for step in steps)
        initialize_head(self.deep_heads)
        keep_no_frozen_input(self)

    def forward(self, images: Tensor, deep: bool = False) -> Any:
        """Scores (N, classes, S, S) of images (N, 3, S, S), or a list of them; with scores (N, slice_types), if any.

        Args:
            images: S is a multiple of 32.
            deep: a list: these scores, then those at strides 8, 4 and 2 where the net is deeply supervised.
        """
        if not deep:
            return super().forward(images)
        features = self.encoder(images)
        steps = self._decoded(features)
        scores = [self.segmentation_head(steps[-1])]
        scores += [head(steps[step]) for step, head in zip(DEEP_STEPS, self.deep_heads, strict=False)]
        return scores if self.classification_head is None else (scores, self.classification_head(features[-1]))

    def _decoded(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The output of each decoder step, deepest first: what smp's decoder goes through and gives the last of."""
        x, out = self.decoder.center(features[-1]), []
        skips = [*features[-2:0:-1], None]
        for step, size_of, skip in zip(self.decoder.blocks, features[-2::-1], skips, strict=True):
            height, width = size_of.shape[2:]
            x = step(x, height, width, skip_connection=skip)
            out.append(x)
        return out


def add_crop_classifier(net: nn.Module, types: int) -> None:
    """Give a U-net a second net, `classifier`, whose encoder begins as a copy of its own."""
    net.classifier = CropClassifier(copy.deepcopy(net.get_submodule("encoder")), types)


class CropClassifier(nn.Module):
    """Scores of types for crops, from an encoder of its own: mean of its deepest feature, dropout, linear layer.

    Args:
        encoder: an encoder of smp; it is trained.
        types: number of outputs.
    """

    def __init__(self, encoder: nn.Module, types: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = ClassificationHead(encoder.out_channels[-1], types, dropout=DROPOUT)  # type: ignore[index]
        initialize_head(self.head)

    def forward(self, crops: Tensor) -> Tensor:
        """Scores (M, types) of crops (M, 3, S, S)."""
        return self.head(self.encoder(crops)[-1])
