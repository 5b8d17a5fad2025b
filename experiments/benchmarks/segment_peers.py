"""How long `segment` takes against nnU-Net's 2-D inference and MONAI's `SliceInferer`, on the same CPU.

Usage: segment_peers.py [--model MODEL] [--slices N] [--peer-slices N] [--rounds N] [--output JSON]

Ours is all of `Cascade.segment`: liver net, cleaning, lesion net, lesions measured. Nets and scan: see `paper_size.py`;
MODEL is what `make finetune export` leaves, and the time of its small nets is taken out. The liver net sees slices of
384 x 384 and the lesion net the box of the liver in 320 x 320, each only where it has to (`docs/segment.md`); how many
slices these were is said below the table.

nnU-Net: its 2-D predictor on every slice, one channel, with its plain U-net: of 512 x 512 mirrored four times, as it
does by default, and not mirrored; and of 320 x 320, as many pixels as our lesion net sees, not mirrored. Its tile is
the whole slice, so there is one a slice whatever the overlap. The net has one stage less than nnU-Net plans for 512
pixels, which makes its parameters about as many as those of one of our two nets. Reading, resampling and export are
left out.

MONAI: the very lesion net of ours on whole slices of 512 x 512, one at a time. All weights are random: the time does
not depend on them.

Both peers see every slice by itself, so that their time for the scan is that of its first `--peer-slices`, scaled.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from paper_size import SIZES, paper_cascade, phantom_scan
from rounds import Row, publish, rounds, seconds
from scipy import ndimage
from torch import nn

from lesionseg.cascade import CPU_BATCH, Cascade
from lesionseg.inputs import neighbours
from lesionseg.model import Model
from lesionseg.scan import Scan

#: Channels of nnU-Net's stages, one less than it plans for 512 pixels: 33.5 M parameters.
FEATURES = (32, 64, 128, 256, 512, 512, 512)


def ours(cascade: Cascade, scan: Scan) -> Callable[[], float]:
    """Seconds of `segment` less those of the small nets that decide; these remember what they were given."""

    def timed() -> float:
        nets = (cascade.liver_net, *cascade.lesion_nets)
        for net in nets:
            net.aside_s = 0.0
            net.batches.clear()
        return seconds(lambda: cascade.segment(scan))() - sum(net.aside_s for net in nets)

    return timed


def nnunet(hu: np.ndarray, classes: int, *, mirrored: bool) -> tuple[Callable[[], object], int]:
    """nnU-Net's predictor on slices (D, H, W), and the number of parameters of its net."""
    architectures = importlib.import_module("dynamic_network_architectures.architectures.unet")
    predictors = importlib.import_module("nnunetv2.inference.predict_from_raw_data")
    n, norm = len(FEATURES), {"eps": 1e-5, "affine": True}
    net = architectures.PlainConvUNet(
        1, n, FEATURES, nn.Conv2d, 3, [1] + [2] * (n - 1), 2, classes, 2, conv_bias=True,
        norm_op=nn.InstanceNorm2d, norm_op_kwargs=norm, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):  # it says that it runs on a CPU
        predictor = predictors.nnUNetPredictor(use_mirroring=mirrored, device=torch.device("cpu"), allow_tqdm=False)
    predictor.network = net
    predictor.allowed_mirroring_axes = (0, 1)
    predictor.configuration_manager = SimpleNamespace(patch_size=hu.shape[1:])
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=classes)
    image = torch.from_numpy(hu[None]).float()
    return lambda: predictor.predict_sliding_window_return_logits(image), sum(p.numel() for p in net.parameters())


def monai(hu: np.ndarray, net: nn.Module) -> Callable[[], object]:
    """MONAI's inferer over slices (D, H, W), the net being ours."""
    inferer = importlib.import_module("monai.inferers").SliceInferer(
        spatial_dim=0, roi_size=hu.shape[1:], sw_batch_size=CPU_BATCH
    )
    image = torch.from_numpy(np.stack([neighbours(hu, i) for i in range(len(hu))], 1)[None]).float()

    def run() -> None:
        with torch.inference_mode():
            inferer(image, net)

    return run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, default=Path("runs/phantom/model"))
    parser.add_argument("--slices", type=int, default=45)
    parser.add_argument("--peer-slices", type=int, default=2)
    parser.add_argument("--thickness", type=float, default=2.0, metavar="MM")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark/segment_peers.json"))
    options = parser.parse_args()
    if not options.model.exists():
        print(f"segment_peers: left out, as there is no {options.model}: make finetune export")
        return
    cascade = paper_cascade(Model.load(options.model), CPU_BATCH)
    scan = phantom_scan(options.slices, options.thickness)
    part, share = scan.hu[: options.peer_slices], options.slices / options.peer_slices
    small = ndimage.zoom(part, (1, *(SIZES["lesion"] / side for side in part.shape[1:])), order=1)
    large, classes = cascade.lesion_nets[0].large, len(cascade.model.classes)
    ways: dict[str, Callable[[], float]] = {"segment": ours(cascade, scan)}
    wanted: dict[str, float | None] = {}
    parameters = {"ours, each of two nets": sum(p.numel() for p in large.parameters())}
    try:
        whole, parameters["nnU-Net"] = nnunet(part, classes, mirrored=True)
        ways["nnU-Net"] = seconds(whole)
        for images in (part, small):
            side = images.shape[1]
            ways[f"nnU-Net, no mirrors, {side} x {side}"] = seconds(nnunet(images, classes, mirrored=False)[0])
        wanted["nnU-Net"] = 2.0
    except ImportError:
        print("nnU-Net is not installed and left out: pip install 'lesionseg[peers]'")
    ways["MONAI SliceInferer, our lesion net on all slices"] = seconds(monai(part, large))
    found = rounds(ways, options.rounds)
    what = f"segment, {options.slices} slices of 512 x 512"
    rows = [
        Row(what, "s", found["segment"], name, "rival", [share * each for each in values],
            ratio="other / ours", least=wanted.get(name))
        for name, values in found.items() if name != "segment"
    ]  # fmt: skip
    nets = {"liver": cascade.liver_net, "lesion": cascade.lesion_nets[0]}
    seen = {name: sum(map(len, net.batches)) for name, net in nets.items()}
    note = f"{what}: our liver net saw {seen['liver']} of them, our lesion net {seen['lesion']}; the peers see all"
    publish(rows, options.output, notes=[note], parameters=parameters, threads=torch.get_num_threads(),
            slices_seen=seen, peer_slices=len(part))  # fmt: skip


if __name__ == "__main__":
    main()
