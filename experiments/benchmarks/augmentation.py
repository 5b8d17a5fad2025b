"""Samples per second and core through the augmentation: ours, MONAI's, kornia's on a batch, torchvision's v2.

Usage: augmentation.py [--sizes N N] [--samples N] [--repeats N] [--draws N] [--output JSON]

One thread. Images are (3, S, S) float32 with class indices (S, S). The rivals do the same as far as they can: turn,
zoom of each axis, shift, mirror and contrast by their own transforms; salt and pepper by kornia's own, by ours in the
others, which have none. torchvision zooms both axes alike, shifts by whole pixels and cannot repeat the border. Each is
called in its fastest way: MONAI without tracking of metadata and with its grid kept, kornia on batches of two sizes,
torchvision with nothing to fill in.

Whether a difference from our distribution is found is told below the table, by Kolmogorov-Smirnov tests of `--draws`
images each through ours and through a rival: the smallest of the p values, times their number. Of an image that holds
its own coordinates: where three landmarks come from, along both axes; the zoom of each axis, their ratio and product,
and the turn, as the landmarks tell them; and the factor of contrast. The border is left out, so that what fills it is
not looked at. Of a grey image, for kornia's salt and pepper: the shares of the darkest and of the brightest pixels,
and that no others have changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rounds import Row, left_out_if_missing, publish, rounds, seconds
from scipy import stats
from torch import Tensor

from lesionseg.data.augment import Augmentation

#: Images (N, 3, S, S) and class indices (N, S, S) → the same, changed.
Way = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
OURS, KORNIA = "lesionseg", "kornia on the batch"
#: Slices of a batch in every profile.
BATCH = 8


def one_by_one(way: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], images: Tensor, targets: Tensor):
    changed = [way(image, target) for image, target in zip(images, targets, strict=True)]
    return torch.stack([image for image, _ in changed]), torch.stack([target for _, target in changed])


def ours(ranges: Augmentation) -> Way:
    rng = np.random.default_rng(0)
    return partial(one_by_one, lambda image, target: ranges(image, target, int(rng.integers(2**32))))


def monai(ranges: Augmentation, side: int) -> Way:
    from monai.data import set_track_meta
    from monai.transforms import Compose, Lambdad, RandAffined, RandFlipd, RandScaleIntensityd
    from monai.utils import set_determinism

    set_determinism(0)
    move = RandAffined(
        ["image", "target"],
        prob=1.0,
        rotate_range=np.deg2rad(ranges.rotation_degrees),
        scale_range=(ranges.zoom, ranges.zoom),
        translate_range=(ranges.shift * side, ranges.shift * side),
        mode=("bilinear", "nearest"),
        padding_mode="border",
        spatial_size=(side, side),
        cache_grid=True,
    )
    flip = RandFlipd(["image", "target"], prob=0.5, spatial_axis=1)
    grey = RandScaleIntensityd("image", factors=ranges.grey_level, prob=1.0)
    change = Compose([move, flip, grey, Lambdad("image", salt_and_pepper(ranges))])

    def way(image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        set_track_meta(False)
        changed = change({"image": image, "target": target[None]})
        return changed["image"], changed["target"][0].to(target.dtype)

    return partial(one_by_one, way)


def kornia(ranges: Augmentation) -> Way:
    from kornia.augmentation import (
        AugmentationSequential,
        RandomAffine,
        RandomContrast,
        RandomHorizontalFlip,
        RandomSaltAndPepperNoise,
    )

    zoom, grey = (1 - ranges.zoom, 1 + ranges.zoom), (1 - ranges.grey_level, 1 + ranges.grey_level)
    change = AugmentationSequential(
        RandomAffine(ranges.rotation_degrees, (ranges.shift,) * 2, zoom * 2, p=1.0, padding_mode="border"),
        RandomHorizontalFlip(p=0.5),
        RandomContrast(grey, p=1.0, clip_output=False),
        *([RandomSaltAndPepperNoise((0.0, ranges.salt_pepper), (0.5, 0.5), p=1.0)] if ranges.salt_pepper else []),
        data_keys=["input", "mask"],
    )

    def way(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        images, moved = change(images, targets[:, None].float())
        return images, moved[:, 0].to(targets.dtype)

    return way


def torchvision(ranges: Augmentation) -> Way:
    from torchvision import tv_tensors
    from torchvision.transforms import InterpolationMode, v2

    zoom, low, high = (1 - ranges.zoom, 1 + ranges.zoom), 1 - ranges.grey_level, 1 + ranges.grey_level
    grey = v2.Lambda(lambda image: image * float(torch.empty(1).uniform_(low, high)), tv_tensors.Image)
    noise = v2.Lambda(salt_and_pepper(ranges), tv_tensors.Image)
    bilinear = InterpolationMode.BILINEAR
    move = v2.RandomAffine(ranges.rotation_degrees, (ranges.shift,) * 2, zoom, interpolation=bilinear, fill=None)
    change = v2.Compose([move, v2.RandomHorizontalFlip(), grey, noise])

    def way(image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        image, target = change(tv_tensors.Image(image), tv_tensors.Mask(target))
        return image.as_subclass(Tensor), target.as_subclass(Tensor)

    return partial(one_by_one, way)


def salt_and_pepper(ranges: Augmentation) -> Callable[[Tensor], Tensor]:
    """Our noise, for those that have none."""
    rng = np.random.default_rng(0)

    def noise(image: Tensor) -> Tensor:
        image = image.clone()
        ranges.salt_and_pepper(image, rng)
        return image

    return noise


def in_batches(way: Way, size: int, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """What a way makes of so many images at a time."""
    changed = [way(*part) for part in zip(images.split(size), targets.split(size), strict=True)]
    return torch.cat([image for image, _ in changed]), torch.cat([target for _, target in changed])


def ways_of(ranges: Augmentation, side: int, notes: list[str]) -> dict[str, Way]:
    """Ours and each rival that is installed; `notes` gets a line for each that is not."""
    makers = {
        OURS: partial(ours, ranges),
        "MONAI dict transforms": partial(monai, ranges, side),
        KORNIA: partial(kornia, ranges),
        "torchvision v2": partial(torchvision, ranges),
    }
    ways = {}
    for name, make in makers.items():
        with left_out_if_missing(f"{name}, {side} px", notes):
            ways[name] = make()
    return ways


def samples_per_second(way: Way, images: Tensor, targets: Tensor) -> float:
    return len(images) / seconds(lambda: way(images, targets))()


def shown(way: Way, side: int, draws: int) -> np.ndarray:
    """(draws, 12): where three landmarks come from, rows and columns as shares of the side; both zooms, their ratio and
    product, and the turn, that they tell; the contrast."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    image = torch.stack([rows / side, columns / side, torch.ones(side, side)])
    middle = slice(side // 4, -(side // 4))  # what lies here comes from within, whatever the draw
    places = torch.stack([rows, columns, torch.ones_like(rows)], -1)[middle, middle].reshape(-1, 3) / side
    landmarks = torch.tensor([(0.5, 0.5), (0.25, 0.5), (0.25, 0.25)])
    found = []
    for _ in range(draws):
        moved = way(image[None].clone(), torch.zeros(1, side, side, dtype=torch.int64))[0][0, :, middle, middle]
        factor = moved[2].median()
        # "gels": the default takes the third column for one that says nothing, as it is small beside so many rows
        affine = torch.linalg.lstsq(places, (moved[:2] / factor).reshape(2, -1).T, driver="gels").solution
        seen = torch.cat([landmarks, torch.full((3, 1), 1 / side)], 1) @ affine
        down, across = seen[0] - seen[1], seen[1] - seen[2]
        zooms = float(down.norm()), float(across.norm())
        told = [*zooms, zooms[0] / zooms[1], zooms[0] * zooms[1], float(torch.atan2(down[1], down[0]))]
        found.append([*seen.flatten().tolist(), *told, float(factor)])
    return np.array(found)


def speckled(way: Way, side: int, draws: int) -> np.ndarray:
    """(draws, 2): shares of the pixels of a grey image that become its darkest and its brightest value.

    Raises:
        ValueError: a pixel became something else, or did not change in all channels.
    """
    image = torch.full((1, 3, side, side), 0.5)
    image[..., 0, :2] = torch.tensor([0.0, 1.0])  # the ends; this row is left out below
    found = []
    for _ in range(draws):
        noisy = way(image.clone(), torch.zeros(1, side, side, dtype=torch.int64))[0][0, :, 1:]
        dark, bright = (noisy < 1e-4).all(0), (noisy > 1 - 1e-4).all(0)
        if ((noisy - 0.5).abs() > 1e-4).any(0).ne(dark | bright).any():
            raise ValueError("a pixel changed and is neither the darkest nor the brightest in all channels")
        found.append([float(dark.float().mean()), float(bright.float().mean())])
    return np.array(found)


def p_value(mine: np.ndarray, theirs: np.ndarray) -> float:
    """The smallest p value that columns of draws (N, K) are of one distribution, times K."""
    found = [stats.ks_2samp(a, b).pvalue for a, b in zip(mine.T, theirs.T, strict=True)]
    return float(min(1.0, min(found) * len(found)))


def likeness(ranges: Augmentation, side: int, draws: int) -> dict[str, float]:
    """The p value of each rival's moves and contrast against ours, and of kornia's salt and pepper."""
    moved = ways_of(replace(ranges, salt_pepper=0.0), side, [])
    mine = shown(moved.pop(OURS), side, draws)
    found = {f"moves and contrast, {name}": p_value(mine, shown(way, side, draws)) for name, way in moved.items()}
    noise = ways_of(Augmentation(0.0, 0.0, 0.0, False, 0.0, ranges.salt_pepper), side, [])
    if KORNIA in noise:
        mine, theirs = (speckled(noise[name], side, draws) for name in (OURS, KORNIA))
        found[f"salt and pepper, {KORNIA}"] = p_value(mine, theirs)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 320], metavar="PX")
    parser.add_argument("--samples", type=int, default=32, help="in a batch, which is one round")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--draws", type=int, default=1000, help="for the comparison of the distributions")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark/augmentation.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ranges, rows, notes = Augmentation(), [], list[str]()
    for side in options.sizes:
        images, targets = torch.rand(options.samples, 3, side, side), torch.randint(0, 5, (options.samples, side, side))
        ways = ways_of(ranges, side, notes)
        if KORNIA in ways:
            whole = ways.pop(KORNIA)
            sizes = sorted({min(BATCH, options.samples), options.samples})
            ways |= {f"kornia on batches of {size}": partial(in_batches, whole, size) for size in sizes}
        timed = {name: partial(samples_per_second, way, images, targets) for name, way in ways.items()}
        rates = rounds(timed, options.repeats)
        mine = rates.pop(OURS)
        figure = f"augmentation at {side} px, one core"
        rows += [Row(figure, "samples/s", mine, name, "rival", theirs, least=1) for name, theirs in rates.items()]
    p_values = {side: likeness(ranges, side, options.draws) for side in options.sizes}
    notes += [
        f"augmentation at {side} px, {what}: {'no difference from ours found' if p > 0.05 else 'differs from ours'}, "
        f"p = {p:.2g} ({options.draws} draws each)"
        for side, found in p_values.items()
        for what, p in found.items()
    ]
    publish(rows, options.output, notes=notes, threads=1, draws=options.draws, difference_p=p_values)


if __name__ == "__main__":
    main()
