"""The pull towards the start, against numpy on the weights as they lie in the files."""

import numpy as np
import pytest
import torch
from torch import nn

from lesionseg.data.dataset import Batch
from lesionseg.errors import InputError
from lesionseg.inputs import InputSpec
from lesionseg.networks import blocks
from lesionseg.run_weights import read_net
from lesionseg.tasks import LesionTask
from lesionseg.tasks.l2_sp import PullToStart

ALPHA = 0.3


@pytest.fixture
def task(pretrained):
    """A net that has taken over its start and then moved, every parameter by chance."""
    channels = read_net(pretrained)[0]["decoder_channels"]
    task = LesionTask("tu-test_resnet", InputSpec(32, "liver"), "typed", decoder_channels=channels,
                      weights=pretrained, l2_sp=ALPHA)  # fmt: skip
    task.setup("fit")
    assert float(task.pull().detach()) == 0
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in task.net.state_dict().values():
            tensor.add_((0.05 * torch.rand(tensor.shape)).to(tensor.dtype))  # a variance stays positive
    return task


def distance(task, start, names):
    """Squared, in double precision."""
    own = {name: p.detach().numpy().astype(np.float64) for name, p in task.net.named_parameters()}
    return sum(np.sum((own[name] - start[name].numpy().astype(np.float64)) ** 2) for name in names)


def test_the_term_and_its_gradient_against_numpy(task, pretrained):
    start, parameters = read_net(pretrained)[1], dict(task.net.named_parameters())
    pulled = [name for name in parameters if not name.startswith("segmentation_head")]
    term = task.pull()
    assert float(term.detach()) == pytest.approx(ALPHA / 2 * distance(task, start, pulled), rel=1e-5)
    term.backward()
    for name in pulled:
        expected = ALPHA * (parameters[name].detach().numpy() - start[name].numpy())
        np.testing.assert_allclose(parameters[name].grad.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert all(p.grad is None for name, p in parameters.items() if name not in pulled)  # the new head


def test_a_frozen_block_adds_nothing(task, pretrained):
    start, found = read_net(pretrained)[1], blocks(task.net)
    for _, parameter in found["stage2"].parameters:
        parameter.requires_grad_(False)
    moving = [name for block in found.values() if block.name not in ("stage2", "head") for name, _ in block.parameters]
    assert float(task.pull().detach()) == pytest.approx(ALPHA / 2 * distance(task, start, moving), rel=1e-5)
    task.net.requires_grad_(False)
    assert float(task.pull().detach()) == 0


def test_the_pull_takes_the_place_of_weight_decay_but_for_the_new_head(task):
    decays = {group["name"]: group["weight_decay"] for group in task.configure_optimizers().param_groups}
    assert decays == {name: 1e-4 if name == "head" else 0 for name in blocks(task.net)}


def test_the_loss_of_a_step_holds_the_term(task, monkeypatch):
    monkeypatch.setattr(task, "log", lambda *_, **__: None)  # a log needs a trainer
    batch = Batch(torch.randn(2, 3, 32, 32), torch.randint(0, 5, (2, 32, 32)), [], [], [])
    task.eval()
    plain = float(task.loss(task(batch.images), batch.targets[:, None]).detach())
    assert float(task.training_step(batch, 0).detach()) == pytest.approx(plain + float(task.pull().detach()), rel=1e-5)


def test_the_start_is_not_in_the_checkpoint(task, pretrained):
    assert {name.removeprefix("net.") for name in task.state_dict() if name.startswith("net.")} == set(
        read_net(pretrained)[1]
    )
    assert not [name for name in task.state_dict() if "pull" in name]


def test_a_pull_needs_a_start(pretrained):
    for options in ({}, {"weights": pretrained, "transfer": False}):
        with pytest.raises(InputError, match=r"model.l2_sp: expected weights to be pulled towards; got none"):
            LesionTask("tu-test_resnet", InputSpec(32, "liver"), "typed", l2_sp=0.1, **options)


def test_nothing_taken_over_is_no_pull():
    assert float(PullToStart(nn.Linear(2, 2), (), 1.0)()) == 0
