"""Where the result comes from, as tables for the page. A model may come from a stranger: anything may stand in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lesionseg.report.lesions import signed
from lesionseg.segmentation import Segmentation

#: Hashes are shown with so many characters, as `git` and the comparison do.
_HASH_LENGTH = 12
#: Longer texts and lists are cut; `model.json` has them whole.
_MOST_CHARACTERS = 300
#: Columns of the table of nets: title, and where the value lies in the net's entry of the card.
_NETS = (
    ("schedule", ("provenance", "name")),
    ("fold", ("provenance", "fold")),
    ("of folds", ("provenance", "folds")),
    ("seed", ("provenance", "seed")),
    ("epochs", ("provenance", "epochs")),
    ("encoder", ("encoder",)),
    ("encoder weights", ("provenance", "encoder_weights")),
    ("input, px", ("input", "size_px")),
    ("lesions named by", ("naming", "by")),
    ("commit", ("provenance", "commit")),
    ("training data", ("provenance", "store_sha256")),
    ("started from", ("provenance", "weights_sha256")),
    ("weights", ("sha256",)),
)
_CALIBRATION_ERRORS = {"ece": "calibration error (ECE)", "nll": "negative log-likelihood", "brier": "Brier score",
                       "accuracy": "share rightly typed"}  # fmt: skip
#: Names as a reader understands them; others stand as they are in the card.
_NAMES = {
    "scans_seen": "scans seen in training",
    "generated": "trained on generated CT",
    "implanted": "trained on implanted lesions",
    "provenance": "export",
    "min_lesion_mm2": "least lesion on a single slice, mm²",
    "min_lesion_mm3": "least lesion in a volume, mm³",
    "min_lesion_px": "least lesion of unknown spacing, px",
    "least_lesion_voxels": "least lesion here, voxels",
    "tta": "mirror images averaged (TTA)",
    "among": "value of",
}


class Table(NamedTuple):
    """Titles of the columns, and the rows."""

    titles: tuple[str, ...]
    rows: list[list[str]]


class Section(NamedTuple):
    """A heading with names and values."""

    title: str
    rows: list[tuple[str, str]]


def net_table(card: Mapping[str, Any]) -> Table:
    """A row for each net of the model."""
    lesions = card.get("lesions")
    liver = card.get("liver")
    nets = [("liver", {**liver, "naming": {}} if isinstance(liver, Mapping) else liver)]
    nets += [("lesion", net) for net in lesions] if isinstance(lesions, Sequence) else []
    rows = [[name, *(_at(net, path) for _, path in _NETS)] for name, net in nets if isinstance(net, Mapping)]
    return Table(("net", *(title for title, _ in _NETS)), rows)


def sections(segmentation: Segmentation) -> list[Section]:
    """Model, calibration, choice of the schedule, thresholds and settings; empty ones left out."""
    card = segmentation.model
    facts = ("identity", "scans_seen", "generated", "implanted", "provenance")
    model = {name: card[name] for name in facts if name in card}
    found = [
        Section("Model", list(_rows(model))),
        Section("Calibration of the type votes", _calibration(card)),
        Section("Choice of the schedule", _selected(card)),
        Section("Thresholds", _thresholds(card)),
        Section("Settings", [row for row in _rows(segmentation.settings) if not row[0].startswith("thresholds")]),
        Section("Time, s", list(_rows(segmentation.seconds))),
    ]
    return [section for section in found if section.rows]


def _calibration(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The temperature, errors before and after it side by side, and how it was fitted."""
    rows = [("temperature", _text(card["temperature"]))] if "temperature" in card else []
    held = card.get("calibration")
    if not isinstance(held, Mapping):
        return [*rows, ("calibration", _text(held))] if "calibration" in card else rows
    before, after = held.get("before"), held.get("after")
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        rows += [
            (title, f"{_text(before.get(name))} before, {_text(after.get(name))} after")
            for name, title in _CALIBRATION_ERRORS.items()
            if name in before or name in after
        ]
    skipped = ("before", "after", "change", "intervals_95", "parts")
    return rows + list(_rows({name: value for name, value in held.items() if name not in skipped}))


def _thresholds(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A lesion's best type below `undetermined` names no type; the liver is where its net says at least `liver`."""
    titles = {"liver": "least probability of the liver", "undetermined": "least probability of a type"}
    return [(titles.get(name, name), value) for name, value in _rows(card.get("thresholds"))]


def _selected(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    if "selected" not in card:
        return []
    if card["selected"] is None:
        return [("chosen by", "the user, not by test results")]
    return list(_rows(card["selected"]))


def _rows(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of plain data; what is nested has its names joined."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _rows(item, f"{name} · {_words(key)}" if name else _words(key))
    elif name:
        yield name, _text(value)


def _at(value: Any, path: tuple[str, ...]) -> str:
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    text = _text(value)
    is_hash = path[-1].endswith("sha256") and value is not None
    return text[:_HASH_LENGTH] if is_hash else text


def _words(name: Any) -> str:
    return _NAMES.get(str(name)) or _cut(str(name)).replace("_", " ")


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return signed(f"{value:.4g}")
    if isinstance(value, list | tuple):
        return _cut(", ".join(map(_text, value)))
    return _cut(str(value))


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + " …"
