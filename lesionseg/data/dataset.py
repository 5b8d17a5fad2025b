"""`SliceDataset`: slices of a store as samples, and the samplers that make order a function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from lesionseg.boxes import Box
from lesionseg.data.augment import Augmentation
from lesionseg.data.slice_table import SliceTable
from lesionseg.data.store import Store
from lesionseg.implant import implant
from lesionseg.inputs import InputSpec, neighbours
from lesionseg.labels import Target


class Draw(NamedTuple):
    """A slice drawn for training: its place in the dataset, and the epoch, which decides its augmentation."""

    position: int
    epoch: int


class Place(NamedTuple):
    """Where a sample comes from: position in the dataset (unique per slice), case (index in the store), slice."""

    position: int
    case: int
    slice: int


class Sample(NamedTuple):
    """What a task sees of one slice.

    Attributes:
        image: (3, S, S) float32, the slice between its neighbours.
        target: (S, S) int64, class indices.
        reference: (H, W) uint8, class indices on the whole slice; empty in training.
        box: where the image was cut from the slice.
        place: where the slice comes from.
    """

    image: Tensor
    target: Tensor
    reference: Tensor
    box: Box
    place: Place


class Batch(NamedTuple):
    """Samples side by side.

    Attributes:
        images: (N, 3, S, S), float32, scaled (`inputs`).
        targets: (N, S, S), int64, class indices.
        references: class indices on the whole slices, uint8 (H, W) each, of their own sizes.
        boxes: what the net sees of each slice.
        places: where each slice comes from.
        kept: of a batch on a device, its targets on the CPU: to read them back would wait for the device.
    """

    images: Tensor
    targets: Tensor
    references: list[Tensor]
    boxes: list[Box]
    places: list[Place]
    kept: Tensor | None = None

    @property
    def targets_on_cpu(self) -> Tensor:
        """The targets, wherever the batch lies."""
        return self.targets if self.kept is None else self.kept

    def to(self, device: torch.device) -> Batch:
        """On a device, but for the references, which are compared on the CPU.

        Lightning calls this, and would else look at every number of boxes and places.
        """
        images, targets = (each.to(device, non_blocking=True) for each in (self.images, self.targets))
        return self._replace(images=images, targets=targets, kept=self.targets_on_cpu)


class Predicted(TypedDict):
    """What a task says of a batch.

    Attributes:
        classes: class indices of each slice on its own grid, uint8 (H, W).
        scores: (N, K, S, S), of the classes of the target; None where no pixel has such scores.
    """

    classes: list[Tensor]
    scores: Tensor | None


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples into a batch."""
    images, targets, references, boxes, places = zip(*samples, strict=True)
    return Batch(torch.stack(images), torch.stack(targets), list(references), list(boxes), list(places))


class SliceDataset(Dataset[Sample]):
    """Slices of a store, cut and normalised by an `InputSpec`; indexed by `Draw` in training, by place otherwise."""

    def __init__(
        self,
        store: Store,
        slices: SliceTable,
        target: Target,
        spec: InputSpec,
        *,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        same_neighbours: float = 0.0,
        implant_probability: float = 0.0,
    ) -> None:
        self.store, self.slices, self.target, self.spec = store, slices, target, spec
        self.seed, self.augmentation, self.same_neighbours = seed, augmentation, same_neighbours
        self.implant_probability = implant_probability

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, item: int | Draw) -> Sample:
        draw = item if isinstance(item, Draw) else None
        position = draw.position if draw else int(item)  # type: ignore[arg-type]
        case_id, index, _ = self.slices[position]
        seeds = np.random.SeedSequence([self.seed, draw.epoch if draw else 0, position]).generate_state(4)
        first = max(index - 1, 0)
        near, middle = slice(first, index + 2), index - first
        hu = self.store.hu_slices(case_id, near)
        if draw is not None and seeds[2] < self.implant_probability * 2**32:
            hu, around = self._implanted(hu, self.store.label_slices(case_id, near), middle, case_id, int(seeds[3]))
            labels = around[middle]
        else:
            labels = self.store.label_slices(case_id, slice(index, index + 1))[0]
        place = Place(position, int(self.slices.case[position]), index)
        box = self.spec.box(self.store.record(case_id).liver_box, *labels.shape)
        alone = len(hu) == 1 or (draw is not None and seeds[0] < self.same_neighbours * 2**32)
        # A slice alone stands for its neighbours: what is done to it once is theirs, too.
        image = self.spec.encode(hu[middle : middle + 1] if alone else neighbours(hu, middle), box)
        target = torch.from_numpy(self.target.apply(self.spec.encode_labels(labels, box).numpy()))
        reference = torch.empty(0, dtype=torch.uint8)
        if draw is None:
            reference = torch.from_numpy(self.target.apply(labels))
        elif self.augmentation is not None:
            image, target = self.augmentation(image, target, int(seeds[1]))
        return Sample(image.expand(3, -1, -1), target.long(), reference, box, place)

    def _implanted(
        self, hu: np.ndarray, labels: np.ndarray, middle: int, case_id: str, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Slices and labels (D, H, W) with one more lesion of a drawn type, as they are where it finds no room."""
        rng = np.random.default_rng(seed)
        kind = str(rng.choice(self.target.lesion_types))
        out = implant(rng, hu, labels, [kind], self.store.record(case_id).spacing_mm, middle=middle)
        return (hu, labels) if out is None else out


class TrainingSampler(Sampler[list[Draw]]):
    """Batches of one epoch: every foreground slice, and a fresh share of the others, shuffled by (seed, epoch).

    Every rank draws the same order and takes its share of each batch, so that any number of ranks sees the same
    batches, in as many steps. An incomplete last batch is left out (batch norm), unless it is the only one, which one
    rank takes alone (`LesionDataModule.check_ranks`).

    Args:
        foreground: for each slice of the dataset, whether it holds what the net is to find.
        keep_empty: share of the other slices drawn each epoch.
        batch_size: slices of a batch, all ranks together.
        seed: of the run.
        rank: this process.
        world_size: number of processes.
        start_epoch: first epoch to be iterated (where a run resumes).
        start_batch: batches of that first epoch already seen.
    """

    def __init__(
        self,
        foreground: Sequence[bool] | np.ndarray,
        *,
        keep_empty: float,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_epoch: int = 0,
        start_batch: int = 0,
    ) -> None:
        mask = np.asarray(foreground, dtype=bool)
        self.found, self.empty = np.flatnonzero(mask), np.flatnonzero(~mask)
        self.kept = round(keep_empty * len(self.empty))
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.epoch, self.start = start_epoch, (start_epoch, start_batch)

    @property
    def sampler(self) -> TrainingSampler:
        """Itself: Lightning sets the epoch of `batch_sampler.sampler`, never of the batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch to be iterated next (the trainer calls this)."""
        self.epoch = epoch

    def order(self, epoch: int) -> np.ndarray:
        """Places in the dataset in the order of an epoch, all ranks together."""
        rng = np.random.default_rng([self.seed, epoch])
        kept = rng.choice(self.empty, self.kept, replace=False)
        return rng.permutation(np.concatenate([self.found, kept]))

    @property
    def slices(self) -> int:
        """Slices of an epoch, all ranks together."""
        return len(self.found) + self.kept

    def __len__(self) -> int:
        return max(self.slices // self.batch_size, 1) if self.slices else 0

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch = self.epoch
        skip = self.start[1] if epoch == self.start[0] else 0
        order = self.order(epoch)
        for batch in range(skip, len(self)):
            share = order[batch * self.batch_size : (batch + 1) * self.batch_size][self.rank :: self.world_size]
            yield [Draw(int(position), epoch) for position in share]


class EvaluationSampler(Sampler[list[int]]):
    """Batches over every slice once, split over ranks; ranks that run short repeat a slice, which metrics drop by key.

    With `seed`, the order is a fixed shuffle, so that a limited number of batches is a fair sample. `batch_size` is
    that of one rank.
    """

    def __init__(self, n: int, *, batch_size: int, rank: int = 0, world_size: int = 1, seed: int | None = None) -> None:
        order = np.arange(n) if seed is None else np.random.default_rng(seed).permutation(n)
        part = np.resize(order, -(-n // world_size) * world_size)[rank::world_size] if n else order
        self.batches = [part[i : i + batch_size].tolist() for i in range(0, len(part), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)
