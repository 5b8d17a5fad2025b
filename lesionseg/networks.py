"""The U-net, its named blocks from input to deep, and the weights it starts from."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lesionseg.block_names import ENCODER_BLOCKS
from lesionseg.errors import InputError, first_sentence, some
from lesionseg.reading import read_torch
from lesionseg.unet import Unet

#: The blocks of the other parts of a net, where they are not called as the part is.
_BLOCK_OF = {"segmentation_head": "head", "deep_heads": "head", "classification_head": "classifier"}
#: Least share of the encoder's elements that a transfer must fill; less is another encoder, not fine-tuning.
LEAST_ENCODER_SHARE = 0.9
#: Side of the image that the graph is drawn with: every encoder of smp and most fixed-size ones of timm take it.
_TRACE_SIZE_PX = 224
_WEIGHT_FILES = (".safetensors", ".pt")
_WITHOUT_HUB = "name a local .safetensors or .pt file, or use null for random weights"


@dataclass(frozen=True, eq=False)
class Block:
    """One block of a U-net: its parameters with their names in the net, and its modules.

    The modules include containers, which may hold modules of other blocks: set `training` on each, not recursively.
    """

    name: str
    parameters: tuple[tuple[str, nn.Parameter], ...]
    modules: tuple[nn.Module, ...]


@dataclass(frozen=True)
class TransferReport:
    """What a transfer did, as names of tensors (parameters and buffers).

    Attributes:
        loaded: copied: same name and shape.
        new: in the net only; keeps its initial values.
        misfit: in both with another shape; keeps its initial values (the head for another number of classes).
        unused: in the source only.
        encoder_tensors: share of the encoder's tensors that were loaded, 0…1.
        encoder_elements: share of the encoder's numbers that were loaded, 0…1.
    """

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    misfit: tuple[str, ...]
    unused: tuple[str, ...]
    encoder_tensors: float
    encoder_elements: float

    def __str__(self) -> str:
        return (
            f"loaded: {len(self.loaded)} tensors, {self.encoder_elements:.1%} of the encoder "
            f"({self.encoder_tensors:.1%} of its tensors)\n"
            f"new: {some(self.new)}\ndid not fit: {some(self.misfit)}\nnot used: {some(self.unused)}"
        )


def build_unet(encoder: str, *, classes: int, encoder_weights: str | None, **parts: Any) -> Unet:
    """A U-net from (N, 3, H, W) to class scores (N, classes, H, W); H and W are multiples of 32.

    Args:
        encoder: a name known to segmentation-models-pytorch, or `tu-` and a name known to timm.
        classes: number of output channels.
        encoder_weights: `imagenet` or another name smp knows for this encoder (fetched), the path of a local
            `.safetensors` or `.pt` file with the encoder's state dict, or None for random weights.
        parts: `decoder_channels`, `deep_supervision` and `slice_types` of `Unet`.

    Raises:
        InputError: unknown encoder or weights, weights out of reach, or a file that does not fit.
    """
    _check_encoder(encoder)
    local = encoder_weights is not None and Path(encoder_weights).suffix in _WEIGHT_FILES
    fetched = None if local or encoder_weights is None else _fetched_name(encoder, encoder_weights)
    try:
        net = Unet(encoder, classes=classes, encoder_weights=fetched, **parts)
    except OSError as error:  # the network, the hub or its cache: all of huggingface_hub's errors are OSErrors
        expected, got = f"weights '{encoder_weights}' of {encoder} within reach", first_sentence(error)
        raise InputError("encoder_weights", expected=expected, got=got, remedy=_WITHOUT_HUB) from error
    except (ValueError, RuntimeError) as error:
        expected, got = "features at strides 2 to 32 and five decoder channels", first_sentence(error)
        raise InputError(f"encoder {encoder}", expected=expected, got=got, remedy="choose another encoder") from error
    if local:
        _load_encoder(net.encoder, Path(str(encoder_weights)))
    return net


def blocks(net: nn.Module) -> dict[str, Block]:
    """Named blocks of a U-net in the order input → deep → output; a partition of all its parameters and modules.

    An encoder block is the set of encoder parameters first reached by autograd from its feature; what no feature
    reaches joins the deepest, and where a feature reaches nothing of its own there is no block. Names are counted from
    the deep end. A module above several blocks goes with the deepest of them; one without parameters goes with the
    module around it, or else with the one before it. The net, its modes and its buffers stay as they are.
    """
    owner = _owners(net)
    homes = _module_owners(net, owner)
    found = {}
    for block in dict.fromkeys(owner.values()):
        parameters = tuple((name, p) for name, p in net.named_parameters() if owner[name] == block)
        found[block] = Block(block, parameters, tuple(module for module, home in homes if home == block))
    return found


def parameter_groups(net: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups with every parameter from the start, one per block; a schedule's rate scales `base_lr`."""
    common = {"lr": lr, "base_lr": lr, "weight_decay": weight_decay}
    return [{"name": name, "params": [p for _, p in b.parameters], **common} for name, b in blocks(net).items()]


def transfer(net: nn.Module, state_dict: Mapping[str, Tensor], *, where: str | Path = "weights") -> TransferReport:
    """Copy every tensor of `state_dict` that has its name and shape in `net`: encoder, decoder and head alike.

    A head for another number of classes does not fit and keeps its initial values, all of its rows.

    Args:
        net: changed in place, and only if enough fits.
        state_dict: of a U-net, names as in `net`.
        where: what the error names, the file for example.

    Raises:
        InputError: less than `LEAST_ENCODER_SHARE` of the encoder's elements fit.
    """
    report = transferable(net, state_dict, where=where)
    _copy(net.state_dict(), state_dict, report.loaded)
    return report


def transferable(net: nn.Module, state_dict: Mapping[str, Tensor], *, where: str | Path = "weights") -> TransferReport:
    """What `transfer` would do, and its refusal, without a change of the net."""
    report = _compare(net.state_dict(), state_dict)
    if report.encoder_elements < LEAST_ENCODER_SHARE:
        expected, got = f"at least {LEAST_ENCODER_SHARE:.0%} of the encoder", str(report).replace("\n", "; ")
        raise InputError(where, expected=expected, got=got, remedy="use weights of the same encoder")
    return report


def _check_encoder(encoder: str) -> None:
    """Refuse a name that neither smp nor timm knows, and show the close ones."""
    known = smp.encoders.get_encoder_names()
    if encoder in known or (encoder.startswith("tu-") and timm.is_model(encoder[3:])):
        return
    near = difflib.get_close_matches(encoder, [*known, *(f"tu-{name}" for name in timm.list_models())], n=5, cutoff=0.6)
    expected = "an encoder of segmentation-models-pytorch, or tu- and a model of timm"
    remedy = f"close names: {', '.join(near)}" if near else "its documentation lists them"
    raise InputError("encoder", expected=expected, got=repr(encoder), remedy=remedy)


def _fetched_name(encoder: str, weights: str) -> str | bool:
    """What smp is given to fetch `weights`; timm's encoders carry the name of their weights in their own name."""
    timms = encoder.startswith("tu-")
    names = ["imagenet"] if timms else list(smp.encoders.encoders[encoder]["pretrained_settings"])
    if weights not in names:
        expected = f"one of {', '.join(names)}, a {' or '.join(_WEIGHT_FILES)} file, or null"
        raise InputError(f"encoder_weights of {encoder}", expected=expected, got=repr(weights), remedy="name one")
    return True if timms else weights


def _load_encoder(encoder: nn.Module, path: Path) -> None:
    """Fill the encoder from a local file that holds all of it (a classifier beside it is left out)."""
    state, own = _read_tensors(path), encoder.state_dict()
    # Old files lack this count, which only a BatchNorm without momentum would read.
    needed = {name for name in own if not name.endswith("num_batches_tracked")}
    fits = {name for name in own if name in state and state[name].shape == own[name].shape}
    if not needed <= fits:
        got = f"{len(needed & fits)} of {len(needed)} tensors that fit, not {some(sorted(needed - fits))}"
        remedy = "use weights of the same encoder, named as in its state dict"
        raise InputError(path, expected="the state dict of this encoder", got=got, remedy=remedy)
    _copy(own, state, fits)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Named tensors of a `.safetensors` or `.pt` file; runs no code from it."""
    expected, remedy = "a file of weights", "check the path and the file"
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(path, expected=expected, got=first_sentence(error), remedy=remedy) from error
    state = read_torch(path, expected=expected, remedy=remedy)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(path, expected="tensors by name", got="other data", remedy="save the encoder's state_dict()")
    return dict(state)


def _owners(net: nn.Module) -> dict[str, str]:
    """The block of each parameter, by its name in the net; blocks in order."""
    encoder = net.get_submodule("encoder")
    reached = [names for names in _first_reached(encoder) if names]
    reached[-1] += sorted({name for name, _ in encoder.named_parameters()}.difference(*reached))
    while len(reached) > len(ENCODER_BLOCKS):
        reached[:2] = [reached[0] + reached[1]]
    named = zip(ENCODER_BLOCKS[-len(reached) :], reached, strict=True)
    owner = {f"encoder.{parameter}": block for block, names in named for parameter in names}
    for part, module in net.named_children():
        if part != "encoder":
            owner |= {f"{part}.{name}": _BLOCK_OF.get(part, part) for name, _ in module.named_parameters()}
    return owner


def _first_reached(encoder: nn.Module) -> list[list[str]]:
    """Per feature, shallow to deep: names of the encoder parameters that autograd reaches from it and no earlier one.

    Drawn on the meta device: the graph without its numbers, so that weights and buffers are not touched.
    """
    modes = {module: module.training for module in encoder.modules()}
    parameters = {n: torch.empty_like(p, device="meta").requires_grad_() for n, p in encoder.named_parameters()}
    buffers = {n: torch.empty_like(b, device="meta") for n, b in encoder.named_buffers()}
    dtype = next(iter(parameters.values())).dtype
    image = torch.empty(1, 3, _TRACE_SIZE_PX, _TRACE_SIZE_PX, device="meta", dtype=dtype)
    encoder.eval()  # no layer is skipped by chance
    try:
        with torch.enable_grad():
            features = torch.func.functional_call(encoder, (parameters, buffers), (image,))
    finally:
        for module, mode in modes.items():
            module.training = mode
    seen, names = set[Any](), {id(parameter): name for name, parameter in parameters.items()}
    return [[names[i] for i in _leaves(feature.grad_fn, seen) if i in names] for feature in features]


def _leaves(root: Any, seen: set[Any]) -> list[int]:
    """Ids of the leaf tensors of an autograd graph below `root`, past the nodes `seen` before (which grow)."""
    found, stack = [], [root]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "torch::autograd::AccumulateGrad":
            found.append(id(node.variable))
        stack.extend(following for following, _ in node.next_functions)
    return found


def _module_owners(net: nn.Module, owner: Mapping[str, str]) -> list[tuple[nn.Module, str]]:
    """Every module of the net with its block."""
    order = list(dict.fromkeys(owner.values()))
    below: dict[str, set[str]] = {}  # module name → blocks of the parameters in and below it
    for parameter, block in owner.items():
        parts = parameter.split(".")
        for depth in range(len(parts)):
            below.setdefault(".".join(parts[:depth]), set()).add(block)
    homes, last = [], order[0]
    for name, module in net.named_modules():
        around = name
        while around not in below:
            around = around.rpartition(".")[0]
        spans = below[around]
        home = max(spans, key=order.index) if name in below or len(spans) == 1 else last
        if next(module.parameters(recurse=False), None) is not None:
            last = home
        homes.append((module, home))
    return homes


def _compare(own: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> TransferReport:
    """What of `source` fits `own`, by name and shape."""
    shared = [name for name in own if name in source]
    loaded = [name for name in shared if source[name].shape == own[name].shape]
    sizes = {name: tensor.numel() for name, tensor in own.items() if name.startswith("encoder.")}
    filled = [sizes[name] for name in loaded if name in sizes]
    return TransferReport(
        loaded=tuple(loaded),
        new=tuple(name for name in own if name not in source),
        misfit=tuple(name for name in shared if source[name].shape != own[name].shape),
        unused=tuple(name for name in source if name not in own),
        encoder_tensors=len(filled) / len(sizes),
        encoder_elements=sum(filled) / sum(sizes.values()),
    )


def _copy(own: Mapping[str, Tensor], source: Mapping[str, Tensor], names: Iterable[str]) -> None:
    """Copy the named tensors of `source` into those of `own`, in place."""
    with torch.no_grad():
        for name in names:
            own[name].copy_(source[name])
