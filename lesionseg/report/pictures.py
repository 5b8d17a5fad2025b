"""Key pictures: each of the largest lesions outlined on its key slice, as PNG."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lesionseg.boxes import bounds, crop
from lesionseg.figures import AIR_HU, liver_view, overlay
from lesionseg.pages import data_address
from lesionseg.scan import canonical, canonical_axes
from lesionseg.segmentation import Finding, Segmentation

#: Lesions beyond the largest so many have no picture.
MOST_PICTURES = 12
#: Length of the scale bar.
BAR_MM = 50.0
_SIDE_INCHES, _DOTS_PER_INCH = 3.0, 120


@dataclass(frozen=True)
class Picture:
    """A key picture: the lesion, the PNG as a `data:` address, the words beneath it, whether a scale bar is in it."""

    finding: Finding
    source: str
    caption: str
    bar: bool


def key_pictures(segmentation: Segmentation) -> list[Picture]:
    """Pictures of the largest lesions, in radiological view; all that is written in them is number and type."""
    scan = segmentation.scan
    order, flip = canonical_axes(scan.affine)
    hu, labels, ids = (canonical(a, scan.affine) for a in (scan.hu, segmentation.labels, segmentation.lesion_ids))
    spacing = None if scan.spacing_mm is None else (scan.spacing_mm[order[1]], scan.spacing_mm[order[2]])
    pictures = []
    for finding in segmentation.findings[:MOST_PICTURES]:
        d = len(hu) - 1 - finding.key_slice if flip[0] else finding.key_slice
        png = _draw(hu[d], labels[d], ids[d] == finding.id, f"{finding.id} {finding.type}", spacing)
        source = data_address(png, "image/png")
        caption = f"slice {finding.key_slice}" if len(hu) > 1 else ""
        pictures.append(Picture(finding, source, caption, bar=spacing is not None))
    return pictures


def _draw(
    hu: np.ndarray, labels: np.ndarray, lesion: np.ndarray, title: str, spacing_mm: tuple[float, float] | None
) -> bytes:
    """PNG of a slice (H, W), cut to the labels on it with a margin."""
    box = liver_view(labels)
    assert box is not None  # the lesion is on it
    figure = Figure(figsize=(_SIDE_INCHES, _SIDE_INCHES), dpi=_DOTS_PER_INCH, facecolor="black")
    axes = figure.add_axes((0, 0, 1, 1))
    down, across = spacing_mm or (1.0, 1.0)
    overlay(axes, crop(hu, box, fill=AIR_HU), crop(labels, box, fill=0), aspect=down / across)
    _point_out(axes, crop(lesion, box, fill=0), box.side)
    if spacing_mm is not None:
        left, length, bottom = 0.04 * box.side, BAR_MM / across, 0.96 * box.side
        axes.plot([left, left + length], [bottom, bottom], color="white", linewidth=1.5, solid_capstyle="butt")
    figure.text(0.03, 0.97, title, color="white", fontsize=10, weight="bold", va="top", parse_math=False)
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out, metadata={"Software": None})
    return out.getvalue()


def _point_out(axes: Axes, lesion: np.ndarray, side: int) -> None:
    """Corners around the lesion (H, W): which of several it is."""
    gap, arm = 0.03 * side, 0.035 * side
    window = bounds(lesion)
    assert window is not None  # its key slice shows it
    rows, columns = window
    for y, inward_y in ((rows.start - gap, arm), (rows.stop - 1 + gap, -arm)):
        for x, inward_x in ((columns.start - gap, arm), (columns.stop - 1 + gap, -arm)):
            axes.plot([x + inward_x, x, x], [y, y, y + inward_y], color="white", linewidth=1.2)
