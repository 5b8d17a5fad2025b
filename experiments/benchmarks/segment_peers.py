"""How long `segment` takes against nnU-Net's 2-D inference and MONAI's `SliceInferer`, on the same CPU.

Usage: segment_peers.py [--model MODEL] [--slices N] [--peer-slices N] [--rounds N] [--output JSON]

Ours is all of `Cascade.segment`: liver net, cleaning, lesion net, lesions measured. Nets and scan: see `paper_size.py`;
MODEL is what `make finetune export` leaves, and the time of its small nets is taken out. The liver net sees slices of
384 x 384 and the lesion net the box of the liver in 320 x 320, each only where it has to (`docs/segment.md`); how many
slices these were is said below the table.

nnU-Net: its 2-D predictor on every slice, one channel, with its plain U-net: of 512 x 512 mirrored four times, as it
does by default, and not mirrored; and of 320 x 320, as many pixels as our lesion net sees, not mirrored. Its tile is
the whole slice, so there is one a slice whatever the overlap. The net has one stage less than nnU-Net plans for 512
pixels, which makes its parameters about as many as those of one of our two nets; what a net multiplies for 320 x 320 is
said below the table, too. Reading, resampling and export are left out.

Two more rows: ours with `--tta` (the lesion net also on the mirror image, nnU-Net on four), and ours with as many
lesion nets as MODEL has, as `export` puts one of each fold into it (nnU-Net with one, as before).

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
from rounds import Row, left_out_if_missing, publish, rounds, seconds
from scipy import ndimage
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lesionseg.cascade import Cascade
from lesionseg.device import CPU_BATCH
from lesionseg.inputs import neighbours
from lesionseg.model import Model
from lesionseg.scan import Scan

NNUNET = "nnU-Net"
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


def nnunet(hu: np.ndarray, classes: int, *, mirrored: bool) -> tuple[Callable[[], object], nn.Module]:
    """nnU-Net's predictor on slices (D, H, W), and its net."""
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
    return lambda: predictor.predict_sliding_window_return_logits(image), net


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


def size_of(net: nn.Module, channels: int) -> dict[str, float]:
    """Parameters in millions, and what it multiplies and adds for an image of our lesion net, 10⁹ operations."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        net.eval()(torch.zeros(1, channels, SIZES["lesion"], SIZES["lesion"]))
    return {"parameters_m": sum(p.numel() for p in net.parameters()) / 1e6, "gflop": counter.get_total_flops() / 1e9}


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
    model = Model.load(options.model)
    cascade = paper_cascade(model, CPU_BATCH)
    scan = phantom_scan(options.slices, options.thickness)
    part, share = scan.hu[: options.peer_slices], options.slices / options.peer_slices
    small = ndimage.zoom(part, (1, *(SIZES["lesion"] / side for side in part.shape[1:])), order=1)
    large, classes = cascade.lesion_nets[0].large, len(cascade.model.classes)
    nets = len(model.lesions)
    own: dict[str, Callable[[], float]] = {
        "segment": ours(cascade, scan),
        "segment --tta": ours(paper_cascade(model, CPU_BATCH, tta=True), scan),
        f"segment, {nets} lesion nets": ours(paper_cascade(model, CPU_BATCH, lesion_nets=nets), scan),
    }
    peers: dict[str, Callable[[], float]] = {}
    sizes, notes = {"ours, each net": size_of(large, 3)}, list[str]()
    with left_out_if_missing(NNUNET, notes):
        whole, net = nnunet(part, classes, mirrored=True)
        peers[NNUNET], sizes[NNUNET] = seconds(whole), size_of(net, 1)
        for images in (part, small):
            side = images.shape[1]
            peers[f"{NNUNET}, no mirrors, {side} x {side}"] = seconds(nnunet(images, classes, mirrored=False)[0])
    peers["MONAI SliceInferer, our lesion net on all slices"] = seconds(monai(part, large))
    found = rounds(own | peers, options.rounds)
    scaled = {name: [share * each for each in found[name]] for name in peers}
    what = f"{options.slices} slices of 512 x 512"
    rows = [
        Row(f"{way}, {what}", "s", found[way], name, "rival", scaled[name], ratio="other / ours",
            least=2.0 if (way, name) == ("segment", NNUNET) else None)
        for way in own for name in (peers if way == "segment" else peers.keys() & {NNUNET})
    ]  # fmt: skip
    looked = {"liver": cascade.liver_net, "lesion": cascade.lesion_nets[0]}
    seen = {name: sum(map(len, net.batches)) for name, net in looked.items()}
    notes += [
        f"segment, {what}: our liver net saw {seen['liver']} of them, our lesion net {seen['lesion']}, the peers all",
        *(f"segment: {name}: {size['parameters_m']:.1f} M parameters, {size['gflop']:.1f} GFLOP for 320 x 320"
          for name, size in sizes.items()),
    ]  # fmt: skip
    publish(rows, options.output, notes=notes, sizes=sizes, threads=torch.get_num_threads(), slices_seen=seen,
            peer_slices=len(part))  # fmt: skip


if __name__ == "__main__":
    main()
