import itertools
import os

import numpy as np
import pytest
from scipy import ndimage

from lesionseg.matching import LesionCounts, Overlaps, match, number_lesions


def blobs(generator, shape, noise):
    """Two masks of blobs that differ by an amount of noise."""

    def smooth():
        return ndimage.gaussian_filter(generator.normal(size=shape), 1.2)

    first = smooth()
    second = first + noise * smooth()
    return tuple(mask > np.quantile(mask, generator.uniform(0.8, 0.97)) for mask in (first, second))


def pairs_of(n, seed=0):
    """Random pairs: volumes and single slices, near and far from each other, now and then one of them empty."""
    generator = np.random.default_rng(seed)
    for i in range(n):
        shape = (1, 40, 40) if i % 3 == 0 else (6, 20, 20)
        predicted, reference = blobs(generator, shape, generator.uniform(0, 1.5))
        if i % 40 == 7:
            predicted[:] = False
        if i % 40 == 9:
            reference[:] = False
        yield predicted, reference


def test_200_random_pairs_agree_with_panoptica():
    """From masks to figures with panoptica's own components (cc3d) and matching."""
    os.environ["PANOPTICA_CITATION_REMINDER"] = "false"
    panoptica = pytest.importorskip("panoptica")
    evaluator = panoptica.Panoptica_Evaluator(
        expected_input=panoptica.InputType.SEMANTIC,
        instance_approximator=panoptica.ConnectedComponentsInstanceApproximator(panoptica.CCABackend.cc3d),
        instance_matcher=panoptica.NaiveThresholdMatching(matching_threshold=0.5),
        instance_metrics=[panoptica.Metric.IOU],
        global_metrics=[],
    )
    some = 0
    for predicted, reference in pairs_of(200):
        masks = [mask[0] if len(mask) == 1 else mask for mask in (predicted, reference)]
        (theirs,) = evaluator.evaluate(*(mask.astype(np.uint8) for mask in masks), verbose=False).values()
        own = match(number_lesions(predicted), number_lesions(reference)).counts_at_iou(0.5)
        assert own == LesionCounts(theirs.tp, theirs.tp + theirs.fn, theirs.tp, theirs.tp + theirs.fp)
        if theirs.tp + theirs.fn + theirs.fp:
            assert 2 * own.found / (own.reference + own.predicted) == pytest.approx(theirs.rq)
        some += own.found > 0
    assert some > 100


def test_counts_at_any_overlap_are_those_of_a_slow_reference():
    for predicted, reference in pairs_of(60, seed=1):
        p, r = number_lesions(predicted), number_lesions(reference)
        found = sum((p[r == i] > 0).any() for i in range(1, r.max() + 1))
        right = sum((r[p == i] > 0).any() for i in range(1, p.max() + 1))
        assert match(p, r).counts_at_any_overlap() == LesionCounts(found, r.max(), right, p.max())


def test_iou_is_that_of_the_masks():
    for predicted, reference in pairs_of(10, seed=2):
        p, r = number_lesions(predicted), number_lesions(reference)
        iou = match(p, r).iou
        for i, j in itertools.product(range(p.max()), range(r.max())):
            a, b = p == i + 1, r == j + 1
            assert iou[i, j] == np.count_nonzero(a & b) / np.count_nonzero(a | b)


@pytest.mark.parametrize("least", [0.1, 0.3, 0.5, 0.8])
def test_no_other_pairing_has_more_pairs(least):
    generator = np.random.default_rng(3)
    for _ in range(30):
        shape = generator.integers(1, 5, 2)
        shared = generator.integers(0, 9, shape)
        sizes = [shared.sum(axis) + generator.integers(1, 4, shape[1 - axis]) for axis in (1, 0)]
        found = Overlaps(shared, *sizes)
        pairs, iou = found.pairs(least), found.iou
        rows = max(itertools.permutations([*range(shape[0]), *[None] * shape[1]], int(shape[1])),
                   key=lambda rows: quality(rows, iou, least))  # fmt: skip
        assert (len(pairs), sum(iou[p - 1, r - 1] for p, r in pairs.items())) == pytest.approx(
            quality(rows, iou, least)
        )
        assert len(set(pairs.values())) == len(pairs)


def quality(rows, iou, least):
    """Pairs and sum of IoU where reference j is paired with predicted rows[j]."""
    kept = [iou[p, r] for r, p in enumerate(rows) if p is not None and iou[p, r] >= least]
    return len(kept), sum(kept)


def line(text):
    return np.array([[[c == "#" for c in text]]])


@pytest.mark.parametrize(
    ("predicted", "reference", "at_half", "at_any"),
    [
        ("......", "......", (0, 0, 0, 0), (0, 0, 0, 0)),
        ("......", ".##...", (0, 1, 0, 0), (0, 1, 0, 0)),
        (".##...", "......", (0, 0, 0, 1), (0, 0, 0, 1)),
        (".##...", ".##...", (1, 1, 1, 1), (1, 1, 1, 1)),
        (".##...", "..##..", (0, 1, 0, 1), (1, 1, 1, 1)),  # IoU 1/3
        (".##...", ".#....", (1, 1, 1, 1), (1, 1, 1, 1)),  # IoU 1/2 counts
        ("#.#...", "####..", (0, 1, 0, 2), (1, 1, 2, 2)),  # two in one: both right, one found
        ("#####.", "#.#...", (0, 2, 0, 1), (2, 2, 1, 1)),  # one over two: both found
        ("##..##", "##....", (1, 1, 1, 2), (1, 1, 1, 2)),
        ("#.....", ".....#", (0, 1, 0, 1), (0, 1, 0, 1)),
    ],
)
def test_counts_by_hand(predicted, reference, at_half, at_any):
    found = match(number_lesions(line(predicted)), number_lesions(line(reference)))
    assert found.counts_at_iou() == LesionCounts(*at_half)
    assert found.counts_at_any_overlap() == LesionCounts(*at_any)


def test_lesions_that_touch_at_a_corner_are_one_also_across_slices():
    mask = np.zeros((2, 3, 3), dtype=bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    assert number_lesions(mask).max() == 1


def test_what_is_no_numbering_is_refused():
    ids = np.array([[[1, 3]]])
    with pytest.raises(ValueError, match="every id"):
        match(ids, ids)
    with pytest.raises(ValueError, match="one shape"):
        match(ids, ids[..., :1])
    with pytest.raises(ValueError, match="min_iou"):
        match(ids - ids, ids - ids).pairs(0)
