"""How long `segment` takes at the size of the paper: against its own nets alone, and against the way of the reference.

Usage: segment.py MODEL [--slices N] [--repeats N] [--output JSON]     MODEL: what `make export` made on the phantom

The nets are those of the profile `paper` (SE-ResNet50, 384 and 320 pixels) with random weights: they cost what trained
ones cost. What they decide comes from the phantom's trained nets, which go along at their own small size, so that liver
and lesions are where they are. The scan is a phantom volume at 512 x 512 with slices below the liver added until the
liver is seen on a third of them. All ways run in turn, `--repeats` times.
"""

from __future__ import annotations

import argparse
import json
import statistics
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
from lesionseg.findings import measure_findings
from lesionseg.formats import read_scan
from lesionseg.inference import clean_liver, lesion_ids
from lesionseg.inputs import InputSpec, liver_box, neighbours, paste, resize
from lesionseg.labels import LIVER
from lesionseg.model import Model
from lesionseg.networks import build_unet
from lesionseg.phantom.write import write_phantom
from lesionseg.runs import provenance
from lesionseg.scan import Scan

SIZES = {"liver": 384, "lesion": 320}


class PaperNet(nn.Module):
    """Costs what the paper's net costs, says what a small trained net says; remembers the batches it was given."""

    def __init__(self, small: nn.Module, small_px: int, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.large = build_unet("se_resnet50", classes=classes, encoder_weights=None).eval()
        self.small, self.small_px = small, small_px
        self.batches: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(images)
        self.large(images)
        side, small = images.shape[-1], (self.small_px, self.small_px)
        scores = self.small(functional.interpolate(images, small, mode="bilinear", antialias=True))
        return functional.interpolate(scores, (side, side), mode="bilinear")


def paper_cascade(model: Model, batch_size: int) -> Cascade:
    """The cascade of a phantom's model with nets of the paper's size in the place of its own."""
    cascade = Cascade(replace(model, lesions=model.lesions[:1]), device="cpu", batch_size=batch_size)
    small_px = {"liver": model.liver.spec.size_px, "lesion": model.lesions[0].spec.size_px}
    cascade.liver_net = PaperNet(cascade.liver_net, small_px["liver"], 2)
    cascade.lesion_nets = [PaperNet(cascade.lesion_nets[0], small_px["lesion"], len(model.classes))]
    description = {**model.liver.description, "input": {**model.liver.description["input"], "size_px": SIZES["liver"]}}
    cascade.model = replace(cascade.model, liver=replace(model.liver, description=description))
    cascade.spec = replace(cascade.spec, size_px=SIZES["lesion"])
    return cascade


def scan_of(slices: int, side_px: int = 512, thickness_mm: float = 2.0) -> Scan:
    """A phantom volume on a finer grid, with the slice below the liver repeated."""
    with tempfile.TemporaryDirectory() as folder:
        write_phantom(Path(folder), volumes=1, slices=0, size=128, seed=0)
        small = read_scan(next(Path(folder).rglob("volume-0.nii.gz")))
    hu = ndimage.zoom(small.hu, (slices / 3 / len(small.hu), side_px / 128, side_px / 128), order=1)
    hu = np.concatenate([np.repeat(hu[:1], slices - len(hu), 0), hu])
    across_mm = small.spacing_mm[1] * 128 / side_px
    affine = np.array([[0, 0, across_mm, 0], [0, across_mm, 0, 0], [thickness_mm, 0, 0, 0], [0, 0, 0, 1.0]])
    return Scan(hu, "benchmark", (thickness_mm, across_mm, across_mm), affine, generated=True)


def bare_forwards(cascade: Cascade) -> float:
    """Seconds of the paper's nets alone on the batches that `segment` has just given them."""
    nets = [cascade.liver_net, *cascade.lesion_nets]
    begin = time.perf_counter()
    with torch.inference_mode():
        for net in nets:
            for images in net.batches:
                net.large(images)
    return time.perf_counter() - begin


def as_the_reference(cascade: Cascade, scan: Scan, *, every_slice: bool) -> float:
    """Seconds of the reference's way: one slice at a time, each stage leaving a file a slice for the next one.

    With `every_slice` the lesion net sees every slice, otherwise those with liver.
    """
    begin, hu = time.perf_counter(), scan.hu
    specs = {"liver": replace(cascade.model.liver.spec), "lesion": cascade.spec}
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = Path(name)
        for i in range(len(hu)):
            np.save(folder / f"slice-{i}.npy", neighbours(hu, i))
        for i in range(len(hu)):
            liver = one_slice(cascade.liver_net, specs["liver"], np.load(folder / f"slice-{i}.npy"), None)
            np.save(folder / f"liver-{i}.npy", liver > 0)
        liver = clean_liver(np.stack([np.load(folder / f"liver-{i}.npy") for i in range(len(hu))]))
        box = liver_box(liver)
        seen = [i for i in range(len(hu)) if every_slice or liver[i].any()]
        for i in seen:
            classes = one_slice(cascade.lesion_nets[0], specs["lesion"], np.load(folder / f"slice-{i}.npy"), box)
            np.save(folder / f"lesion-{i}.npy", classes)
        classes = np.zeros(hu.shape, np.uint8)
        for i in seen:
            classes[i] = np.load(folder / f"lesion-{i}.npy")
    ids = lesion_ids((classes > LIVER) & liver, 50)
    measure_findings(scan, ids.astype(np.uint16), ["lesion"] * ids.max(), [{}] * ids.max())
    return time.perf_counter() - begin


def one_slice(net: nn.Module, spec: InputSpec, around: np.ndarray, box) -> np.ndarray:
    cut = spec.box(box, *around.shape[1:])
    scores = resize(net(spec.encode(around, cut)[None])[0], cut.side)
    return paste(scores.max(0).indices.to(torch.uint8), cut, *around.shape[1:]).numpy()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--slices", type=int, default=45)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark/segment.json"))
    options = parser.parse_args()
    cascade, scan = paper_cascade(Model.load(options.model), options.batch_size), scan_of(options.slices)
    seconds: dict[str, list[float]] = {name: [] for name in ("segment", "bare", "reference", "reference_every_slice")}
    for _ in range(options.repeats):
        for net in (cascade.liver_net, *cascade.lesion_nets):
            net.batches.clear()
        begin = time.perf_counter()
        found = cascade.segment(scan)
        seconds["segment"].append(time.perf_counter() - begin)
        counts = [sum(len(batch) for batch in net.batches) for net in (cascade.liver_net, *cascade.lesion_nets)]
        seconds["bare"].append(bare_forwards(cascade))
        seconds["reference"].append(as_the_reference(cascade, scan, every_slice=False))
        seconds["reference_every_slice"].append(as_the_reference(cascade, scan, every_slice=True))
    ratios = {
        "segment / bare forwards": [a / b for a, b in zip(seconds["segment"], seconds["bare"], strict=True)],
        "reference / segment": [b / a for a, b in zip(seconds["segment"], seconds["reference"], strict=True)],
        "reference, lesion net on every slice / segment": [
            b / a for a, b in zip(seconds["segment"], seconds["reference_every_slice"], strict=True)
        ],
    }
    liver = int((found.labels > 0).any((1, 2)).sum())
    print(
        f"{options.slices} slices of 512 x 512, liver on {liver}; liver net on {counts[0]}, lesion net on {counts[1]}"
    )
    for name, values in seconds.items():
        print(f"  {name:24s} {statistics.median(values):7.1f} s")
    for name, values in ratios.items():
        print(f"  {name:48s} {statistics.median(values):.2f}  ({min(values):.2f} to {max(values):.2f})")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    content = {"slices": options.slices, "liver_slices": liver, "seconds": seconds, "ratios": ratios, **provenance()}
    options.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
