"""Volumes per second that `prepare` reads with two processes, against bare unpacking and against MONAI and nnU-Net.

Usage: prepare.py [--lits FOLDER] [--volumes N] [--slices N] [--times N] [--repeats N] [--output JSON]

Two processes that are up and warm take half of the cases each: every volume `--times` times, by links under other
names, files in the system's cache; by nnU-Net, which takes seconds a volume, once. The limit is bare unpacking: the
bytes of the same nii.gz files are unpacked into a small buffer and forgotten, by ISA-L, the fastest that a package
gives, and (for what other readers could reach) by Python's gzip. Two more limits tell what that leaves out: writing
what comes out, and the checksums of what is on the disk and of what comes out. Rivals: MONAI's `LoadImage` filling a
`PersistentDataset` with int16; nnU-Net's preprocessing of its 2-D configuration, without the fingerprint and the
planning that come before it: with the resampling it plans, with its faster one by torch, and with none, as ours does
none. Neither rival makes checksums, or a list of the lesions.

One row has the start of the processes in it: the whole of `lesionseg prepare lits` on more volumes, as a user calls it,
beside two warm processes on the same. Single slices (DICOM and PNG masks) are read by two warm processes, and a fourth
as many, which tells whether the time grows by the slice.

Peak memory: of a fresh process above what it held before, in volumes (int16 HU and uint8 labels: 3 bytes a voxel); the
greatest of a few processes, of a volume that lies as it will in the store and of one that has to be turned.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import xxhash
from isal import igzip
from lits_size import write_lits
from rounds import Row, left_out_if_missing, publish, rounds, seconds

from lesionseg.data import lits, slices
from lesionseg.data.prepare import prepare
from lesionseg.data.store import StoreKind
from lesionseg.phantom.write import write_phantom
from lesionseg.scan import CaseSource

PROCESSES = 2
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
OURS, COMMAND, NNUNET = "lesionseg", "lesionseg prepare lits", "nnU-Net preprocessing, 2-D"
#: As many volumes as `COMMAND`: more than a round of the others has, and slower, as gigabytes are written.
WARM = "the same by both processes warm"
#: Single slices that differ; the others are read from the same files.
GENERATED_SLICES = 60
#: Fresh processes whose greatest peak of memory is told.
PEAKS = 3

#: Cases, an empty folder → nothing; at module level, as it goes to other processes.
Way = Callable[[Sequence[CaseSource], Path], None]


def ours(kind: StoreKind, cases: Sequence[CaseSource], folder: Path) -> None:
    warnings.simplefilter("ignore")
    prepare(cases, folder / "store", kind=kind, workers=1)


def unpack(opened: Callable, cases: Sequence[CaseSource], folder: Path) -> None:
    buffer = bytearray(1 << 18)  # fits the cache of the processor
    for file in (file for case in cases for file in case.files):
        with opened(file) as stream:
            while stream.readinto(buffer):
                pass


def unpack_and_write(checking: bool, cases: Sequence[CaseSource], folder: Path) -> None:
    """By ISA-L; `checking`: what is on the disk and what comes out of it is hashed too, which is forgotten.

    In the same small buffer, so that a byte is written and hashed while it lies in the cache.
    """
    buffer = memoryview(bytearray(1 << 18))
    for i, file in enumerate(file for case in cases for file in case.files):
        packed, unpacked = xxhash.xxh3_128(), xxhash.xxh3_128()
        if checking:
            with file.open("rb") as stream:
                while count := stream.readinto(buffer):
                    packed.update(buffer[:count])
        with igzip.open(file) as stream, (folder / str(i)).open("wb") as out:
            while count := stream.readinto(buffer):
                out.write(buffer[:count])
                if checking:
                    unpacked.update(buffer[:count])


def monai(cases: Sequence[CaseSource], folder: Path) -> None:
    from monai.data import PersistentDataset
    from monai.transforms import Compose, LoadImaged

    items = [dict(zip(("image", "label"), map(str, case.files), strict=True)) for case in cases]
    for item in PersistentDataset(items, Compose([LoadImaged(["image", "label"], dtype=np.int16)]), folder):
        del item


def nnunet(
    planned: Path, names: dict[str, str], resampling: str | None, cases: Sequence[CaseSource], folder: Path
) -> None:
    from nnunet_cases import preprocess

    preprocess(planned, [names[case.source_id] for case in cases], resampling)


def peak_volumes(cases: Sequence[CaseSource], folder: Path) -> float:
    """Prepare in this process; its peak memory over what it held before, in volumes of the largest case."""
    voxels = max(int(np.prod(nib.load(case.files[0]).shape)) for case in cases)
    CLEAR.write_text("5")  # the system forgets the last peak
    before = status_bytes("VmRSS")
    ours("lits", cases, folder)
    return (status_bytes("VmHWM") - before) / (3 * voxels)


def status_bytes(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def settled(size: int) -> None:
    """Begin alike: what another way has written is on the disk, and so many bytes of memory (of what is free) at hand.

    A virtual machine may have given back to its host what nobody used for two seconds, and getting it again takes
    longer than the write itself: that would fall to the ways that follow on one which needs little memory.
    """
    os.sync()
    np.ones(min(size, psutil.virtual_memory().free // 2), np.uint8)


def cases_per_second(pool: ProcessPoolExecutor, size: int, way: Way, cases: Sequence[CaseSource]) -> float:
    """One round: halves of the cases, `size` bytes of memory each, to the processes, with empty folders to write to."""
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / str(k) for k in range(PROCESSES)]
        for folder in folders:
            folder.mkdir()

        def work() -> None:
            parts = [cases[k::PROCESSES] for k in range(PROCESSES)]
            for future in [pool.submit(way, part, folder) for part, folder in zip(parts, folders, strict=True)]:
                future.result()

        settled(size * len(cases))
        return len(cases) / seconds(work)()


def command_per_second(root: Path, volumes: int, size: int) -> float:
    """Volumes by the time of the whole command on a folder that `linked` made."""
    with tempfile.TemporaryDirectory() as name:
        words = ["prepare", "lits", str(root), "--groups", str(root / "groups.csv"), "--workers", str(PROCESSES)]
        command = [sys.executable, "-m", "lesionseg.cli", *words, "--output", str(Path(name) / "store")]
        settled(size * volumes)
        return volumes / seconds(lambda: subprocess.run(command, check=True, capture_output=True))()


def linked(cases: Sequence[CaseSource], times: int, folder: Path) -> Path:
    """A folder with the files of all cases so often, as links; `groups.csv` makes those of one case one patient's."""
    folder.mkdir()
    lines = ["case,patient"]
    for i, case in enumerate(list(cases) * times):
        for kind, file in zip(("volume", "segmentation"), case.files, strict=True):
            (folder / f"{kind}-{i}{''.join(file.suffixes)}").symlink_to(file.resolve())
        lines.append(f"volume-{i},{case.source_id}")
    (folder / "groups.csv").write_text("\n".join(lines) + "\n")
    return folder


def repeated(cases: Sequence[CaseSource], number: int) -> list[CaseSource]:
    """So many, the cases again and again under other names, of the same patients."""
    return [replace(cases[i % len(cases)], source_id=f"{i}") for i in range(number)]


def turned(case: CaseSource, folder: Path) -> list[CaseSource]:
    """A case with its axes the other way round than in a store, as LiTS has volumes too."""
    folder.mkdir()
    for kind, file in zip(("volume", "segmentation"), case.files, strict=True):
        nib.save(nib.as_closest_canonical(nib.load(file)), folder / f"{kind}-0.nii.gz")
    return lits.cases(folder)


def rivals(root: Path, folder: Path, cases: list[CaseSource], notes: list[str]) -> dict[str, Way]:
    """MONAI and nnU-Net, where it is installed."""
    ways: dict[str, Way] = {"MONAI LoadImage, PersistentDataset": monai}
    with left_out_if_missing("nnU-Net's preprocessing", notes):
        from nnunet_cases import RESAMPLING, plan

        names = dict(zip((case.source_id for case in cases), plan(folder, root), strict=True))
        for way in (None, *RESAMPLING):
            name = NNUNET if way is None else f"{NNUNET}, {way}"
            ways[name] = functools.partial(nnunet, folder, names, way)
    return ways


def measure(
    root: Path, folder: Path, options: argparse.Namespace, notes: list[str]
) -> tuple[list[Row], dict[str, float]]:
    """The rows, and for `scaling.py` the seconds that a command needs to start and for each slice."""
    cases = lits.cases(root)
    many = linked(cases, options.command_times, folder / "many")
    all_links = lits.cases(many, groups=many / "groups.csv")
    volumes, some = len(all_links), all_links[: len(cases) * options.times]
    write_phantom(folder / "phantom", volumes=0, slices=GENERATED_SLICES, size=options.side, seed=0)
    generated = slices.cases(folder / "phantom" / "slices" / "slices.csv")
    limits: dict[str, Way] = {
        "bare unpacking by ISA-L": functools.partial(unpack, igzip.open),
        "bare unpacking by gzip": functools.partial(unpack, gzip.open),
        "unpacking by ISA-L, writing": functools.partial(unpack_and_write, False),
        "unpacking by ISA-L, writing, checksums": functools.partial(unpack_and_write, True),
    }
    others = limits | rivals(root, folder / "nnunet", cases, notes)
    few, more = options.single // 4, options.single
    size = 4 * options.slices * options.side**2  # a volume in its store, and what it takes to get there
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        warm = functools.partial(cases_per_second, pool, size)
        ways: dict[str, Callable[[], float]] = {
            name: functools.partial(warm, way, cases if name.startswith(NNUNET) else some)
            for name, way in {OURS: functools.partial(ours, "lits"), **others}.items()
        }
        ways[COMMAND] = functools.partial(command_per_second, many, volumes, size)
        ways[WARM] = functools.partial(warm, functools.partial(ours, "lits"), all_links)
        for n in (few, more):
            way = functools.partial(ours, "slices")
            ways[f"{n} single slices"] = functools.partial(
                cases_per_second, pool, size // options.slices, way, repeated(generated, n)
            )
        rates = rounds(ways, options.repeats)
    rows = [
        Row(f"prepare, {PROCESSES} processes", "volumes/s", rates[OURS], name, "limit" if name in limits else "rival",
            rates[name], least=0.8 if name in limits else 2.0)
        for name in others
    ]  # fmt: skip
    figure = f"`{COMMAND}`, whole, {volumes} volumes"
    rows.append(Row(figure, "volumes/s", rates[COMMAND], WARM, "limit", rates[WARM]))
    less, all_of_them = f"{few} single slices", f"{more} single slices"
    figure = f"prepare, {PROCESSES} processes, {all_of_them}"
    rows.append(Row(figure, "slices/s", rates[all_of_them], less, "limit", rates[less]))
    start_s = [volumes / whole - volumes / warm for whole, warm in zip(rates[COMMAND], rates[WARM], strict=True)]
    return rows + peak_rows(cases, folder), {
        "start_s": statistics.median(start_s),
        "volume_slice_s": 1 / (statistics.median(rates[WARM]) * options.slices),
        "single_slice_s": 1 / statistics.median(rates[all_of_them]),
    }


def peak_rows(cases: list[CaseSource], folder: Path) -> list[Row]:
    """Of a case as it is, and turned; none where the system does not tell."""
    if not CLEAR.exists():
        return []
    rows = []
    for what, chosen in (("", cases[:1]), (", of a volume to be turned", turned(cases[0], folder / "turned"))):
        peaks = []
        for _ in range(PEAKS):
            with (
                tempfile.TemporaryDirectory() as name,
                ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool,
            ):
                peaks.append(pool.submit(peak_volumes, repeated(chosen, 3), Path(name)).result())
        figure = f"peak memory of prepare, a process{what}"
        rows.append(Row(figure, "volumes", [max(peaks)], "allowed", "limit", [2.0], most=1.0))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lits", type=Path, help="folder of real cases, in the place of phantoms")
    parser.add_argument("--volumes", type=int, default=2)
    parser.add_argument("--slices", type=int, default=100)
    parser.add_argument("--side", type=int, default=512, metavar="PX")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--command-times", type=int, default=18)
    parser.add_argument("--single", type=int, default=960, metavar="SLICES")
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark/prepare.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = options.lits or write_lits(folder / "lits", options.volumes, options.slices, options.side)
        notes: list[str] = []
        rows, grown = measure(root, folder, options, notes)
    publish(rows, options.output, notes=notes, slices=options.slices, side=options.side, grown=grown)


if __name__ == "__main__":
    main()
