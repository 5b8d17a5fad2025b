"""`finetuning-scheduler` on a cell of the grid, with an explicit schedule of the encoder's stages.

Usage: fts.py CELL FOLDER

Each phase adds the next stage, at the epochs of our row `hierarchical_unfreezing`, all at the learning rate of the task
(its default for what thaws is 1e-5). Its implicit schedule, two parameters a phase, would not come to an end in such a
budget. That it takes back the best weights so far before every phase is off: it goes with its early stopping, and where
phases have a given length it threw away three to fifteen of 24 epochs. Its other defaults hold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import finetuning_scheduler
import lightning.pytorch as lightning
import torch
from cell import Cell, places
from finetuning_scheduler import FinetuningScheduler, FTSCheckpoint

from lesionseg.callbacks.seeding import SeedEveryStep
from lesionseg.networks import blocks
from lesionseg.schedules import ResolvedSchedule
from lesionseg.tasks import LesionTask

ROW = "finetuning_scheduler"


class ScheduledTask(LesionTask, lightning.LightningModule):
    """Our task for a trainer of the package `lightning`, the twin of `pytorch_lightning` that the scheduler is for.

    The scheduler's own switch between the twins rewrites its installed files.
    """

    # A trainer takes a hook of the other twin for one that a user has written, and these two exclude each other.
    configure_model = lightning.LightningModule.configure_model
    configure_sharded_model = lightning.LightningModule.configure_sharded_model

    def configure_optimizers(self) -> torch.optim.Optimizer:
        free = [parameter for parameter in self.parameters() if parameter.requires_grad]
        fused = True if self.device.type == "cpu" else None  # as ours
        return torch.optim.AdamW(free, self.lr, weight_decay=self.weight_decay, fused=fused)


def explicit(phases: ResolvedSchedule, task: LesionTask) -> dict[int, dict[str, Any]]:
    """The schedule of the callback: what each phase thaws, until which epoch, at which learning rate."""
    thawed: set[str] = set()
    schedule = {}
    for i, step in enumerate(phases.steps):
        learning = {name for name, rate in step.rates.items() if rate}
        params = [
            f"net.{n}" for name, b in blocks(task.net).items() if name in learning - thawed for n, _ in b.parameters
        ]
        schedule[i] = {"params": params, "max_transition_epoch": step.stop, "lr": task.lr}
        thawed |= learning
    return schedule


def train(folder: Path, out: Path) -> None:
    """Train in the place of the run in `folder`, and leave the run `out`."""
    cell = Cell.read(folder)
    data, task = cell.data(), cell.task(ScheduledTask)
    scheduler = FinetuningScheduler(explicit(cell.phases(task), task), epoch_transitions_only=True, restore_best=False)
    last = FTSCheckpoint(monitor=None)  # of its own accord it would look for `val_loss`
    trainer = lightning.Trainer(**cell.budget(out), callbacks=[scheduler, last, SeedEveryStep(cell.info.seed)])
    trainer.fit(task, data.train_dataloader(), data.val_dataloader())
    tested = cell.task(LesionTask)
    tested.net.load_state_dict(task.net.state_dict())
    version = finetuning_scheduler.__version__
    cell.leave(out, ROW, tested, data, neighbour=f"finetuning-scheduler {version}")


if __name__ == "__main__":
    train(*places(__doc__))
