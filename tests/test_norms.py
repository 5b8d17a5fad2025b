"""Against torch's own batch norm: the same bits, and less kept for the backward."""

import copy
import pickle

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from lesionseg.networks import build_unet
from lesionseg.norms import BatchNorm2d, keep_no_frozen_input

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def pair(seed: int = 0, channels: int = 7) -> tuple[nn.BatchNorm2d, BatchNorm2d]:
    """torch's norm and ours, with the same parameters and statistics of no special value."""
    generator = torch.Generator().manual_seed(seed)
    theirs = nn.BatchNorm2d(channels)
    with torch.no_grad():
        for tensor in (theirs.weight, theirs.bias, theirs.running_mean):
            tensor.copy_(torch.randn(channels, generator=generator))
        theirs.running_var.copy_(torch.rand(channels, generator=generator) + 0.01)
    ours = copy.deepcopy(theirs)
    keep_no_frozen_input(ours)
    assert type(ours) is BatchNorm2d
    return theirs, ours


def freeze(norm: nn.Module) -> nn.Module:
    return norm.eval().requires_grad_(False)


def step(norm: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output, gradient of the input, and all that the norm then holds."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = norm(x)
    (y.float() * torch.arange(y.numel(), device=y.device).reshape(y.shape).sin()).sum().backward()
    gradients = [p.grad for p in norm.parameters() if p.grad is not None]
    return [y.detach(), x.grad, *norm.state_dict().values(), *gradients]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_frozen_norm_of_halves_computes_as_torch(layout, dtype):
    """Parameters and all, as in bf16-true and 16-true."""
    x = torch.randn(3, 7, 9, 5, generator=torch.Generator().manual_seed(1)).to(dtype, memory_format=layout)
    theirs, ours = (step(freeze(norm.to(dtype)), x) for norm in pair())
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1], rtol=0.02, atol=0.01)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # the second as under autocast, parameters float32
@pytest.mark.parametrize("state", ["trains", "evaluates", "frozen", "bias learns"])
def test_same_bits_as_torch(state, dtype, layout, device):
    x = torch.randn(3, 7, 9, 5, generator=torch.Generator().manual_seed(1)).to(device, dtype, memory_format=layout)
    results = []
    for norm in (each.to(device) for each in pair()):
        if state == "evaluates":
            norm.eval()
        elif state != "trains":
            freeze(norm).bias.requires_grad_(state == "bias learns")
        results.append(step(norm, x))
    assert len(results[0]) == len(results[1])
    for theirs, ours in zip(*results, strict=True):
        assert theirs.dtype == ours.dtype
        assert theirs.stride() == ours.stride()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_gradient_by_differences():
    _, ours = pair()
    x = torch.randn(2, 7, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(freeze(ours.double()), (x,))


@pytest.mark.parametrize("arguments", [{"affine": False}, {"track_running_stats": False}])
def test_without_parameters_or_statistics_too(arguments):
    x = torch.randn(2, 3, 4, 4)
    results = [step(freeze(kind(3, **arguments)), x) for kind in (nn.BatchNorm2d, BatchNorm2d)]
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_of_no_crops_there_is_no_gradient():
    _, ours = pair()
    assert step(freeze(ours), torch.zeros(0, 7, 4, 4))[1].shape == (0, 7, 4, 4)


def test_another_shape_is_refused_as_torch_does():
    for norm in pair():
        with pytest.raises(ValueError, match="expected 4D input"):
            freeze(norm)(torch.zeros(2, 7, requires_grad=True))


def kept(norm: nn.Module, x: torch.Tensor) -> list[torch.Size]:
    """Shapes of what autograd keeps for the backward."""
    shapes = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        shapes.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        norm(x)
    return shapes


def test_only_a_frozen_one_keeps_no_input():
    theirs, ours = pair()
    x = torch.randn(2, 7, 3, 2, requires_grad=True)
    assert x.shape in kept(ours, x)
    assert x.shape in kept(freeze(theirs), x)
    assert set(kept(freeze(ours), x)) == {torch.Size([7])}


def test_compiled_is_the_same():
    theirs, ours = pair()
    x = torch.randn(2, 7, 3, 2)
    compiled = torch.compile(freeze(ours), backend="aot_eager", fullgraph=True)
    for expected, found in zip(step(freeze(theirs), x)[:2], step(compiled, x)[:2], strict=True):
        torch.testing.assert_close(found, expected)


def test_a_net_has_them_and_is_otherwise_as_it_was():
    net = build_unet("resnet18", classes=2, encoder_weights=None, decoder_channels=(16, 16, 16, 8, 8))
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 30
    assert {type(norm) for norm in norms} == {BatchNorm2d}
    again = pickle.loads(pickle.dumps(net))
    assert again.state_dict().keys() == net.state_dict().keys()
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert not any(isinstance(module, BatchNorm2d) for module in synced.modules())


def test_other_norms_are_left_alone():
    net = nn.Sequential(BatchNormAct2d(3), nn.SyncBatchNorm(3), nn.BatchNorm1d(3), nn.BatchNorm2d(3))
    keep_no_frozen_input(net)
    assert [type(norm) for norm in net] == [BatchNormAct2d, nn.SyncBatchNorm, nn.BatchNorm1d, BatchNorm2d]
