"""`LesionDataModule`: one data module for LiTS and for the slices with named lesions."""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path
from typing import Literal

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn
from torch.utils.data import DataLoader

from lesionseg.collector import collector_at_rest
from lesionseg.data.augment import Augmentation
from lesionseg.data.dataset import EvaluationSampler, SliceDataset, TrainingSampler, collate
from lesionseg.data.folds import Split, split
from lesionseg.data.reader import heed_the_trainer_alone
from lesionseg.data.slice_table import SliceTable
from lesionseg.data.store import Store
from lesionseg.errors import InputError, some
from lesionseg.inputs import InputSpec
from lesionseg.labels import LESION_TYPES, TARGETS

#: Seed of the fixed shuffle of validation slices; not the run's, so that every run validates on the same ones.
VALIDATION_ORDER_SEED = 0
#: numpy's and torch's.
MOST_SEED = 2**32 - 1
#: Batches that each worker process reads ahead, torch's own number.
PREFETCHED = 2
#: How workers begin on Linux: as copies of the training, so that they share its tables and have no thread but their own
#: (`heed_the_trainer_alone`). From Python 3.14 on it would else be by a server, which a signal to all processes ends.
FORK = "fork" if sys.platform == "linux" else None


class LesionDataModule(pl.LightningDataModule):
    """Slices of a prepared store, split by patient, for one of the three targets.

    Args:
        store: folder made by `lesionseg prepare`.
        target: `liver` (first net), `lesion` (pretraining, no types), `typed` (fine-tuning).
        input: how a slice becomes the input of the net.
        batch_size: slices of a step, all ranks together: each takes its share of them.
        folds: parts the patients are split into; 1: no test part.
        fold: the part that is the test part, from 0.
        inner_validation: share of the training patients set aside for decisions; 0: none.
        split_seed: seed of the split; shared by every run that is to be compared.
        keep_empty: share of the slices without foreground that an epoch draws anew.
        same_neighbours: probability that the neighbours are replaced by the slice itself in training, because single
            slices (D = 1) give three equal channels when it comes to fine-tuning.
        implant_probability: probability that a training slice gets one more lesion of a drawn type in its liver, as
            `lesionseg implant` makes them; only for the target `typed`.
        augmentation: random changes of training samples; None: none.
        num_workers: processes that read samples.
        seed: of order and augmentation; follows the run's seed.

    Raises:
        InputError: the store is missing or damaged, holds lesions without a type for the target `typed`, or is too
            small for the split; or a number is out of its range.
    """

    def __init__(
        self,
        store: Path,
        target: Literal["liver", "lesion", "typed"],
        input: InputSpec,
        batch_size: int = 8,
        folds: int = 3,
        fold: int = 0,
        inner_validation: float = 0.2,
        split_seed: int = 0,
        keep_empty: float = 0.1,
        same_neighbours: float = 0.0,
        implant_probability: float = 0.0,
        augmentation: Augmentation | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _refuse_out_of_range("batch_size", batch_size, 1, math.inf)
        _refuse_out_of_range("num_workers", num_workers, 0, math.inf)
        _refuse_out_of_range("split_seed", split_seed, 0, MOST_SEED)
        _refuse_out_of_range("keep_empty", keep_empty, 0, 1)
        _refuse_out_of_range("same_neighbours", same_neighbours, 0, 1)
        _refuse_out_of_range("implant_probability", implant_probability, 0, 1)
        if implant_probability and target != "typed":
            raise InputError("data.implant_probability", expected=f"0 for the target {target}, which has no types",
                             got=str(implant_probability), remedy="set it for the target typed alone")  # fmt: skip
        self.path, self.target, self.input = Path(store), TARGETS[target], input
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.folds, self.fold, self.inner_validation, self.split_seed = folds, fold, inner_validation, split_seed
        self.keep_empty, self.same_neighbours, self.augmentation = keep_empty, same_neighbours, augmentation
        self.implant_probability = implant_probability
        self.store: Store | None = None

    @collector_at_rest()
    def setup(self, stage: str) -> None:
        """Open the store and split it; every process comes to the same split."""
        if self.store is not None:
            return
        self.store = Store.open(self.path)
        self.records = {record.case_id: record for record in self.store.records}
        if self.target.name == "typed":
            _refuse_untyped(self.store)
        self.split: Split = split(
            self.store.records,
            folds=self.folds,
            fold=self.fold,
            inner_validation=self.inner_validation,
            seed=self.split_seed,
        )
        self.train = self._dataset(self.split.train, training=True)
        self.validation = self._dataset(self.split.validation)
        self.test = self._dataset(self.split.test)

    def share(self, ranks: int) -> int:
        """Slices of a step that each of so many ranks takes.

        Raises:
            InputError: they cannot take equally many; the mean of their gradients would not be that of the batch.
        """
        if self.batch_size % ranks:
            fitting = sorted({max(self.batch_size // ranks, 1) * ranks, (self.batch_size // ranks + 1) * ranks})
            raise InputError("data.batch_size", expected=f"a multiple of {ranks}, as {ranks} ranks share each batch",
                             got=str(self.batch_size),
                             remedy=f"set it to {' or '.join(map(str, fitting))}, or change the devices")  # fmt: skip
        return self.batch_size // ranks

    def check_ranks(self, ranks: int) -> None:
        """Refuse a training in which so many ranks would not take equally many slices of each step.

        Raises:
            InputError: as `share`; or several ranks, and an epoch of less than one batch.
        """
        self.share(ranks)
        slices = self._training_sampler().slices
        if ranks > 1 and 0 < slices < self.batch_size:
            raise InputError("data.batch_size", expected=f"{slices} or less, the slices of an epoch, as {ranks} ranks "
                             "share each batch", got=str(self.batch_size),
                             remedy="train on one device" + ", or lower it" * (slices >= ranks))  # fmt: skip

    def check_shared_memory(self, ranks: int, shared: Path = Path("/dev/shm")) -> None:
        """Refuse worker processes whose batches the shared memory cannot hold: they would die in mid-epoch.

        Containers have 64 MB of it by default (pytorch #5040). Where there is no such folder, torch hands batches over
        in another way.

        Args:
            ranks: on this machine.
            shared: where Linux keeps it.

        Raises:
            InputError: less is free than the batches under way take: `PREFETCHED` of each worker, in training and
                validation.
        """
        if not self.num_workers or not shared.is_dir():
            return
        side, plane = self.input.size_px, max(record.shape[1] * record.shape[2] for record in self.records.values())
        slice_bytes = side**2 * (3 * 4 + 8) + plane  # image, target, reference
        needed = 2 * ranks * self.num_workers * PREFETCHED * -(-self.batch_size // ranks) * slice_bytes
        free = shutil.disk_usage(shared).free
        if free < needed:
            raise InputError("data.num_workers", expected=f"{needed / 1e6:.0f} MB of shared memory for the batches of "
                             f"{self.num_workers} workers", got=f"{free / 1e6:.0f} MB free in {shared}",
                             remedy="give the container more (docker run --shm-size=2g), or set it lower; 0 needs none",
                             code="shared-memory")  # fmt: skip

    def batches(self) -> dict[str, int]:
        """Batches of an epoch of training, and of the whole validation and test, by `train`, `validation`, `test`."""
        loaders = {"train": self.train_dataloader(), "validation": self.val_dataloader()}
        return {name: len(loader) for name, loader in loaders.items()} | {
            "test": len(self.test_dataloader()) if len(self.test) else 0
        }

    def train_dataloader(self) -> DataLoader:
        """Batches of the epoch the trainer stands at, less those it has seen (a run resumed in mid-epoch)."""
        return self._loader(self.train, self._training_sampler())

    def val_dataloader(self) -> DataLoader | list:
        """Inner-validation slices in a fixed shuffle; an empty list without any, unless it is asked for."""
        if not len(self.validation):
            if self.trainer is not None and self.trainer.state.fn == TrainerFn.VALIDATING:
                raise InputError(self.path, expected="an inner validation", got="data.inner_validation = 0",
                                 remedy="use `lesionseg test`, or train with an inner validation")  # fmt: skip
            return []
        return self._evaluation_loader(self.validation, seed=VALIDATION_ORDER_SEED)

    def test_dataloader(self) -> DataLoader:
        """Every slice of the test part once."""
        if not len(self.test):
            raise InputError(self.path, expected="a test part", got="folds = 1", remedy="set data.folds to 2 or more")
        return self._evaluation_loader(self.test, seed=None)

    def _dataset(self, case_ids: tuple[str, ...], training: bool = False) -> SliceDataset:
        assert self.store is not None
        place = {record.case_id: i for i, record in enumerate(self.store.records)}
        chosen = [place[case_id] for case_id in case_ids]
        return SliceDataset(
            self.store,
            SliceTable(self.store.records, chosen, all_slices=self.target.name == "liver"),
            self.target,
            self.input,
            seed=self.seed,
            augmentation=self.augmentation if training else None,
            same_neighbours=self.same_neighbours if training else 0.0,
            implant_probability=self.implant_probability if training else 0.0,
        )

    def _evaluation_loader(self, dataset: SliceDataset, seed: int | None) -> DataLoader:
        rank, world_size = self._ranks()
        sampler = EvaluationSampler(
            len(dataset), batch_size=self.share(world_size), rank=rank, world_size=world_size, seed=seed
        )
        return self._loader(dataset, sampler)

    def _training_sampler(self) -> TrainingSampler:
        rank, world_size = self._ranks()
        epoch, batch = self._next_batch()
        return TrainingSampler(
            self.train.slices.foreground,
            keep_empty=self.keep_empty,
            batch_size=self.batch_size,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            start_epoch=epoch,
            start_batch=batch,
        )

    def _loader(self, dataset: SliceDataset, sampler: TrainingSampler | EvaluationSampler) -> DataLoader:
        return DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            prefetch_factor=PREFETCHED if self.num_workers else None,
            multiprocessing_context=FORK if self.num_workers else None,
            pin_memory=self._on_gpu(),  # or `Batch.to` would wait until the GPU is through with the last one
            worker_init_fn=heed_the_trainer_alone,
        )

    def _next_batch(self) -> tuple[int, int]:
        """Epoch and batch that come next. Worker processes read ahead before the trainer sets its own epoch right."""
        if self.trainer is None:
            return 0, 0
        loop = self.trainer.fit_loop
        batches, started = loop.epoch_loop.batch_progress, loop.epoch_progress.current.started  # type: ignore[attr-defined]
        if batches.is_last_batch or not started:
            return started, 0
        return started - 1, batches.current.processed  # type: ignore[attr-defined]

    def _on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)


def _refuse_out_of_range(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        expected = f"{least} or more" if most == math.inf else f"{least} to {most}"
        raise InputError(f"data.{name}", expected=expected, got=str(value), remedy="change it")


def _refuse_untyped(store: Store) -> None:
    untyped = [r.case_id for r in store.records if any(lesion.type not in LESION_TYPES for lesion in r.lesions)]
    if untyped:
        raise InputError(
            store.path,
            expected=f"every lesion named ({', '.join(LESION_TYPES)})",
            got=f"lesions without a type in {len(untyped)} cases ({some(untyped, 3)})",
            remedy="use a store made by `lesionseg prepare slices`, or the target `lesion`",
        )
