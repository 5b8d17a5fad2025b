"""Precision, channels-last, torch.compile and deterministic mode: the speed of a step, and the figures of the paper.

Usage: settings.py [--nets phantom paper] [--rounds N] [--epochs N] [--slices N] [--output JSON]

torch.compile needs a C++ compiler on a CPU; where there is none it is left out, which is said below the table.

Speed: forward, backward and AdamW on one batch, all settings in turn, each against plain fp32 (as torch gives it).
Figures: one fine-tuning of the phantom for each setting by `lesionseg fit`, all alike but for that setting, seed and
data included; what its tables say is printed and kept beside the speed. Only the setting differs, but rounding does so
in every step, and training is chaotic: the spread between settings is to be read against that between seeds, so the
plain setting is trained with a second seed too.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from fine_tuning import command, fit, phantom_store
from freeze_states import NETS, Step
from rounds import Row, publish, rounds, seconds

from lesionseg.results import read_run
from lesionseg.statistics import FIGURES, estimates, patient_sums

#: What `fit` is told, by setting.
SETTINGS = {
    "fp32": [],
    "bf16-mixed": ["--trainer.precision", "bf16-mixed"],
    "channels-last": ["--model.init_args.channels_last", "true"],
    "channels-last, bf16-mixed": ["--model.init_args.channels_last", "true", "--trainer.precision", "bf16-mixed"],
    "compile": ["--model.init_args.compile", "true"],
    "deterministic": ["--trainer.deterministic", "true"],
}


def timed(step: Step, setting: str) -> float:
    """Seconds of a step under a setting."""
    half = "bf16-mixed" in setting
    torch.use_deterministic_algorithms(setting == "deterministic")
    step.context = torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if half else nullcontext()
    took = seconds(step)()
    torch.use_deterministic_algorithms(False)
    return took


def speed(name: str, settings: Iterable[str], repeats: int) -> list[Row]:
    """A row for each setting but the plain one."""
    ways: dict[str, Callable[[], float]] = {}
    for setting in settings:
        step = Step(*NETS[name], channels_last="channels-last" in setting)
        if setting == "compile":
            step.net.compile()
        ways[setting] = partial(timed, step, setting)
    found = rounds(ways, repeats)
    return [
        Row(f"step, {name} net, {setting}", "s", found[setting], "fp32", "rival", found["fp32"], ratio="other / ours")
        for setting in ways
        if setting != "fp32"
    ]


def figures(store: Path, run: Path, epochs: int, *options: str) -> dict[str, float]:
    """The figures of the paper that a fine-tuning leaves on its test part."""
    plain = ["--trainer.max_epochs", str(epochs), "--model.init_args.channels_last", "false"]
    fit(command(store, run, *plain, *options))
    result = read_run(run)
    tables = [table.assign(seed=0) for table in (result.slices, result.lesions)]
    patients = sorted(result.slices.patient_id.unique())
    return dict(zip(FIGURES, map(float, estimates(patient_sums(*tables, patients, [0]))), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--slices", type=int, default=120)
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark/settings.json"))
    options = parser.parse_args()
    settings, notes, found = dict(SETTINGS), [], {}
    compiler = os.environ.get("CXX", "g++")  # what torch takes
    if shutil.which(compiler) is None:
        del settings["compile"]
        notes.append(f"settings: torch.compile is left out, as there is no C++ compiler ({compiler})")
    rows = [row for name in options.nets for row in speed(name, settings, options.rounds)]
    with tempfile.TemporaryDirectory() as folder:
        store = phantom_store(Path(folder), options.slices)
        for setting, words in (settings | {"fp32, another seed": ["--seed_everything", "1"]}).items():
            found[setting] = figures(store, Path(folder) / setting, options.epochs, *words)
    publish(rows, options.output, notes=notes, figures=found)
    print("\n| fine-tuning of the phantom |", " | ".join(FIGURES), "|\n|---|" + "---|" * len(FIGURES))
    for setting, values in found.items():
        print(f"| {setting} |", " | ".join(f"{value:.3f}" for value in values.values()), "|")


if __name__ == "__main__":
    main()
