"""The smallest chain from CT to a model: a phantom, its stores, a liver run, a lesion run; and its command lines."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

EXPERIMENTS = Path(__file__).parents[1]
#: How `lesionseg` is started as a process of its own.
LESIONSEG = (sys.executable, "-m", "lesionseg.cli")


def phantom(folder: Path) -> list[str]:
    """Three volumes, twelve slices of five patients."""
    return ["phantom", f"{folder}/source", "--volumes", "3", "--slices", "12", "--size", "48"]


def prepare(folder: Path, output: Path) -> list[str]:
    """The slices as a store."""
    return ["prepare", "slices", f"{folder}/source/slices/slices.csv", "--output", str(output)]


def prepare_lits(folder: Path) -> list[str]:
    """The volumes as a store."""
    return ["prepare", "lits", f"{folder}/source/lits", "--output", f"{folder}/lits"]


def fit_liver(folder: Path) -> list[str]:
    """A liver net that sees two batches."""
    return [*_fit("pretrain/liver"), "--data.store", f"{folder}/lits", "--data.folds", "3", "--trainer.max_epochs", "1",
            "--trainer.limit_train_batches", "2", "--trainer.default_root_dir", f"{folder}/liver"]  # fmt: skip


def fit(folder: Path, run: Path, epochs: int = 1) -> list[str]:
    """A lesion net from its own start: one epoch of `baseline`, or six and more of `hierarchical_unfreezing`."""
    schedule = "hierarchical_unfreezing" if epochs > 1 else "baseline"
    return [*_fit("finetune/lesion", f"schedules/{schedule}"), "--model.init_args.transfer", "false",
            "--data.store", f"{folder}/slices", "--data.batch_size", "2", "--trainer.max_epochs", str(epochs),
            "--trainer.default_root_dir", str(run)]  # fmt: skip


def export(folder: Path, run: Path, output: Path) -> list[str]:
    """A model of the two nets."""
    return ["export", "--liver", f"{folder}/liver", "--lesion", str(run), "--output", str(output)]


def segment(folder: Path, output: Path) -> list[str]:
    """The volumes, by the model."""
    return ["segment", f"{folder}/source/lits", "--model", f"{folder}/model", "--output", str(output)]


def evaluate(folder: Path, output: Path) -> list[str]:
    """The model on the slices of patients that it has not seen."""
    return ["evaluate", f"{folder}/slices", "--model", f"{folder}/model", "--exclude-trained", "--output", str(output)]


def made_in(folder: Path) -> None:
    """All of it, in this folder."""
    steps = (phantom(folder), prepare_lits(folder), prepare(folder, folder / "slices"), fit_liver(folder),
             fit(folder, folder / "run"), export(folder, folder / "run", folder / "model"))  # fmt: skip
    for words in steps:
        done = run(words)
        if done.returncode:
            sys.exit(f"{words[0]} failed\n{done.stderr}")


def run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """A verb to its end, as a process of its own."""
    return subprocess.run([*LESIONSEG, *words], capture_output=True, text=True)


def _fit(*parts: str) -> list[str]:
    configs = [word for part in (*parts, "profiles/phantom") for word in ("--config", f"{EXPERIMENTS / part}.yaml")]
    return ["fit", *configs, "--data.input.size_px", "32", "--trainer.check_val_every_n_epoch", "1"]
