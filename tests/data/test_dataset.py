"""Slices from a store and back to the grid of the source; the order in which training and evaluation see them."""

import tempfile
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_cases import AFFINE, Made, made, source

from lesionseg.boxes import Box, crop, slice_box
from lesionseg.data.augment import Augmentation
from lesionseg.data.dataset import Draw, EvaluationSampler, SliceDataset, TrainingSampler, collate
from lesionseg.data.prepare import prepare
from lesionseg.data.slice_table import SliceTable
from lesionseg.data.store import Store
from lesionseg.inputs import InputSpec, neighbours, paste
from lesionseg.labels import TARGETS

SIZE = 32


# ---- samples ----


def stored(folder: Path, *cases: Made) -> Store:
    sources = [source(folder / "in", f"case-{i}", f"patient-{i}", case) for i, case in enumerate(cases)]
    return prepare(sources, folder / "store", kind="lits", workers=1)


def every_slice(store: Store) -> SliceTable:
    return SliceTable(store.records, range(len(store.records)), all_slices=True)


@st.composite
def lying_cases(draw) -> Made:
    """Noise in a liver box anywhere, the border included, in an array whose axes lie anyhow in the patient."""
    side = st.one_of(st.integers(3, SIZE), st.sampled_from([4, 8, 16, SIZE]))
    shape = draw(st.tuples(st.integers(1, 3), side, side))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = np.zeros(shape, np.uint8)
    box = []
    for length in shape:
        start = draw(st.integers(0, length - 1))
        box.append(slice(start, draw(st.integers(start + 1, length))))
    inside = labels[tuple(box)]
    inside[:] = rng.integers(0, 6, inside.shape)
    labels[box[0].start, box[1].start, box[2].start] = 1  # at least one voxel of liver
    hu = rng.integers(-1500, 3000, shape).astype(np.int16)
    hu[labels == 1] //= 20  # or the liver would be none
    affine = AFFINE.copy()
    if draw(st.booleans()):
        affine[:3, 3] = -80, 12, 300
        order = draw(st.permutations(range(3)))
        hu, labels, affine = hu.transpose(order), labels.transpose(order), affine[:, [*order, 3]]
        affine[:3, :3] *= draw(st.tuples(*[st.sampled_from([1, -1])] * 3))
    return Made(np.ascontiguousarray(hu), np.ascontiguousarray(labels), tuple(np.linalg.norm(affine[:3, :3], axis=0)),
                affine if draw(st.booleans()) else None)  # fmt: skip


def source_grid(store: Store, canonical: np.ndarray, case: Made) -> np.ndarray:
    """Voxels of the only case of a store, moved by patient position onto the grid of their source."""
    (record,) = store.records
    if record.affine is None:
        return canonical
    index = np.argwhere(np.ones(canonical.shape, bool))
    to_source = np.linalg.solve(case.affine, np.array(record.affine))
    place = np.rint(index @ to_source[:3, :3].T + to_source[:3, 3]).astype(int)
    out = np.zeros_like(canonical, shape=case.hu.shape)
    out[tuple(place.T)] = canonical.ravel()
    return out


def corners(reference: torch.Tensor, box: Box) -> np.ndarray:
    """Pixels (H, W) that, as the net sees them, differ from a neighbour left or right and from one above or below."""
    height, width = reference.shape
    seen = np.pad(crop(reference.numpy(), box, fill=0), 1, mode="edge")
    middle = seen[1:-1, 1:-1]
    rows = (middle != seen[:-2, 1:-1]) | (middle != seen[2:, 1:-1])
    columns = (middle != seen[1:-1, :-2]) | (middle != seen[1:-1, 2:])
    return paste(torch.from_numpy(rows & columns), box, height, width).numpy()


@settings(max_examples=60, deadline=None)
@given(lying_cases(), st.sampled_from(["slice", "liver"]), st.sampled_from(["liver", "lesion", "typed"]))
def test_what_the_net_is_to_find_comes_back_onto_the_grid_of_the_source(case, region, target_name):
    """A net that gives its target back: exact to the voxel where the box enters at a whole factor.

    At other factors only a corner of a class may be lost to the resizing of the scores.
    """
    if target_name == "typed":
        case.labels[case.labels == 5] = 4
    target, spec = TARGETS[target_name], InputSpec(SIZE, region)
    with tempfile.TemporaryDirectory() as folder:
        store = stored(Path(folder), case)
        dataset = SliceDataset(store, every_slice(store), target, spec)
        batch = collate([dataset[i] for i in range(len(dataset))])
    (side,) = {box.side for box in batch.boxes}
    if side > SIZE:  # a liver as wide as the slice, with its margin
        return
    scores = torch.nn.functional.one_hot(batch.targets, len(target.classes)).permute(0, 3, 1, 2)
    decoded = [
        spec.decode(s, box, *reference.shape)
        for s, box, reference in zip(scores, batch.boxes, batch.references, strict=True)
    ]
    predicted, reference = np.stack(decoded), np.stack(batch.references)
    expected = target.apply(case.labels)
    np.testing.assert_array_equal(source_grid(store, reference, case), expected)
    assert predicted.dtype == np.uint8
    free = np.stack([corners(*pair) for pair in zip(batch.references, batch.boxes, strict=True)])
    exact = ~source_grid(store, free & (SIZE % side > 0), case)
    np.testing.assert_array_equal(source_grid(store, predicted, case)[exact], expected[exact])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_an_image_is_the_slice_between_its_neighbours(depth, index, seed):
    index = min(index, depth - 1)
    hu = np.random.default_rng(seed).integers(-1500, 1600, (depth, SIZE, SIZE)).astype(np.int16)
    labels = np.ones(hu.shape, np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        store = stored(Path(folder), Made(hu, labels))
        sample = SliceDataset(store, every_slice(store), TARGETS["liver"], InputSpec(SIZE, "slice"))[index]
    shown = hu[[max(index - 1, 0), index, min(index + 1, depth - 1)]]
    np.testing.assert_allclose(sample.image, (np.clip(shown, -200.0, 250.0) - 95) / 35, rtol=1e-6)
    assert sample.image.dtype == torch.float32
    assert sample.target.dtype == torch.int64
    assert sample.reference.dtype == torch.uint8


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return stored(tmp_path_factory.mktemp("dataset"), *[made(seed, shape=(5, 40, 36)) for seed in range(2)])


def dataset(store, **options):
    return SliceDataset(store, every_slice(store), TARGETS["lesion"], InputSpec(SIZE, "liver"), **options)


def test_a_place_says_where_a_sample_comes_from(store):
    samples = [dataset(store)[i] for i in range(10)]
    assert [tuple(s.place) for s in samples] == [(i, i // 5, i % 5) for i in range(10)]
    for s in samples:
        labels = store.labels(store.records[s.place.case].case_id)[s.place.slice]
        np.testing.assert_array_equal(s.reference, TARGETS["lesion"].apply(labels))
        assert s.box == store.records[s.place.case].liver_box


def test_evaluation_is_never_changed_by_chance(store):
    changed = dataset(store, seed=4, augmentation=Augmentation(), same_neighbours=1.0)
    for i in range(len(changed)):
        plain, evaluated = dataset(store)[i], changed[i]
        assert torch.equal(plain.image, evaluated.image)
        assert torch.equal(plain.target, evaluated.target)


def test_a_training_sample_is_a_function_of_seed_epoch_and_position(store):
    def images(seed, draw):
        return dataset(store, seed=seed, augmentation=Augmentation())[draw].image

    first = images(1, Draw(3, 2))
    assert torch.equal(first, images(1, Draw(3, 2)))
    for seed, draw in ((2, Draw(3, 2)), (1, Draw(3, 1)), (1, Draw(2, 2))):
        assert not torch.equal(first, images(seed, draw))
    assert not len(dataset(store)[Draw(3, 2)].reference)  # not sent to training


@pytest.mark.parametrize(("probability", "low", "high"), [(0.0, 0, 0), (0.5, 60, 100), (1.0, 160, 160)])
def test_neighbours_are_replaced_with_the_stated_probability(store, probability, low, high):
    changing = dataset(store, same_neighbours=probability)
    draws = [Draw(position, epoch) for position in range(10) for epoch in range(16)]
    alone = 0
    for draw in draws:
        below, middle, above = changing[draw].image
        plain = changing[draw.position].image
        assert torch.equal(middle, plain[1])
        if torch.equal(below, middle) and torch.equal(above, middle):
            alone += 1
        else:
            assert torch.equal(changing[draw].image, plain)
    assert low <= alone <= high


# ---- implants ----


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Two volumes with liver enough to take a lesion beside the one that is there."""
    cases = [made(seed, shape=(4, 64, 64), lesion=2 + seed) for seed in range(2)]
    for case in cases:
        case.labels[:, 2:62, 3:60] = np.maximum(case.labels[:, 2:62, 3:60], 1)
        case.hu[:] = np.where(case.labels, 100, 0) + case.hu // 3
    return stored(tmp_path_factory.mktemp("wide"), *cases)


def typed(store, probability, seed=3, **options):
    return SliceDataset(store, every_slice(store), TARGETS["typed"], InputSpec(64, "slice"), seed=seed,
                        implant_probability=probability, **options)  # fmt: skip


def test_without_implants_a_sample_is_what_it_was_before_there_were_any(wide):
    """The same two numbers of the same generator decide, and the same voxels are shown."""
    without = typed(wide, 0.0, augmentation=Augmentation(), same_neighbours=0.5)
    seen = set()
    for draw in [Draw(position, epoch) for position in range(8) for epoch in range(4)]:
        case_id, index, _ = without.slices[draw.position]
        alone, seed = np.random.SeedSequence([3, draw.epoch, draw.position]).generate_state(2)
        hu = wide.hu(case_id)
        shown = np.stack([hu[index]] * 3) if alone < 2**31 else neighbours(hu, index)
        box = slice_box(64, 64)
        image, target = without.spec.encode(shown, box), without.spec.encode_labels(wide.labels(case_id)[index], box)
        image, target = Augmentation()(image, target, int(seed))
        assert torch.equal(without[draw].image, image)
        assert torch.equal(without[draw].target, target.long())
        seen.add(alone < 2**31)
    assert seen == {False, True}


@pytest.mark.parametrize("draw", [0, Draw(0, 5)])
@pytest.mark.parametrize("size", [32, 64, 96])
def test_a_single_slice_is_cut_and_augmented_as_three_equal_ones(tmp_path, draw, size):
    """In a box that reaches over its border, made smaller and larger."""
    store = stored(tmp_path, made(7, shape=(1, 48, 64)))
    (record,) = store.records
    box = Box(-3, 5, 60)
    spec = InputSpec(size, "liver")
    dataset = SliceDataset(store, every_slice(store), TARGETS["typed"], spec, seed=3, augmentation=Augmentation())
    store._by_id[record.case_id] = msgspec.structs.replace(record, liver_box=box)
    hu, labels = np.concatenate([store.hu(record.case_id)] * 3), store.labels(record.case_id)[0]
    image, target = spec.encode(hu, box), spec.encode_labels(labels, box)
    if draw:
        seed = np.random.SeedSequence([3, 5, 0]).generate_state(2)[1]
        image, target = Augmentation()(image, target, int(seed))
    sample = dataset[draw]
    assert sample.box == box
    assert sample.image.shape == (3, size, size)
    assert torch.equal(sample.image, image)
    assert torch.equal(sample.target, target.long())


def test_an_implant_is_one_more_lesion_beside_those_that_are_there(wide):
    plain, changed = typed(wide, 0.0), typed(wide, 1.0)
    found, types = 0, Counter()
    for draw in [Draw(position, epoch) for position in range(8) for epoch in range(6)]:
        before, after = plain[draw], changed[draw]
        new = after.target != before.target
        assert (before.target[new] == 1).all()  # liver, never another lesion
        assert (after.image != before.image)[:, before.target != 1].sum() == 0
        found += bool(new.any())
        types.update(after.target[new].unique().tolist())
        slices = (after.image != before.image).flatten(1).any(1)
        assert slices[1] == new.any()
    assert found > 40
    assert set(types) == {2, 3, 4}
    assert min(types.values()) > 5


def test_implants_come_with_the_stated_probability_as_a_function_of_seed_epoch_and_position(wide):
    plain, changed = typed(wide, 0.0), typed(wide, 0.4)
    draws = [Draw(position, epoch) for position in range(8) for epoch in range(20)]
    images = [changed[draw].image for draw in draws]
    share = np.mean([not torch.equal(image, plain[draw].image) for image, draw in zip(images, draws, strict=True)])
    assert 0.27 < share < 0.47
    assert all(torch.equal(a, changed[draw].image) for a, draw in zip(images, draws, strict=True))
    other = typed(wide, 0.4, seed=4)
    assert not all(torch.equal(a, other[draw].image) for a, draw in zip(images, draws, strict=True))
    for i in range(8):
        assert torch.equal(changed[i].image, plain[i].image)  # evaluation
        assert torch.equal(changed[i].target, plain[i].target)


def test_an_implant_shows_on_all_three_channels_of_a_single_slice(wide):
    changed = typed(wide, 1.0, same_neighbours=1.0)
    for position in range(8):
        below, middle, above = changed[Draw(position, 0)].image
        assert torch.equal(below, middle)
        assert torch.equal(middle, above)


def test_samples_are_stacked_and_references_stay_apart(store):
    samples = [dataset(store)[i] for i in (7, 0, 3)]
    batch = collate(samples)
    assert batch.images.shape == (3, 3, SIZE, SIZE)
    assert batch.targets.shape == (3, SIZE, SIZE)
    for i, sample in enumerate(samples):
        assert torch.equal(batch.images[i], sample.image)
        assert torch.equal(batch.targets[i], sample.target)
        assert batch.references[i] is sample.reference
        assert (batch.boxes[i], batch.places[i]) == (sample.box, sample.place)


# ---- order ----

FOREGROUND = [i % 3 == 0 for i in range(50)]  # 17 of them


def sampler(rank=0, world_size=1, batch_size=4, keep_empty=0.3, foreground=FOREGROUND, seed=7, **start):
    return TrainingSampler(foreground, keep_empty=keep_empty, batch_size=batch_size, seed=seed, rank=rank,
                           world_size=world_size, **start)  # fmt: skip


def epoch_of(drawn: TrainingSampler, epoch: int) -> list[list[Draw]]:
    drawn.set_epoch(epoch)
    return list(drawn)


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.floats(0, 1), st.integers(0, 9), st.integers(0, 5))
def test_an_epoch_holds_every_foreground_slice_once_and_a_share_of_the_others(foreground, keep_empty, seed, epoch):
    order = sampler(foreground=foreground, keep_empty=keep_empty, seed=seed).order(epoch).tolist()
    counts = Counter(order)
    assert set(counts.values()) <= {1}
    assert {i for i in order if foreground[i]} == {i for i, found in enumerate(foreground) if found}
    assert sum(not foreground[i] for i in order) == round(keep_empty * foreground.count(False))


def test_order_is_a_function_of_seed_and_epoch():
    torch.manual_seed(0)
    first = [epoch_of(sampler(), epoch) for epoch in range(3)]
    torch.manual_seed(1)
    assert [epoch_of(sampler(), epoch) for epoch in (2, 1, 0)] == first[::-1]
    assert first[0] != first[1]
    assert epoch_of(sampler(seed=8), 0) != first[0]
    kept = [{draw.position for batch in epoch for draw in batch if not FOREGROUND[draw.position]} for epoch in first]
    assert len(set(map(frozenset, kept))) == 3  # the others are drawn anew
    assert all(draw.epoch == i for i, epoch in enumerate(first) for batch in epoch for draw in batch)


@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 3), st.integers(0, 3))
def test_any_number_of_ranks_sees_the_same_batches(n, share, world_size, epoch):
    foreground, batch_size = (FOREGROUND * 2)[:n], share * world_size
    alone = epoch_of(sampler(batch_size=batch_size, foreground=foreground), epoch)
    assume(world_size == 1 or sum(map(len, alone)) >= batch_size)  # `LesionDataModule.check_ranks` refuses the others
    ranks = [
        epoch_of(sampler(rank, world_size, batch_size, foreground=foreground), epoch) for rank in range(world_size)
    ]
    assert all(len(rank) == len(alone) for rank in ranks)
    assert all(batch for rank in ranks for batch in rank)  # a rank without samples would hang the others
    assert world_size == 1 or {len(batch) for rank in ranks for batch in rank} == {share}
    for i, whole in enumerate(alone):
        assert sorted(draw for rank in ranks for draw in rank[i]) == sorted(whole)


def test_only_whole_batches_unless_there_is_one():
    assert [len(batch) for batch in sampler(batch_size=4)] == [4] * 6  # 17 + 10 slices
    assert len(sampler(batch_size=4)) == 6
    assert [len(batch) for batch in sampler(batch_size=40)] == [27]
    assert len(sampler(batch_size=40)) == 1
    assert list(sampler(foreground=[])) == []


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_resumed_in_mid_epoch_goes_on_with_the_next_batch(world_size):
    for rank in range(world_size):
        options = {"rank": rank, "world_size": world_size, "batch_size": 2}
        resumed = sampler(**options, start_epoch=2, start_batch=4)
        assert list(resumed) == epoch_of(sampler(**options), 2)[4:]
        assert len(resumed) == len(sampler(**options))  # the trainer counts the batches seen before
        assert epoch_of(resumed, 3) == epoch_of(sampler(**options), 3)


@given(st.integers(0, 40), st.integers(1, 5), st.integers(1, 6), st.sampled_from([None, 0, 3]))
def test_evaluation_covers_every_slice_on_any_number_of_ranks(n, batch_size, world_size, seed):
    ranks = [
        EvaluationSampler(n, batch_size=batch_size, rank=r, world_size=world_size, seed=seed) for r in range(world_size)
    ]
    seen = Counter(position for rank in ranks for batch in rank for position in batch)
    assert set(seen) == set(range(n))
    repeated = sum(seen.values()) - n
    assert 0 <= repeated < world_size
    assert len({len(rank) for rank in ranks}) == 1  # all ranks meet at every batch
    assert all(len(list(rank)) == len(rank) for rank in ranks)
    assert all(1 <= len(batch) <= batch_size for rank in ranks for batch in rank)


def test_the_order_of_evaluation_is_that_of_the_slices_or_a_fixed_shuffle():
    def flat(**options):
        return [position for batch in EvaluationSampler(20, batch_size=3, **options) for position in batch]

    assert flat() == list(range(20))
    assert flat(seed=0) == flat(seed=0) != list(range(20))
    assert sorted(flat(seed=0)) == list(range(20))
