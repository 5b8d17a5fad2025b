"""One trained net as the shareable model keeps it: a description in `model.json`, its tensors in a safetensors file."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from lesionseg.errors import InputError
from lesionseg.inputs import InputSpec
from lesionseg.labels import TARGETS
from lesionseg.networks import build_unet
from lesionseg.run_weights import read_net
from lesionseg.runs import finished_run
from lesionseg.unet import DEEP_HEADS, Naming, add_crop_classifier

#: Fields of `run.json` that say where a net comes from; none names a machine's path or a patient.
PROVENANCE = ("name", "fold", "folds", "seed", "epochs", "encoder", "encoder_weights", "commit", "version", "machine",
              "store_sha256", "config_sha256", "weights_sha256", "generated")  # fmt: skip
#: Names of encoders; a colon or slash would make a library fetch from elsewhere.
_ENCODER = re.compile(r"[A-Za-z0-9_.-]+")
_DESCRIPTION = ("encoder", "decoder_channels", "input", "target", "classes", "naming")


@dataclass(frozen=True, eq=False)
class Net:
    """One trained net.

    Attributes:
        description: how it is built and fed: encoder, decoder_channels, input, target, classes, naming.
        tensors: its state by name.
        provenance: the fields `PROVENANCE` of its run.
    """

    description: dict[str, Any]
    tensors: dict[str, Tensor] = field(repr=False)
    provenance: dict[str, Any]

    @classmethod
    def from_run(cls, run: Path) -> Net:
        """The net of a finished run, its last weights; `InputError` for an unfinished run, or one of other code."""
        info = finished_run(run)
        description, tensors = read_net(run)
        if missing := set(_DESCRIPTION) - set(description):
            got = f"one without {', '.join(sorted(missing))}"
            raise InputError(run, expected="a net as this version describes it", got=got,
                             remedy="remove the run folder and train it again")  # fmt: skip
        return cls(
            {key: description[key] for key in _DESCRIPTION},
            {name: tensor.contiguous() for name, tensor in tensors.items() if name.partition(".")[0] != DEEP_HEADS},
            {name: getattr(info, name) for name in PROVENANCE},
        )

    @classmethod
    def read(cls, path: Path, content: dict[str, Any]) -> Net:
        """A net of a model folder, as `model.json` describes it; whether its tensors fit shows when it is built.

        Raises:
            InputError: a file that is missing, or another one than described.
            ValueError: a description of no such net; also `KeyError`, `TypeError`, `AttributeError`.
        """
        data = _bytes(path, content["sha256"])
        description = {key: content[key] for key in _DESCRIPTION}
        target = TARGETS[description["target"]]
        if tuple(description["classes"]) != target.classes or not _ENCODER.fullmatch(description["encoder"]):
            raise ValueError(f"classes {description['classes']} of encoder {description['encoder']!r}")
        if any(type(channels) is not int for channels in description["decoder_channels"]):
            raise ValueError(f"decoder channels {description['decoder_channels']!r}")
        try:
            net = cls(description, load(data), dict(content["provenance"]))
        except SafetensorError as error:
            raise refused(path, f"SafetensorError: {error}") from None
        _ = net.spec  # refuses what is no InputSpec
        if net.naming.by != "pixels" and len(target.lesion_types) < 2:
            raise ValueError(f"a net that names lesions by {net.naming.by}, and tells no types apart")
        return net

    @property
    def spec(self) -> InputSpec:
        """The input it was trained on."""
        return InputSpec(**self.description["input"])

    @property
    def naming(self) -> Naming:
        """What names the lesions that it finds."""
        return Naming(**self.description["naming"])

    def to_json(self) -> dict[str, Any]:
        """What `model.json` says of it."""
        return {**self.description, "sha256": _sha256(self.to_bytes()), "provenance": self.provenance}

    def to_bytes(self) -> bytes:
        """Its tensors, as a file of safetensors holds them."""
        return save(self.tensors)

    def build(self) -> nn.Module:
        """The net with its weights, in eval mode; `InputError` where the tensors are of another net."""
        encoder, channels = self.description["encoder"], self.description["decoder_channels"]
        target, by = TARGETS[self.description["target"]], self.naming.by
        types = len(target.lesion_types)
        net = build_unet(
            encoder,
            classes=len((target if by == "pixels" else TARGETS["lesion"]).classes),
            encoder_weights=None,
            decoder_channels=channels,
            slice_types=types if by == "slice" else 0,
        )
        if by == "crops":
            add_crop_classifier(net, types)
        try:
            net.load_state_dict(self.tensors)
        except RuntimeError:
            raise refused(Path(encoder), "tensors of another net than the one described") from None
        return net.eval()


def _bytes(path: Path, sha256: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise refused(path, f"no readable file ({error.strerror})") from None
    if _sha256(data) != sha256:
        raise refused(path, "another file than model.json names (checksum)")
    return data


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def refused(where: Path, got: str, remedy: str = "copy the model again, or export it anew") -> InputError:
    """The error for a model folder with something wrong in it."""
    return InputError(where, expected="a model folder made by `lesionseg export`", got=got, remedy=remedy, code="model")
