"""`GlobalBatch`: says, and tells W&B, how the ranks share the batch of a step."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_info

from lesionseg.callbacks.loggers import wandb_run


class GlobalBatch(pl.Callback):
    """States the rule when training starts: a batch belongs to all ranks together.

    So the steps of an epoch, the learning rate, order, augmentation and freezing do not depend on the number of ranks.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log one line, and the same figures as part of the configuration in W&B."""
        data, ranks, batches = trainer.datamodule, trainer.world_size, trainer.accumulate_grad_batches  # type: ignore[attr-defined]
        share, steps = data.share(ranks), -(-int(trainer.num_training_batches) // batches)
        times = f" x {batches} batches" if batches > 1 else ""
        rank_zero_info(
            f"{data.batch_size * batches} slices a step = {_counted(ranks, 'rank')} x {share}{times}; "
            f"{_counted(steps, 'step')} an epoch; learning rate {pl_module.lr:g} for any number of ranks"
        )
        with wandb_run(trainer) as run:
            if run is not None:  # a run that goes on may have other ranks
                told = {"ranks": ranks, "slices_a_step": data.batch_size * batches, "steps_an_epoch": steps}
                run.config.update(told, allow_val_change=True)


def _counted(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
