"""A task that trains alike on any number of ranks but for rounding, and ranks that are killed; by class path."""

import os
import signal

import segmentation_models_pytorch as smp
from torch import nn

from lesionseg.tasks import LesionTask

#: Of background, liver and lesion. With these a net of a few steps finds some lesions, misses others and sees some that
#: are none; without them it calls no pixel a lesion, and tables of any two such nets are equal.
WEIGHTS = (0.1, 0.3, 15.0)


class PlainLoss(nn.Module):
    """A mean over pixels, whatever they are: the mean over equal shares of a batch is that over the batch."""

    def forward(self, scores, targets):
        weights = scores.new_tensor(WEIGHTS)
        return nn.functional.cross_entropy(scores, targets[:, 0], weight=weights, reduction="none").mean()


class PlainTask(LesionTask):
    """No batch norm, no Dice of the batch. The rank of `KILL=rank:step` is killed before that step, that of `INTERRUPT`
    gets a Ctrl-C.

    In double precision: in single, rounding may turn a ReLU on or off and a pixel into a lesion, so that weights differ
    by 1e-4 and tables by whole lesions.
    """

    def configure_net(self, encoder, **options):
        net = smp.Unet("tu-test_convnext", encoder_weights=None, decoder_use_norm=False, decoder_channels=(8,) * 5,
                       classes=len(self.segmented.classes))  # fmt: skip
        return net.double()

    def forward(self, images):
        return super().forward(images.double())

    def configure_loss(self, name):
        return PlainLoss()

    def on_train_batch_start(self, batch, batch_idx):
        for name, number in (("KILL", signal.SIGKILL), ("INTERRUPT", signal.SIGINT)):
            if os.environ.get(name) == f"{self.global_rank}:{self.trainer.global_step}":
                os.kill(os.getpid(), number)
