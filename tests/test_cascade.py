"""The liver net put to use: read back from a run folder, on the grid of any source, cleaned as the reference does."""

import itertools
import pickle
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from lesionseg.cascade import LiverPredictor, clean_liver, load_net, predict_classes
from lesionseg.errors import InputError
from lesionseg.inputs import InputSpec
from lesionseg.networks import build_unet
from lesionseg.runs import LAST_CHECKPOINT, RunInfo
from lesionseg.scan import Scan

ENCODER, CHANNELS, SIZE = "tu-test_resnet", (8, 8, 8, 8, 8), 32
SPEC = InputSpec(SIZE, "slice", low_hu=-150)
INFO = RunInfo(
    name="liver", state="finished", fingerprint="f", request_sha256="r", config_sha256="c", store_sha256="s",
    weights_sha256=None, trained_on=(), generated=False, target="liver", fold=0, folds=1, seed=0, epochs=1,
    encoder=ENCODER, encoder_weights=None, commit=None, version="0", machine="any",
)  # fmt: skip
#: Canonical: D to the head, H to the back, W to the left.
AFFINE = np.array([[0, 0, 0.8, -90], [0, 0.7, 0, 20], [5.0, 0, 0, 700], [0, 0, 0, 1]])


def noise(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Blotches, so that the net has something to tell apart."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(60, 90, (shape[0], -(-shape[1] // 8), -(-shape[2] // 8)))
    return coarse.repeat(8, 1).repeat(8, 2)[:, : shape[1], : shape[2]].astype(np.int16)


@pytest.fixture(scope="module")
def net():
    """A net that calls about half of the pixels liver."""
    torch.manual_seed(0)
    net = build_unet(ENCODER, classes=2, encoder_weights=None, decoder_channels=CHANNELS).eval()
    with torch.no_grad():
        images = torch.stack(
            [SPEC.encode(np.stack([plane] * 3), SPEC.box(None, SIZE, SIZE)) for plane in noise((6, SIZE, SIZE))]
        )
        scores = net(images)
        net.segmentation_head[0].bias[1] -= (scores[:, 1] - scores[:, 0]).median()
    return net


@pytest.fixture
def run(net, tmp_path):
    """A run folder as a training leaves it."""
    INFO.write(tmp_path)
    description = {
        "task": "LiverTask", "encoder": ENCODER, "decoder_channels": list(CHANNELS), "input": asdict(SPEC),
        "target": "liver", "classes": ["background", "liver"],
    }  # fmt: skip
    state = {**{f"net.{name}": tensor for name, tensor in net.state_dict().items()}, "loss.weight": torch.ones(2)}
    (tmp_path / LAST_CHECKPOINT).parent.mkdir()
    torch.save({"state_dict": state, "lesionseg": description}, tmp_path / LAST_CHECKPOINT)
    return tmp_path


def test_the_net_of_a_run_is_read_back_whole(net, run):
    loaded, spec, description = load_net(run)
    assert spec == SPEC
    assert description["classes"] == ["background", "liver"]
    assert not any(module.training for module in loaded.modules())
    state = loaded.state_dict()
    assert state.keys() == net.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("depth", [1, 8, 11])
def test_every_slice_is_predicted_as_if_alone(net, depth):
    hu = noise((depth, SIZE, SIZE), seed=depth)
    classes = predict_classes(net, SPEC, hu)
    assert classes.dtype == np.uint8
    padded = np.concatenate([hu[:1], hu, hu[-1:]])
    with torch.inference_mode():
        for i in range(depth):
            image = (np.clip(padded[i : i + 3], -150.0, 250.0) - 95) / 35
            expected = net(torch.from_numpy(image[None]).float())[0].argmax(0).numpy()
            assert (classes[i] == expected).mean() > 0.999  # batches of another size round otherwise
    assert 0 < classes.mean() < 1


def test_a_slice_of_any_shape_comes_back_in_its_shape(net):
    assert predict_classes(net, SPEC, noise((2, 50, 37))).shape == (2, 50, 37)


@pytest.mark.parametrize(
    ("order", "flip"),
    [*itertools.product(itertools.permutations(range(3)), [(True, False, True), (False, True, True)])],
)
def test_the_mask_lies_on_the_grid_of_the_source(run, order, flip):
    """The same patient stored along other axes has the same liver at the same places."""
    predict, axes = LiverPredictor(run), [axis for axis in range(3) if flip[axis]]
    hu = noise((5, 40, 48))
    expected = predict(Scan(hu, "scan", affine=AFFINE))
    assert expected.dtype == bool
    assert 0.05 < expected.mean() < 0.95

    def laid(array):
        return np.ascontiguousarray(np.flip(array.transpose(order), axes))

    affine = AFFINE[:, [*order, 3]].copy()
    for axis in axes:
        affine[:, 3] += affine[:, axis] * (hu.shape[order[axis]] - 1)
        affine[:, axis] *= -1
    mask = predict(Scan(laid(hu), "scan", affine=affine))
    assert mask.flags.c_contiguous
    np.testing.assert_array_equal(mask, laid(expected))


def test_without_affine_a_slice_is_taken_as_it_is(run):
    hu = noise((1, SIZE, SIZE))
    predict = LiverPredictor(run)
    np.testing.assert_array_equal(predict(Scan(hu, "scan")), predict(Scan(hu, "scan", affine=AFFINE)))


def test_a_predictor_goes_to_other_processes_without_its_net(run):
    predict, scan = LiverPredictor(run), Scan(noise((2, SIZE, SIZE)), "scan")
    before = predict(scan)
    text = pickle.dumps(predict)
    assert len(text) < 2000
    np.testing.assert_array_equal(pickle.loads(text)(scan), before)


def test_the_identity_is_that_of_the_weights(run):
    first = LiverPredictor(run).identity
    checkpoint = torch.load(run / LAST_CHECKPOINT, weights_only=True)
    torch.save({**checkpoint, "epoch": 3}, run / LAST_CHECKPOINT)
    assert LiverPredictor(run).identity == first
    next(iter(checkpoint["state_dict"].values())).view(-1)[0] += 1
    torch.save(checkpoint, run / LAST_CHECKPOINT)
    assert LiverPredictor(run).identity != first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "lesion"}, "got target lesion"),
        ({"target": "typed"}, "got target typed"),
        ({"state": "running"}, "finished run"),
    ],
)
def test_a_run_of_another_net_or_an_unfinished_one_is_refused(run, change, message):
    replace(INFO, **change).write(run)
    with pytest.raises(InputError, match=message):
        LiverPredictor(run)


def test_a_folder_without_a_run_or_without_weights_is_refused(run, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        LiverPredictor(tmp_path / "none")
    (run / LAST_CHECKPOINT).unlink()
    with pytest.raises(InputError, match="last checkpoint"):
        LiverPredictor(run)(Scan(noise((1, SIZE, SIZE)), "scan"))


def test_a_net_of_generated_ct_serves_generated_ct_only(run):
    replace(INFO, generated=True).write(run)
    predict, scan = LiverPredictor(run), Scan(noise((1, SIZE, SIZE)), "scan")
    with pytest.raises(InputError, match="liver net trained on real CT"):
        predict(scan)
    assert predict(replace(scan, generated=True)).shape == scan.hu.shape


# ---- cleaning ----


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
