"""`LesionTask`: the second net of the cascade; lesions of LiTS (no types) or named ones, in the liver box."""

from __future__ import annotations

import torch
from monai.losses import DiceLoss
from torch import Tensor, nn
from torchmetrics import Metric

from lesionseg.data.dataset import Place
from lesionseg.metrics import LesionFigures
from lesionseg.tasks.base import SegmentationTask, loss_named

#: Class weights of the reference code: background, liver, then 1 for every lesion class.
REFERENCE_WEIGHTS = (0.0005, 0.05)
#: Those beside the Dice term, which finds small lesions by itself: milder, so that fewer false positives are learned.
DICE_WEIGHTS = (0.1, 0.3)


class LesionTask(SegmentationTask):
    """Background, liver and lesions (target `lesion`) or lesion types (target `typed`) of a liver box."""

    monitor = "val/dice1"

    def configure_loss(self, name: str) -> nn.Module:
        """`dice_ce`: Dice of the batch and cross-entropy, mildly weighted; `weighted_ce`: the reference's, strongly."""
        classes = len(self.segmented.classes)
        losses = {
            "weighted_ce": lambda: WeightedCrossEntropy(classes),
            "dice_ce": lambda: WeightedDiceCrossEntropy(classes),
        }
        return loss_named(name, losses)

    def configure_metric(self) -> Metric:
        """Dice1, Dice2 and the lesion-wise figures."""
        return LesionFigures(self.target.lesion_types)

    def update_metric(self, metric: Metric, predicted: Tensor, reference: Tensor, place: Place) -> None:
        """Slices are told apart by their position in the dataset."""
        metric.update(predicted, reference, place.position)


class WeightedCrossEntropy(nn.Module):
    """Cross-entropy with the class weights of the reference code (0.0005, 0.05, then 1 for each lesion class)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        weights = _weights(classes, REFERENCE_WEIGHTS)
        self.loss = nn.CrossEntropyLoss(weight=weights)

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Scores (N, K, S, S), class indices (N, 1, S, S) → scalar."""
        return self.loss(scores, targets[:, 0])


class WeightedDiceCrossEntropy(nn.Module):
    """Dice of the batch over the classes but the background, and cross-entropy, with mild class weights."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        weights = _weights(classes, DICE_WEIGHTS)
        self.dice, self.cross_entropy = WeightedDice(weights[1:]), nn.CrossEntropyLoss(weight=weights)

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Scores (N, K, S, S), class indices (N, 1, S, S) → scalar."""
        return self.dice(scores, targets) + self.cross_entropy(scores, targets[:, 0])


class WeightedDice(DiceLoss):
    """MONAI's Dice loss with weights, of the classes but the background.

    Its own `weight` is looked at in every step, for which a GPU has to be waited for.
    """

    weights: Tensor

    def __init__(self, weights: Tensor) -> None:
        super().__init__(to_onehot_y=True, softmax=True, include_background=False, batch=True, reduction="none")
        self.register_buffer("weights", weights[:, None, None], persistent=False)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Scores (N, K, S, S), class indices (N, 1, S, S) → scalar."""
        return (super().forward(input, target) * self.weights).mean()


def _weights(classes: int, first: tuple[float, float]) -> Tensor:
    """Weights of background and liver, then 1 for every lesion class."""
    return torch.tensor([*first, *[1.0] * (classes - 2)])
