"""`CropClassifierTask`: segmentation alone, and a second net that names each lesion from a crop around it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lesionseg.crops import cut, lesion_squares, on_input, shaken, type_scores
from lesionseg.data.dataset import Batch
from lesionseg.device import sent
from lesionseg.errors import InputError
from lesionseg.lesions import FIRST_TYPE, components
from lesionseg.tasks.two_step import TwoStepTask
from lesionseg.unet import Naming, add_crop_classifier


class CropClassifierTask(TwoStepTask):
    """A U-net that finds lesions and a classifier with an encoder of its own that names them; nothing is shared.

    Both are trained in the same steps. The classifier starts as the encoder of the U-net does: from the encoder weights
    named in the config, then from those of the run that weights are taken over from. It is the block `classifier`.

    - Training: crops around the reference lesions (components of one type) of the batch, shaken, cut out of the input
      of the U-net, so the augmentation is the same; cross-entropy, the mean over the crops of a batch.
    - Prediction: crops around the components of the predicted lesion class (8-neighbourhood). A component has one type;
      one that spans two lesions of different types can be right for one of them only.

    It costs more than one net for the same number of steps: each step also takes as many crops as it has lesions.

    Args:
        crop_px: side of the crops as the classifier sees them, see `Naming`.
        args: of `LesionTask`.
        kwargs: of `LesionTask`.
    """

    all_of_the_net_in_each_step = False

    def __init__(self, *args: Any, crop_px: int = 64, **kwargs: Any) -> None:
        try:
            self.naming = Naming("crops", crop_px)  # first, as the base describes itself by it
        except ValueError as error:
            raise InputError("model.crop_px", expected="a multiple of 32, 64 to 1024", got=str(crop_px),
                             remedy="use 64") from error  # fmt: skip
        super().__init__(*args, **kwargs)

    def configure_net(self, encoder: str, **options: Any) -> nn.Module:
        """A U-net with the classifier beside its parts."""
        net = super().configure_net(encoder, **options)
        add_crop_classifier(net, len(self.target.lesion_types))
        return net

    def check_start(self) -> set[str]:
        """As the base, and crops that the classifier's encoder does not take."""
        self.refuse_side("classifier.encoder", self.naming.crop_px, "model.crop_px")
        return super().check_start()

    def start(self, pretrained: dict[str, Tensor]) -> dict[str, Tensor]:
        """The pretrained encoder twice, unless there is a classifier as well."""
        encoder = {f"classifier.{name}": value for name, value in pretrained.items() if name.startswith("encoder.")}
        return {**encoder, **pretrained}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Of the pixels without types, and of the types of the crops (0 where the batch holds no lesion)."""
        segmentation = super().losses(batch)
        owners, squares, types = reference_squares(batch.targets_on_cpu.numpy())
        if not len(types):
            return {**segmentation, "types": batch.images.new_zeros(())}
        owners, squares, types = (sent(each, batch.images.device) for each in (owners, shaken(squares), types))
        crops = cut(batch.images, owners, squares, self.naming.crop_px)
        scores = self.net.get_submodule("classifier")(crops)  # all at once: they are one batch to its batch norms
        return {**segmentation, "types": functional.cross_entropy(scores, types)}

    def predict_slices(self, batch: Batch) -> list[Tensor]:
        """Lesions as the pixels say, each component named by its crop."""
        planes = self.on_slices(self(batch.images), batch)
        labelled = [components(plane.cpu().numpy() == FIRST_TYPE)[0] for plane in planes]
        types = self._types(batch, [lesion_squares(each) for each in labelled])
        return [
            torch.where(plane == FIRST_TYPE, named[torch.from_numpy(each).to(plane.device)], plane)
            for plane, each, named in zip(planes, labelled, types, strict=True)
        ]

    def _types(self, batch: Batch, squares: list[Tensor]) -> list[Tensor]:
        """For each slice the class index, uint8, of each of its components, behind one for what is none (0)."""
        places = [on_input(each, box, self.spec.size_px) for each, box in zip(squares, batch.boxes, strict=True)]
        numbers = [len(each) for each in places]
        types = torch.zeros(0, dtype=torch.uint8, device=batch.images.device)
        if any(numbers):
            owners, classifier = torch.repeat_interleave(torch.tensor(numbers)), self.net.get_submodule("classifier")
            scores = type_scores([classifier], batch.images, owners, torch.cat(places), self.naming.crop_px)[0]
            types = (FIRST_TYPE + scores.argmax(1)).to(torch.uint8)
        return [functional.pad(each, (1, 0)) for each in types.split(numbers)]


def reference_squares(targets: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Squares around the lesions of class indices (N, S, S): slice (n,), square (n, 3), type (n,; from 0) of each."""
    owners, squares, types = [], [torch.zeros(0, 3)], []
    for owner, plane in enumerate(targets):
        for kind in range(FIRST_TYPE, plane.max(initial=0) + 1):
            found = lesion_squares(components(plane == kind)[0])
            owners += [owner] * len(found)
            types += [kind - FIRST_TYPE] * len(found)
            squares.append(found)
    return torch.tensor(owners, dtype=torch.int64), torch.cat(squares), torch.tensor(types, dtype=torch.int64)
