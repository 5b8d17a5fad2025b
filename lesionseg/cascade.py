"""The nets put to use: a trained net read from its run, and the liver of a scan."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from lesionseg.errors import InputError
from lesionseg.inputs import Box, InputSpec, neighbours
from lesionseg.networks import build_unet
from lesionseg.runs import finished_run, read_net, weights_sha256
from lesionseg.scan import Scan, canonical, from_canonical

#: Diameter of the disc that closes gaps of the liver on a slice, in pixels (reference code of arXiv 1907.13409).
CLOSING_DIAMETER_PX = 10
#: Slices that go through the net at once.
_BATCH = 8


def load_net(run: Path) -> tuple[nn.Module, InputSpec, dict[str, Any]]:
    """The net of a finished run in eval mode, the input it was trained on, and how it was built."""
    description, tensors = read_net(run)
    net = build_unet(
        description["encoder"],
        classes=len(description["classes"]),
        encoder_weights=None,
        decoder_channels=description["decoder_channels"],
    )
    net.load_state_dict(tensors)
    return net.eval(), InputSpec(**description["input"]), description


@dataclass
class LiverPredictor:
    """Finds the liver of a scan with the liver net of a run. Picklable: each process loads the net when it needs it.

    Raises:
        InputError: the run is not a finished one of a liver net, or is of generated CT while the scan is not.
    """

    run: Path
    _loaded: tuple[nn.Module, InputSpec] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        info = finished_run(self.run)
        if info.target != "liver":
            raise InputError(self.run, expected="a run of the liver net", got=f"target {info.target}",
                             remedy="name the run that `make pretrain` left in pretrain/liver")  # fmt: skip
        self.generated = info.generated

    @property
    def identity(self) -> str:
        """Hash of the weights."""
        return weights_sha256(self.run)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}

    def __call__(self, scan: Scan) -> np.ndarray:
        """Boolean liver mask (D, H, W) on the grid of the scan."""
        if self.generated and not scan.generated:
            raise InputError(self.run, expected="a liver net trained on real CT", got="one trained on the phantom",
                             remedy="make pretrain LITS=/path/to/LiTS")  # fmt: skip
        if self._loaded is None:
            self._loaded = load_net(self.run)[:2]
        liver = clean_liver(predict_classes(*self._loaded, canonical(scan.hu, scan.affine)) > 0)
        return np.ascontiguousarray(from_canonical(liver, scan.affine))


def predict_classes(net: nn.Module, spec: InputSpec, hu: np.ndarray, liver_box: Box | None = None) -> np.ndarray:
    """Class indices, uint8 (D, H, W), of the slices of a volume (D, H, W) in canonical orientation.

    A net of the whole slice sees it all; a net of the liver box sees `liver_box`.
    """
    depth, height, width = hu.shape
    box, out = spec.box(liver_box, height, width), np.empty(hu.shape, dtype=np.uint8)
    for start in range(0, depth, _BATCH):
        indices = range(start, min(start + _BATCH, depth))
        images = torch.stack([spec.encode(neighbours(hu, i), box) for i in indices])
        with torch.inference_mode():
            scores = net(images)
        for i, s in zip(indices, scores, strict=True):
            out[i] = spec.decode(s, box, height, width).numpy()
    return out


def clean_liver(liver: np.ndarray) -> np.ndarray:
    """Fill holes and close gaps slice by slice, then keep the largest 3-D component of a boolean (D, H, W)."""
    radius = CLOSING_DIAMETER_PX // 2
    disc = np.hypot(*np.ogrid[-radius : radius + 1, -radius : radius + 1]) <= radius
    padded = np.pad(liver, ((0, 0), (radius, radius), (radius, radius)))  # or closing would eat into the border
    closed = np.stack([ndimage.binary_fill_holes(ndimage.binary_closing(plane, disc)) for plane in padded])
    components, n = ndimage.label(closed[:, radius:-radius, radius:-radius], structure=np.ones((3, 3, 3)))
    if n == 0:
        return liver
    return components == 1 + np.argmax(np.bincount(components.ravel())[1:])
