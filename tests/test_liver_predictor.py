"""The liver net of a run put to use on the grid of any source."""

import itertools
import pickle
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from test_cascade import AFFINE, noise

from lesionseg import device, liver_predictor
from lesionseg.device import GPU_BATCH, Inference
from lesionseg.errors import InputError
from lesionseg.inputs import InputSpec
from lesionseg.liver_predictor import LiverPredictor
from lesionseg.networks import build_unet
from lesionseg.run_weights import LAST_CHECKPOINT
from lesionseg.runs import RunInfo
from lesionseg.scan import Scan
from lesionseg.unet import Naming

ENCODER, CHANNELS, SIZE = "tu-test_resnet", (8, 8, 8, 8, 8), 32
SPEC = InputSpec(SIZE, "slice", low_hu=-150)
INFO = RunInfo(
    name="liver", state="finished", fingerprint="f", request_sha256="r", config_sha256="c", row_sha256="w",
    store_sha256="s", weights_sha256=None, trained_on=(), generated=False, target="liver", fold=0, folds=1, seed=0,
    epochs=1, encoder=ENCODER, encoder_weights=None, commit=None, version="0", machine="any",
)  # fmt: skip


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
        "target": "liver", "classes": ["background", "liver"], "naming": asdict(Naming()),
    }  # fmt: skip
    state = {**{f"net.{name}": tensor for name, tensor in net.state_dict().items()}, "loss.weight": torch.ones(2)}
    (tmp_path / LAST_CHECKPOINT).parent.mkdir()
    torch.save({"state_dict": state, "lesionseg": description, "fingerprint": "f"}, tmp_path / LAST_CHECKPOINT)
    return tmp_path


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


def test_the_liver_is_looked_for_on_a_gpu_where_there_is_one(run, monkeypatch):
    seen, scan = [], Scan(noise((1, SIZE, SIZE)), "scan")

    def predicted(net, spec, hu, threshold, how):
        seen.append((how, {parameter.device.type for parameter in net.parameters()}))
        return np.ones(hu.shape, dtype=bool)

    monkeypatch.setattr(device, "_device", {"auto": torch.device("meta")}.__getitem__)
    monkeypatch.setattr(liver_predictor, "predict_liver", predicted)
    assert LiverPredictor(run)(scan).shape == scan.hu.shape
    assert seen == [(Inference(torch.device("meta"), GPU_BATCH), {"meta"})]
