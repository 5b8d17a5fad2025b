"""Gradual unfreezing as in ULMFiT (arXiv 1801.06146), with fastai's optimizer, on a cell of the grid, in plain PyTorch.

Usage: gradual_unfreezing.py CELL FOLDER

Decoder and head first, then stage by stage, at the epochs of our row `hierarchical_unfreezing`. Each phase is a
one-cycle of its own (`fit_one_cycle`: from 1/25 of the rate up in a quarter of the phase, down to 1/100000; momentum
0.95 to 0.85 and back), and each stage has the rate of the next deeper one divided by 2.6. Batch norm trains while
frozen (`train_bn`). The optimizer is fastai's: Adam with decoupled weight decay of 0.01, none on biases and norms, a
memory of 0.99 for squares, eps 1e-5, its moments forgotten at every thaw (`Learner.freeze_to`). The peak of a cycle is
our constant rate, which is fastai's own default (1e-3). fastai's `fine_tune` is another way: it thaws all at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from cell import Cell, places
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from lesionseg.block_names import OUTSIDE_ENCODER
from lesionseg.callbacks.seeding import SeedEveryStep
from lesionseg.networks import Block, blocks
from lesionseg.schedules import ResolvedSchedule
from lesionseg.tasks import LesionTask

ROW = "fastai_gradual_unfreezing"
#: Between the rates of neighbouring stages, as in the paper.
FACTOR = 2.6
#: fastai's defaults (`Adam`, `Learner`).
WEIGHT_DECAY, SQUARES, EPS = 0.01, 0.99, 1e-5


class GradualUnfreezing(pl.Callback):
    """Freezes and thaws stages between phases, and lets the rates of each phase go through one cycle."""

    def __init__(self, phases: ResolvedSchedule) -> None:
        self.phases = phases

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: LesionTask) -> None:
        step = next((step for step in self.phases.steps if step.start == trainer.current_epoch), None)
        if step is None:
            return
        for name, block in blocks(pl_module.net).items():
            learn(block, step.rates[name] > 0)
        optimizer, batches = trainer.optimizers[0], int(trainer.num_training_batches)
        optimizer.state.clear()
        peaks = [group["peak"] for group in optimizer.param_groups]
        steps = (step.stop - step.start) * batches + 1
        # The rise ends at steps * pct_start - 1, and torch divides by that.
        self.cycle = OneCycleLR(
            optimizer, peaks, total_steps=steps, pct_start=max(0.25, 1.5 / steps), div_factor=25,
            final_div_factor=1e5 / 25,
        )  # fmt: skip

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: LesionTask, *_: Any) -> None:
        self.cycle.step()


def learn(block: Block, learns: bool) -> None:
    """Let a block learn, or nothing of it but its batch norm."""
    norms = {p for m in block.modules if isinstance(m, nn.modules.batchnorm._BatchNorm) for p in m.parameters()}
    for _, parameter in block.parameters:
        parameter.requires_grad_(learns or parameter in norms)


class GradualTask(LesionTask):
    """A learning rate for each stage, the smaller the nearer to the input."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        found = blocks(self.net)
        stages = [name for name in found if name not in OUTSIDE_ENCODER]
        depth = {name: len(stages) - i for i, name in enumerate(stages)}
        groups = [
            {
                "params": [p for _, p in block.parameters if (p.ndim > 1) == decays],  # the others: biases and norms
                "weight_decay": WEIGHT_DECAY * decays,
                "peak": self.lr / FACTOR ** depth.get(name, 0),
            }
            for name, block in found.items()
            for decays in (True, False)
        ]
        fused = True if self.device.type == "cpu" else None  # as ours
        return torch.optim.AdamW(groups, self.lr, betas=(0.9, SQUARES), eps=EPS, fused=fused)


def train(folder: Path, out: Path) -> None:
    """Train in the place of the run in `folder`, and leave the run `out`."""
    cell = Cell.read(folder)
    data, task = cell.data(), cell.task(GradualTask)
    trainer = pl.Trainer(
        **cell.budget(out), callbacks=[GradualUnfreezing(cell.phases(task)), SeedEveryStep(cell.info.seed)]
    )
    trainer.fit(task, datamodule=data)
    cell.leave(out, ROW, task, data, neighbour="plain PyTorch, as fastai")


if __name__ == "__main__":
    train(*places(__doc__))
