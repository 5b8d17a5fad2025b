"""`SegmentationTask`: what the liver net and the lesion net have in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn
from torchmetrics import Metric

from lesionseg.data.dataset import Batch, Place
from lesionseg.errors import InputError
from lesionseg.inputs import InputSpec
from lesionseg.labels import TARGETS
from lesionseg.networks import build_unet, parameter_groups, transfer
from lesionseg.runs import read_net


class SegmentationTask(pl.LightningModule):
    """A U-net on a pretrained encoder that gives every pixel of a slice a class.

    Args:
        encoder: any encoder of segmentation-models-pytorch.
        input: how a slice becomes the input; set from the data module.
        target: key of `labels.TARGETS`; set from the data module.
        encoder_weights: `imagenet`, a local file, or None.
        decoder_channels: channels of the five decoder blocks, deep to shallow.
        loss: name of a loss in `losses()`.
        lr: learning rate, constant (warm restarts would confound the freezing).
        weight_decay: of AdamW.
        weights: run folder whose net is the start of this one; None: none.
        transfer: take those weights. The row `baseline` says no.
        compile: run the net through `torch.compile`.
    """

    #: Figure on the inner validation by which the best checkpoint is kept; larger is better.
    monitor: str

    def __init__(
        self,
        encoder: str,
        input: InputSpec,
        target: str,
        encoder_weights: str | None = None,
        decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
        loss: str = "dice_ce",
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        weights: Path | None = None,
        transfer: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__()
        _refuse_negative(lr=lr, weight_decay=weight_decay)
        self.spec, self.target = input, TARGETS[target]
        self.lr, self.weight_decay = lr, weight_decay
        self.weights = Path(weights) if weights is not None and transfer else None
        self.description = {
            "task": type(self).__name__,
            "encoder": encoder,
            "decoder_channels": list(decoder_channels),
            "input": asdict(input),
            "target": target,
            "classes": list(self.target.classes),
        }
        self.net = build_unet(
            encoder,
            classes=len(self.target.classes),
            encoder_weights=encoder_weights,
            decoder_channels=tuple(decoder_channels),
        )
        self.loss = self.configure_loss(loss)
        self.validation_metric, self.test_metric = self.configure_metric(), self.configure_metric()
        if compile:
            self.net.compile()

    @abstractmethod
    def configure_loss(self, name: str) -> nn.Module:
        """The loss of this name: scores (N, K, S, S) and class indices (N, 1, S, S) → scalar."""

    @abstractmethod
    def configure_metric(self) -> Metric:
        """The figures of this task, from pairs of predicted and reference slices."""

    @abstractmethod
    def update_metric(self, metric: Metric, predicted: Tensor, reference: Tensor, place: Place) -> None:
        """Add one slice, class indices (H, W) each, to a metric."""

    @abstractmethod
    def figures(self, metric: Metric) -> dict[str, float]:
        """Named figures of a metric that has seen its slices."""

    def setup(self, stage: str) -> None:
        """Take over the pretrained tensors, once, before training, and keep what training starts from.

        A run that goes on comes here too, before its checkpoint is loaded, so it has the `start_weights` of the first
        epoch.
        """
        if stage != "fit":
            return
        if self.weights is not None:
            report = transfer(self.net, read_net(self.weights)[1], where=self.weights)
            rank_zero_info(f"weights from {self.weights}: {report}")
        self.start_weights = {name: parameter.detach().clone() for name, parameter in self.net.named_parameters()}

    def forward(self, images: Tensor) -> Tensor:
        """Scores (N, K, S, S) of images (N, 3, S, S)."""
        return self.net(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch."""
        loss = self.loss(self(batch.images), batch.targets[:, None])
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch.images), sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the figures of a batch of the inner validation."""
        self._evaluate(batch, self.validation_metric)

    def on_validation_epoch_end(self) -> None:
        """Log the figures of the inner validation."""
        figures = self.figures(self.validation_metric)
        self.log_dict({f"val/{name}": torch.tensor(value) for name, value in figures.items()})
        self.validation_metric.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the figures of a batch of the test part; `callbacks.Results` writes the tables."""
        self._evaluate(batch, self.test_metric)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over all parameters from the start, one group a block (see `docs/freezing.md`)."""
        return torch.optim.AdamW(parameter_groups(self.net, self.lr, self.weight_decay))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Plain data that says how to build the net again and how to feed it."""
        checkpoint["lesionseg"] = self.description

    def predict_slices(self, batch: Batch) -> list[Tensor]:
        """Class indices of each slice of a batch on its own grid, uint8 (H, W)."""
        scores = self(batch.images)
        sizes = [reference.shape for reference in batch.references]
        return [self.spec.decode(s, box, h, w) for s, box, (h, w) in zip(scores, batch.boxes, sizes, strict=True)]

    def _evaluate(self, batch: Batch, metric: Metric) -> None:
        for predicted, reference, place in zip(self.predict_slices(batch), batch.references, batch.places, strict=True):
            self.update_metric(metric, predicted, reference, place)


def _refuse_negative(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise InputError(f"model.{name}", expected="0 or more", got=str(value), remedy="1e-3 and 1e-4 are usual")
