"""Peak memory of `segment` on scans of 512 x 512 x 600 with nets of the paper's size, for one study and for several.

Usage: segment_memory.py MODEL [--slices N] [--batch-size N] [--studies N] [--output JSON]

MODEL is what `make export` made on the phantom; nets and scan: see `paper_size.py`. A fresh process reads, segments and
writes every format that fits, as the command line does; what is printed is the most memory it ever held (VmHWM), that
of Python and its libraries included. After its first batches a large net is left out: its memory has been seen by then.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from paper_size import paper_cascade, phantom_scan

from lesionseg.device import CPU_BATCH
from lesionseg.model import Model
from lesionseg.phantom.layouts import write_dicom, write_nifti
from lesionseg.provenance import provenance
from lesionseg.segment import Wish, segment_studies
from lesionseg.studies import find_studies

THICKNESS_MM = 1.0
NOISE_HU = 12.0


def write_scans(folder: Path, slices: int, studies: int) -> None:
    """`nifti/<n>.nii.gz` and `dicom/<n>/`: one scan in two formats, with noise, so that it packs as badly as CT."""
    scan = phantom_scan(slices, THICKNESS_MM)
    assert scan.spacing_mm is not None
    rng = np.random.default_rng(0)
    for plane in scan.hu:
        plane[:] = np.maximum(plane + rng.normal(0, NOISE_HU, plane.shape), -1024)
    (folder / "nifti").mkdir()
    write_nifti(folder / "nifti" / "0.nii.gz", scan.hu, scan.spacing_mm, 0.0)
    for n in range(studies):
        if n:
            os.link(folder / "nifti" / "0.nii.gz", folder / "nifti" / f"{n}.nii.gz")
        (folder / "dicom" / str(n)).mkdir(parents=True)
        for i, plane in enumerate(scan.hu):
            write_dicom(folder / "dicom" / str(n) / f"{i:04d}.dcm", plane, scan.spacing_mm, i * THICKNESS_MM,
                        patient_id=f"benchmark {n}", scanner="A", number=i + 1, seed=0)  # fmt: skip


def peak_gb(scans: Path, model: Path, batch_size: int) -> float:
    """Of this process, after it has segmented every study of a folder."""
    cascade = paper_cascade(Model.load(model), batch_size, keep=False, rounds=2)
    with tempfile.TemporaryDirectory() as output:
        outcomes = segment_studies(
            find_studies(scans, None), Path(output), lambda scan, liver: cascade.segment(scan, liver=liver), Wish()
        )
    assert all(outcome.ending == "segmented" and outcome.facts["lesions"] for outcome in outcomes), outcomes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--slices", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=CPU_BATCH)
    parser.add_argument("--studies", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark/segment_memory.json"))
    parser.add_argument("--scans", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.scans is not None:  # one of the fresh processes
        print(f"peak {peak_gb(options.scans, options.model, options.batch_size)}")
        return
    peaks = {}
    with tempfile.TemporaryDirectory() as name:
        write_scans(Path(name), options.slices, options.studies)
        for kind in ("nifti", "dicom"):
            for studies in (1, options.studies):
                scans = Path(name, kind)
                if studies == 1:
                    scans = next(scans.iterdir())
                command = [sys.executable, __file__, str(options.model), "--batch-size", str(options.batch_size)]
                ended = subprocess.run([*command, "--scans", str(scans)], stdout=subprocess.PIPE, text=True, check=True)
                what = f"{kind}, {studies} studies"
                peaks[what] = float(ended.stdout.rsplit("peak ", 1)[1])
                print(f"  {what} of {options.slices} slices: {peaks[what]:.2f} GB", flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    record = {"slices": options.slices, "batch_size": options.batch_size, "peak_gb": peaks, **provenance()}
    options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
