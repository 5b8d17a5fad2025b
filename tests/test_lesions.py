"""Lesions of a slice against a flood fill in plain Python, scikit-learn's F1, and hand-made slices."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import f1_score

from lesionseg.lesions import Counts, FalsePositive, LesionMatch, compare_slice, components, type_probabilities

N_TYPES = 3
class_maps = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: st.tuples(*[arrays(np.uint8, shape, elements=st.integers(0, 1 + N_TYPES))] * 2)
)


def flood_fill(pixels: set[tuple[int, int]]) -> list[set[tuple[int, int]]]:
    """Connected sets of pixels, corners included, ordered by their first pixel row by row."""
    left, found = set(pixels), []
    for start in sorted(pixels):
        if start not in left:
            continue
        group, todo = set(), [start]
        left.discard(start)
        while todo:
            h, w = todo.pop()
            group.add((h, w))
            near = {(h + i, w + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            todo += near
        found.append(group)
    return found


def pixels_where(mask: np.ndarray) -> set[tuple[int, int]]:
    return {(int(h), int(w)) for h, w in np.argwhere(mask)}


def majority(classes: list[int]) -> int:
    return min(set(classes), key=lambda c: (-classes.count(c), c))


def slow_lesions(predicted: np.ndarray, reference: np.ndarray, min_overlap: float) -> tuple[LesionMatch, ...]:
    out = []
    for lesion_type in range(2, 2 + N_TYPES):
        for lesion in flood_fill(pixels_where(reference == lesion_type)):
            inside = [int(predicted[p]) for p in lesion if predicted[p] > 1]
            found = len(inside) / len(lesion) >= min_overlap
            out.append(LesionMatch(lesion_type, len(lesion), len(inside), found, majority(inside) if found else None))
    return tuple(out)


def slow_false_positives(predicted: np.ndarray, reference: np.ndarray) -> tuple[FalsePositive, ...]:
    groups = flood_fill(pixels_where(predicted > 1))
    wrong = [group for group in groups if all(reference[p] <= 1 for p in group)]
    return tuple(FalsePositive(majority([int(predicted[p]) for p in group]), len(group)) for group in wrong)


@settings(max_examples=3 * settings.default.max_examples, deadline=None)
@given(class_maps, st.sampled_from([0.01, 0.25, 0.5, 1.0]))
def test_agrees_with_flood_fill(maps: tuple[np.ndarray, np.ndarray], min_overlap: float) -> None:
    predicted, reference = maps
    figures = compare_slice(predicted, reference, N_TYPES, min_overlap)
    assert figures.lesions == slow_lesions(predicted, reference, min_overlap)
    assert figures.false_positives == slow_false_positives(predicted, reference)


@settings(max_examples=2 * settings.default.max_examples, deadline=None)
@given(class_maps, st.integers(0, 2**32 - 1))
def test_type_probabilities_are_means_over_the_predicted_pixels(maps: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    predicted, reference = maps
    types = np.random.default_rng(seed).random((3, *reference.shape))
    expected = []
    for lesion_type in (2, 3, 4):
        for lesion in flood_fill(pixels_where(reference == lesion_type)):
            seen = [types[:, row, column] for row, column in lesion if predicted[row, column] >= 2]
            expected.append(np.mean(seen, axis=0) if seen else np.full(3, np.nan))
    np.testing.assert_allclose(
        type_probabilities(predicted, reference, types), np.reshape(expected, (-1, 3)), atol=1e-12
    )


@given(class_maps)
def test_dice_agrees_with_scikit_learn(maps: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, reference = maps
    figures = compare_slice(predicted, reference, N_TYPES)

    def f1(a: np.ndarray, b: np.ndarray) -> float:
        return f1_score(b.ravel(), a.ravel(), zero_division=np.nan) if (a | b).any() else math.nan

    types = [f1(predicted == i, reference == i) for i in range(2, 2 + N_TYPES)]
    assert figures.dice1 == pytest.approx(f1(predicted > 1, reference > 1), nan_ok=True)
    assert figures.dice_types == pytest.approx(types, nan_ok=True)
    assert figures.dice2 == pytest.approx(math.nan if np.isnan(types).all() else np.nanmean(types), nan_ok=True)
    assert Counts.of(predicted > 1, reference > 1).dice == pytest.approx(figures.dice1, nan_ok=True)


@settings(deadline=None)
@given(class_maps)
def test_components_are_those_of_flood_fill(maps: tuple[np.ndarray, np.ndarray]) -> None:
    mask = maps[0] > 1
    labelled, n = components(mask)
    assert [pixels_where(labelled == i) for i in range(1, n + 1)] == flood_fill(pixels_where(mask))
    assert ((labelled > 0) == mask).all()


NAN = math.nan
EMPTY_CASES = [  # predicted, reference, Dice1, Dice2: rows of one pixel each, by hand
    ([0, 0], [0, 0], NAN, NAN),
    ([1, 1], [1, 1], NAN, NAN),
    ([2, 1], [1, 1], 0.0, 0.0),
    ([1, 1], [2, 1], 0.0, 0.0),
    ([2, 1], [2, 1], 1.0, 1.0),
    ([3, 1], [2, 1], 1.0, 0.0),
    ([2, 3], [2, 2], 1.0, (2 / 3 + 0) / 2),
    ([2, 3, 4], [2, 3, 1], 4 / 5, 2 / 3),
]


@pytest.mark.parametrize(("predicted", "reference", "dice1", "dice2"), EMPTY_CASES)
def test_dice_by_hand(predicted: list[int], reference: list[int], dice1: float, dice2: float) -> None:
    figures = compare_slice(np.array([predicted], np.uint8), np.array([reference], np.uint8), N_TYPES)
    assert figures.dice1 == pytest.approx(dice1, nan_ok=True)
    assert figures.dice2 == pytest.approx(dice2, nan_ok=True)


def test_dice_of_empty_masks_is_undefined() -> None:
    assert math.isnan(Counts.of(np.zeros((3, 3), bool), np.zeros((3, 3), bool)).dice)


def draw(*rows: str) -> np.ndarray:
    """A slice from text: one character a pixel."""
    return np.array([[int(c) for c in row] for row in rows], np.uint8)


def test_types_that_touch_are_two_lesions_and_corners_connect() -> None:
    reference = draw("2201", "1021", "3111")
    lesions = compare_slice(np.ones_like(reference), reference, N_TYPES).lesions
    assert [(x.type, x.area_px, x.found, x.predicted_type) for x in lesions] == [
        (2, 3, False, None),
        (3, 1, False, None),
    ]


def test_a_quarter_of_the_area_finds_a_lesion_and_less_does_not() -> None:
    reference = draw("22221", "11111", "22222")
    quarter, fifth = compare_slice(draw("41111", "11111", "41111"), reference, N_TYPES).lesions
    assert (quarter.overlap, quarter.found, quarter.predicted_type) == (0.25, True, 4)
    assert (fifth.overlap, fifth.found, fifth.predicted_type) == (0.2, False, None)


def test_a_tie_goes_to_the_lower_class_index() -> None:
    figures = compare_slice(draw("43111", "11111", "14311"), draw("22111", "11111", "11111"), N_TYPES)
    assert figures.lesions[0].predicted_type == 3
    assert figures.false_positives == (FalsePositive(predicted_type=3, area_px=2),)


def test_one_shared_pixel_makes_a_component_no_false_positive() -> None:
    predicted, reference = draw("22222", "11111", "31113"), draw("11112", "11112", "11112")
    figures = compare_slice(predicted, reference, N_TYPES)
    assert figures.false_positives == (FalsePositive(predicted_type=3, area_px=1),)


def test_a_lesion_next_to_a_prediction_is_not_touched_by_it() -> None:
    assert len(compare_slice(draw("2211"), draw("1122"), N_TYPES).false_positives) == 1


@pytest.mark.parametrize(
    ("predicted", "reference", "min_overlap"),
    [
        (np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), 0.25),
        (np.zeros((1, 2, 3), np.uint8), np.zeros((1, 2, 3), np.uint8), 0.25),
        (np.full((2, 2), 5, np.uint8), np.zeros((2, 2), np.uint8), 0.25),
        (np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8), 0.25),
        (np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8), 0.0),
        (np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8), 1.1),
    ],
)
def test_refuses_what_it_cannot_compare(predicted: np.ndarray, reference: np.ndarray, min_overlap: float) -> None:
    with pytest.raises(ValueError, match="got"):
        compare_slice(predicted, reference, N_TYPES, min_overlap)


def test_counts_refuse_masks_of_different_shapes() -> None:
    with pytest.raises(ValueError, match="one shape"):
        Counts.of(np.zeros((2, 1), bool), np.zeros((1, 2), bool))
