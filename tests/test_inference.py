"""Nets over slices against a slice-by-slice reference; cleaning and numbering against hand-made masks."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from skimage.measure import label, regionprops
from torch import nn
from torch.nn import functional

from lesionseg.boxes import Box
from lesionseg.crops import MARGIN, cut
from lesionseg.data.dataset import Batch
from lesionseg.device import Inference
from lesionseg.inference import clean_liver, lesion_ids, predict_lesions, predict_liver
from lesionseg.inputs import InputSpec
from lesionseg.networks import build_unet
from lesionseg.tasks import CropClassifierTask, YNetTask
from lesionseg.unet import Naming, add_crop_classifier

SIZE = 64
BOX = Box(-3, 5, 40)


def noise(depth: int, seed: int = 0) -> np.ndarray:
    """Blotches (depth, 50, 44), so that a net has something to tell apart."""
    coarse = np.random.default_rng(seed).normal(60, 90, (depth, 7, 6))
    return coarse.repeat(8, 1).repeat(8, 2)[:, :50, :44].astype(np.int16)


@pytest.fixture(scope="module")
def nets(make_model):
    model = make_model(members=2)
    return [net.build() for net in model.lesions]


@pytest.fixture(scope="module")
def liver_net(make_model):
    return make_model().liver.build()


def by_hand(net, hu, index, box, mirror=False):
    """Scores (K, side, side) of one slice in a box, step by step: cut, window, resize, net, resize."""
    last = len(hu) - 1
    planes = []
    for i in (max(index - 1, 0), index, min(index + 1, last)):
        plane = np.pad(hu[i].astype(float), 64, constant_values=-200)
        plane = plane[box.top + 64 : box.top + 64 + box.side, box.left + 64 : box.left + 64 + box.side]
        planes.append((np.clip(plane, -200, 250) - 95) / 35)
    image = torch.from_numpy(np.stack(planes)[None]).float()
    image = functional.interpolate(image, (SIZE, SIZE), mode="bilinear", antialias=True)
    with torch.inference_mode():
        scores = net(image.flip(-1)).flip(-1) if mirror else net(image)
    return functional.interpolate(scores, (box.side, box.side), mode="bilinear", antialias=True)[0].double().numpy()


def softmax(scores):
    e = np.exp(scores - scores.max(0))
    return e / e.sum(0)


def pasted(plane, box, shape):
    out = np.zeros((*plane.shape[:-2], *shape), plane.dtype)
    rows, columns = np.arange(box.side) + box.top, np.arange(box.side) + box.left
    r, c = (rows >= 0) & (rows < shape[0]), (columns >= 0) & (columns < shape[1])
    out[..., rows[r][:, None], columns[c]] = plane[..., r, :][..., c]
    return out


@pytest.mark.parametrize("depth", [1, 2, 9])
@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_the_liver_is_where_its_probability_exceeds_the_threshold(liver_net, depth, threshold):
    hu = noise(depth)
    whole = Box(0, -3, 50)
    found = predict_liver(liver_net, InputSpec(SIZE, "slice"), hu, threshold, how=Inference(batch_size=4))
    for i in range(depth):
        # Scores are resized, then turned into a probability.
        probability = pasted(softmax(by_hand(liver_net, hu, i, whole))[1], whole, (50, 44))
        assert (found[i] == (probability > threshold)).mean() > 0.999  # batches of another size round otherwise
    assert 0.02 < found.mean() < 0.98


class Brighter(nn.Module):
    """Calls liver what is bright on the slice itself, and keeps count of the slices it has seen."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, images):
        self.seen += len(images)
        return torch.stack([-images[:, 1], images[:, 1]], 1)


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_a_first_look_with_a_stride_misses_no_liver(holds, stride):
    """Whatever the slices that hold liver: runs of `stride` or more of them are found whole, all of them if none is."""
    hu = np.full((len(holds), 32, 32), -200, np.int16)
    hu[np.array(holds), 8:20, 8:20] = 240
    net = Brighter()
    found = predict_liver(net, InputSpec(32, "slice"), hu, 0.5, stride=stride).any((1, 2))
    runs = [(key, list(group)) for key, group in itertools.groupby(range(len(holds)), key=holds.__getitem__)]
    for held, run in runs:
        if held and (len(run) >= stride or sum(holds) == len(run)):
            assert found[run].all()
    assert not (found & ~np.array(holds)).any()
    assert net.seen <= len(holds)


def test_a_first_look_saves_what_is_far_from_the_liver():
    hu = np.full((100, 32, 32), -200, np.int16)
    hu[40:70, 8:20, 8:20] = 240
    net = Brighter()
    predict_liver(net, InputSpec(32, "slice"), hu, 0.5, stride=10)
    # Every tenth and the last; all between 40 and 60; one below 40, which holds none; all from 60 to 70.
    assert net.seen == 11 + 2 * 9 + 1 + 9


@pytest.mark.parametrize(("members", "mirror"), [(1, False), (2, False), (1, True), (2, True)])
def test_lesions_are_the_largest_mean_probability(nets, members, mirror):
    hu, slices, temperature = noise(6), [1, 2, 5], 2.5
    lesions = predict_lesions(
        nets[:members], InputSpec(SIZE, "liver"), hu, slices, BOX, temperature=temperature,
        how=Inference(batch_size=2, mirror=mirror), probabilities=True,
    )  # fmt: skip
    assert lesions.probabilities.shape == (5, 6, 50, 44)
    places, types = [], []
    for i in slices:
        views = [by_hand(net, hu, i, BOX, flip) for net in nets[:members] for flip in (False, True)[: 1 + mirror]]
        mean = np.mean([softmax(view) for view in views], 0)
        np.testing.assert_allclose(lesions.probabilities[:, i], pasted(mean, BOX, (50, 44)), atol=2e-3)  # float16
        second, first = np.sort(mean, 0)[-2:]
        clear = pasted(first - second > 1e-4, BOX, (50, 44))  # two sure nets that differ leave a tie to the rounding
        expected = pasted(mean.argmax(0), BOX, (50, 44))
        np.testing.assert_array_equal(lesions.classes[i][clear], expected[clear])
        assert clear.mean() > 0.4  # the box covers 0.65 of the slice
        of_types = pasted(np.mean([softmax(view[2:] / temperature) for view in views], 0), BOX, (50, 44))
        rows, columns = np.nonzero(lesions.classes[i] >= 2)
        places.append((i * 50 + rows) * 44 + columns)
        types.append(of_types[:, rows, columns].T)
    assert not lesions.classes[[0, 3, 4]].any()
    np.testing.assert_array_equal(lesions.places, np.concatenate(places))
    np.testing.assert_allclose(lesions.types, np.concatenate(types), atol=1e-4)
    assert len(np.unique(lesions.classes)) >= 4


def test_the_temperature_changes_no_outline(nets):
    hu, spec = noise(3), InputSpec(SIZE, "liver")
    plain, warm = (predict_lesions(nets, spec, hu, range(3), BOX, temperature=t) for t in (1.0, 4.0))
    np.testing.assert_array_equal(plain.classes, warm.classes)
    assert warm.types.max(1).mean() < plain.types.max(1).mean()
    assert plain.probabilities is None


def test_no_slice_gives_no_lesion(nets):
    lesions = predict_lesions(nets, InputSpec(SIZE, "liver"), noise(2), [], BOX)
    assert not lesions.classes.any()
    assert len(lesions.places) == len(lesions.types) == 0


# ---- lesions that their pixels do not name ----


def unnamed(naming: Naming, seed: int) -> nn.Module:
    """A net of random weights that finds lesions here and there, and names each type somewhere."""
    torch.manual_seed(seed)
    net = build_unet("tu-test_resnet", classes=3, encoder_weights=None, decoder_channels=[8] * 5,
                     slice_types=3 if naming.by == "slice" else 0)  # fmt: skip
    if naming.by == "crops":
        add_crop_classifier(net, 3)
    net.eval()
    images = torch.stack([InputSpec(SIZE, "liver").encode(plane[None].repeat(3, 0), BOX) for plane in noise(12, seed)])
    with torch.no_grad():
        _even_out(net.segmentation_head[0], pixels_of(net)(images).movedim(1, 0).flatten(1))
        if naming.by == "crops":
            _even_out(net.classifier.head[3], net.classifier(images).T)
        else:
            _even_out(net.classification_head[3], net(images)[1].T)
    return net


def _even_out(layer, scores):
    """Change the last layer so that its scores (K, n) spread alike around 0."""
    spread = scores.std(1)
    layer.weight *= (3 / spread).view(-1, *[1] * (layer.weight.dim() - 1))
    layer.bias.copy_(3 * (layer.bias - scores.mean(1)) / spread)


def pixels_of(net):
    """The scores of the pixels alone."""
    return lambda images: net(images)[0] if isinstance(net(images), tuple) else net(images)


def types_by_hand(net, naming, hu, index, region, flip, temperature):
    """Probabilities (3,) of the types of a region of a slice."""
    spec = InputSpec(SIZE, "liver")
    last = len(hu) - 1
    image = spec.encode(np.stack([hu[max(index - 1, 0)], hu[index], hu[min(index + 1, last)]]), BOX)[None]
    with torch.inference_mode():
        if naming.by == "slice":
            scores = net(image.flip(-1) if flip else image)[1]
        else:
            top, left, bottom, right = region.bbox
            zoom = SIZE / BOX.side
            side = max(bottom - top, right - left) * (1 + 2 * MARGIN) * zoom
            centre = ((top + bottom) / 2 - BOX.top) * zoom, ((left + right) / 2 - BOX.left) * zoom
            crop = cut(image, torch.zeros(1), torch.tensor([[*centre, side]]), naming.crop_px)
            scores = net.classifier(crop.flip(-1) if flip else crop)
    return softmax(scores[0].double().numpy() / temperature)


@pytest.mark.parametrize("naming", [Naming("slice"), Naming("crops", 64)], ids=["slice", "crops"])
@pytest.mark.parametrize(("members", "mirror"), [(1, False), (2, False), (2, True)])
def test_lesions_are_named_by_the_mean_of_what_names_them(naming, members, mirror):
    hu, slices, temperature = noise(6, seed=3), [0, 1, 3, 5], 2.5
    nets = [unnamed(naming, seed) for seed in range(members)]
    lesions = predict_lesions(
        nets, InputSpec(SIZE, "liver"), hu, slices, BOX, naming=naming, temperature=temperature,
        how=Inference(batch_size=2, mirror=mirror), probabilities=True,
    )  # fmt: skip
    views, regions, seen = [(net, flip) for flip in (False, True)[: 1 + mirror] for net in nets], 0, set()
    ends = np.cumsum([0, *((lesions.classes[i] >= 2).sum() for i in slices)])
    for i, first, stop in zip(slices, ends, ends[1:], strict=False):
        mean = np.mean([softmax(by_hand(pixels_of(net), hu, i, BOX, flip)) for net, flip in views], 0)
        second, largest = np.sort(mean, 0)[-2:]
        clear = pasted(largest - second > 1e-3, BOX, (50, 44))
        expected = pasted(mean.argmax(0), BOX, (50, 44))
        np.testing.assert_array_equal(np.minimum(lesions.classes[i], 2)[clear], expected[clear])
        of_types = np.zeros((50, 44, 3))
        everywhere = np.full(3, 1 / 3)
        if naming.by == "slice":
            everywhere = np.mean([types_by_hand(net, naming, hu, i, None, flip, 1.0) for net, flip in views], 0)
        for region in regionprops(label(lesions.classes[i] >= 2, connectivity=2)):
            sharp, soft = (
                np.mean([types_by_hand(net, naming, hu, i, region, flip, t) for net, flip in views], 0)
                for t in (1.0, temperature)
            )
            rows, columns = region.coords.T
            (kind,) = set(lesions.classes[i][rows, columns])
            assert kind == 2 + sharp.argmax() or np.ptp(np.sort(sharp)[-2:]) < 1e-3
            of_types[rows, columns] = soft
            share = pasted(mean[2], BOX, (50, 44))[rows, columns]
            np.testing.assert_allclose(
                lesions.probabilities[2:, i][:, rows, columns], np.outer(sharp, share), atol=2e-3
            )
            regions, seen = regions + 1, seen | {kind}
        np.testing.assert_allclose(lesions.types[first:stop], of_types[lesions.classes[i] >= 2], atol=1e-3)
        elsewhere = lesions.classes[i] < 2
        shares = np.outer(everywhere, pasted(mean[2], BOX, (50, 44))[elsewhere])
        np.testing.assert_allclose(lesions.probabilities[2:, i][:, elsewhere], shares, atol=2e-3)
        np.testing.assert_allclose(lesions.probabilities[:2, i], pasted(mean[:2], BOX, (50, 44)), atol=2e-3)
    assert len(lesions.places) == ends[-1]
    assert regions >= 4
    assert len(seen) >= 2


@pytest.mark.parametrize("naming", [Naming("slice"), Naming("crops", 64)], ids=["slice", "crops"])
def test_lesions_are_named_as_in_the_test_of_the_training(naming):
    hu, spec, slices = noise(6, seed=3), InputSpec(SIZE, "liver"), list(range(6))
    task = (YNetTask if naming.by == "slice" else CropClassifierTask)(
        "tu-test_resnet", spec, "typed", decoder_channels=[8] * 5
    )
    assert task.naming == naming
    task.net.load_state_dict(unnamed(naming, 0).state_dict())
    task.eval()
    images = torch.stack([spec.encode(hu[[max(i - 1, 0), i, min(i + 1, 5)]], BOX) for i in slices])
    references = [torch.zeros(50, 44, dtype=torch.uint8)] * len(slices)
    batch = Batch(images, torch.zeros(len(slices), SIZE, SIZE), references, [BOX] * len(slices), [])
    with torch.inference_mode():
        expected = torch.stack(task.predict_slices(batch)).numpy()
    how = Inference(batch_size=len(slices))  # those of another size round otherwise
    found = predict_lesions([task.net], spec, hu, slices, BOX, naming=naming, how=how).classes
    np.testing.assert_array_equal(found, expected)
    assert {2, 3, 4} & set(np.unique(found)) > {2}


@pytest.mark.parametrize("naming", [Naming("slice"), Naming("crops", 64)], ids=["slice", "crops"])
def test_where_pixels_find_nothing_there_is_nothing_to_name(naming):
    net = unnamed(naming, 0)
    net.segmentation_head[0].bias.data[0] = 1e4
    lesions = predict_lesions([net], InputSpec(SIZE, "liver"), noise(2), [0, 1], BOX, naming=naming, probabilities=True)
    assert not lesions.classes.any()
    assert lesions.places.shape == (0,)
    assert lesions.types.shape == (0, 3)
    assert lesions.probabilities.shape == (5, 2, 50, 44)


# ---- numbering ----


@given(hnp.arrays(bool, st.tuples(*[st.integers(1, 6)] * 3)), st.integers(0, 6))
@settings(max_examples=150, deadline=None)
def test_components_are_numbered_by_size(mask, least):
    ids = lesion_ids(mask, least)
    reference = flood(mask)
    kept = sorted((c for c in reference if len(c) >= least), key=lambda c: (-len(c), min(c)))
    expected = np.zeros(mask.shape, int)
    for number, component in enumerate(kept, 1):
        for place in component:
            expected[place] = number
    np.testing.assert_array_equal(ids, expected)


def flood(mask):
    """Components with all 26 neighbours, by flood fill."""
    left, out = set(zip(*np.nonzero(mask), strict=True)), []
    while left:
        component, front = set(), [left.pop()]
        while front:
            place = front.pop()
            component.add(place)
            for step in itertools.product((-1, 0, 1), repeat=3):
                near = tuple(a + b for a, b in zip(place, step, strict=True))
                if near in left:
                    left.discard(near)
                    front.append(near)
        out.append(component)
    return out


# ---- cleaning ----


def test_cleaning_a_part_of_the_volume_is_cleaning_all_of_it():
    """Only the box of the liver is worked on: the same as the steps on whole slices with a border."""
    rng = np.random.default_rng(0)
    liver = np.zeros((4, 70, 80), bool)
    liver[1:3, 20:60, 10:50] = ndimage.binary_opening(rng.random((2, 40, 40)) < 0.8, np.ones((1, 3, 3)))
    disc = np.hypot(*np.ogrid[-5:6, -5:6]) <= 5
    closed = np.stack(
        [ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(p, 9), disc))[9:-9, 9:-9] for p in liver]
    )
    components, _ = ndimage.label(closed, np.ones((3, 3, 3)))
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    np.testing.assert_array_equal(clean_liver(liver), components == sizes.argmax())


def test_a_liver_is_filled_closed_and_rid_of_what_does_not_touch_it():
    liver = np.zeros((3, 60, 60), bool)
    liver[:2, 0:30, 0:30] = True  # in the corner of the image
    expected = liver.copy()
    liver[0, 10:14, 10:14] = False  # a hole
    liver[1, 0:30, 15:18] = False  # a gap; the disc rounds its two ends
    expected[1, [0, 29], 15:18] = False
    liver[1, 45:50, 45:50] = True  # an island
    liver[2, 45:55, 45:55] = True  # a second one, larger
    np.testing.assert_array_equal(clean_liver(liver), expected)


def test_parts_that_touch_by_a_corner_in_the_next_slice_are_one():
    liver = np.zeros((2, 40, 40), bool)
    liver[0, 0:10, 0:10] = True
    liver[1, 10:20, 10:20] = True
    np.testing.assert_array_equal(clean_liver(liver), liver)


def test_a_gap_wider_than_the_disc_stays():
    liver = np.zeros((1, 30, 60), bool)
    liver[0, 5:25, 5:25] = liver[0, 5:20, 40:55] = True
    expected = liver.copy()
    expected[0, :, 40:] = False
    np.testing.assert_array_equal(clean_liver(liver), expected)


def test_no_liver_stays_none():
    empty = np.zeros((2, 20, 20), bool)
    np.testing.assert_array_equal(clean_liver(empty), empty)
