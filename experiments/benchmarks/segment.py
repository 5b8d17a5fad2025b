"""How long `segment` takes at the size of the paper: against its own nets alone, and against the way of the reference.

Usage: segment.py MODEL [--slices N] [--thickness MM] [--repeats N] [--output JSON]

MODEL is what `make export` made on the phantom. Nets and scan: see `paper_size.py`; the time of the small nets that
decide is taken out of every way. All ways run in turn, `--repeats` times. The reference has its nets in the layout that
torch gives them, and once more (`same layout`) in that of `segment`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from paper_size import paper_cascade, phantom_scan
from torch import nn

from lesionseg.boxes import liver_box
from lesionseg.cascade import Cascade
from lesionseg.device import CPU_BATCH
from lesionseg.findings import measure_findings
from lesionseg.inference import clean_liver, lesion_ids
from lesionseg.inputs import InputSpec, neighbours, paste, resize
from lesionseg.labels import LIVER
from lesionseg.model import Model
from lesionseg.provenance import provenance
from lesionseg.scan import Scan


def seconds_of(cascade: Cascade, way: Callable[[], object], layout: torch.memory_format) -> float:
    """Seconds that a way takes with nets of this layout, without those of the small nets."""
    nets = (cascade.liver_net, *cascade.lesion_nets)
    for net in nets:
        net.aside_s = 0.0
        net.large.to(memory_format=layout)
    begin = time.perf_counter()
    way()
    return time.perf_counter() - begin - sum(net.aside_s for net in nets)


def bare_forwards(cascade: Cascade, batches: list[list[torch.Tensor]]) -> None:
    """The paper's nets alone, on the batches that `segment` has given them."""
    with torch.inference_mode():
        for net, images in zip((cascade.liver_net, *cascade.lesion_nets), batches, strict=True):
            for batch in images:
                net.large(batch)


def as_the_reference(cascade: Cascade, scan: Scan, *, every_slice: bool) -> None:
    """The reference's way: one slice at a time, each stage leaving a file a slice for the next one.

    With `every_slice` the lesion net sees every slice, otherwise those with liver.
    """
    hu = scan.hu
    specs = {"liver": cascade.model.liver.spec, "lesion": cascade.spec}
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


def one_slice(net: nn.Module, spec: InputSpec, around: np.ndarray, box) -> np.ndarray:
    cut = spec.box(box, *around.shape[1:])
    scores = resize(net(spec.encode(around, cut)[None])[0], cut.side)
    return paste(scores.max(0).indices.to(torch.uint8), cut, *around.shape[1:]).numpy()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--slices", type=int, default=150)
    parser.add_argument("--thickness", type=float, default=2.0, metavar="MM")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=CPU_BATCH)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark/segment.json"))
    options = parser.parse_args()
    cascade = paper_cascade(Model.load(options.model), options.batch_size)
    scan = phantom_scan(options.slices, options.thickness)
    nets = (cascade.liver_net, *cascade.lesion_nets)
    found = cascade.segment(scan)  # also warms up
    batches = [list(net.batches) for net in nets]
    for net in nets:
        net.keep = False
    ways: dict[str, Callable[[], object]] = {
        "segment": lambda: cascade.segment(scan),
        "bare forwards": lambda: bare_forwards(cascade, batches),
        "reference": lambda: as_the_reference(cascade, scan, every_slice=False),
        "reference, same layout": lambda: as_the_reference(cascade, scan, every_slice=False),
        "reference, every slice": lambda: as_the_reference(cascade, scan, every_slice=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, way in ways.items():
            plain = name in ("reference", "reference, every slice")
            layout = torch.contiguous_format if plain else torch.channels_last
            seconds[name].append(seconds_of(cascade, way, layout))
    liver, counts = int((found.labels > 0).any((1, 2)).sum()), [sum(map(len, images)) for images in batches]
    print(
        f"{options.slices} slices of 512 x 512, {options.thickness:g} mm, liver on {liver}; "
        f"liver net on {counts[0]}, lesion net on {counts[1]}; nets of SE-ResNet50, {torch.get_num_threads()} threads"
    )
    for name, values in seconds.items():
        print(f"  {name:24s} {statistics.median(values):7.1f} s")
    ratios = {f"segment / {name}": (seconds["segment"], values) for name, values in seconds.items() if name[0] == "b"}
    ratios |= {f"{name} / segment": (values, seconds["segment"]) for name, values in seconds.items() if name[0] == "r"}
    content = {name: [a / b for a, b in zip(*pair, strict=True)] for name, pair in ratios.items()}
    for name, values in content.items():
        print(f"  {name:34s} {statistics.median(values):.2f}  ({min(values):.2f} to {max(values):.2f})")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    record = {**vars(options), "liver_slices": liver, "forwards": counts, "seconds": seconds, "ratios": content}
    options.output.write_text(json.dumps({**record, **provenance()}, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
