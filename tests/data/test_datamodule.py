"""The data module on a small store: parts, slices of each target, and what a trainer is given, also when it resumes."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from made_cases import cohort, made, source
from pytorch_lightning.callbacks import ModelCheckpoint

from lesionseg.data.augment import Augmentation
from lesionseg.data.datamodule import LesionDataModule
from lesionseg.data.dataset import Batch, TrainingSampler, collate
from lesionseg.data.prepare import prepare
from lesionseg.errors import InputError
from lesionseg.inputs import InputSpec

SPEC = InputSpec(32, "liver")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Six patients with two cases each; in each case, liver on all four slices and a lesion on two."""
    folder = tmp_path_factory.mktemp("datamodule")
    return prepare(cohort(folder / "in", n=12), folder / "store", kind="slices", workers=1).path


def module(store, target="typed", stage="fit", **options) -> LesionDataModule:
    data = LesionDataModule(store, target, SPEC, **{"batch_size": 3, "augmentation": Augmentation(), **options})
    data.setup(stage)
    return data


def parts(data: LesionDataModule) -> list[set[str]]:
    return [{ref.case_id for ref in part.slices} for part in (data.train, data.validation, data.test)]


def patients(data: LesionDataModule, case_ids: set[str]) -> set[str]:
    return {data.records[case_id].patient_id for case_id in case_ids}


def same(a: Batch, b: Batch) -> bool:
    tensors = zip([a.images, a.targets, *a.references], [b.images, b.targets, *b.references], strict=True)
    return all(torch.equal(x, y) for x, y in tensors) and (a.boxes, a.places) == (b.boxes, b.places)


def on(device: str, data: LesionDataModule) -> LesionDataModule:
    strategy = SimpleNamespace(root_device=torch.device(device))
    data.trainer = SimpleNamespace(strategy=strategy, global_rank=0, world_size=1)
    return data


def test_batches_are_pinned_where_a_gpu_trains(store):
    assert on("cuda", module(store)).test_dataloader().pin_memory
    assert not on("cpu", module(store)).test_dataloader().pin_memory
    assert not module(store).test_dataloader().pin_memory


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_pinned_batch_is_a_batch(store, workers):
    pinned, plain = (next(iter(on(device, module(store, num_workers=workers)).test_dataloader()))
                     for device in ("cuda", "cpu"))  # fmt: skip
    assert isinstance(pinned, Batch)
    assert pinned.images.is_pinned()
    assert all(reference.is_pinned() for reference in pinned.references)
    assert same(pinned, plain)
    moved = pinned.to(torch.device("cuda"))
    assert torch.equal(moved.images.cpu(), plain.images)


def test_no_patient_lies_in_two_parts_and_the_folds_cover_all(store):
    tested = []
    for fold in range(3):
        data = module(store, fold=fold)
        train, validation, test = (patients(data, part) for part in parts(data))
        assert min(len(train), len(validation), len(test)) > 0
        assert len(train) + len(validation) + len(test) == len(train | validation | test) == 6
        tested += test
    assert len(tested) == len(set(tested)) == 6


def test_every_seed_of_a_run_shares_the_folds_and_the_order_of_validation(store):
    first, other = module(store, seed=0), module(store, seed=1)
    assert parts(first) == parts(other)
    for ours, theirs in (
        (first.val_dataloader(), other.val_dataloader()),
        (first.test_dataloader(), other.test_dataloader()),
    ):
        assert all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    assert any(parts(first) != parts(module(store, split_seed=seed)) for seed in (1, 2))
    train = [[batch.places for batch in data.train_dataloader()] for data in (first, other, module(store, seed=0))]
    assert train[0] == train[2] != train[1]


def test_a_net_for_the_liver_sees_all_slices_and_one_for_lesions_those_with_liver(tmp_path):
    case = made(0, shape=(6, 32, 32))
    case.labels[4:] = 0  # liver on slices 0 to 3, a lesion on 0 and 1
    path = prepare([source(tmp_path / "in", "a", "b", case)], tmp_path / "store", kind="lits", workers=1).path
    foreground = {}
    for target in ("liver", "lesion", "typed"):
        slices = module(path, target, folds=1, inner_validation=0).train.slices
        foreground[target] = [(ref.slice, ref.foreground) for ref in slices]
    assert foreground["liver"] == [(0, True), (1, True), (2, True), (3, True), (4, False), (5, False)]
    assert foreground["lesion"] == foreground["typed"] == [(0, True), (1, True), (2, False), (3, False)]


def test_lesions_without_a_type_are_refused_where_types_are_learned(tmp_path):
    cases = [source(tmp_path / "in", f"case-{i}", f"patient-{i}", made(i, lesion=5)) for i in range(3)]
    path = prepare(cases, tmp_path / "store", kind="lits", workers=1).path
    with pytest.raises(InputError, match="lesions without a type in 3 cases"):
        module(path, "typed")
    for target in ("lesion", "liver"):
        assert len(module(path, target).train)


def test_implants_are_for_training_where_types_are_learned(store):
    data = module(store, implant_probability=0.5)
    assert [part.implant_probability for part in (data.train, data.validation, data.test)] == [0.5, 0, 0]
    assert module(store).train.implant_probability == 0
    for target, probability, says in (
        ("lesion", 0.5, "expected 0 for the target lesion"),
        ("liver", 0.5, "expected 0 for the target liver"),
        ("typed", 1.5, "expected 0 to 1"),
    ):
        with pytest.raises(InputError, match=f"data.implant_probability: {says}"):
            module(store, target, implant_probability=probability)


def test_a_missing_store_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected a prepared store"):
        module(tmp_path / "none")


def test_without_folds_all_are_learned_from_and_there_is_no_test(store):
    data = module(store, folds=1, inner_validation=0)
    assert len(data.train) == 48
    assert data.val_dataloader() == []
    with pytest.raises(InputError, match="expected a test part"):
        data.test_dataloader()


def test_every_slice_is_evaluated_once_and_as_it_is(store):
    data = module(store, same_neighbours=1.0)
    plain = module(store, augmentation=None)
    for loader, dataset in ((data.val_dataloader(), plain.validation), (data.test_dataloader(), plain.test)):
        batches = list(loader)
        assert sorted(place.position for batch in batches for place in batch.places) == list(range(len(dataset)))
        for batch in batches:
            samples = [dataset[place.position] for place in batch.places]
            assert torch.equal(batch.images, torch.stack([sample.image for sample in samples]))
            assert [tuple(r.shape) for r in batch.references] == [(32, 32)] * len(batch.places)
    assert [place.position for batch in data.test_dataloader() for place in batch.places] == list(range(len(data.test)))


def test_empty_slices_are_drawn_with_their_share(store):
    positions = {}
    for share in (0.0, 0.5, 1.0):
        data = module(store, folds=1, inner_validation=0, keep_empty=share, batch_size=1)
        positions[share] = [batch.places[0].position for batch in data.train_dataloader()]
        found = [i for i, ref in enumerate(data.train.slices) if ref.foreground]
        assert set(found) <= set(positions[share])
    assert [len(drawn) for drawn in positions.values()] == [24, 36, 48]


def test_ranks_share_a_batch_alike_or_not_at_all(store):
    data = module(store, batch_size=6)
    assert [data.share(ranks) for ranks in (1, 2, 3, 6)] == [6, 3, 2, 1]
    with pytest.raises(InputError, match="a multiple of 4, as 4 ranks share each batch; got 6; set it to 4 or 8"):
        data.share(4)


def test_several_ranks_need_a_whole_batch(store):
    def check(ranks: int, batch_size: int) -> None:  # of 24 slices with a lesion
        module(store, folds=1, inner_validation=0, keep_empty=0.0, batch_size=batch_size).check_ranks(ranks)

    check(2, 24)
    check(1, 26)
    said = "24 or less, the slices of an epoch, as 2 ranks share each batch; got 26; train on one device, or lower it"
    with pytest.raises(InputError, match=said):
        check(2, 26)
    with pytest.raises(InputError, match=r"got 48; train on one device$"):
        check(48, 48)


def test_workers_need_shared_memory_for_their_batches(store, tmp_path, monkeypatch):
    batches = 2 * 3 * 2  # training and validation, of three workers, two each
    needed = batches * 3 * (32 * 32 * 20 + 32 * 32)
    for free, refused in ((needed, False), (needed - 1, True)):
        monkeypatch.setattr("shutil.disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        module(store, num_workers=0).check_shared_memory(1, tmp_path)
        module(store, num_workers=3).check_shared_memory(1, tmp_path / "none")
        if refused:
            with pytest.raises(InputError, match="MB of shared memory for the batches of 3 workers; got 1 MB free"):
                module(store, num_workers=3).check_shared_memory(1, tmp_path)
        else:
            module(store, num_workers=3).check_shared_memory(1, tmp_path)


def test_worker_processes_change_nothing(store):
    alone, helped = module(store), module(store, num_workers=2)
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        ours, theirs = list(getattr(alone, name)()), list(getattr(helped, name)())
        assert ours
        assert all(same(a, b) for a, b in zip(ours, theirs, strict=True))


def assert_same(ours: list[tuple[int, Batch]], theirs: list[tuple[int, Batch]]) -> None:
    assert [epoch for epoch, _ in ours] == [epoch for epoch, _ in theirs]
    assert all(same(a, b) for (_, a), (_, b) in zip(ours, theirs, strict=True))


class Recorder(pl.LightningModule):
    """Learns nothing of use; keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 1, 1)
        self.shown: list[tuple[int, Batch]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.shown.append((self.current_epoch, batch))
        return self.layer(batch.images).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def shown(store, folder, ckpt_path=None, **options) -> list[tuple[int, Batch]]:
    """Three epochs, a checkpoint after each step and each epoch."""
    keep = {"save_top_k": -1, "save_weights_only": False}
    steps = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, **keep)
    ends = ModelCheckpoint(folder, filename="end-{step}", save_on_train_epoch_end=True, **keep)
    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", devices=1, logger=False, callbacks=[steps, ends], enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, limit_val_batches=0,
    )  # fmt: skip
    net = Recorder()
    trainer.fit(net, LesionDataModule(store, "typed", SPEC, 5, **options), ckpt_path=ckpt_path, weights_only=False)
    return net.shown


@pytest.mark.filterwarnings("ignore")  # hints of Lightning about workers and logging
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_trainer_is_given_the_draws_of_each_epoch_also_when_it_resumes(store, tmp_path, num_workers):
    options = {"augmentation": Augmentation(), "keep_empty": 0.5, "num_workers": num_workers}
    whole = shown(store, tmp_path, **options)
    data = module(store, batch_size=5, **options)
    order = TrainingSampler([ref.foreground for ref in data.train.slices], keep_empty=0.5, batch_size=5, seed=0)
    expected = []
    for epoch in range(3):
        order.set_epoch(epoch)
        expected += [(epoch, collate([data.train[draw] for draw in draws])) for draws in order]
    assert len({tuple(place.position for place in batch.places) for _, batch in expected}) == len(expected)
    assert_same(whole, expected)

    per_epoch = len(order)
    ends = {
        f"end-step={per_epoch}": per_epoch,
        f"end-step={2 * per_epoch}": 2 * per_epoch,
        f"step={per_epoch}": per_epoch,
    }
    for name, seen in {**ends, f"step={per_epoch + 2}": per_epoch + 2, "step=1": 1}.items():
        assert_same(shown(store, tmp_path / "resumed", tmp_path / f"{name}.ckpt", **options), expected[seen:])
