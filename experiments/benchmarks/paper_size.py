"""What the benchmarks of `segment` share: nets that cost what those of the paper cost, and a scan at clinical size.

The nets are those of the profile `paper` (SE-ResNet50, 384 and 320 pixels) with random weights: they cost what trained
ones cost. What they decide comes from the phantom's trained nets, which go along at their own small size, so that liver
and lesions are where they are; the time these take is counted apart.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from lesionseg.cascade import Cascade
from lesionseg.formats import read_scan
from lesionseg.model import Model
from lesionseg.networks import build_unet
from lesionseg.phantom.write import write_phantom
from lesionseg.scan import Scan

SIZES = {"liver": 384, "lesion": 320}


class PaperNet(nn.Module):
    """Costs what the paper's net costs, says what a small trained net says; remembers the batches it was given.

    Attributes:
        batches: what it was given since they were last cleared, where `keep`.
        aside_s: seconds that the small net took since that was last set to 0.
        rounds: after so many batches the large net is left out (its memory has been seen by then); None: never.
    """

    def __init__(self, small: nn.Module, small_px: int, classes: int, *, keep: bool, rounds: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.large = build_unet("se_resnet50", classes=classes, encoder_weights=None).eval()
        self.large.to(memory_format=torch.channels_last)  # as `Cascade` does
        self.small, self.small_px, self.keep, self.rounds = small, small_px, keep, rounds
        self.batches: list[Tensor] = []
        self.aside_s = 0.0

    def forward(self, images: Tensor) -> Tensor:
        if self.keep:
            self.batches.append(images)
        if self.rounds is None or self.rounds > 0:
            self.large(images)
            self.rounds = None if self.rounds is None else self.rounds - 1
        begin, side, small = time.perf_counter(), images.shape[-1], (self.small_px, self.small_px)
        scores = self.small(functional.interpolate(images, small, mode="bilinear", antialias=True))
        scores = functional.interpolate(scores, (side, side), mode="bilinear")
        self.aside_s += time.perf_counter() - begin
        return scores


def paper_cascade(
    model: Model,
    batch_size: int,
    *,
    lesion_nets: int = 1,
    tta: bool = False,
    keep: bool = True,
    rounds: int | None = None,
) -> Cascade:
    """The cascade of a phantom's model with nets of the paper's size in the place of its own, so many lesion nets."""
    if model.lesions[0].naming.by != "pixels":
        sys.exit("needs a model whose pixels name the lesions: make export SCHEDULE=no_freezing")
    small = replace(model, lesions=model.lesions[:lesion_nets])
    cascade = Cascade(small, device="cpu", batch_size=batch_size, tta=tta)
    small_px = {"liver": model.liver.spec.size_px, "lesion": model.lesions[0].spec.size_px}
    wish = {"keep": keep, "rounds": rounds}
    cascade.liver_net = PaperNet(cascade.liver_net, small_px["liver"], 2, **wish)
    cascade.lesion_nets = [PaperNet(net, small_px["lesion"], len(model.classes), **wish) for net in cascade.lesion_nets]
    description = {**model.liver.description, "input": {**model.liver.description["input"], "size_px": SIZES["liver"]}}
    cascade.model = replace(cascade.model, liver=replace(model.liver, description=description))
    cascade.spec = replace(cascade.spec, size_px=SIZES["lesion"])
    return cascade


def phantom_scan(slices: int, thickness_mm: float, side_px: int = 512) -> Scan:
    """A phantom volume on a finer grid, liver on a third of the slices, as in LiTS: below, the first slice again."""
    with tempfile.TemporaryDirectory() as folder:
        write_phantom(Path(folder), volumes=1, slices=0, size=128, seed=0)
        small = read_scan(next(Path(folder).rglob("volume-0.nii.gz")))
    hu = ndimage.zoom(small.hu, (slices / 3 / len(small.hu), side_px / 128, side_px / 128), order=1)
    hu = np.concatenate([np.repeat(hu[:1], slices - len(hu), 0), hu])
    across_mm = small.spacing_mm[1] * 128 / side_px
    affine = np.array([[0, 0, across_mm, 0], [0, across_mm, 0, 0], [thickness_mm, 0, 0, 0], [0, 0, 0, 1.0]])
    return Scan(hu, "benchmark", (thickness_mm, across_mm, across_mm), affine, generated=True)
