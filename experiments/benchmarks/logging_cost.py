"""What logging costs: the same fine-tuning with all of `callbacks.logs` and without, in turn, each time a new process.

Usage: logging_cost.py STORE WEIGHTS [--pairs N] [--epochs N] [--output JSON]
    STORE, WEIGHTS: what `make finetune` left of the phantom in data/slices and pretrain/lesion

Both sides write metrics.csv and log to W&B offline, as every run does; "off" leaves out the callbacks alone. The time
is that of training with its validations, from the first batch to the end, as imports and the test on other data would
dilute it; the CPU seconds of the process stand beside it, as other programs on the machine do not lengthen them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy import stats

EXPERIMENTS = Path(__file__).parents[1]


def train(store: Path, weights: Path, epochs: int, logged: bool, run: Path) -> None:
    """One run of the phantom profile in this process; prints seconds and CPU seconds of its training."""
    import pytorch_lightning as pl

    import lesionseg.callbacks.of_a_run
    from lesionseg.cli import main

    class Clock(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            self.began = time.perf_counter(), time.process_time()

        def teardown(self, trainer, pl_module, stage):
            if stage == "fit":
                print(f"TIMES {time.perf_counter() - self.began[0]} {time.process_time() - self.began[1]}", flush=True)

    logs = lesionseg.callbacks.of_a_run.logs
    lesionseg.callbacks.of_a_run.logs = lambda folder: [Clock(), *(logs(folder) if logged else [])]
    parts = ("finetune/lesion", "schedules/hierarchical_unfreezing", "profiles/phantom")
    configs = [word for part in parts for word in ("--config", str(EXPERIMENTS / f"{part}.yaml"))]
    options = ["--data.store", str(store), "--model.init_args.weights", str(weights)]
    length = ["--trainer.max_epochs", str(epochs), "--trainer.default_root_dir", str(run)]
    if main(["fit", *configs, *options, *length]):
        sys.exit("the run failed")


def measure(options: argparse.Namespace, logged: bool) -> tuple[float, float]:
    """Seconds and CPU seconds of one run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        side = "on" if logged else "off"
        words = [str(options.store), str(options.weights), "--epochs", str(options.epochs), "--one", side, folder]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
        command = [sys.executable, __file__, *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("TIMES "))
    seconds, cpu = line.split()[1:]
    return float(seconds), float(cpu)


def cost(on: list[float], off: list[float]) -> dict[str, float]:
    """Mean of the paired log ratios as a share, with its 95 % t interval."""
    ratios = np.log(on) - np.log(off)
    half = stats.t.ppf(0.975, len(ratios) - 1) * stats.sem(ratios) if len(ratios) > 1 else np.nan
    low, estimate, high = np.expm1([ratios.mean() - half, ratios.mean(), ratios.mean() + half])
    return {"estimate": float(estimate), "low": float(low), "high": float(high)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark/logging_cost.json"))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        train(options.store, options.weights, options.epochs, options.one[0] == "on", Path(options.one[1]) / "run")
        return
    from lesionseg.provenance import provenance

    times: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for pair in range(options.pairs):
        for logged in (True, False) if pair % 2 else (False, True):
            times[logged].append(measure(options, logged))
    content: dict[str, object] = {"pairs": options.pairs, "epochs": options.epochs, **provenance()}
    for i, kind in enumerate(("seconds", "cpu_seconds")):
        on, off = ([run[i] for run in times[logged]] for logged in (True, False))
        found = cost(on, off)
        content[kind] = {"on": on, "off": off, "cost": found}
        print(f"{kind:12s} on {np.mean(on):.2f}  off {np.mean(off):.2f}  logging costs {found['estimate']:+.1%} "
              f"[{found['low']:+.1%}, {found['high']:+.1%}], {options.pairs} pairs")  # fmt: skip
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
