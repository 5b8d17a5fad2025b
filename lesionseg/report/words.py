"""What the page says in words of a segmentation: the headline, the notices, how the CT is shown."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from lesionseg.figures import WINDOW_HU
from lesionseg.labels import COLORS, LESION_TYPES, LIVER, NAMES, is_liver
from lesionseg.pages import css_color
from lesionseg.report.lesions import signed, type_color
from lesionseg.report.volumes import Cut
from lesionseg.scan import canonical_axes
from lesionseg.segmentation import Segmentation


@dataclass(frozen=True)
class Swatch:
    """A name with its colour (`#rrggbb`)."""

    name: str
    color: str


def notices(segmentation: Segmentation) -> list[str]:
    """What must be in plain sight besides the use."""
    found = []
    if segmentation.model.get("generated"):
        found.append("The model was trained on generated CT (the phantom): its results say nothing about patients.")
    if segmentation.model.get("implanted"):
        found.append("The model learned its types from lesions implanted in real CT, not from patients' own.")
    if segmentation.scan.generated:
        found.append("The scan is generated, not of a patient.")
    return found


def headline(segmentation: Segmentation) -> str:
    """How many lesions of which type, or that there are none, or no liver; the liver's volume."""
    findings = segmentation.findings
    if not is_liver(segmentation.labels).any():
        return "No liver was found, so no lesion was looked for."
    liver = "" if segmentation.liver_ml is None else f" Liver with its lesions: {segmentation.liver_ml:,.0f} ml."
    if not findings:
        return f"No lesion was found.{liver}"
    counts = Counter(finding.type for finding in findings)
    kinds = "" if set(counts) == {"lesion"} else ": " + ", ".join(
        f"{counts[name]} {name}" for name in sorted(counts, key=lambda name: (-counts[name], name))
    )  # fmt: skip
    return f"{len(findings)} {'lesion' if len(findings) == 1 else 'lesions'}{kinds}.{liver}"


def legend(segmentation: Segmentation) -> list[Swatch]:
    """The colours that may be seen in the viewer, and what they stand for."""
    findings = segmentation.findings
    swatches = [Swatch(NAMES[LIVER], css_color(COLORS[LIVER]))] if is_liver(segmentation.labels).any() else []
    if any(finding.probabilities for finding in findings):
        swatches += [Swatch(name, type_color(name)) for name in LESION_TYPES]
    untyped = dict.fromkeys(finding.type for finding in findings if finding.type not in LESION_TYPES)
    return swatches + [Swatch(name, type_color(name)) for name in untyped]


def viewer_note(segmentation: Segmentation, cut: Cut) -> str:
    """What of the scan the viewer shows, and how."""
    scan = segmentation.scan
    order, _ = canonical_axes(scan.affine)
    d, h, w = (scan.hu.shape[axis] for axis in order)
    low, high = (signed(f"{value:.0f}") for value in WINDOW_HU)
    parts = [f"The scan has {d} {'slice' if d == 1 else 'slices'} of {h} × {w} pixels{_size(segmentation, order)}."]
    if cut.shape != (d, h, w):
        parts.append("The viewer shows the part around the liver.")
    parts.append(f"Grey values run from {low} to {high} HU in 256 steps, so densities in it are approximate.")
    if cut.factors != (1, 1, 1):
        down, tall, wide = cut.factors
        parts.append(
            f"To keep the page small, {down} × {tall} × {wide} voxels (slice × row × column) became one in the viewer: "
            "grey values are averaged, and lesions look coarser and a little larger than they are. Table and key "
            "pictures come from the full resolution."
        )
    return " ".join(parts)


def _size(segmentation: Segmentation, order: tuple[int, int, int]) -> str:
    spacing = segmentation.scan.spacing_mm
    if spacing is None:
        return " of unknown size"
    thickness, height, width = (spacing[axis] for axis in order)
    size = f" of {height:.3g} × {width:.3g} mm"
    if math.isnan(thickness):
        return size
    return f"{size}, {thickness:.3g} mm {'thick' if segmentation.scan.hu.shape[order[0]] == 1 else 'apart'}"
