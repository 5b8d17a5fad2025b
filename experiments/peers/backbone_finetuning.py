"""Lightning's `BackboneFinetuning` on a cell of the grid: the encoder frozen, then all of it thawed at once.

Usage: backbone_finetuning.py CELL FOLDER

Its documented defaults: the thawed encoder starts at a tenth of the learning rate and doubles every epoch up to it;
batch norm trains while frozen. It thaws in the middle of the thaws of our row `hierarchical_unfreezing`.
"""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
import torch
from cell import Cell, places
from pytorch_lightning.callbacks import BackboneFinetuning
from torch import nn

from lesionseg.callbacks.seeding import SeedEveryStep
from lesionseg.tasks import LesionTask

ROW = "lightning_backbone_finetuning"


class BackboneTask(LesionTask):
    """What the callback asks of a task: a `backbone`, and an optimizer of what is not frozen."""

    @property
    def backbone(self) -> nn.Module:
        return self.net.encoder

    def configure_optimizers(self) -> torch.optim.Optimizer:
        free = [parameter for parameter in self.parameters() if parameter.requires_grad]
        fused = True if self.device.type == "cpu" else None  # as ours
        return torch.optim.AdamW(free, self.lr, weight_decay=self.weight_decay, fused=fused)


def train(folder: Path, out: Path) -> None:
    """Train in the place of the run in `folder`, and leave the run `out`."""
    cell = Cell.read(folder)
    data, task = cell.data(), cell.task(BackboneTask)
    starts = [step.start for step in cell.phases(task).steps]
    thaw = starts[len(starts) // 2]
    trainer = pl.Trainer(**cell.budget(out), callbacks=[BackboneFinetuning(thaw), SeedEveryStep(cell.info.seed)])
    trainer.fit(task, datamodule=data)
    cell.leave(out, ROW, task, data, neighbour=f"pytorch-lightning {pl.__version__}", thaw=thaw)


if __name__ == "__main__":
    train(*places(__doc__))
