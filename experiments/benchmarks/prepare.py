"""Volumes per second that `prepare` reads with two processes, against bare unpacking and against MONAI and nnU-Net.

Usage: prepare.py [--lits FOLDER] [--volumes N] [--slices N] [--repeats N] [--output JSON]

Two processes that are up and warm take half of the cases each; what a process costs to start is not counted, for any
way. The limit is bare unpacking: the bytes of the same nii.gz files are unpacked into a small buffer and forgotten, by
ISA-L, the fastest that a package gives, and (for what other readers could reach) by Python's gzip. Two more limits tell
what that leaves out: writing what comes out, and SHA-256 of what is on the disk and of what comes out. Rivals: MONAI's
`LoadImage` filling a `PersistentDataset` with int16; nnU-Net's preprocessing of its 2-D configuration, without the
fingerprint and the planning that come before it. Neither makes checksums, or a list of the lesions.

Peak memory: of a process above what it holds when idle, in volumes (int16 HU and uint8 labels: 3 bytes a voxel).
"""

from __future__ import annotations

import argparse
import functools
import gzip
import hashlib
import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
from isal import igzip
from lits_size import write_lits
from rounds import Row, publish, rounds, seconds

from lesionseg.data import lits
from lesionseg.data.prepare import prepare
from lesionseg.scan import CaseSource

PROCESSES = 2
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
OURS = "lesionseg"

#: Cases, an empty folder → nothing; at module level, as it goes to other processes.
Way = Callable[[Sequence[CaseSource], Path], None]


def ours(cases: Sequence[CaseSource], folder: Path) -> None:
    warnings.simplefilter("ignore")
    prepare(cases, folder / "store", kind="lits", workers=1)


def unpack(opened: Callable, cases: Sequence[CaseSource], folder: Path) -> None:
    buffer = bytearray(1 << 18)  # fits the cache of the processor
    for file in (file for case in cases for file in case.files):
        with opened(file) as stream:
            while stream.readinto(buffer):
                pass


def unpack_and_write(hashing: bool, cases: Sequence[CaseSource], folder: Path) -> None:
    """By ISA-L; `hashing`: also of what is on the disk and of what comes out of it, as a store that can be checked has.

    In the same small buffer, so that a byte is written and hashed while it lies in the cache.
    """
    buffer = memoryview(bytearray(1 << 18))
    for i, file in enumerate(file for case in cases for file in case.files):
        unpacked = hashlib.sha256()
        if hashing:
            with file.open("rb") as stream:
                hashlib.file_digest(stream, "sha256")
        with igzip.open(file) as stream, (folder / str(i)).open("wb") as out:
            while count := stream.readinto(buffer):
                out.write(buffer[:count])
                if hashing:
                    unpacked.update(buffer[:count])


def monai(cases: Sequence[CaseSource], folder: Path) -> None:
    from monai.data import PersistentDataset
    from monai.transforms import Compose, LoadImaged

    items = [dict(zip(("image", "label"), map(str, case.files), strict=True)) for case in cases]
    for item in PersistentDataset(items, Compose([LoadImaged(["image", "label"], dtype=np.int16)]), folder):
        del item


def nnunet(planned: Path, names: dict[str, str], cases: Sequence[CaseSource], folder: Path) -> None:
    from nnunet_cases import preprocess

    preprocess(planned, [names[case.source_id] for case in cases])


def alone(way: Way, cases: Sequence[CaseSource], folder: Path, voxels: int) -> float | None:
    """Work in this process; its peak memory over what it held before, in volumes; None: the system does not tell."""
    if not CLEAR.exists():
        way(cases, folder)
        return None
    CLEAR.write_text("5")  # the system forgets the last peak
    before = status_bytes("VmRSS")
    way(cases, folder)
    return (status_bytes("VmHWM") - before) / (3 * voxels)


def status_bytes(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def volumes_per_second(
    pool: ProcessPoolExecutor, way: Way, cases: list[CaseSource], voxels: int, peaks: list[float | None]
) -> float:
    """One round: halves of the cases to the processes, with empty folders to write to; notes their peaks."""
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / str(k) for k in range(PROCESSES)]
        for folder in folders:
            folder.mkdir()

        def work() -> None:
            parts = [cases[k::PROCESSES] for k in range(PROCESSES)]
            futures = [
                pool.submit(alone, way, part, folder, voxels) for part, folder in zip(parts, folders, strict=True)
            ]
            peaks.extend(future.result() for future in futures)

        os.sync()  # what another way has written is not to reach the disk in the time of this one
        return len(cases) / seconds(work)()


def rivals(root: Path, folder: Path, cases: list[CaseSource]) -> dict[str, Way]:
    """MONAI and nnU-Net, where they are installed."""
    ways: dict[str, Way] = {"MONAI LoadImage, PersistentDataset": monai}
    try:
        from nnunet_cases import plan

        names = dict(zip((case.source_id for case in cases), plan(folder, root), strict=True))
        ways["nnU-Net preprocessing, 2-D"] = functools.partial(nnunet, folder, names)
    except ImportError as error:
        print(f"left out: nnU-Net ({error})")
    return ways


def measure(root: Path, folder: Path, repeats: int) -> list[Row]:
    cases = lits.cases(root)
    voxels = max(int(np.prod(nib.load(case.files[0]).shape)) for case in cases)
    limits: dict[str, Way] = {
        "bare unpacking by ISA-L": functools.partial(unpack, igzip.open),
        "bare unpacking by gzip": functools.partial(unpack, gzip.open),
        "unpacking by ISA-L, writing": functools.partial(unpack_and_write, False),
        "unpacking by ISA-L, writing, SHA-256": functools.partial(unpack_and_write, True),
    }
    others = limits | rivals(root, folder, cases)
    peaks: dict[str, list[float | None]] = {name: [] for name in (OURS, *others)}
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        ways = {
            name: functools.partial(volumes_per_second, pool, way, cases, voxels, peaks[name])
            for name, way in {OURS: ours, **others}.items()
        }
        rates = rounds(ways, repeats)
    figure = f"prepare, {PROCESSES} processes"
    rows = [
        Row(figure, "volumes/s", rates[OURS], name, "limit" if name in limits else "rival", rates[name],
            least=0.8 if name in limits else 2.0)
        for name in others
    ]  # fmt: skip
    told = [peak for peak in peaks[OURS] if peak is not None]
    if told:
        figure = "peak memory of prepare, a process"
        rows.append(Row(figure, "volumes", told, "allowed", "limit", [2.0], most=1.0))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lits", type=Path, help="folder of real cases, in the place of phantoms")
    parser.add_argument("--volumes", type=int, default=2)
    parser.add_argument("--slices", type=int, default=100)
    parser.add_argument("--side", type=int, default=512, metavar="PX")
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark/prepare.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = options.lits or write_lits(folder / "lits", options.volumes, options.slices, options.side)
        rows = measure(root, folder / "nnunet", options.repeats)
    publish(rows, options.output, slices=options.slices)


if __name__ == "__main__":
    main()
