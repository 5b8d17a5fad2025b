"""Tasks: losses against formulas written out, what goes into a checkpoint, transfer, masks on the grid of a slice."""

import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from monai.losses import DiceCELoss
from torch.nn import functional

from lesionseg.boxes import Box
from lesionseg.data.datamodule import LesionDataModule
from lesionseg.data.dataset import Batch, Place
from lesionseg.errors import InputError
from lesionseg.inputs import InputSpec
from lesionseg.labels import TARGETS
from lesionseg.networks import blocks, transfer
from lesionseg.run_weights import read_net
from lesionseg.tasks import LesionTask, LiverTask

SIZE = 32
SMALL = {"encoder": "tu-test_resnet", "decoder_channels": (8, 8, 8, 8, 8)}


def lesion_task(target="typed", **options):
    return LesionTask(input=InputSpec(SIZE, "liver"), target=target, **{**SMALL, **options})


def liver_task(**options):
    return LiverTask(input=InputSpec(SIZE, "slice"), target="liver", **{**SMALL, **options})


@pytest.fixture
def scores_and_targets():
    def make(classes):
        generator = torch.Generator().manual_seed(classes)
        scores = torch.randn(3, classes, 6, 7, generator=generator)
        return scores, torch.randint(0, classes, (3, 1, 6, 7), generator=generator)

    return make


def one_hot(targets, classes):
    return functional.one_hot(targets[:, 0], classes).permute(0, 3, 1, 2).double()


def cross_entropy(scores, targets, weights):
    """Mean over pixels, weighted by the weight of the pixel's class."""
    shares = scores.double().softmax(1)
    picked = (shares.log() * one_hot(targets, scores.shape[1])).sum(1)
    of_pixel = torch.tensor(weights, dtype=torch.float64)[targets[:, 0]]
    return float(-(picked * of_pixel).sum() / of_pixel.sum())


def soft_dice(scores, targets):
    """Of each class, over all pixels of the batch together."""
    shares, truth = scores.double().softmax(1), one_hot(targets, scores.shape[1])
    both, sizes = (shares * truth).sum((0, 2, 3)), (shares + truth).sum((0, 2, 3))
    return 2 * both / sizes


@pytest.mark.parametrize(("target", "weights"), [("lesion", [0.1, 0.3, 1]), ("typed", [0.1, 0.3, 1, 1, 1])])
def test_dice_ce_of_lesions(scores_and_targets, target, weights):
    scores, targets = scores_and_targets(len(weights))
    misses = (1 - soft_dice(scores, targets)) * torch.tensor(weights)
    expected = float(misses[1:].mean()) + cross_entropy(scores, targets, weights)
    assert float(lesion_task(target).loss(scores, targets)) == pytest.approx(expected, rel=1e-4)


def test_dice_ce_of_lesions_is_monais(scores_and_targets):
    """Bit for bit, with a second output of another size too."""
    weights = torch.tensor([0.1, 0.3, 1, 1, 1])
    theirs = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True, weight=weights)
    for scores, targets in (scores_and_targets(5), (torch.randn(3, 5, 8, 12), torch.randint(0, 5, (3, 1, 8, 12)))):
        results = []
        for loss in (lesion_task("typed").loss, theirs):
            given = scores.detach().clone().requires_grad_()
            value = loss(given, targets)
            value.backward()
            results.append((value, given.grad))
        assert all(map(torch.equal, *results))


@pytest.mark.parametrize(("target", "weights"), [("lesion", [0.0005, 0.05, 1]), ("typed", [0.0005, 0.05, 1, 1, 1])])
def test_weighted_ce_is_the_reference(scores_and_targets, target, weights):
    scores, targets = scores_and_targets(len(weights))
    loss = lesion_task(target, loss="weighted_ce").loss(scores, targets)
    assert float(loss) == pytest.approx(cross_entropy(scores, targets, weights), rel=1e-5)


def test_dice_ce_of_the_liver(scores_and_targets):
    scores, targets = scores_and_targets(2)
    expected = float((1 - soft_dice(scores, targets)).mean()) + cross_entropy(scores, targets, [1, 1])
    assert float(liver_task().loss(scores, targets)) == pytest.approx(expected, rel=1e-4)


def test_focal_tversky_is_the_reference(scores_and_targets):
    scores, targets = scores_and_targets(2)
    liver, truth = scores.double().softmax(1)[:, 1], (targets[:, 0] == 1).double()
    hit, extra, missed = (liver * truth).sum(), (liver * (1 - truth)).sum(), ((1 - liver) * truth).sum()
    expected = float(1 - hit / (hit + 0.3 * extra + 0.7 * missed)) ** 0.75
    assert float(liver_task(loss="focal_tversky").loss(scores, targets)) == pytest.approx(expected, rel=1e-5)


def test_focal_tversky_of_a_batch_without_liver_moves_nothing(scores_and_targets):
    scores, targets = scores_and_targets(2)
    scores.requires_grad_()
    loss = liver_task(loss="focal_tversky").loss(scores, torch.zeros_like(targets))
    loss.backward()
    assert float(loss.detach()) < 1e-4
    assert not scores.grad.any()


@pytest.mark.parametrize(("task", "names"), [(lesion_task, "weighted_ce or dice_ce"),
                                             (liver_task, "dice_ce or focal_tversky")])  # fmt: skip
def test_an_unknown_loss_is_refused_with_the_names(task, names):
    with pytest.raises(InputError, match=f"model.loss: expected {names}; got l2"):
        task(loss="l2")


@pytest.mark.parametrize("option", ["lr", "weight_decay"])
@pytest.mark.parametrize("value", [-1e-3, math.nan, math.inf])
def test_rates_out_of_range_are_refused(option, value):
    with pytest.raises(InputError, match=f"model.{option}: expected 0 or more"):
        lesion_task(**{option: value})


def test_a_net_has_an_output_for_each_class():
    for task, target in ((lesion_task("lesion"), "lesion"), (lesion_task(), "typed"), (liver_task(), "liver")):
        assert task(torch.zeros(2, 3, SIZE, SIZE)).shape == (2, len(TARGETS[target].classes), SIZE, SIZE)


@pytest.mark.parametrize(("device", "fused"), [("cpu", True), ("meta", None)])
def test_an_optimizer_is_fused_as_its_device_wants_it_whatever_saved_its_state(device, fused):
    saved = lesion_task().configure_optimizers()
    for parameter in (parameter for group in saved.param_groups for parameter in group["params"]):
        parameter.grad = torch.zeros_like(parameter)
    saved.step()
    state = saved.state_dict()
    for group in state["param_groups"]:
        group["fused"] = not fused  # as on the other kind of device
        group["lr"] = 0.5
    optimizer = lesion_task().to(device).configure_optimizers()
    optimizer.load_state_dict(state)
    assert {(group["fused"], group["lr"]) for group in optimizer.param_groups} == {(fused, 0.5)}
    steps = {held["step"].device.type for held in optimizer.state.values()}
    assert steps == {"cpu"}  # a fused optimizer has them beside the parameters, another on the CPU


def test_the_optimizer_has_every_parameter_once_and_a_group_for_each_block():
    task = lesion_task(lr=0.01, weight_decay=0.2)
    optimizer = task.configure_optimizers()
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [group["name"] for group in optimizer.param_groups] == list(blocks(task.net))
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, task.parameters()))
    assert {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups} == {(0.01, 0.2)}


def test_a_checkpoint_says_in_plain_data_how_to_build_and_feed_the_net(pretrained):
    task, checkpoint = lesion_task(), {}
    task.trainer = pl.Trainer(accelerator="cpu", logger=False)
    task.on_save_checkpoint(checkpoint)
    held = checkpoint["lesionseg"]
    assert InputSpec(**held["input"]) == task.spec
    assert held["classes"] == ["background", "liver", "cyst", "hemangioma", "metastasis"]
    assert (held["task"], held["target"]) == ("LesionTask", "typed")
    description, tensors = read_net(pretrained)  # and a real one is read back
    names = ("encoder", "decoder_channels", "target")
    again = LesionTask(input=InputSpec(**description["input"]), **{name: description[name] for name in names})
    assert again.net.load_state_dict(tensors)


def test_weights_come_in_before_training_and_only_where_asked_for(pretrained):
    description, tensors = read_net(pretrained)
    options = {"decoder_channels": description["decoder_channels"], "weights": pretrained}
    task = lesion_task(**options)
    own = {name: tensor.clone() for name, tensor in task.net.state_dict().items()}
    task.setup("test")
    assert all(torch.equal(own[name], tensor) for name, tensor in task.net.state_dict().items())
    task.setup("fit")
    for name, tensor in task.net.state_dict().items():
        head = name.startswith("segmentation_head")  # other classes, so none of it fits
        assert torch.equal(tensor, own[name] if head else tensors[name])
    without = lesion_task(**options, transfer=False)
    before = {name: tensor.clone() for name, tensor in without.net.state_dict().items()}
    without.setup("fit")
    assert without.weights is None
    assert all(torch.equal(before[name], tensor) for name, tensor in without.net.state_dict().items())


def test_predictions_lie_on_the_grid_of_each_slice(monkeypatch):
    """A net that repeats its input: class 2 wherever it is bright."""
    task = lesion_task()
    bright = torch.zeros(2, 3, SIZE, SIZE)
    bright[:, :, 8:16, 4:12] = 1.0
    monkeypatch.setattr(task, "forward", lambda images: torch.stack(
        [1 - images[:, 0], -torch.ones_like(images[:, 0]), images[:, 0], *[-torch.ones_like(images[:, 0])] * 2], 1
    ))  # fmt: skip
    references = [torch.zeros(50, 60, dtype=torch.uint8), torch.zeros(40, 40, dtype=torch.uint8)]
    boxes = [Box(10, 20, SIZE), Box(-4, 0, SIZE)]
    places = [Place(0, 0, 0), Place(1, 1, 0)]
    first, second = task.predict_slices(Batch(bright, torch.zeros(2, SIZE, SIZE), references, boxes, places))
    expected = np.zeros((50, 60), np.uint8)
    expected[18:26, 24:32] = 2
    assert first.dtype == torch.uint8
    np.testing.assert_array_equal(first.numpy(), expected)
    expected = np.zeros((40, 40), np.uint8)
    expected[4:12, 4:12] = 2
    np.testing.assert_array_equal(second.numpy(), expected)


@pytest.mark.parametrize("task", [lesion_task, liver_task])
def test_a_perfect_net_has_perfect_figures(task, lits_store, monkeypatch):
    """Predictions are the references; each slice is counted once, whatever the number of epochs."""
    net = task("lesion") if task is lesion_task else task()
    data = LesionDataModule(lits_store, net.target.name, net.spec, batch_size=8, folds=3)
    monkeypatch.setattr(net, "on_slices", lambda scores, batch: batch.references)
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    for _ in range(2):
        (logged,) = trainer.validate(net, data, verbose=False)
        if task is liver_task:
            assert (logged["val/liver_dice"], logged["val/liver_dice_n"]) == (1, len(data.split.validation))
        else:
            assert logged["val/dice1"] == logged["val/success_rate"] == logged["val/accuracy_all"] == 1
            assert logged["val/slices_n"] == len(data.validation)
            assert logged["val/false_positives_per_slice"] == 0
    assert net.monitor in logged


def test_deep_supervision_is_the_sum_of_the_same_loss_at_every_depth():
    task, generator = lesion_task(loss="weighted_ce"), torch.Generator().manual_seed(0)
    scores = [torch.randn(2, 5, size, size, generator=generator) for size in (32, 4, 8, 16)]
    targets = torch.randint(0, 5, (2, 32, 32), generator=generator)
    weights = [0.0005, 0.05, 1, 1, 1]
    thinned = [targets, targets[:, 4::8, 4::8], targets[:, 2::4, 2::4], targets[:, 1::2, 1::2]]
    expected = sum(cross_entropy(s, t[:, None], weights) for s, t in zip(scores, thinned, strict=True))
    assert float(task.segmentation_loss(scores, targets)) == pytest.approx(expected, rel=1e-5)


def test_a_deeply_supervised_net_learns_at_every_depth_and_predicts_by_the_last_alone(tiny_batch):
    torch.manual_seed(0)
    task, batch = lesion_task(deep_supervision=True, lr=3e-3).train(), tiny_batch((2,), (3, 4), ())
    optimizer, seen = task.configure_optimizers(), []
    for _ in range(15):
        loss = task.losses(batch)["segmentation"]
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad.abs().sum() > 0 for p in task.net.deep_heads.parameters())
        optimizer.step()
        seen.append(float(loss.detach()))
    assert seen[-1] < 0.8 * seen[0]
    before = task.eval()(batch.images)
    torch.nn.init.ones_(task.net.deep_heads[0].weight)
    assert torch.equal(task(batch.images), before)
    assert [name for name, _ in blocks(task.net)["head"].parameters] == [
        f"{part}.{kind}"
        for part in ("segmentation_head.0", "deep_heads.0", "deep_heads.1", "deep_heads.2")
        for kind in ("weight", "bias")
    ]


@pytest.mark.parametrize("deep", [(False, True), (True, False), (True, True)])
def test_weights_go_over_with_and_without_deep_supervision(deep):
    source, net = (lesion_task(deep_supervision=each).net for each in deep)
    report = transfer(net, source.state_dict())
    heads = {f"deep_heads.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")}
    assert set(report.new) == (heads if deep == (False, True) else set())
    assert set(report.unused) == (heads if deep == (True, False) else set())
    assert not report.misfit
    assert report.encoder_elements == 1


def test_channels_last_gives_the_same_loss_and_gradients_to_float_error(tiny_batch):
    batch, found = tiny_batch((2, 3), (4,)), []
    for channels_last in (False, True):
        torch.manual_seed(0)
        task = lesion_task(channels_last=channels_last)
        seen = []
        task.net.segmentation_head[0].register_forward_hook(lambda _, inputs, __, seen=seen: seen.append(inputs[0]))
        loss = task.training_step(batch, 0)
        loss.backward()
        found.append((seen[0], loss, [p.grad for p in task.net.parameters()]))
    (plain, *one), (last, *other) = found
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert not last.is_contiguous()
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_batch_moves_with_what_the_net_sees_and_stays_what_it_is(tiny_batch):
    batch = tiny_batch((2,), (3, 4))
    moved = batch.to(torch.device("meta"))
    assert isinstance(moved, Batch)
    assert all(t.device.type == "meta" for t in (moved.images, moved.targets))
    assert moved.references is batch.references  # compared on the CPU
    assert (moved.boxes, moved.places) == (batch.boxes, batch.places)
