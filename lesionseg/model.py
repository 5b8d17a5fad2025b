"""The shareable model: a folder of `model.json` and safetensors that holds all the cascade needs; no pickle.

    MODEL/model.json
    MODEL/liver.safetensors
    MODEL/lesion-0.safetensors, lesion-1.safetensors, …   one a fold and seed: an ensemble

The names are fixed, and every file is known by its checksum: a folder from a stranger can hold wrong numbers, but it
can neither run code nor lead out of itself.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lesionseg.errors import InputError, some
from lesionseg.labels import TARGETS
from lesionseg.locking import one_at_a_time
from lesionseg.model_net import Net, refused
from lesionseg.provenance import provenance
from lesionseg.scan import Scan, canonical_axes
from lesionseg.segmentation import RESEARCH_USE_ONLY

MODEL_FILE = "model.json"
#: Changes with the layout of the folder, or with the checksums of the scans that a model has seen.
MODEL_FORMAT = 3
#: More lesion nets than this are no ensemble but a broken file.
MOST_NETS = 100
#: Of a model folder.
_FILES = re.compile(rf"{re.escape(MODEL_FILE)}|liver\.safetensors|lesion-\d+\.safetensors")
#: In the folder beside it.
_LOCK, _NEW, _OLD = ".lock", "new", "old"


@dataclass(frozen=True)
class Thresholds:
    """What the cascade decides by.

    Attributes:
        liver: least probability of the liver. (The reference's 0.2 belongs to its sigmoid and its loss.)
        undetermined: a lesion whose best type is less probable than this is `undetermined`.
        min_lesion_mm2: smaller lesions of a single slice are removed: a disc of 4 mm.
        min_lesion_mm3: smaller lesions of a volume are removed: a ball of 4 mm.
        min_lesion_px: the same in pixels or voxels where the spacing is unknown: the reference's 50.
    """

    liver: float = 0.5
    undetermined: float = 0.5
    min_lesion_mm2: float = 12.6
    min_lesion_mm3: float = 33.5
    min_lesion_px: int = 50

    def __post_init__(self) -> None:
        if not (0 < self.liver < 1 and 0 <= self.undetermined <= 1):
            raise ValueError("thresholds of probabilities must lie between 0 and 1")
        if not all(map(math.isfinite, asdict(self).values())):
            raise ValueError("thresholds must be finite")
        if min(self.min_lesion_mm2, self.min_lesion_mm3, self.min_lesion_px) < 0:
            raise ValueError("least sizes must be 0 or more")

    def least_voxels(self, scan: Scan) -> float:
        """The size below which a lesion of this scan is removed, in voxels (in pixels for a single slice)."""
        if scan.spacing_mm is None:
            return self.min_lesion_px
        order = canonical_axes(scan.affine)[0]
        thickness_mm, down_mm, across_mm = (scan.spacing_mm[axis] for axis in order)
        if scan.hu.shape[order[0]] == 1:
            return self.min_lesion_mm2 / (down_mm * across_mm)
        return self.min_lesion_mm3 / (thickness_mm * down_mm * across_mm)


@dataclass(frozen=True, eq=False)
class Model:
    """The cascade at rest: a liver net, one or more lesion nets of one kind, and what they are used with.

    Attributes:
        liver: finds the liver in a whole slice.
        lesions: nets alike but for fold and seed; their probabilities are averaged.
        thresholds: see there.
        temperature: of the type votes (`calibration.vote`); 1: as the nets say.
        calibration: how the temperature came out, or why there is none.
        selected: how the schedule was chosen where test results chose it; None: named by the user.
        trained_on: hashes of the voxels that any net, or the temperature, has seen.
        generated: trained on generated CT.
        implanted: the lesion nets were trained on lesions implanted in real CT.
        provenance: commit, version and machine kind of the export.
    """

    liver: Net
    lesions: tuple[Net, ...]
    thresholds: Thresholds = Thresholds()
    temperature: float = 1.0
    calibration: dict[str, Any] | None = None
    selected: dict[str, Any] | None = None
    trained_on: tuple[str, ...] = ()
    generated: bool = False
    implanted: bool = False
    provenance: dict[str, Any] = field(default_factory=provenance)

    @property
    def target(self) -> str:
        """Key of `labels.TARGETS` of the lesion nets."""
        return self.lesions[0].description["target"]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names of the lesion nets."""
        return TARGETS[self.target].classes

    @property
    def lesion_types(self) -> tuple[str, ...]:
        """Names of the types the model tells apart; one: it names none."""
        return TARGETS[self.target].lesion_types

    @cached_property
    def identity(self) -> str:
        """Hash of all that `save` writes."""
        return hashlib.sha256(self._text.encode()).hexdigest()

    @property
    def card(self) -> dict[str, Any]:
        """What a report says of the model: `model.json`, with the scans it has seen counted and not listed."""
        content = json.loads(self._text)
        del content["trained_on"]
        return {**content, "identity": self.identity[:12], "scans_seen": len(self.trained_on)}

    def save(self, folder: Path) -> None:
        """Write the folder, whole or not at all; one of an earlier model is replaced.

        Killed between the two steps of that, it leaves the earlier model aside, and the next `save` or `load` puts it
        back.

        Raises:
            InputError: the folder holds something else, or another process is at work on it.
        """
        folder = folder.resolve()  # `.` has no name of its own
        _refuse_other_files(folder)
        with _work_beside(folder) as beside:
            new = beside / _NEW
            new.mkdir()
            for name, net in self._files():
                (new / name).write_bytes(net.to_bytes())
            (new / MODEL_FILE).write_text(self._text)
            if folder.exists():  # a folder with files cannot be replaced in one step
                folder.rename(beside / _OLD)
            new.rename(folder)

    @classmethod
    def load(cls, folder: Path) -> Model:
        """Read a folder made by `save`.

        Raises:
            InputError: no such folder, another format, a file missing or changed, or content that does not fit.
        """
        path = folder / MODEL_FILE
        try:
            _put_back(folder.resolve())
            content = json.loads(path.read_text(), parse_float=_finite, parse_constant=_finite)
            if content["format"] != MODEL_FORMAT:
                raise ValueError(f"format {content['format']}, this version reads {MODEL_FORMAT}")
            if not 1 <= len(content["lesions"]) <= MOST_NETS:
                raise ValueError(f"{len(content['lesions'])} lesion nets")
            model = cls(
                Net.read(folder / "liver.safetensors", content["liver"]),
                tuple(Net.read(folder / f"lesion-{i}.safetensors", net) for i, net in enumerate(content["lesions"])),
                Thresholds(**content["thresholds"]),
                float(content["temperature"]),
                content["calibration"],
                content["selected"],
                tuple(map(str, content["trained_on"])),
                bool(content["generated"]),
                bool(content["implanted"]),
                dict(content["provenance"]),
            )
            model._check()
        except InputError:
            raise
        except OSError as error:
            nothing = "a file" if folder.is_file() else "no such folder"
            got = f"no {MODEL_FILE} ({error.strerror})" if folder.is_dir() else nothing
            raise refused(folder, got, "name a folder made by `lesionseg export`") from None
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise refused(path, f"{type(error).__name__}: {error}") from None
        return model

    def _check(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"a temperature of {self.temperature}")
        if self.liver.description["target"] != "liver" or self.target not in TARGETS or self.target == "liver":
            raise ValueError("the nets are not those of a cascade")
        if any(net.description != self.lesions[0].description for net in self.lesions):
            raise ValueError("lesion nets that differ in how they are built or fed")

    def _files(self) -> Iterator[tuple[str, Net]]:
        yield "liver.safetensors", self.liver
        for i, net in enumerate(self.lesions):
            yield f"lesion-{i}.safetensors", net

    @cached_property
    def _text(self) -> str:
        """Of `model.json`. Made once: the checksums go over every weight."""
        nets = [net.to_json() for _, net in self._files()]
        content = {
            "format": MODEL_FORMAT,
            "use": RESEARCH_USE_ONLY,
            "generated": self.generated,
            "implanted": self.implanted,
            "liver": nets[0],
            "lesions": nets[1:],
            "thresholds": asdict(self.thresholds),
            "temperature": self.temperature,
            "calibration": self.calibration,
            "selected": self.selected,
            "provenance": self.provenance,
            "trained_on": sorted(self.trained_on),
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _beside(folder: Path) -> Path:
    """Where `save` makes the new model, and keeps the earlier one while the new one takes its place."""
    return folder.with_name(f".{folder.name}.lesionseg")


@contextmanager
def _work_beside(folder: Path) -> Iterator[Path]:
    """That folder, empty, for one process at a time. In the end the earlier model is back if none took its place."""
    beside = _beside(folder)
    busy = InputError(folder, expected="one process at a time that makes a model", got="another at work",
                      remedy="wait until it ends, or name another folder")  # fmt: skip
    with one_at_a_time(beside, _LOCK, busy):
        try:
            _restore(folder)  # a killed process may have left one
            yield beside
        finally:
            _restore(folder)
            shutil.rmtree(beside, ignore_errors=True)  # NFS keeps the open lock under another name


def _restore(folder: Path) -> None:
    """Put the earlier model back where none is in its place, and remove what else lies beside."""
    beside = _beside(folder)
    if not folder.exists() and (beside / _OLD).is_dir():
        (beside / _OLD).rename(folder)
    for left in (beside / _OLD, beside / _NEW):
        shutil.rmtree(left, ignore_errors=True)


def _put_back(folder: Path) -> None:
    """`_restore`, where `save` ended between its two steps."""
    if not folder.exists() and (_beside(folder) / _OLD).is_dir():
        with _work_beside(folder):
            pass


def _refuse_other_files(folder: Path) -> None:
    """Raise `InputError` unless the folder is not there, empty, or holds a model and nothing else."""
    entries = list(folder.iterdir()) if folder.is_dir() else [folder] if folder.exists() else []
    other = sorted(path.name for path in entries if not (_FILES.fullmatch(path.name) and path.is_file()))
    if not other and (not entries or _is_model_file(folder / MODEL_FILE)):
        return
    named = f"other files ({some(other)})"
    raise InputError(folder, expected="a new folder, or one of an earlier model and nothing else",
                     got=named if other else f"a {MODEL_FILE} of something else, or none",
                     remedy="name another folder, or move what lies there")  # fmt: skip


def _is_model_file(path: Path) -> bool:
    """A `model.json` of ours, of any format."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.keys() >= {"format", "use", "liver", "lesions", "thresholds"}


def _finite(text: str) -> float:
    """A number of JSON; Python's reader takes NaN and infinity as well."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text}")
    return value
