"""Augmentation, seen through an image that holds the coordinates of its own pixels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.transforms import Affine
from scipy import ndimage

from lesionseg.data.augment import Augmentation, Move

SIZE, SEEDS = 48, range(50)
MOVES = Augmentation(flip=False, grey_level=0, salt_pepper=0)
STILL = replace(MOVES, rotation_degrees=0, zoom=0, shift=0)


def coordinates() -> torch.Tensor:
    """(3, S, S): row, column, and the distance of each pixel from the border."""
    rows, columns = np.indices((SIZE, SIZE), dtype=np.float32)
    border = np.minimum(np.minimum(rows, columns), SIZE - 1 - np.maximum(rows, columns))
    return torch.from_numpy(np.stack([rows, columns, border]))


def fitted(moved: torch.Tensor) -> np.ndarray:
    """The (2, 3) affine that says which source pixel each pixel of `moved` shows; inner pixels are all it needs."""
    inner = moved[2].numpy() > 2  # not where the border is repeated
    points = np.argwhere(inner) - (SIZE - 1) / 2
    values = moved[:2].numpy()[:, inner].T - (SIZE - 1) / 2
    solution, *_ = np.linalg.lstsq(np.c_[points, np.ones(len(points))], values, rcond=None)
    np.testing.assert_allclose(np.c_[points, np.ones(len(points))] @ solution, values, atol=1e-2)  # an affine it is
    return solution.T


def no_target() -> torch.Tensor:
    return torch.zeros(SIZE, SIZE, dtype=torch.int64)


@pytest.mark.parametrize("augmentation", [Augmentation(), MOVES])
def test_the_same_seed_gives_the_same_sample_and_another_seed_another(augmentation):
    image, target = coordinates(), (coordinates()[0] > 20).long()
    torch.manual_seed(1)
    first = augmentation(image, target, 5)
    torch.manual_seed(2)  # no other source of chance
    again, other = augmentation(image, target, 5), augmentation(image, target, 6)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_plain_tensors_come_out_and_the_input_stays():
    image, target = coordinates(), no_target()
    before = image.clone()
    moved, labels = Augmentation()(image, target, 0)
    assert type(moved) is torch.Tensor
    assert type(labels) is torch.Tensor
    assert (moved.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert (moved.shape, labels.shape) == (image.shape, target.shape)
    assert torch.equal(image, before)


@pytest.mark.parametrize("flip", [True, False])
def test_image_and_target_move_together(flip):
    """Each pixel shows the class of the place that its coordinates name; also as scipy moves the target."""
    target = torch.from_numpy(np.random.default_rng(0).integers(0, 5, (SIZE // 4, SIZE // 4)))
    target = target.repeat_interleave(4, 0).repeat_interleave(4, 1)
    for seed in SEEDS:
        moved, labels = replace(MOVES, flip=flip)(coordinates(), target, seed)
        place = moved[:2].numpy()
        sharp = np.abs(place - np.floor(place) - 0.5).min(0) > 1e-2  # not halfway between two pixels
        rows, columns = np.rint(place).astype(int)
        np.testing.assert_array_equal(labels.numpy()[sharp], target.numpy()[rows, columns][sharp])

        matrix, inner = fitted(moved), moved[2].numpy() > 2
        offset = matrix[:, 2] + (SIZE - 1) / 2 * (1 - matrix[:, :2].sum(1))
        theirs = ndimage.affine_transform(target.numpy(), matrix[:, :2], offset, order=0)
        assert (theirs == labels.numpy())[inner & sharp].mean() > 0.999


def matrices(move: Move) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and offset, moved pixel → pixel of the image, as scipy takes them: mirror, zoom, shift, turn in turn."""
    middle, (sin, cos) = (SIZE - 1) / 2, (np.sin(move.angle), np.cos(move.angle))
    turn = np.array([[cos, -sin], [sin, cos]])
    matrix = turn @ np.diag(move.zoom) @ np.diag([1, -1 if move.mirrored else 1])
    return matrix, turn @ np.multiply(move.shift, SIZE) + middle - matrix @ (middle, middle)


@pytest.mark.parametrize(
    "move",
    [
        Move(0.26, (1.1, 0.9), (0.05, -0.03), mirrored=False),
        Move(-0.26, (0.93, 1.04), (-0.05, 0.02), mirrored=True),
        Move(0.0, (1.0, 1.0), (0.0, 0.25), mirrored=False),
        Move(np.pi / 2, (1.0, 1.0), (0.125, 0.0), mirrored=True),
    ],
)
def test_a_move_is_that_of_monai_and_of_scipy(move):
    rng = np.random.default_rng(0)
    image = torch.from_numpy(ndimage.gaussian_filter(rng.normal(size=(3, SIZE, SIZE)), (0, 1, 1)).astype(np.float32))
    target = torch.from_numpy(np.kron(rng.integers(0, 5, (SIZE // 4, SIZE // 4)), np.ones((4, 4), np.int64)))
    moved, labels = move(image, target)

    shift = [share * SIZE for share in move.shift]
    monai = Affine(move.angle, translate_params=shift, scale_params=move.zoom, padding_mode="border", image_only=True)
    theirs = [monai(image, mode="bilinear").as_tensor(), monai(target[None].float(), mode="nearest").as_tensor()[0]]
    theirs = [tensor.flip(-1) if move.mirrored else tensor for tensor in theirs]
    torch.testing.assert_close(moved, theirs[0], rtol=0, atol=1e-4)
    assert (labels == theirs[1]).float().mean() > 0.999  # halfway between two pixels, rounding chooses

    scipys = [ndimage.affine_transform(plane, *matrices(move), order=1, mode="nearest") for plane in image.numpy()]
    np.testing.assert_allclose(moved.numpy(), scipys, rtol=0, atol=1e-4)
    scipys_labels = ndimage.affine_transform(target.numpy(), *matrices(move), order=0, mode="nearest")
    assert (labels.numpy() == scipys_labels).mean() > 0.999


def test_moves_stay_in_their_ranges_and_reach_for_their_ends():
    affines = [fitted(MOVES(coordinates(), no_target(), seed)[0]) for seed in SEEDS]
    angles, zooms, shifts = [], [], []
    for affine in affines:
        u, s, vt = np.linalg.svd(affine[:, :2])
        zooms.extend(s)
        rotation = u @ vt
        angles.append(np.degrees(np.arctan2(rotation[1, 0], rotation[0, 0])))
        shifts.extend(np.linalg.solve(affine[:, :2], affine[:, 2]) / SIZE)
    for values, low, high in ((angles, -15, 15), (zooms, 0.9, 1.1), (shifts, -0.05 * 1.12, 0.05 * 1.12)):
        middle, reach = (low + high) / 2, (high - low) / 2
        assert np.abs(np.array(values) - middle).max() < reach * 1.05
        assert np.min(values) < middle - 0.7 * reach
        assert np.max(values) > middle + 0.7 * reach


def test_mirrored_in_half_of_the_samples_or_never():
    def mirrored(augmentation):
        moved = [augmentation(coordinates(), no_target(), seed)[0] for seed in range(60)]
        return sum(np.linalg.det(fitted(image)[:, :2]) < 0 for image in moved)

    assert mirrored(MOVES) == 0
    assert 15 < mirrored(replace(MOVES, flip=True)) < 45
    left_right = next(
        image
        for seed in SEEDS
        if (image := replace(STILL, flip=True)(coordinates(), no_target(), seed)[0])[1, 0, 0] > 1
    )
    torch.testing.assert_close(left_right, coordinates().flip(-1), rtol=0, atol=1e-3)  # never upside down


def test_nothing_asked_for_nothing_changed():
    image, target = torch.randn(3, SIZE, SIZE), torch.randint(0, 5, (SIZE, SIZE))
    moved, labels = STILL(image, target, 3)
    torch.testing.assert_close(moved, image, rtol=0, atol=1e-3)
    assert torch.equal(labels, target)


def test_contrast_changes_by_a_tenth_at_most():
    image = torch.full((3, SIZE, SIZE), 2.0)
    factors = [float(replace(STILL, grey_level=0.1)(image, no_target(), seed)[0].mean()) / 2 for seed in SEEDS]
    assert 0.9 <= min(factors) < 0.93
    assert 1.07 < max(factors) <= 1.1


def test_salt_and_pepper_take_a_few_pixels_of_all_channels_to_the_ends():
    image = torch.rand(3, SIZE, SIZE)
    image[0, 0, 0], image[0, 0, 1] = -1, 2
    shares = []
    for seed in SEEDS:
        noisy, target = replace(STILL, salt_pepper=0.05)(image, no_target(), seed)
        dark, bright = (noisy == noisy.amin()).all(0), (noisy == noisy.amax()).all(0)
        assert torch.equal(dark | bright, ((noisy - image).abs() > 1e-3).any(0))
        shares.append(float((dark | bright).float().mean()))
        assert not target.any()
    assert max(shares) < 0.05 + 4 * np.sqrt(0.05 / SIZE**2)
    assert max(shares) > 0.04
    assert min(shares) < 0.01
