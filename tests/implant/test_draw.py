"""Implants: where they lie, what they change; HU as their models say, noise and blur as the slice has them."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from lesionseg.implant import implant
from lesionseg.implant.draw import known_spacing
from lesionseg.implant.host import LESION_GAP_MM
from lesionseg.labels import LESION_IDS, LESION_TYPES, LIVER
from lesionseg.phantom.appearance import Contrast, draw_diameter_mm, draw_lesion
from lesionseg.phantom.lesion import lesion_patch

SPACING_MM = (3.0, 0.8, 0.8)


def made(slab, kinds, seed=0, spacing_mm=SPACING_MM, **options):
    hu, labels = slab(**options)
    out = implant(np.random.default_rng(seed), hu, labels, kinds, spacing_mm, middle=len(hu) // 2)
    assert out is not None
    return hu, labels, out


@settings(max_examples=25, deadline=None)
@example(seed=3, depth=3, lesion=False, kinds=["hemangioma", "metastasis", "metastasis"])
@example(seed=8911, depth=2, lesion=True, kinds=["cyst", "cyst"])  # a pixel just as far as the border is
@given(
    seed=st.integers(0, 2**32 - 1),
    depth=st.integers(1, 3),
    lesion=st.booleans(),
    kinds=st.lists(st.sampled_from(list(LESION_TYPES)), min_size=1, max_size=3),
)
def test_labels_are_where_hu_changed_in_the_liver_and_apart_from_lesions(slab, seed, depth, lesion, kinds):
    hu, labels, out = made(slab, kinds, seed, depth=depth, lesion=lesion)
    new, changed = out.labels != labels, out.hu != hu
    assert new[depth // 2].any()
    assert (labels[changed | new] == LIVER).all()
    near = ndimage.binary_dilation(changed, iterations=3)  # the tip of a lesion is faint: rounding can hide it
    assert near[new].all()
    assert changed[new].mean() > 0.9  # the rest are equal by chance
    apart = ndimage.distance_transform_edt(~(labels > LIVER), SPACING_MM) if lesion else np.full(labels.shape, np.inf)
    assert apart[changed].min() >= LESION_GAP_MM - 0.8
    assert set(np.unique(out.labels[new])) <= {LESION_IDS[kind] for kind in kinds}
    assert (out.hu.dtype, out.labels.dtype) == (np.int16, np.uint8)


def test_lesions_of_one_slice_keep_apart_from_each_other(slab):
    for seed in range(8):
        _, _, out = made(slab, ["cyst", "hemangioma", "metastasis"], seed)
        ids = np.unique(out.labels[out.labels > LIVER])
        for label in ids:
            away = ndimage.distance_transform_edt(out.labels[0] != label, SPACING_MM[1:])
            others = (out.labels[0] > LIVER) & (out.labels[0] != label)
            assert not others.any() or away[others].min() > LESION_GAP_MM


@pytest.mark.parametrize("kind", LESION_TYPES)
def test_the_noise_goes_on_through_a_lesion(slab, kind):
    """The same implant with and without noise differ by the noise: spread and grain as in the liver around it."""
    inside, around, grain = [], [], []
    for seed in range(6):
        hu, labels = slab(seed)
        still, _ = slab(seed, noise_hu=0)
        out = implant(np.random.default_rng(seed), hu, labels, [kind], SPACING_MM)
        lesion = out.labels[0] > LIVER
        quiet = ndimage.gaussian_filter(out.hu[0].astype(float), 3)
        residual = out.hu[0] - quiet
        core = ndimage.binary_erosion(lesion, iterations=2)
        ring = ndimage.binary_dilation(lesion, iterations=9) & ~ndimage.binary_dilation(lesion, iterations=4)
        ring &= (labels[0] == LIVER) & (still[0] < 100)
        if kind == "cyst" and core.sum() > 20:  # homogeneous: all that varies is noise
            inside.append(out.hu[0][core].std())
            around.append(hu[0][ring].std())
        grain.append(np.corrcoef(residual[core], (hu - still)[0][core])[0, 1])
    if kind == "cyst":
        assert np.mean(inside) / np.mean(around) == pytest.approx(1, abs=0.12)
    assert np.mean(grain) > 0.75


def model_contrasts(kind: str, n: int) -> list[float]:
    """Mean HU under the mask of lesions of the appearance model, over a flat liver of the HU that it is made for."""
    contrasts = []
    for seed in range(n):
        rng = np.random.default_rng(seed)
        diameter_mm = draw_diameter_mm(rng, kind)
        lesion = draw_lesion(rng, kind, center_mm=(rng.uniform(-0.25, 0.25) * diameter_mm, 40, 40),
                             diameter_mm=diameter_mm, contrast=Contrast(110, 165))  # fmt: skip
        patch = lesion_patch(lesion, (1, 101, 101), SPACING_MM, blur_mm=1.3)
        hu = patch.implant(np.full((1, 101, 101), 110, np.float32), 110)
        contrasts.append(float(hu[patch.mask].mean()) - 110)
    return contrasts


@pytest.mark.parametrize("liver_hu", [70, 140])
@pytest.mark.parametrize("kind", LESION_TYPES)
def test_the_contrast_to_the_liver_is_that_of_the_model(slab, kind, liver_hu):
    """Whatever the liver, tissue keeps its contrast to it; fluid keeps its HU."""
    contrasts = []
    for seed in range(50):
        _, _, out = made(slab, [kind], seed, liver_hu=liver_hu, noise_hu=4)
        contrasts.append(out.hu[out.labels > LIVER].mean() - liver_hu)
    expected = np.mean(model_contrasts(kind, 50))
    if kind == "cyst":  # small ones are lifted by the liver around them
        assert np.mean(contrasts) + liver_hu == pytest.approx(expected + 110, abs=8)
    else:
        assert np.mean(contrasts) == pytest.approx(expected, abs=12)


def test_the_veins_give_way(slab):
    """No vein shines through a cyst."""
    worst = []
    for seed in range(12):
        hu, labels = slab(seed, noise_hu=0)
        labels[0, np.abs(np.subtract.outer(np.arange(160), np.arange(160))) > 30] = 0  # only along the vein is liver
        out = implant(np.random.default_rng(seed), hu, labels, ["cyst"], SPACING_MM)
        if out is not None:
            core = ndimage.binary_erosion(out.labels[0] > LIVER, iterations=2)
            worst += [np.abs(out.hu[0][core] - np.median(out.hu[0][core])).max()] if core.any() else []
    assert worst
    assert np.median(worst) < 20  # the vein stands out by 55 HU


def test_the_border_is_as_sharp_as_the_slice(slab):
    """Of two like slices, the one of finer noise gives the same lesion the sharper border."""
    widths = []
    for peak in (0.12, 0.35):
        hu, _, out = made(slab, ["cyst"], 3, noise_peak_per_mm=peak, noise_hu=3)
        lesion = (out.labels > LIVER).sum()
        widths.append(((out.hu != hu).sum() - lesion) / np.sqrt(lesion))
    assert widths[0] > 1.15 * widths[1]


def test_a_seed_gives_the_same_implant_and_the_slices_stay(slab):
    hu, labels = slab(depth=3)
    before = hu.copy(), labels.copy()
    first, again, other = (
        implant(np.random.default_rng(seed), hu, labels, ["metastasis"], SPACING_MM, middle=1) for seed in (5, 5, 6)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first.hu, other.hu)
    assert np.array_equal(hu, before[0])
    assert np.array_equal(labels, before[1])


def test_neighbouring_slices_show_one_lesion(slab):
    _, _, out = made(slab, ["metastasis"], 2, depth=3, spacing_mm=(1.0, 0.8, 0.8))
    areas = (out.labels > LIVER).sum((1, 2))
    assert areas.min() > 0.7 * areas.max()
    _, count = ndimage.label(out.labels > LIVER)
    assert count == 1


def test_without_room_there_is_no_implant(slab):
    hu, labels = slab()
    labels[labels == LIVER] = 0
    assert implant(np.random.default_rng(0), hu, labels, ["cyst"], SPACING_MM) is None
    labels[0, 80:83, 80:83] = LIVER
    assert implant(np.random.default_rng(0), hu, labels, ["cyst"], SPACING_MM) is None


def test_usual_numbers_stand_for_unknown_ones():
    assert known_spacing(None, (1, 512, 400)) == (5.0, 380 / 512, 380 / 512)
    assert known_spacing((math.nan, 0.7, 0.6), (1, 512, 512)) == (5.0, 0.7, 0.6)
    assert known_spacing((2.0, 0.7, 0.6), (9, 512, 512)) == (2.0, 0.7, 0.6)
