"""Arrays → small pictures with the outlines burned in: fast enough to be made while a net trains."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from scipy import ndimage

from lesionseg.boxes import Box, bounds, crop
from lesionseg.figures import grey_crop
from lesionseg.labels import COLORS, LIVER, is_liver

#: Side of one picture.
SIDE_PX = 256
_GAP_PX, _LINE_PX, _MARGIN_PX, _ARM_PX = 4, 2, 5, 8


def side_by_side(
    hu: np.ndarray, reference: np.ndarray, predicted: np.ndarray, box: Box, lesion: np.ndarray | None = None
) -> np.ndarray:
    """A slice twice, outlined by the reference (left) and by the prediction (right); RGB (SIDE_PX, W, 3), uint8.

    Args:
        hu: (H, W).
        reference: (H, W), ids of `lesionseg.labels`.
        predicted: as `reference`.
        box: the part of the slice that is shown.
        lesion: mask (H, W) of the lesion that corners point out in both; None: none.
    """
    pair = [outlined(hu, labels, box) for labels in (reference, predicted)]
    if lesion is not None:
        for picture in pair:
            _point_out(picture, _enlarged(lesion, box))
    gap = np.full((SIDE_PX, _GAP_PX, 3), 255, np.uint8)
    return np.concatenate([pair[0], gap, pair[1]], axis=1)


def outlined(hu: np.ndarray, labels: np.ndarray, box: Box) -> np.ndarray:
    """One slice (H, W) cut to a box, in the window of all figures, with outlines; RGB (SIDE_PX, SIDE_PX, 3), uint8."""
    grey = Image.fromarray(grey_crop(hu, box))
    picture = np.repeat(np.asarray(grey.resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR))[..., None], 3, axis=2)
    large = _enlarged(labels, box)
    for label, color in COLORS.items():
        mask = is_liver(large) if label == LIVER else large == label
        if mask.any():
            inner = ndimage.binary_erosion(mask, iterations=1 if label == LIVER else _LINE_PX, border_value=1)
            picture[mask & ~inner] = color
    return picture


def png(picture: np.ndarray) -> bytes:
    """An RGB picture (H, W, 3) as a PNG file, packed quickly: a net waits meanwhile."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, format="png", compress_level=3)
    return out.getvalue()


def _enlarged(labels: np.ndarray, box: Box) -> np.ndarray:
    """Labels (H, W) cut to a box, at the size of a picture."""
    cut = Image.fromarray(crop(labels.astype(np.uint8), box, fill=0))
    return np.asarray(cut.resize((SIDE_PX, SIDE_PX), Image.Resampling.NEAREST))


def _point_out(picture: np.ndarray, lesion: np.ndarray) -> None:
    """White corners around a lesion (SIDE_PX, SIDE_PX), in place."""
    window = bounds(lesion > 0)
    if window is None:
        return
    rows, columns = window
    last = SIDE_PX - 1
    top, bottom = max(rows.start - _MARGIN_PX, 0), min(rows.stop - 1 + _MARGIN_PX, last)
    left, right = max(columns.start - _MARGIN_PX, 0), min(columns.stop - 1 + _MARGIN_PX, last)
    for y, inward_y in ((top, 1), (bottom, -1)):
        for x, inward_x in ((left, 1), (right, -1)):
            ys = np.clip(y + inward_y * np.arange(_ARM_PX), 0, last)
            xs = np.clip(x + inward_x * np.arange(_ARM_PX), 0, last)
            picture[ys, x] = 255
            picture[y, xs] = 255
