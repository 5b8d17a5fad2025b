import pickle

import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import save_file
from torch import nn

from lesionseg.errors import InputError
from lesionseg.networks import LEAST_ENCODER_SHARE, blocks, build_unet, parameter_groups, transfer

ALL = ("stem", "stage1", "stage2", "stage3", "stage4", "decoder", "head")
SMALL = "tu-test_resnet"
ENCODERS = (
    *("resnet18", "se_resnet50", "vgg11_bn", "densenet121", "efficientnet-b0", "mobilenet_v2", "mit_b0", "xception"),
    *("dpn68", "inceptionv4", "mobileone_s0", "timm-skresnet18", "tu-regnetx_002", "tu-convnext_atto"),
    *("tu-mobilenetv3_small_050", SMALL),
)


def unet(encoder: str, **options: object) -> nn.Module:
    return build_unet(
        encoder, **{"classes": 3, "encoder_weights": None, "decoder_channels": (16, 8, 8, 8, 4), **options}
    )


def snapshot(net: nn.Module) -> tuple:
    tensors = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    return tensors, [m.training for m in net.modules()], [p.requires_grad for p in net.parameters()]


def assert_same_tensors(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_blocks_are_a_partition_in_order_and_leave_the_net_alone(encoder):
    net = unet(encoder)
    net.encoder.apply(lambda m: m.eval() if isinstance(m, nn.BatchNorm2d) else None)
    tensors, modes, flags = snapshot(net)
    found = blocks(net)
    after, modes_after, flags_after = snapshot(net)
    assert_same_tensors(tensors, after)
    assert (modes, flags) == (modes_after, flags_after)
    assert tuple(found) == ALL[-len(found) :]
    assert all(name == block.name and block.parameters for name, block in found.items())
    in_blocks = [(name, id(p)) for block in found.values() for name, p in block.parameters]
    assert sorted(in_blocks) == sorted((name, id(p)) for name, p in net.named_parameters())
    modules = [id(m) for block in found.values() for m in block.modules]
    assert sorted(modules) == sorted(id(m) for m in net.modules())


@pytest.mark.parametrize("encoder", ENCODERS)
def test_gradients_of_each_feature_reach_its_block_and_those_before(encoder):
    """The partition comes from the graph on the meta device; real gradients are the independent reference."""
    net = unet(encoder).eval()
    named = dict(net.encoder.named_parameters())
    found = [b for name, b in blocks(net).items() if name not in ("decoder", "head")]
    reached, steps = set(), []
    for feature in net.encoder(torch.zeros(1, 3, 64, 64)):
        if feature.requires_grad:
            grads = torch.autograd.grad(feature.sum(), list(named.values()), retain_graph=True, allow_unused=True)
            now = {f"encoder.{name}" for name, grad in zip(named, grads, strict=True) if grad is not None}
            if now - reached:
                steps.append(now - reached)
            reached |= now
    steps[-1] |= {f"encoder.{name}" for name in named} - reached
    assert [{name for name, _ in block.parameters} for block in found] == steps


def test_blocks_of_a_resnet_are_its_layers():
    layer_of = {"stem": ("conv1", "bn1"), **{f"stage{i}": (f"layer{i}",) for i in range(1, 5)}}
    net = unet("resnet18")
    found = blocks(net)
    for block, layers in layer_of.items():
        assert {name.split(".")[1] for name, _ in found[block].parameters} == set(layers)
    assert net.encoder.maxpool in found["stem"].modules
    assert net.encoder in found["stage4"].modules
    assert net in found["head"].modules


def test_every_module_that_acts_differently_in_training_is_in_the_block_of_its_surroundings():
    """Drop-path and dropout own no parameter, and a block that calls functional dropout owns only its children's."""
    net = smp.Unet("mit_b0", encoder_weights=None, classes=3)
    names = {id(module): name for name, module in net.named_modules()}
    for block, stage in (("stage1", "1"), ("stage2", "2"), ("stage3", "3"), ("stage4", "4")):
        inside = [names[id(module)] for module in blocks(net)[block].modules]
        transformer = {name for name in names.values() if name.startswith(f"encoder.block{stage}")}
        assert any("drop_path" in name for name in transformer)
        assert transformer <= set(inside)


def test_a_batch_norm_without_parameters_keeps_still_with_its_block():
    net = unet("resnet18")
    net.encoder.layer2[0].bn1 = nn.BatchNorm2d(128, affine=False)
    assert net.encoder.layer2[0].bn1 in blocks(net)["stage2"].modules


def test_parameter_groups_hold_every_parameter_once_from_the_start():
    net = unet(SMALL)
    groups = parameter_groups(net, lr=1e-3, weight_decay=0.1)
    assert [group["name"] for group in groups] == list(ALL)
    assert {(g["lr"], g["base_lr"], g["weight_decay"]) for g in groups} == {(1e-3, 1e-3, 0.1)}
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in net.parameters())


def test_scores_have_the_size_of_the_input_and_depend_on_the_seed_alone():
    scores = []
    for _ in range(2):
        torch.manual_seed(5)
        scores.append(unet(SMALL, classes=5).eval()(torch.ones(2, 3, 64, 96)))
    assert scores[0].shape == (2, 5, 64, 96)
    assert torch.equal(*scores)


def test_transfer_takes_all_but_a_head_of_another_size():
    source, net = unet(SMALL), unet(SMALL, classes=5)
    for tensor in source.state_dict().values():
        tensor.copy_(torch.randint(1, 9, tensor.shape))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = {**source.state_dict(), "more": torch.zeros(1)}
    report = transfer(net, state)
    head = {"segmentation_head.0.weight", "segmentation_head.0.bias"}
    assert (set(report.misfit), report.new, report.unused) == (head, (), ("more",))
    assert set(report.loaded) == set(before) - head
    assert (report.encoder_tensors, report.encoder_elements) == (1.0, 1.0)
    assert_same_tensors({**state, **{name: before[name] for name in head}}, {**net.state_dict(), "more": state["more"]})
    assert str(report).splitlines() == [
        f"loaded: {len(report.loaded)} tensors, 100.0% of the encoder (100.0% of its tensors)",
        "new: none",
        "did not fit: segmentation_head.0.weight, segmentation_head.0.bias",
        "not used: more",
    ]


def test_transfer_of_too_little_of_the_encoder_is_refused_and_changes_nothing():
    net, state = unet(SMALL), unet(SMALL).state_dict()
    sizes = {name: tensor.numel() for name, tensor in state.items() if name.startswith("encoder.")}
    total, dropped = sum(sizes.values()), []
    while (total - sum(sizes[name] for name in dropped)) / total >= LEAST_ENCODER_SHARE:
        dropped.append(max(set(sizes) - set(dropped), key=lambda name: sizes[name]))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(InputError, match=r"start\.ckpt: expected at least 90% of the encoder; got .*new: encoder"):
        transfer(net, {name: state[name] for name in state if name not in dropped}, where="start.ckpt")
    assert_same_tensors(before, net.state_dict())
    report = transfer(net, {name: state[name] for name in state if name not in dropped[:-1]})
    assert set(report.new) == set(dropped[:-1])


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_encoder_weights_from_a_local_file(tmp_path, suffix):
    state = {**unet(SMALL).encoder.state_dict(), "fc.weight": torch.zeros(2)}
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    net = unet(SMALL, encoder_weights=str(path))
    assert_same_tensors(state, {**net.encoder.state_dict(), "fc.weight": state["fc.weight"]})


def test_weights_of_another_encoder_are_refused_with_what_fitted(tmp_path):
    path = tmp_path / "other.pt"
    state = unet(SMALL).encoder.state_dict()
    removed = [name for name in state if "layer4" in name]
    torch.save({name: tensor for name, tensor in state.items() if name not in removed}, path)
    whole = sum(not name.endswith("num_batches_tracked") for name in state)
    fitting = whole - sum(not name.endswith("num_batches_tracked") for name in removed)
    with pytest.raises(
        InputError, match=f"got {fitting} of {whole} tensors that fit, not .*layer4.* more; use weights"
    ):
        unet(SMALL, encoder_weights=str(path))


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('the file ran code')",)


@pytest.mark.parametrize("name", ["absent.pt", "noise.pt", "noise.safetensors", "list.pt", "bomb.pt", "raw-bomb.pt"])
def test_files_that_hold_no_weights_are_refused_and_run_nothing(tmp_path, name):
    path = tmp_path / name
    if "noise" in name:
        path.write_bytes(b"no weights at all")
    elif name == "list.pt":
        torch.save([torch.zeros(1)], path)
    elif name == "bomb.pt":
        torch.save({"a": Bomb()}, path)
    elif name == "raw-bomb.pt":
        path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match=name):
        unet(SMALL, encoder_weights=str(path))


def test_unreachable_weights_name_both_ways_out(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for encoder in ("resnet18", SMALL):
        with pytest.raises(InputError, match=r"within reach; .*a local \.safetensors or \.pt file, or use null"):
            unet(encoder, encoder_weights="imagenet")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "resnet19"}, "close names: resnet18"),
        ({"encoder": "tu-resnett18"}, "close names: tu-resnet18"),
        ({"encoder": "qqqqqqqqqqqq"}, "its documentation lists them"),
        ({"encoder": "tu-test_vit"}, "downsampling pattern"),
        ({"encoder": "resnet18", "encoder_weights": "imagnet"}, "one of imagenet, .* file, or null; got 'imagnet'"),
        ({"encoder": SMALL, "encoder_weights": "ssl"}, "one of imagenet"),
        ({"encoder": SMALL, "decoder_channels": (8, 4)}, "five decoder channels"),
    ],
)
def test_wrong_names_are_refused_with_what_would_do(options, message):
    with pytest.raises(InputError, match=message):
        unet(**options)
