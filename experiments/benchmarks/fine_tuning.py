"""What the benchmarks of training share: a phantom to fine-tune on, the command line of a run, and that run itself.

A run here is the real one, `lesionseg fit` on the YAML of the experiments with every callback that it has.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import pytorch_lightning as pl

import lesionseg.callbacks.of_a_run
from lesionseg.cli import main
from lesionseg.data import slices
from lesionseg.data.prepare import prepare
from lesionseg.phantom.write import write_phantom

EXPERIMENTS = Path(__file__).parents[1]


def phantom_store(folder: Path, count: int, size: int = 128) -> Path:
    """A store of so many generated slices with named lesions, so many pixels along a side."""
    write_phantom(folder / "source", volumes=0, slices=count, size=size, seed=0)
    return prepare(slices.cases(folder / "source" / "slices" / "slices.csv"), folder / "store", kind="slices").path


def command(store: Path, run: Path, *options: str, schedule: str = "baseline", profile: str = "phantom") -> list[str]:
    """The command line of a fine-tuning from random weights; later options go before earlier ones."""
    parts = ("finetune/lesion", f"schedules/{schedule}", f"profiles/{profile}")
    named = [word for part in parts for word in ("--config", str(EXPERIMENTS / f"{part}.yaml"))]
    random = ["--model.init_args.encoder_weights", "null"]
    place = ["--data.store", str(store), "--trainer.default_root_dir", str(run)]
    return ["fit", *named, *random, *place, *options]


def fit(arguments: Sequence[str], *callbacks: pl.Callback) -> None:
    """Run a command line with these callbacks before its own; W&B logs offline, as it does unless told otherwise."""
    os.environ.setdefault("WANDB_MODE", "offline")
    own = lesionseg.callbacks.of_a_run.logs
    with patch("lesionseg.callbacks.of_a_run.logs", lambda folder: [*callbacks, *own(folder)]):
        status = main(arguments)
    if status:
        raise SystemExit(status)
