"""`YNetTask`: its losses written out, its class maps from scores made by hand, and that it learns."""

import numpy as np
import pytest
import torch

from lesionseg.errors import InputError
from lesionseg.inputs import InputSpec
from lesionseg.networks import blocks
from lesionseg.tasks import LesionTask, YNetTask
from lesionseg.tasks.y_net import types_held


def y_net(target="typed", **options):
    torch.manual_seed(0)
    options = {"encoder": "tu-test_resnet", "decoder_channels": (8, 8, 8, 8, 8), **options}
    return YNetTask(input=InputSpec(64, "liver"), target=target, **options)


def test_types_held_by_hand(tiny_batch):
    held = types_held(tiny_batch((3,), (), (2, 4), (4, 4)).targets, 3)
    assert held.int().tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 1], [0, 0, 1]]


@pytest.mark.parametrize("deep", [False, True])
def test_the_losses_are_those_of_a_net_without_types_and_cross_entropy_of_each_type(tiny_batch, deep):
    task, batch = y_net(classification_weight=0.5, deep_supervision=deep).eval(), tiny_batch((3,), (), (2, 4))
    untyped = LesionTask("tu-test_resnet", InputSpec(64, "liver"), "lesion", decoder_channels=(8, 8, 8, 8, 8),
                         deep_supervision=deep).eval()  # fmt: skip
    shared = {name: tensor for name, tensor in task.net.state_dict().items() if "classification" not in name}
    untyped.net.load_state_dict(shared)
    with torch.no_grad():
        parts, scores = task.losses(batch), task.net(batch.images)[1].double().numpy()
        lesions = batch._replace(targets=torch.tensor(np.minimum(batch.targets.numpy(), 2)))
        assert torch.equal(parts["segmentation"], untyped.losses(lesions)["segmentation"])
    held, shares = np.array([[0, 1, 0], [0, 0, 0], [1, 0, 1]]), 1 / (1 + np.exp(-scores))
    expected = -(held * np.log(shares) + (1 - held) * np.log(1 - shares)).mean()
    assert float(parts["types"]) == pytest.approx(0.5 * expected, rel=1e-5)


def test_every_lesion_of_a_slice_has_the_best_type_of_the_slice(tiny_batch, monkeypatch):
    task, batch = y_net(), tiny_batch((3,), (2, 4), ())
    pixels = torch.nn.functional.one_hot(batch.targets.clamp(max=2), 3).movedim(-1, 1).float()
    types = torch.tensor([[-3.0, -2, -1], [0.2, 0.1, -4], [5, 0, 0]])
    monkeypatch.setattr(task.net, "forward", lambda images, deep=False: (pixels, types))
    expected = batch.targets.numpy().copy()
    expected[0][expected[0] == 3] = 4  # the best, though no type is likely
    expected[1][expected[1] == 4] = 2  # the limit: of two types one is wrong
    found = task.predict_slices(batch)
    assert all(plane.dtype == torch.uint8 for plane in found)
    np.testing.assert_array_equal(torch.stack(found).numpy(), expected)


def test_it_learns_both(tiny_batch):
    task, batch = y_net(lr=3e-3).train(), tiny_batch((2,), (3,), (4,), ())
    optimizer, seen = task.configure_optimizers(), []
    for _ in range(25):
        parts = task.losses(batch)
        optimizer.zero_grad()
        sum(parts.values()).backward()
        assert all(p.grad is not None for p in task.net.classification_head.parameters())
        optimizer.step()
        seen.append({name: float(part.detach()) for name, part in parts.items()})
    assert seen[-1]["segmentation"] < 0.8 * seen[0]["segmentation"]
    assert seen[-1]["types"] < 0.8 * seen[0]["types"]


def test_its_second_head_is_a_block_of_its_own():
    found = blocks(y_net().net)
    assert list(found)[-3:] == ["decoder", "head", "classifier"]
    assert {name for name, _ in found["classifier"].parameters} == {
        "classification_head.3.weight", "classification_head.3.bias"
    }  # fmt: skip


def test_what_names_no_types_is_refused():
    with pytest.raises(InputError, match=r"data\.target: expected typed, as this task names lesions; got lesion"):
        y_net("lesion")
    with pytest.raises(InputError, match=r"model\.classification_weight: expected 0 or more; got -1"):
        y_net(classification_weight=-1.0)
