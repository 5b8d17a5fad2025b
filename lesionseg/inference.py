"""Nets over the slices of a volume, arrays in and out: the liver, its cleaning, class scores in the liver box, lesions.

Volumes are canonical (see `scan.canonical`). A net sees slices in batches; each slice is windowed and resized once,
though it is the neighbour of two others.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from lesionseg.boxes import Box, bounds
from lesionseg.device import ON_CPU, Inference
from lesionseg.inputs import InputSpec, paste, resize
from lesionseg.labels import LESION_TYPES, LIVER
from lesionseg.lesions import FIRST_TYPE
from lesionseg.measurements import FULL_CONNECTIVITY
from lesionseg.naming import NamedSlice, SliceInput, by_crops, by_slice
from lesionseg.unet import Naming

#: Diameter of the disc that closes gaps of the liver on a slice, in pixels (reference code of arXiv 1907.13409).
CLOSING_DIAMETER_PX = 10
BY_PIXELS = Naming()


class NetOutput(NamedTuple):
    """What a net says of a slice: scores of its pixels (K, S, S), and of its types (n_types,) by a head for these."""

    pixels: Tensor
    types: Tensor | None

    def at(self, position: int) -> NetOutput:
        """One slice of several, each with an axis before."""
        return NetOutput(self.pixels[position].float(), None if self.types is None else self.types[position].float())


class Lesions(NamedTuple):
    """What the lesion nets say of a volume (D, H, W).

    Attributes:
        classes: uint8 (D, H, W), class indices; 0 where the nets did not look.
        places: int64 (n,), flat index of each pixel of a lesion class, ascending.
        types: float32 (n, n_types), the mean over the nets of their type probabilities there.
        probabilities: float16 (K, D, H, W), the mean over the nets; None: not asked for.
    """

    classes: np.ndarray
    places: np.ndarray
    types: np.ndarray
    probabilities: np.ndarray | None


def predict_liver(
    net: nn.Module,
    spec: InputSpec,
    hu: np.ndarray,
    threshold: float,
    *,
    stride: int = 1,
    how: Inference = ON_CPU,
) -> np.ndarray:
    """Boolean (D, H, W): where the liver is more probable than `threshold`, not cleaned yet.

    With a stride, every so many slices are looked at first (and the outermost two), then those between two slices with
    liver, and from a slice with liver on towards one without until there is none. What is missed lies between two
    slices without liver that are at most a stride apart: a component of less than `stride` slices, which `clean_liver`
    would drop beside the liver. Where the first look finds nothing, every slice is looked at.
    """
    depth, height, width = hu.shape
    box, out = spec.box(None, height, width), np.zeros(hu.shape, dtype=bool)
    least = math.log(threshold / (1 - threshold))  # of two classes, the difference of scores is the log odds

    def look(slices: Sequence[int]) -> None:
        for index, _, (view,) in _views([net], spec, hu, slices, box, how._replace(mirror=False)):
            odds = resize((view.pixels[LIVER] - view.pixels[0])[None], box.side)[0]
            out[index] = paste(odds > least, box, height, width).cpu().numpy()

    first = sorted({*range(0, depth, stride), depth - 1})
    look(first)
    inner, walks = _left_to_see(out, first)
    look(inner)
    while walks:
        share = max(1, how.batch_size // len(walks))
        look(sorted(i for walk in walks for i in walk[:share]))
        walks = [walk[share:] for walk in walks if len(walk) > share and all(out[i].any() for i in walk[:share])]
    return out


def _left_to_see(found: np.ndarray, looked_at: Sequence[int]) -> tuple[list[int], list[list[int]]]:
    """After a first look: the slices to see in any case, and walks, to be seen in order until one holds no liver."""
    held = {i for i in looked_at if found[i].any()}
    inner, walks = [], []
    for low, high in itertools.pairwise(looked_at):
        between = list(range(low + 1, high))
        if not held or (low in held and high in held):
            inner += between
        elif low in held:
            walks.append(between)
        elif high in held:
            walks.append(between[::-1])
    return inner, [walk for walk in walks if walk]


def predict_lesions(
    nets: Sequence[nn.Module],
    spec: InputSpec,
    hu: np.ndarray,
    slices: Sequence[int],
    liver_box: Box,
    *,
    naming: Naming = BY_PIXELS,
    temperature: float = 1.0,
    how: Inference = ON_CPU,
    probabilities: bool = False,
) -> Lesions:
    """Class of every pixel of the given slices in the liver box: the largest mean probability over nets (and mirrors).

    Where the pixels have no types, that of a component of lesion pixels on its slice (8-neighbourhood) is that with the
    largest mean probability of slice or crop. In the maps of the classes, what is not found as lesion is as probable of
    one type as of another where crops name, and has the types of the slice where that does.

    Args:
        nets: alike in classes and input.
        spec: their input.
        hu: (D, H, W).
        slices: ascending; the others stay background.
        liver_box: of the scan.
        naming: what names lesions, alike in all nets.
        temperature: divides the scores of the types in `Lesions.types`; the classes do not depend on it.
        how: see `Inference`.
        probabilities: keep the maps of all classes.
    """
    _, height, width = hu.shape
    box, classes = spec.box(liver_box, height, width), np.zeros(hu.shape, dtype=np.uint8)
    maps, places, types = None, [np.zeros(0, np.int64)], []
    for index, image, views in _views(nets, spec, hu, slices, box, how):
        scores = [resize(view.pixels, box.side) for view in views]
        if len(scores) > 1 or probabilities:
            mean = torch.stack([view.softmax(0) for view in scores]).mean(0)
        else:
            mean = scores[0]  # the largest score is the largest probability
        plane = paste(mean.max(0).indices.to(torch.uint8), box, height, width)
        row, column = torch.nonzero(plane > LIVER, as_tuple=True)
        shown = paste(mean, box, height, width) if probabilities else None
        if naming.by == "pixels":
            at = (slice(FIRST_TYPE, None), row - box.top, column - box.left)
            shares = torch.stack([(view[at] / temperature).softmax(0) for view in scores]).mean(0).T
        elif not len(row) and shown is None:
            shares = mean.new_zeros(0, len(LESION_TYPES))
        else:
            named = _named(plane, nets, naming, SliceInput(image, box), views, how)
            shares = named.shares(temperature)[named.number[row, column]]
            plane = torch.where(plane == FIRST_TYPE, named.types(), plane)
            shown = None if shown is None else named.on(shown)
        classes[index] = plane.cpu().numpy()
        if shown is not None:
            if maps is None:
                maps = np.zeros((len(shown), *hu.shape), dtype=np.float16)
            maps[:, index] = shown.cpu().numpy()
        places.append(((index * height + row) * width + column).cpu().numpy())
        types.append(shares.cpu().numpy())
    kinds = types[0].shape[1] if types else 0
    return Lesions(classes, np.concatenate(places), np.concatenate([np.zeros((0, kinds), np.float32), *types]), maps)


def _named(
    plane: Tensor,
    nets: Sequence[nn.Module],
    naming: Naming,
    seen: SliceInput,
    views: Sequence[NetOutput],
    how: Inference,
) -> NamedSlice:
    """The lesions of class indices (H, W) of pixels without types, by what names them."""
    if naming.by == "slice":
        return by_slice(plane, [view.types for view in views if view.types is not None])
    classifiers = [net.get_submodule("classifier") for net in nets]
    return by_crops(plane, classifiers, seen, naming.crop_px, mirror=how.mirror)


def clean_liver(liver: np.ndarray) -> np.ndarray:
    """Fill holes and close gaps slice by slice, then keep the largest 3-D component of a boolean (D, H, W)."""
    radius = CLOSING_DIAMETER_PX // 2
    disc = np.hypot(*np.ogrid[-radius : radius + 1, -radius : radius + 1]) <= radius
    window = bounds(liver)
    if window is None:
        return liver
    out, inside = np.zeros_like(liver), liver[window]
    closed = np.empty_like(inside)
    for i, plane in enumerate(inside):
        padded = np.pad(plane, radius)  # or closing would eat into the border
        outside, _ = ndimage.label(~ndimage.binary_closing(padded, disc))
        # all but what hangs together with a corner: in one pass, where binary_fill_holes grows it ring by ring
        closed[i] = (outside != outside[0, 0])[radius:-radius, radius:-radius]
    components, _ = ndimage.label(closed, FULL_CONNECTIVITY)
    out[window] = components == 1 + np.argmax(np.bincount(components.ravel())[1:])
    return out


def lesion_ids(lesion: np.ndarray, least_voxels: float) -> np.ndarray:
    """Number the components (all neighbours) of a boolean (D, H, W), the largest first; smaller ones are left out.

    Returns:
        Unsigned (D, H, W) of the least width that holds every number; 0: no lesion. Of equal sizes the one whose first
        voxel comes first has the lower number.
    """
    window = bounds(lesion)
    if window is None:
        return np.zeros(lesion.shape, dtype=np.uint8)
    components, n = ndimage.label(lesion[window], FULL_CONNECTIVITY)
    sizes = np.bincount(components.ravel(), minlength=n + 1)[1:]
    kept = [i for i in np.argsort(-sizes, kind="stable") if sizes[i] >= least_voxels]
    number = np.zeros(n + 1, dtype=np.min_scalar_type(len(kept)))
    number[1 + np.array(kept, dtype=np.intp)] = np.arange(1, len(kept) + 1)
    out = np.zeros(lesion.shape, dtype=number.dtype)
    out[window] = number[components]
    return out


def lesions_in_liver(lesion: np.ndarray, liver: np.ndarray, least_voxels: float) -> np.ndarray:
    """`lesion_ids` of what is reported: large enough as found, and still so in the liver, (D, H, W) boolean each.

    The calibration of the type votes (`export`) and their use (`Cascade`) must take the same pixels for lesions.
    """
    return lesion_ids((lesion_ids(lesion, least_voxels) > 0) & liver, least_voxels)


def _views(
    nets: Sequence[nn.Module], spec: InputSpec, hu: np.ndarray, slices: Sequence[int], box: Box, how: Inference
) -> Iterator[tuple[int, Tensor, list[NetOutput]]]:
    """For each slice its input (3, S, S), and what every net says of it, and then of its mirror image where asked."""
    last, planes = len(hu) - 1, dict[int, Tensor]()
    for start in range(0, len(slices), how.batch_size):
        batch = list(slices[start : start + how.batch_size])
        around = [(max(i - 1, 0), i, min(i + 1, last)) for i in batch]
        needed = sorted({i for three in around for i in three})
        new = [i for i in needed if i not in planes]
        planes = {i: planes[i] for i in needed if i in planes}
        if new:
            planes |= zip(new, spec.encode(hu[new], box), strict=True)
        images = torch.stack([torch.stack([planes[i] for i in three]) for three in around]).to(how.device)
        with torch.inference_mode():
            said = [_said(net, images) for net in nets]
            if how.mirror:
                mirrored = [_said(net, images.flip(-1)) for net in nets]
                said += [NetOutput(view.pixels.flip(-1), view.types) for view in mirrored]
        for position, index in enumerate(batch):
            yield index, images[position], [view.at(position) for view in said]


def _said(net: nn.Module, images: Tensor) -> NetOutput:
    """What a net says of images (N, 3, S, S), with an axis of N."""
    scores = net(images)
    return NetOutput(*scores) if isinstance(scores, tuple) else NetOutput(scores, None)
