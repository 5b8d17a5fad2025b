"""`views`: a few slices as the net sees them now, with reference and prediction in label ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch

from lesionseg.boxes import Box
from lesionseg.data.dataset import SliceDataset, collate
from lesionseg.data.slice_table import SliceRef
from lesionseg.labels import NAMES, Target


class View(NamedTuple):
    """A slice (H, W): HU, the label ids of reference and prediction, and the box that the net sees of it."""

    ref: SliceRef
    hu: np.ndarray
    reference: np.ndarray
    predicted: np.ndarray
    box: Box


@torch.no_grad()
def views(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    part: SliceDataset,
    positions: Sequence[int],
    known: Mapping[int, np.ndarray] | None = None,
) -> list[View]:
    """The slices of a part of the data at these positions; those whose class map is not `known` go through the net.

    The module is in evaluation mode (as in every hook of validation and test), so nothing random is drawn and no
    statistics change. Only the calling process predicts.
    """
    assert not pl_module.training
    samples = {position: part[position] for position in positions}
    predicted = dict(known or {})
    if unknown := [position for position in samples if position not in predicted]:
        batch = collate([samples[position] for position in unknown])
        images = trainer.precision_plugin.convert_input(batch.images.to(pl_module.device))
        with trainer.precision_plugin.val_step_context():
            planes = pl_module.predict_slices(batch._replace(images=images))  # type: ignore[operator]
        predicted |= {position: plane.cpu().numpy() for position, plane in zip(unknown, planes, strict=True)}
    ids, out = _label_ids(part.target), []
    for position in positions:
        ref, sample = part.slices[position], samples[position]
        hu, reference = part.store.hu(ref.case_id)[ref.slice], ids[np.asarray(sample.reference)]
        out.append(View(ref, hu, reference, ids[predicted[position]], sample.box))
    return out


def _label_ids(target: Target) -> np.ndarray:
    """The label id of each class of a target."""
    ids = {name: label for label, name in NAMES.items()}
    return np.array([ids[name] for name in target.classes], dtype=np.uint8)
