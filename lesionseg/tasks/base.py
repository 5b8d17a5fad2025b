"""`SegmentationTask`: what the liver net and the lesion net have in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torchmetrics import Metric

from lesionseg.block_names import OUTSIDE_ENCODER
from lesionseg.data.dataset import Batch, Place, Predicted
from lesionseg.epoch_means import EpochMeans
from lesionseg.errors import InputError, first_sentence
from lesionseg.inputs import InputSpec
from lesionseg.labels import TARGETS, Target
from lesionseg.networks import blocks, build_unet, parameter_groups, transfer, transferable
from lesionseg.run_weights import read_net
from lesionseg.tasks.l2_sp import PullToStart
from lesionseg.unet import DECODER_CHANNELS, Naming


class SegmentationTask(pl.LightningModule):
    """A U-net on a pretrained encoder that gives every pixel of a slice a class.

    Args:
        encoder: any encoder of segmentation-models-pytorch.
        input: how a slice becomes the input; set from the data module.
        target: key of `labels.TARGETS`; set from the data module.
        encoder_weights: `imagenet`, a local file, or None.
        decoder_channels: channels of the five decoder blocks, deep to shallow.
        deep_supervision: the loss also on outputs at decoder strides 8, 4 and 2 (`lesionseg.unet`).
        loss: a name that `configure_loss` knows.
        lr: learning rate, constant (warm restarts would confound the freezing).
        weight_decay: of AdamW.
        weights: run folder whose net is the start of this one; None: none.
        transfer: take those weights. The row `baseline` says no.
        use_encoder_weights: take `encoder_weights`, which the profile names. The row `from_scratch` says no.
        l2_sp: strength of the pull towards the weights taken over, see `tasks.l2_sp`; 0: none.
        compile: run the net through `torch.compile`.
        channels_last: lay the weights out with the channels innermost, which all that is computed then follows.
    """

    #: Figure on the inner validation by which the best checkpoint is kept; larger is better.
    monitor: str
    #: What names the lesions that it finds.
    naming = Naming()
    #: No part of the net is left out where a batch gives it nothing to do.
    all_of_the_net_in_each_step = True

    def __init__(
        self,
        encoder: str,
        input: InputSpec,
        target: str,
        encoder_weights: str | None = None,
        decoder_channels: Sequence[int] = DECODER_CHANNELS,
        deep_supervision: bool = False,
        loss: str = "dice_ce",
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        weights: Path | None = None,
        transfer: bool = True,
        use_encoder_weights: bool = True,
        l2_sp: float = 0.0,
        compile: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        refuse_negative(lr=lr, weight_decay=weight_decay, l2_sp=l2_sp)
        self.spec, self.target, self.deep_supervision = input, TARGETS[target], deep_supervision
        self.lr, self.weight_decay = lr, weight_decay
        self.weights = Path(weights) if weights is not None and transfer else None
        self._lacks_weights = weights is None and transfer and target == "typed"
        self._has_encoder_weights = bool(encoder_weights and use_encoder_weights)
        self.l2_sp = l2_sp
        self.pull: PullToStart | None = None
        if l2_sp and self.weights is None:
            raise InputError("model.l2_sp", expected="weights to be pulled towards", got="none",
                             remedy="name a run folder in model.weights, or set it to 0")  # fmt: skip
        self.description = {
            "task": type(self).__name__,
            "encoder": encoder,
            "decoder_channels": list(decoder_channels),
            "input": asdict(input),
            "target": target,
            "classes": list(self.target.classes),
            "naming": asdict(self.naming),
        }
        self.net = self.configure_net(
            encoder,
            encoder_weights=encoder_weights if use_encoder_weights else None,
            decoder_channels=tuple(decoder_channels),
            deep_supervision=deep_supervision,
        )
        self.loss = self.configure_loss(loss)
        self.validation_metric, self.test_metric = self.configure_metric(), self.configure_metric()
        self._losses = EpochMeans()
        if channels_last:
            self.net.to(memory_format=torch.channels_last)
        if compile:
            self.net.compile()

    @property
    def segmented(self) -> Target:
        """What the scores of a pixel tell apart."""
        return self.target

    def configure_net(self, encoder: str, **options: Any) -> nn.Module:
        """The net of these options of `build_unet`; `networks.blocks` knows its parts."""
        return build_unet(encoder, classes=len(self.segmented.classes), **options)

    @abstractmethod
    def configure_loss(self, name: str) -> nn.Module:
        """The loss of this name: scores (N, K, S, S) and class indices (N, 1, S, S) → scalar."""

    @abstractmethod
    def configure_metric(self) -> Metric:
        """The figures of this task, from pairs of predicted and reference slices."""

    @abstractmethod
    def update_metric(self, metric: Metric, predicted: Tensor, reference: Tensor, place: Place) -> None:
        """Add one slice, class indices (H, W) each, to a metric."""

    def figures(self, metric: Metric) -> dict[str, float]:
        """Named figures of a metric that has seen its slices."""
        return {name: float(value) for name, value in metric.compute().items()}

    def check_start(self) -> set[str]:
        """Refuse, before anything is trained, slices that the encoder does not take, and weights that do not fit.

        Returns:
            Names of the blocks that start from random numbers, all of them or in part.

        Raises:
            InputError: an encoder for slices of another size; too little of it fits, see `networks.transfer`.
        """
        self.refuse_side("encoder", self.spec.size_px, "data.input.size_px")
        if self._lacks_weights:
            rank_zero_warn("a fine-tuning from no pretraining, as model.init_args.weights names none; transfer: false "
                           "says that this is meant")  # fmt: skip
        loaded: set[str] = set()
        if self.weights is not None:
            described, tensors = read_net(self.weights)
            loaded |= {*transferable(self.net, self.start(tensors), where=self.weights).loaded}
            self._warn_of_another_input(described)
        return {
            name
            for name, block in blocks(self.net).items()
            if not all(parameter in loaded for parameter, _ in block.parameters)
            and not (self._has_encoder_weights and name not in OUTSIDE_ENCODER)
        }

    def _warn_of_another_input(self, described: dict[str, Any]) -> None:
        """Say where the net that weights are taken over from was fed otherwise, or found something else."""
        own, held = asdict(self.spec), described["input"]
        fed = [name for name in own if name != "size_px" and held[name] != own[name]]
        other = [f"data.input.{name} {held[name]}, not {own[name]}" for name in fed]
        if (described["target"] == "liver") != (self.target.name == "liver"):
            other.append(f"data.target {described['target']}, not {self.target.name}")
        if other:
            rank_zero_warn(f"{self.weights} was trained with {', '.join(other)}: a block that is frozen cannot adapt")

    def refuse_side(self, encoder: str, side: int, setting: str) -> None:
        """Raise `InputError` for a setting where an encoder, a submodule of the net, takes no squares of this side."""
        module = self.net.get_submodule(encoder)
        black = next(module.parameters()).new_zeros(1, 3, side, side)
        try:
            with torch.no_grad():
                module.eval()(black)
        except (RuntimeError, AssertionError, ValueError) as error:
            raise InputError(setting, expected=f"a size that {self.description['encoder']} takes",
                             got=f"{side} ({first_sentence(error)})",
                             remedy="set its own, or choose another encoder") from error  # fmt: skip
        finally:
            module.train()

    def setup(self, stage: str) -> None:
        """Take over the pretrained tensors, once, before training, and keep what training starts from.

        A run that goes on comes here too, before its checkpoint is loaded, so it has the `start_weights` of the first
        epoch.
        """
        if stage != "fit":
            return
        if self.weights is not None:
            report = transfer(self.net, self.start(read_net(self.weights)[1]), where=self.weights)
            rank_zero_info(f"weights from {self.weights}: {report}")
            self.pull = PullToStart(self.net, report.loaded, self.l2_sp) if self.l2_sp else None
        self.start_weights = {name: parameter.detach().clone() for name, parameter in self.net.named_parameters()}

    def start(self, pretrained: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors that the net starts from, by their names in it."""
        return pretrained

    def forward(self, images: Tensor) -> Tensor:
        """Scores (N, K, S, S) of images (N, 3, S, S)."""
        return self.net(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Loss of a batch: the sum of its parts, which are logged where there are several.

        None, which makes no step, where nothing that trains has anything to do in the batch: a classifier of crops, in
        one without lesions. Of several ranks the others would wait for its gradients, so that there torch ends them.
        """
        parts = self.losses(batch)
        if self.pull is not None:
            parts["l2_sp"] = self.pull()
        loss = torch.stack(list(parts.values())).sum()
        self._losses.note("loss", loss)
        for name, part in parts.items() if len(parts) > 1 else ():
            self._losses.note(f"loss_{name}", part)
        return loss if loss.requires_grad or self.trainer.world_size > 1 else None

    def on_train_epoch_start(self) -> None:
        """Begin the means of the losses. A run that goes on within an epoch does not come here."""
        self._losses = EpochMeans()

    def on_train_epoch_end(self) -> None:
        """Log the losses of the epoch: means over its batches, which are all of one size, and over the processes."""
        self.log_dict({f"train/{name}": mean for name, mean in self._losses.means().items()}, sync_dist=True)
        self._losses = EpochMeans()  # a checkpoint at this end has none

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named parts of the loss of a batch, the same ones for every batch."""
        scores = self.net(batch.images, deep=True) if self.deep_supervision else [self(batch.images)]
        return {"segmentation": self.segmentation_loss(scores, batch.targets)}

    def segmentation_loss(self, scores: Sequence[Tensor], targets: Tensor) -> Tensor:
        """Sum of the loss of scores (N, K, s, s) at each decoder depth, all alike, as in the reference code.

        Class indices (N, S, S) are taken from the middle of each block of pixels (the reference: from its corner).
        """
        steps = [targets.shape[-1] // each.shape[-1] for each in scores]
        thinned = [targets[:, None, step // 2 :: step, step // 2 :: step] for step in steps]
        return torch.stack([self.loss(each, target) for each, target in zip(scores, thinned, strict=True)]).sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> Predicted:
        """Collect the figures of a batch of the inner validation; the callbacks get what was predicted."""
        if self.segmented is self.target:
            scores = self(batch.images)
            predicted = Predicted(classes=self.on_slices(scores, batch), scores=scores)
        else:
            predicted = Predicted(classes=self.predict_slices(batch), scores=None)
        self._collect(predicted["classes"], batch, self.validation_metric)
        return predicted

    def on_validation_epoch_end(self) -> None:
        """Log the figures of the inner validation."""
        figures = self.figures(self.validation_metric)
        self.log_dict({f"val/{name}": torch.tensor(value) for name, value in figures.items()})
        self.validation_metric.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the figures of a batch of the test part; `callbacks.Results` writes the tables."""
        self._collect(self.predict_slices(batch), batch, self.test_metric)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over all parameters from the start, one group a block (see `docs/freezing.md`)."""
        groups = parameter_groups(self.net, self.lr, self.weight_decay)
        groups = groups if self.pull is None else self.pull.without_decay(groups)
        # On a CPU in one pass over each tensor; on a GPU torch's own choice, which can clip gradients under 16-mixed.
        optimizer = torch.optim.AdamW(groups, fused=True if self.device.type == "cpu" else None)
        optimizer.register_load_state_dict_pre_hook(_fused_as_here)
        return optimizer

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Plain data that says how to build the net again and how to feed it; the losses of an epoch in its midst."""
        checkpoint["lesionseg"] = self.description
        checkpoint["losses"] = self._losses.state(self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the losses of the epoch."""
        self._losses = EpochMeans(checkpoint["losses"])

    def predict_slices(self, batch: Batch) -> list[Tensor]:
        """Class indices of each slice of a batch on its own grid, uint8 (H, W)."""
        return self.on_slices(self(batch.images), batch)

    def on_slices(self, scores: Tensor, batch: Batch) -> list[Tensor]:
        """Scores of a batch (N, K, S, S) → class indices of each slice on its own grid, uint8 (H, W)."""
        sizes = [reference.shape for reference in batch.references]
        return [self.spec.decode(s, box, h, w) for s, box, (h, w) in zip(scores, batch.boxes, sizes, strict=True)]

    def _collect(self, predicted: Sequence[Tensor], batch: Batch, metric: Metric) -> None:
        for plane, reference, place in zip(predicted, batch.references, batch.places, strict=True):
            self.update_metric(metric, plane, reference, place)


def _fused_as_here(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """A state to be loaded, fused as the optimizer is that loads it: another kind of device may have saved it.

    Before it is loaded, as torch then puts the step counts where a fused optimizer, or another, needs them.
    """
    return {**state, "param_groups": [{**g, "fused": optimizer.defaults["fused"]} for g in state["param_groups"]]}


def loss_named(name: str, losses: Mapping[str, Callable[[], nn.Module]]) -> nn.Module:
    """The loss that `model.loss` names, of those that a task has; `InputError` where it has none of this name."""
    if name not in losses:
        raise InputError("model.loss", expected=" or ".join(losses), got=name, remedy="name one of these")
    return losses[name]()


def refuse_negative(**values: float) -> None:
    """`InputError` for an option of a task that is below 0 or no finite number."""
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise InputError(f"model.{name}", expected="0 or more", got=str(value), remedy="1e-3 and 1e-4 are usual")
