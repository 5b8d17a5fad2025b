"""A step at the size of the paper on a GPU: samples/s, busy share, peak memory; a bare loop and a counted floor beside.

Usage: gpu.py [--device cuda|cpu] [--epochs N] [--slices N] [--output JSON]

The profile `paper` (SE-ResNet50, 320 x 320, random weights) in bf16-mixed and channels-last, with and without
torch.compile. Run and bare loop as in `training_step.py`. The busy share is the time in which at least one kernel runs,
of all the time from the start of an epoch to that of the next, by torch's profiler, without a checkpoint (they take a
twentieth of a long run); peak memory is of that time. The floor: multiplications of the convolutions at the rate of a
large product of matrices, and bytes of all else at the rate of a copy, both measured here; fused operations may do
better than this count of unfused ones.

Without CUDA it says so. `--device cpu` sends the phantom's small net through the same code, to see that it works.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # torch's profiler is talkative; read when torch loads

import pytorch_lightning as pl
import torch
from fine_tuning import command, fit, phantom_store
from freeze_states import BYTES, KINDS, NETS, Step, metered
from rounds import Row, publish
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from training_step import beside, now

from lesionseg.errors import first_sentence

#: Slices of a step, as in both profiles.
BATCH = 8


class Busy(pl.Callback):
    """Profiles the second epoch of a run: seconds in which the device worked, of how many; the most memory it held."""

    busy_s = wall_s = 0.0
    peak_bytes = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            if pl_module.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()  # to what is held now: by this run alone, see `measure`
            kinds = [ProfilerActivity.CUDA] if pl_module.device.type == "cuda" else [ProfilerActivity.CPU]
            self._profile = profile(activities=kinds)  # of a GPU its kernels alone: to note each call slows the CPU
            self._profile.start()
            self._began = now(pl_module.device)
        elif trainer.current_epoch == 2:
            self.wall_s = now(pl_module.device) - self._began
            self._profile.stop()
            events = self._profile.events()
            # but for the spans of the trainer's own names, which have pauses within them
            spans = [e.time_range for e in events if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
            self.busy_s = covered_us((span.start, span.end) for span in spans) / 1e6
            if pl_module.device.type == "cuda":
                self.peak_bytes = torch.cuda.max_memory_allocated()


def covered_us(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of spans."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(stop - max(start, end), 0.0)
        end = max(end, stop)
    return total


def floor_s(name: str, device: str) -> float:
    """Seconds that a step takes at least, by its counts and by what the device can do."""
    encoder, channels, side, _ = NETS[name]
    step = Step(encoder, channels, side, BATCH, device=device)
    step.context = torch.autocast(device, torch.bfloat16, cache_enabled=False)
    step()
    counts = metered(step).counts
    flops, size = sum(counts[kind] for kind in KINDS.values()), 4096 if device == "cuda" else 512
    matrix, long = torch.randn(size, size, device=device).bfloat16(), torch.empty(size * size * 16, device=device)
    per_flop = least_s(lambda: matrix @ matrix, device) / (2 * size**3)
    per_byte = least_s(lambda: long.clone(), device) / (2 * long.nbytes)
    return flops * per_flop + counts[BYTES] * per_byte


def least_s(work: Callable[[], object], device: str) -> float:
    """The shortest of some runs of a few of it, per piece of work."""
    found = []
    for _ in range(5):
        begin = now(torch.device(device))
        for _ in range(10):
            work()
        found.append((now(torch.device(device)) - begin) / 10)
    return min(found)


def measure(store: Path, device: str, epochs: int, compiled: bool) -> list[Row]:
    """Rows of one setting."""
    name = "paper" if device == "cuda" else "phantom"
    words = ["--trainer.accelerator", device, "--trainer.devices", "1", "--trainer.precision", "bf16-mixed",
             "--model.init_args.channels_last", "true", "--model.init_args.compile", str(compiled).lower(),
             "--data.batch_size", str(BATCH)]  # fmt: skip
    pair = beside(store, epochs, *words, profile=name, compiled=compiled)
    what = f"{name} net, bf16-mixed, channels-last{', compiled' * compiled}, {device}"
    ours, bare = ([1000 * BATCH / ms for ms in each.milliseconds()] for each in (pair.epochs, pair.bare.epochs))
    waits = pair.epochs.waits()
    del pair  # the bare loop's net, gradients and moments would count as memory of the run below
    gc.collect()
    floor = floor_s(name, device)
    rows = [
        Row(f"training, {what}", "samples/s", ours, "bare PyTorch loop", "rival", bare, least=0.95),
        Row(f"training, {what}", "samples/s", ours, "floor by counts", "limit", [BATCH / floor]),
    ]
    busy = Busy()
    with tempfile.TemporaryDirectory() as folder:
        short = ["--trainer.max_epochs", "3", "--data.inner_validation", "0", "--data.folds", "1"]
        fit(command(store, Path(folder) / "run", *short, *words, profile=name), busy)
    print(f"{what}: busy {busy.busy_s / busy.wall_s:.1%} of the time, peak {busy.peak_bytes / 2**30:.2f} GiB, "
          f"waits for data {waits:.1%}, {statistics.median(ours):.1f} samples/s")  # fmt: skip
    if device == "cuda":
        seconds, peak = f"busy seconds of an epoch, {what}", busy.peak_bytes / 2**30
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        rows += [
            Row(seconds, "s", [busy.busy_s], "all seconds", "limit", [busy.wall_s], least=0.9),
            Row(f"peak memory, {what}", "GiB", [peak], "all of the GPU", "limit", [memory]),
        ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--epochs", type=int, default=11)
    parser.add_argument("--slices", type=int, default=160)
    parser.add_argument("--compiled", choices=("both", "no"), default="both")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark/gpu.json"))
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu: left out, as torch finds no CUDA device")
        return
    with tempfile.TemporaryDirectory() as folder:
        # As large as a scanner's: to read and cut them is what a GPU may have to wait for.
        store = phantom_store(Path(folder), options.slices, 512 if options.device == "cuda" else 128)
        rows, notes = measure(store, options.device, options.epochs, compiled=False), []
        if options.compiled == "both":
            try:
                rows += measure(store, options.device, options.epochs, compiled=True)
            except Exception as error:  # of many kinds, where there is no C compiler or are no headers of Python
                notes.append(f"compiled: left out, as it failed: {first_sentence(error)}")
    publish(rows, options.output, notes=notes)


if __name__ == "__main__":
    main()
