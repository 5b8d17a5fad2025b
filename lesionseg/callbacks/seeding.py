"""`SeedEveryStep`: what a net draws in training (dropout, stochastic depth) is a function of seed, step and rank."""

from __future__ import annotations

import numpy as np
import pytorch_lightning as pl
import torch

from lesionseg.data.dataset import Batch


class SeedEveryStep(pl.Callback):
    """Seeds torch before every training step, so that a run that goes on draws what it would have drawn."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Each rank draws its own."""
        sequence = np.random.SeedSequence([self.seed, trainer.current_epoch, batch_idx, trainer.global_rank])
        seed = int(sequence.generate_state(1, np.uint64)[0])
        # `torch.manual_seed` keeps a traceback for every device that has not been started: 0.15 ms a step.
        torch.default_generator.manual_seed(seed)
        if pl_module.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        elif pl_module.device.type != "cpu":
            torch.manual_seed(seed)
