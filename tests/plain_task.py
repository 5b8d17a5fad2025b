"""A task that trains alike on any number of ranks but for rounding, and ranks that are killed; by class path."""

import os
import signal

import segmentation_models_pytorch as smp
from torch import nn

from lesionseg.tasks import LesionTask


class PlainLoss(nn.Module):
    """A mean over pixels: the mean over equal shares of a batch is that over the batch."""

    def forward(self, scores, targets):
        return nn.functional.cross_entropy(scores, targets[:, 0])


class PlainTask(LesionTask):
    """No batch norm, no Dice of the batch. The rank that `KILL=rank:step` names is killed before that step."""

    def configure_net(self, encoder, **options):
        return smp.Unet("tu-test_convnext", encoder_weights=None, decoder_use_norm=False, decoder_channels=(8,) * 5,
                        classes=len(self.segmented.classes))  # fmt: skip

    def configure_loss(self, name):
        return PlainLoss()

    def on_train_batch_start(self, batch, batch_idx):
        if os.environ.get("KILL") == f"{self.global_rank}:{self.trainer.global_step}":
            os.kill(os.getpid(), signal.SIGKILL)
