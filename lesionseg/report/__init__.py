"""`report.html`: one page that opens from disk and sends no request; CT, labels, lesions, model, all within it."""

from __future__ import annotations

import base64
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Template
from markupsafe import Markup

from lesionseg.figures import WINDOW_HU
from lesionseg.labels import COLORS, LIVER, NAMES, UNTYPED_LESION
from lesionseg.pages import policy, shared_style, template
from lesionseg.report.lesions import key_voxels, lesion_table
from lesionseg.report.pictures import key_pictures
from lesionseg.report.provenance import net_table, sections
from lesionseg.report.volumes import Volumes, embed
from lesionseg.report.words import headline, legend, notices, viewer_note
from lesionseg.scan import canonical_axes
from lesionseg.segmentation import RESEARCH_USE_ONLY, UNDETERMINED, Segmentation
from lesionseg.writing import write_text

#: The page is never larger; what gives way is the resolution of the CT in it.
MAX_BYTES = 25_000_000
#: Left free for what is not counted beforehand: the geometry and the note on the resolution.
_SPARE_BYTES = 20_000
_HERE = Path(__file__).parent


def write_report(path: Path, segmentation: Segmentation, *, title: str) -> None:
    """Write the page, whole or not at all. But for the title nothing in it names the patient: no header, no scan id.

    The CT is cut to the liver box and reduced to the 8 bits of `figures.WINDOW_HU`; on large scans it is thinned out
    until the page has at most `MAX_BYTES`, which the page then says.

    Args:
        path: the file.
        segmentation: what the cascade found.
        title: heading of the page; the name of the output folder.
    """
    table = lesion_table(segmentation)
    context: dict[str, Any] = {
        "title": title,
        "use": RESEARCH_USE_ONLY,
        "notices": notices(segmentation),
        "headline": headline(segmentation),
        "warnings": [text for text in segmentation.warnings if text != headline(segmentation)],
        "legend": legend(segmentation),
        "table": table,
        "pictures": key_pictures(segmentation),
        "single": _is_single(segmentation),
        "nets": net_table(segmentation.model),
        "sections": sections(segmentation),
        "niivue_version": _niivue_version(),
        "licence": _text("niivue.LICENSE.txt"),
        **_assets(),
    }
    empty = {"data": "", "ct": "", "labels": "", "viewer_note": ""}
    room = MAX_BYTES - _SPARE_BYTES - len(_render(context | empty).encode())
    volumes = embed(segmentation, room)
    held = {
        "data": _script_json(_data(segmentation, volumes)),
        "ct": Markup(base64.b64encode(volumes.ct).decode()),
        "labels": Markup(base64.b64encode(volumes.labels).decode()),
        "viewer_note": viewer_note(segmentation, volumes.cut),
    }
    write_text(path, _render(context | held))


def _render(context: dict[str, Any]) -> str:
    return _template().render(context)


@cache
def _template() -> Template:
    return template(_HERE)


def _data(segmentation: Segmentation, volumes: Volumes) -> dict[str, Any]:
    """What page.js needs; indices are (i, j, k), millimetres RAS, as in NIfTI and NiiVue."""
    scan, cut = segmentation.scan, volumes.cut
    order, flip = canonical_axes(scan.affine)
    index = []  # of voxels as the input counts them, along each axis of the page
    for axis in (2, 1, 0):
        first, step = float(cut.placed[axis, 3]), cut.factors[axis]
        last = scan.hu.shape[order[axis]] - 1
        index.append({"first": last - first, "step": -step} if flip[axis] else {"first": first, "step": step})
    names = NAMES | ({UNTYPED_LESION: UNDETERMINED} if any(f.probabilities for f in segmentation.findings) else {})
    return {
        "shape": cut.thinned[::-1],
        "ras": volumes.ras.tolist(),
        "inverse": np.linalg.inv(volumes.ras).tolist(),
        "position_known": scan.affine is not None,
        "single": _is_single(segmentation),
        "index": index,
        "window_hu": WINDOW_HU,
        "names": [names[label] for label in sorted(names)],
        "liver": LIVER,
        "colors": [COLORS.get(label, (0, 0, 0)) for label in sorted(names)],
        "lesions": {number: cut.index_of(voxel)[::-1] for number, voxel in key_voxels(segmentation).items()},
    }


def _is_single(segmentation: Segmentation) -> bool:
    return segmentation.scan.hu.shape[segmentation.slice_axis] == 1


def _script_json(value: Any) -> Markup:
    """JSON that may stand in a script element: nothing in it can end the element or start another."""
    return Markup(json.dumps(value, allow_nan=False).replace("<", "\\u003c"))


def _assets() -> dict[str, Markup]:
    """Style and scripts as they stand in the page, and the policy that lets nothing but them run.

    NiiVue needs no more: its volumes arrive as base64 text, its font as a `data:` picture.
    """
    held = {"style": shared_style(), "niivue": _text("niivue.min.js"), "script": _text("page.js")}
    held["policy"] = policy(held["style"], held["niivue"], held["script"])
    return {name: Markup(text) for name, text in held.items()}


def _niivue_version() -> str:
    return re.findall(r"^Version: (\S+)$", _text("niivue.LICENSE.txt"), re.MULTILINE)[0]


@cache
def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
