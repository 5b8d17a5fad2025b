"""CSV and W&B loggers of a run, set so that nothing about a patient, a path or a machine leaves it."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from lesionseg.runs import RunInfo


def run_loggers(folder: Path, run: RunInfo) -> list[Logger]:
    """`metrics.csv` in the run folder, and W&B by `WANDB_MODE` (offline unless it says otherwise).

    W&B records the command line, the host, the user, the code and the console by default; all of that is off.
    """
    loggers: list[Logger] = [CSVLogger(folder, name="", version="")]
    os.environ.setdefault("WANDB_MODE", "offline")
    if os.environ["WANDB_MODE"] != "disabled":
        loggers.append(_wandb(folder, run))
    return loggers


def _wandb(folder: Path, run: RunInfo) -> WandbLogger:
    os.environ.setdefault("WANDB_DATA_DIR", str(folder / "wandb-data"))
    import wandb  # reads the environment when it is imported

    settings = wandb.Settings(
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        save_code=False,
        disable_git=True,
        console="off",
        host="redacted",
        silent=True,
    )
    wandb.setup(settings)  # or Lightning's own use of it is warned about, past the user's power
    folder.mkdir(parents=True, exist_ok=True)
    return WandbLogger(
        name=f"{run.name}-fold{run.fold}-seed{run.seed}",
        save_dir=folder,
        project="lesionseg",
        group=run.config_sha256[:12],
        job_type=run.target,
        tags=[run.name, f"fold{run.fold}", f"seed{run.seed}"],
        config=asdict(run),
        settings=settings,
    )
