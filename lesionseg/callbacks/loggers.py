"""CSV and W&B loggers of a run, set so that nothing about a patient, a path or a machine leaves it."""

from __future__ import annotations

import contextlib
import csv
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import wandb
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only

from lesionseg.runs import METRICS_FILE, WANDB_DATA_FOLDER, WANDB_FOLDER, RunInfo


class LossyWandbLogger(WandbLogger):
    """Tells W&B of a run for as long as W&B's own process lives; the run outlives it.

    SLURM and systemd send the signal that a training saves at to all of its processes, and W&B's ends of it at once.
    """

    _lost = False

    @contextlib.contextmanager
    def reached(self) -> Iterator[Any]:
        """The W&B run, or None once W&B's process is gone; that it goes meanwhile is no error."""
        run = None
        with self._noticing():
            run = None if self._lost else self.experiment
        with self._noticing():
            yield run

    @contextlib.contextmanager
    def _noticing(self) -> Iterator[None]:
        try:
            yield
        except ConnectionError:
            self._lost = True
            rank_zero_info("W&B's process has ended: from here on, the figures of this run are in metrics.csv alone")

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """As Lightning's, where W&B can be reached."""
        with self.reached() as run:
            if run is not None:
                super().log_metrics(metrics, step)

    def end(self, status: int) -> None:
        """End the W&B run, if this process has one; what is not sent by a second Ctrl-C stays behind."""
        if wandb.run is None:
            return
        if os.environ["WANDB_MODE"] == "online":
            rank_zero_info("W&B takes the rest of the run; Ctrl-C leaves it out")
        try:
            wandb.finish(status)
        except (Exception, KeyboardInterrupt):  # whatever W&B meets where its process was
            wandb.run = None
            _leave_wandb(status)
            if not self._lost:
                rank_zero_info("W&B has not all of this run; metrics.csv has")


@contextlib.contextmanager
def run_loggers(folder: Path, run: RunInfo, checkpoint: Path | None = None) -> Iterator[list[Logger]]:
    """`metrics.csv` in the run folder, and W&B by `WANDB_MODE` (offline unless it says otherwise).

    W&B records the command line, the host, the user, the code and the console by default; all of that is off. Its run
    ends with this context, failed if that ends by an exception; only one that the user has begun goes on.

    Args:
        folder: of the run.
        run: what W&B is told of it.
        checkpoint: from which it goes on: what `metrics.csv` holds up to there is kept, and online its W&B run goes on.
    """
    loggers: list[Logger] = [_csv(folder, checkpoint)]
    with _set_meanwhile("WANDB_MODE", "offline"):
        if os.environ["WANDB_MODE"] == "disabled":
            yield loggers
            return
        with (
            _set_meanwhile("WANDB_DATA_DIR", str(folder / WANDB_DATA_FOLDER)),
            _wandb(folder, run, checkpoint) as logger,
        ):
            yield [*loggers, logger]


def log_figures(trainer: pl.Trainer, figures: Mapping[str, float]) -> None:
    """Log figures that every rank knows, as those of the epoch that ends or of the validation in it.

    `self.log` keeps and reduces each figure by itself, which takes longer than to work most of them out.
    """
    if trainer.sanity_checking:  # no figure of the run, and of a step before its first
        return
    for logger in trainer.loggers:
        logger.log_metrics({**figures, "epoch": trainer.current_epoch}, step=trainer.global_step - 1)


def validates_training(trainer: pl.Trainer) -> bool:
    """Whether a validation is one of a training: neither that of `validate` nor the sanity check before a training."""
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def told_to_wandb(trainer: pl.Trainer) -> bool:
    """Whether W&B is told of this training: the same in every process, though only the first one has a run."""
    return any(isinstance(logger, LossyWandbLogger) for logger in trainer.loggers)


@contextlib.contextmanager
def wandb_run(trainer: pl.Trainer) -> Iterator[Any]:
    """The W&B run of this process, or None: disabled, out of reach, not fitting, or not the first process."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, LossyWandbLogger)]
    with loggers[0].reached() if loggers and trainer.is_global_zero else contextlib.nullcontext() as run:
        yield run


class UnlinkLogs(pl.Callback):
    """Removes the link that W&B leaves in a run to its own log in the user's home: it tells that place."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin W&B's run, which makes the link."""
        with wandb_run(trainer) as run:
            logs = [] if run is None else Path(run.dir).parent.rglob("*.log")
            for path in logs:
                if path.is_symlink():
                    path.unlink()


@rank_zero_only
def _earlier(metrics: Path, checkpoint: Path | None) -> list[dict[str, Any]]:
    """Rows of an interrupted run up to its checkpoint; what it logged later is logged again."""
    if checkpoint is None or not metrics.exists():
        return []
    steps = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"]
    rows = []
    with metrics.open(newline="", errors="replace") as file, contextlib.suppress(csv.Error):
        for row in csv.DictReader(file):
            if None in row or not (row.get("step") or "").removeprefix("-").isdecimal():
                break  # a kill or a full disk has torn it here
            rows.append({key: value for key, value in row.items() if value})
    return [row for row in rows if int(row["step"]) < steps]


def _csv(folder: Path, checkpoint: Path | None) -> CSVLogger:
    rows = _earlier(folder / METRICS_FILE, checkpoint)
    logger = CSVLogger(folder, name="", version="")
    if rows:
        logger.experiment.metrics = rows  # Lightning has started the file anew
        logger.save()
    return logger


def _continued(folder: Path, checkpoint: Path | None) -> str | None:
    """Id of the W&B run that goes on; None: a new one.

    Only online: offline, each start has a log of its own, and `wandb sync` may put one in the place of another that has
    the same id (wandb #3841). Such logs of one run share its fingerprint.
    """
    if checkpoint is None or os.environ["WANDB_MODE"] != "online":
        return None
    logs = sorted((folder / WANDB_FOLDER).glob("run-*"))  # run-<date>_<time>-<id>
    return logs[-1].name.rpartition("-")[2] if logs else None


@contextlib.contextmanager
def _set_meanwhile(name: str, value: str) -> Iterator[None]:
    """A variable of the environment, where the user has not set it."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)


def _leave_wandb(status: int) -> None:
    """End W&B's process, if this one has started it."""
    with contextlib.suppress(Exception, SystemExit, KeyboardInterrupt):  # also if it was killed
        wandb.teardown(status)


@contextlib.contextmanager
def _wandb(folder: Path, run: RunInfo, checkpoint: Path | None) -> Iterator[LossyWandbLogger]:
    """What is left neither of the run nor of W&B's process would be taken up by the next training, as in a notebook."""
    of_the_user, started = wandb.run is not None, not os.environ.get("WANDB_SERVICE")
    hooks, status = (sys.exit, sys.excepthook), 1
    logger = None
    try:
        logger = _logger(folder, run, checkpoint)
        yield logger
        status = 0
    finally:
        if logger is not None and not of_the_user:
            logger.end(status)
        if started:
            _leave_wandb(status)
            sys.exit, sys.excepthook = hooks  # W&B puts its own in front of them whenever it starts its process


def _logger(folder: Path, run: RunInfo, checkpoint: Path | None) -> LossyWandbLogger:
    settings = wandb.Settings(
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
        save_code=False,
        disable_git=True,
        console="off",
        host="redacted",
        silent=True,
        symlink=False,
    )
    logging.getLogger("wandb").addFilter(lambda record: str(folder) not in record.getMessage())
    wandb.setup(settings)  # or Lightning's own use of it is warned about, past the user's power
    told = asdict(run)
    del told["trained_on"]  # hashes of every training scan: of no use in a dashboard, and nobody else's business
    return LossyWandbLogger(
        name=f"{run.name}-fold{run.fold}-seed{run.seed}",
        id=_continued(folder, checkpoint),
        save_dir=folder,
        project="lesionseg",
        group=run.config_sha256[:12],
        job_type=run.target,
        tags=[run.name, f"fold{run.fold}", f"seed{run.seed}"],
        config=told,
        settings=settings,
    )
