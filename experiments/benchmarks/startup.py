"""How long a user waits: `--help`, `fit` until its first step, the data module's `setup`; and what memory it takes.

Usage: startup.py [--repeats N] [--times N …] [--output JSON]

The store grows by hard links: its cases again under other names, as other patients with other voxels. Each figure is of
a process of its own, that of `fit` from its start to the end of its first step, imports included. All files are in the
system's cache: the stores have just been written, and one `fit` that does not count has read the libraries.

`grown` in the JSON holds what `scaling.py` computes with: seconds of setup and of an epoch's order, and MB, by number
of slices.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rounds import Row, publish, seconds

EXPERIMENTS = Path(__file__).parents[1]
HELP_S, FIRST_STEP_S = 0.5, 10.0


def grown(store: Path, times: int, output: Path) -> Path:
    """A store of `times` as many cases and patients, whose files are links."""
    manifest = json.loads((store / "manifest.json").read_text())
    cases = [renamed(case, k) for k in range(times) for case in manifest["cases"]]
    for k in range(times):
        for old, new in zip(manifest["cases"], cases[k * len(manifest["cases"]) :], strict=False):
            folder = output / "cases" / new["case_id"]
            folder.mkdir(parents=True)
            for file in (store / "cases" / old["case_id"]).iterdir():
                os.link(file, folder / file.name)
    content = {**manifest, "cases": sorted(cases, key=lambda case: case["case_id"])}
    (output / "manifest.json").write_text(json.dumps(content))
    return output


def renamed(case: dict, k: int) -> dict:
    """A case under other names."""
    patient, own, voxels = (
        hashlib.md5(f"{k} {case[key]}".encode()).hexdigest() for key in ("patient_id", "case_id", "voxel_checksum")
    )
    return {**case, "patient_id": f"p{patient[:10]}", "case_id": f"p{patient[:10]}-{own[:6]}", "voxel_checksum": voxels}


def fit(store: Path, run: Path, began: float) -> None:
    """Train in this process until a step is done; print seconds since `began` and the peak of memory, and end."""
    from lesionseg.cli import main

    parts = ("finetune/lesion", "schedules/baseline", "profiles/phantom")
    configs = [word for part in parts for word in ("--config", str(EXPERIMENTS / f"{part}.yaml"))]
    stop = ["--trainer.callbacks", "first_batch.FirstBatch", "--trainer.callbacks.began", repr(began)]
    main(["fit", *configs, "--data.store", str(store), "--trainer.default_root_dir", str(run), *stop])


def setup(store: Path, target: str) -> None:
    """Set the data module up in this process; print seconds, MB more than before, slices, seconds of an order."""
    from first_batch import peak_mb

    from lesionseg.data.datamodule import LesionDataModule
    from lesionseg.inputs import InputSpec

    data, before = LesionDataModule(store, target, InputSpec(96, "liver")), peak_mb()
    begin = time.perf_counter()
    data.setup("fit")
    took, more = time.perf_counter() - begin, peak_mb() - before
    sampler = data.train_dataloader().batch_sampler
    begin = time.perf_counter()
    next(iter(sampler))
    slices = len(data.train) + len(data.validation) + len(data.test)
    print(f"FIRST {took} {more} {slices} {time.perf_counter() - begin}")


def child(kind: str, store: Path) -> list[float]:
    """What one process prints: `fit`, or `setup` with the target `liver` or `typed`."""
    with tempfile.TemporaryDirectory() as run:
        words = [str(store), "--one", kind, str(Path(run) / "run"), repr(time.time())]
        environment = {**os.environ, "WANDB_MODE": "offline"}
        done = subprocess.run([sys.executable, __file__, *words], env=environment, capture_output=True, text=True)
    found = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("FIRST ")]
    if not found:
        sys.exit(f"{kind} failed\n{done.stderr}")
    return [float(word) for word in found[0]]


def prepared(folder: Path) -> dict[str, Path]:
    """The slices and the volumes of a phantom of the default size, as stores, by target."""
    command = [sys.executable, "-m", "lesionseg.cli"]
    subprocess.run([*command, "phantom", str(folder / "source")], check=True, capture_output=True)
    sources = {"typed": ("slices", "slices/slices.csv"), "liver": ("lits", "lits")}
    for target, (door, source) in sources.items():
        words = ["prepare", door, str(folder / "source" / source), "--output", str(folder / f"{target}1")]
        subprocess.run([*command, *words], check=True, capture_output=True)
    return {target: folder / f"{target}1" for target in sources}


class Growth:
    """Both stores at each size, and what every process on them printed."""

    def __init__(self, folder: Path, times: list[int]) -> None:
        first = prepared(folder)
        self.cases = {
            kind: len(json.loads((path / "manifest.json").read_text())["cases"]) for kind, path in first.items()
        }
        self.times, self.printed = times, dict[str, list[list[float]]]()
        self.stores = {
            (kind, n): path if n == 1 else grown(path, n, folder / f"{kind}{n}")
            for kind, path in first.items()
            for n in times
        }

    def ways(self) -> dict[str, Callable[[], float]]:
        """Seconds of each process, by its name."""
        kinds = {"fit": "typed", "typed": "typed", "liver": "liver"}
        return {f"{kind} {n}": self._way(kind, self.stores[of, n]) for kind, of in kinds.items() for n in self.times}

    def _way(self, kind: str, store: Path) -> Callable[[], float]:
        def measured() -> float:
            found = child(kind, store)
            self.printed.setdefault(f"{kind} {store.name}", []).append(found)
            return found[0]

        return measured

    def column(self, kind: str, n: int, i: int) -> list[float]:
        """One of the numbers printed, by round."""
        store = self.stores["liver" if kind == "liver" else "typed", n]
        return [line[i] for line in self.printed[f"{kind} {store.name}"]]

    def grown(self) -> list[dict[str, float | str]]:
        """Medians by kind and size, for `scaling.py`."""
        out: list[dict[str, float | str]] = []
        for kind in ("typed", "liver"):
            for n in self.times:
                values = [statistics.median(self.column(kind, n, i)) for i in range(4)]
                names = ("setup_s", "memory_mb", "slices", "order_s")
                out.append({"kind": kind, "cases": n * self.cases[kind], **dict(zip(names, values, strict=True))})
        return out


def rows_of(growth: Growth, found: dict[str, list[float]]) -> list[Row]:
    cases = growth.cases["typed"]
    rows = [Row("`lesionseg --help`", "s", found["help"], "the time set for it", "limit", (HELP_S,), most=1)]
    for n in growth.times:
        name = f"`fit` to its first step, {cases * n} cases"
        rows.append(Row(name, "s", found[f"fit {n}"], "the time set for it", "limit", (FIRST_STEP_S,), most=1))
    for n in growth.times[1:]:
        pairs = (
            ("`fit` to its first step", "s", found[f"fit {n}"], found["fit 1"], 2),
            ("`setup` of the data", "s", found[f"typed {n}"], found["typed 1"], 2),
            ("memory of `fit`", "MB", growth.column("fit", n, 1), growth.column("fit", 1, 1), 1.1),
        )
        for what, unit, ours, theirs, most in pairs:
            rows.append(Row(f"{what}, {cases * n} cases", unit, ours, f"{cases} cases", "limit", theirs, most=most))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path, nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark/startup.json"))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        kind, run, began = options.one
        if kind == "fit":
            fit(options.store, Path(run), float(began))
        else:
            setup(options.store, kind)
        return
    with tempfile.TemporaryDirectory() as folder:
        growth = Growth(Path(folder), options.times)
        ask = [sys.executable, "-m", "lesionseg.cli", "--help"]
        ways = {"help": seconds(lambda: subprocess.run(ask, capture_output=True, check=True)), **growth.ways()}
        child("fit", growth.stores["typed", options.times[0]])
        # Not `rounds`: there is nothing to warm up in processes that each begin anew.
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.repeats):
            for name, way in ways.items():
                found[name].append(way())
        publish(rows_of(growth, found), options.output, grown=growth.grown())


if __name__ == "__main__":
    main()
