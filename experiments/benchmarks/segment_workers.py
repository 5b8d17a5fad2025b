"""A folder of studies by one process that has every core, and by several that share them, in turn.

Usage: segment_workers.py MODEL [--workers N] [--studies N] [--formats a,b] [--rounds N] [--output JSON]

MODEL is what `make export` made on the phantom; the studies are new volumes of it (128 pixels, about 40 slices).
Timed is `lesionseg segment` without its start: model loaded, files listed, until the last study is in its place, the
start of the further processes included.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import tempfile
from functools import partial
from pathlib import Path

import torch
from rounds import Row, publish, rounds, seconds

from lesionseg import parallel
from lesionseg.machine import cores
from lesionseg.phantom.write import write_phantom
from lesionseg.segment import segment


def write_studies(folder: Path, number: int) -> None:
    """Volumes of the phantom without their masks."""
    write_phantom(folder / "made", volumes=number, slices=4, size=128, seed=1)
    (folder / "studies").mkdir()
    for path in (folder / "made").rglob("volume-*.nii.gz"):
        path.rename(folder / "studies" / path.name)
    shutil.rmtree(folder / "made")


def segment_all(folder: Path, model: Path, formats: list[str] | None, workers: int) -> None:
    """Every study, anew."""
    with tempfile.TemporaryDirectory() as output, contextlib.redirect_stdout(io.StringIO()):
        outcomes = segment(folder / "studies", Path(output), model, formats=formats, workers=workers)
    assert all(outcome.ending == "segmented" for outcome in outcomes), outcomes


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--studies", type=int, default=24)
    parser.add_argument("--formats", type=lambda text: text.split(","))
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark/segment_workers.json"))
    options = parser.parse_args()
    torch.set_num_threads(cores())
    parallel.SECONDS_TO_START = 0.0
    with tempfile.TemporaryDirectory() as name:
        write_studies(Path(name), options.studies)
        way = partial(segment_all, Path(name), options.model, options.formats)
        ways = {f"{n} processes": seconds(partial(way, n)) for n in (options.workers, 1)}
        several, one = rounds(ways, options.rounds).values()
    figure = f"{options.studies} studies, {options.workers} processes"
    row = Row(figure, "s", several, "one process with every core", "rival", one, "other / ours")
    publish([row], options.output, formats=options.formats, cores=cores())


if __name__ == "__main__":
    main()
