"""`LiverTask`: the first net of the cascade; the liver in the whole slice."""

from __future__ import annotations

from monai.losses import DiceCELoss
from segmentation_models_pytorch.losses import TverskyLoss
from torch import Tensor, nn
from torchmetrics import Metric

from lesionseg.data.dataset import Place
from lesionseg.metrics import LiverDice
from lesionseg.tasks.base import SegmentationTask, loss_named


class LiverTask(SegmentationTask):
    """Background and liver of a whole slice."""

    monitor = "val/liver_dice"

    def configure_loss(self, name: str) -> nn.Module:
        """`dice_ce`: Dice plus cross-entropy; `focal_tversky`: the reference's (0.7 on false negatives, gamma 0.75)."""
        losses = {
            "dice_ce": lambda: DiceCELoss(to_onehot_y=True, softmax=True, batch=True),
            "focal_tversky": lambda: FocalTversky(),
        }
        return loss_named(name, losses)

    def configure_metric(self) -> Metric:
        """Dice of the liver per case."""
        return LiverDice()

    def update_metric(self, metric: Metric, predicted: Tensor, reference: Tensor, place: Place) -> None:
        """Slices of one case are put together before its Dice is taken."""
        metric.update(predicted, reference, place.case, place.slice)


class FocalTversky(nn.Module):
    """Focal Tversky loss of segmentation-models-pytorch with the reference's settings, on the liver class."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = TverskyLoss(mode="multiclass", classes=[1], alpha=0.3, beta=0.7)

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Scores (N, 2, S, S), class indices (N, 1, S, S) → scalar; about 0, without gradient, where nothing is liver.

        The power is taken here, off 0: there, where a batch without liver has its loss, its slope is infinite.
        """
        return self.loss(scores, targets[:, 0]).clamp_min(1e-7) ** 0.75
