"""`Unet` against smp's own, its further outputs against the same numbers by hand."""

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

from lesionseg.unet import CropClassifier, Unet

SMALL = "tu-test_resnet"
CHANNELS = (16, 8, 12, 8, 4)


def unet(encoder=SMALL, seed=0, **parts):
    torch.manual_seed(seed)
    return Unet(encoder, classes=5, encoder_weights=None, decoder_channels=CHANNELS, **parts).eval()


def recorded(net: nn.Module, modules, images):
    """What the modules gave while the net looked at the images."""
    seen: list[torch.Tensor] = []
    hooks = [module.register_forward_hook(lambda _, __, out: seen.append(out)) for module in modules]
    with torch.no_grad():
        result = net(images, deep=True)
    for hook in hooks:
        hook.remove()
    return result, seen


@pytest.mark.parametrize("encoder", [SMALL, "resnet18"])
def test_without_parts_it_is_the_net_of_smp_from_the_same_seed(encoder):
    torch.manual_seed(7)
    theirs = smp.Unet(encoder, encoder_weights=None, decoder_channels=CHANNELS, classes=5)
    after = torch.rand(4)
    ours = unet(encoder, seed=7)
    torch.testing.assert_close(torch.rand(4), after, rtol=0, atol=0)
    one, other = theirs.state_dict(), ours.state_dict()
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_deep_supervision_leaves_the_initial_weights_of_the_rest():
    plain, deep = unet().state_dict(), unet(deep_supervision=True).state_dict()
    assert all(torch.equal(tensor, deep[name]) for name, tensor in plain.items())
    assert {name.split(".")[0] for name in set(deep) - set(plain)} == {"deep_heads"}


@pytest.mark.parametrize("encoder", [SMALL, "mit_b0", "vgg11_bn", "tu-convnext_atto"])
def test_the_steps_of_the_decoder_are_those_of_smp(encoder):
    """The scores at full resolution by the way that deep supervision takes, and by that of smp."""
    net, images = unet(encoder, deep_supervision=True), torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        scores = net(images, deep=True)
        assert torch.equal(scores[0], smp.Unet.forward(net, images))
        assert torch.equal(scores[0], net(images))
    assert [tuple(each.shape) for each in scores] == [(2, 5, 64, 32), (2, 5, 8, 4), (2, 5, 16, 8), (2, 5, 32, 16)]


def test_coarse_scores_are_a_linear_map_of_the_features_of_their_step():
    net = unet(deep_supervision=True)
    scores, features = recorded(net, net.decoder.blocks, torch.randn(1, 3, 64, 64))
    for step, (head, coarse) in enumerate(zip(net.deep_heads, scores[1:], strict=True), start=1):
        weight, bias = head.weight[:, :, 0, 0].detach().numpy(), head.bias.detach().numpy()
        expected = np.einsum("kc,nchw->nkhw", weight, features[step].numpy()) + bias[:, None, None]
        np.testing.assert_allclose(coarse.numpy(), expected, atol=1e-5)


def test_scores_of_the_slice_come_from_the_mean_of_the_deepest_feature():
    net, images = unet(slice_types=3, deep_supervision=True), torch.randn(2, 3, 64, 64)
    (scores, types), (features,) = recorded(net, [net.encoder], images)
    linear = net.classification_head[3]
    expected = features[-1].numpy().mean((2, 3)) @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
    np.testing.assert_allclose(types.numpy(), expected, atol=1e-5)
    with torch.no_grad():
        plain = net(images)
    assert torch.equal(plain[0], scores[0])
    assert torch.equal(plain[1], types)
    assert len(scores) == 4


def test_scores_of_crops_come_from_the_mean_of_the_deepest_feature():
    net, crops = CropClassifier(unet().encoder, 3).eval(), torch.randn(4, 3, 64, 64)
    linear = net.head[3]
    with torch.no_grad():
        pooled, types = net.encoder(crops)[-1].numpy().mean((2, 3)), net(crops)
    expected = pooled @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
    np.testing.assert_allclose(types.numpy(), expected, atol=1e-5)
