"""`TwoStepTask`: lesions are found pixel by pixel without a type, and named by something else than the pixels."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from lesionseg.data.dataset import Batch
from lesionseg.errors import InputError
from lesionseg.labels import TARGETS, Target
from lesionseg.lesions import FIRST_TYPE
from lesionseg.tasks.lesion import LesionTask


class TwoStepTask(LesionTask):
    """What the two-headed net and the crop classifier share: background, liver, lesion of every pixel; types beside.

    The target stays `typed`, so that references, figures and tables are those of every other row. The pixel head has
    the classes of the pretraining and takes over all of its weights, where that of a typed net starts anew.

    Raises:
        InputError: the target names no types.
    """

    @property
    def segmented(self) -> Target:
        """Lesions without a type."""
        return TARGETS["lesion"]

    def configure_net(self, encoder: str, **options: Any) -> nn.Module:
        """The net, for a target that has types."""
        if len(self.target.lesion_types) < 2:
            raise InputError(
                "data.target",
                expected="typed, as this task names lesions",
                got=self.target.name,
                remedy="use lesionseg.tasks.LesionTask",
            )
        return super().configure_net(encoder, **options)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Of the pixels, without types."""
        return super().losses(batch._replace(targets=without_types(batch.targets)))

    @abstractmethod
    def predict_slices(self, batch: Batch) -> list[Tensor]:
        """Class indices of each slice of a batch on its own grid, uint8 (H, W), lesions with their types."""


def without_types(targets: Tensor) -> Tensor:
    """Class indices of any shape, every lesion type made the one class `lesion`."""
    return targets.clamp(max=FIRST_TYPE)
