"""The cascade put together."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from lesionseg.boxes import liver_box
from lesionseg.cascade import Cascade
from lesionseg.errors import InputError
from lesionseg.inference import lesion_ids
from lesionseg.inputs import paste, resize
from lesionseg.labels import LESION_IDS
from lesionseg.scan import Case, Scan, array_checksum, to_canonical

#: Canonical: D to the head, H to the back, W to the left.
AFFINE = np.array([[0, 0, 0.8, -90], [0, 0.7, 0, 20], [5.0, 0, 0, 700], [0, 0, 0, 1]])


def noise(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Blotches, so that the net has something to tell apart."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(60, 90, (shape[0], -(-shape[1] // 8), -(-shape[2] // 8)))
    return coarse.repeat(8, 1).repeat(8, 2)[:, : shape[1], : shape[2]].astype(np.int16)


def blobs(shape: tuple[int, int, int], seed: int = 0) -> Scan:
    """A scan in canonical orientation with something to find on every slice."""
    return Scan(noise(shape, seed), "scan", (5.0, 0.7, 0.8), AFFINE)


def turned(scan: Scan, order: tuple[int, ...], flip: tuple[bool, ...]) -> tuple[Scan, Callable]:
    """The same patient stored along other axes, and how an array of the first becomes one of the second."""
    axes = [axis for axis in range(3) if flip[axis]]

    def laid(array):
        return np.ascontiguousarray(np.flip(array.transpose(order), axes))

    affine = scan.affine[:, [*order, 3]].copy()
    for axis in axes:
        affine[:, 3] += affine[:, axis] * (scan.hu.shape[order[axis]] - 1)
        affine[:, axis] *= -1
    spacing = tuple(scan.spacing_mm[axis] for axis in order)
    return Scan(laid(scan.hu), "turned", spacing, affine), laid


@pytest.fixture(scope="module")
def cascade(make_model):
    return Cascade(make_model(members=2, temperature=1.7), device="cpu", batch_size=4)


@pytest.fixture(scope="module")
def segmented(cascade):
    return cascade.segment(blobs((7, 90, 104), seed=1))


def test_a_segmentation_is_consistent(segmented):
    seg = segmented
    assert len(seg.findings) >= 3
    assert [finding.id for finding in seg.findings] == list(range(1, len(seg.findings) + 1))
    assert set(np.unique(seg.lesion_ids)) == set(range(len(seg.findings) + 1))
    sizes = [finding.voxels for finding in seg.findings]
    assert sizes == sorted(sizes, reverse=True)
    label = {**LESION_IDS, "undetermined": 5}
    for finding in seg.findings:
        mask = seg.lesion_ids == finding.id
        assert finding.voxels == mask.sum()
        assert set(np.unique(seg.labels[mask])) == {label[finding.type]}
        assert ndimage.label(mask, np.ones((3, 3, 3)))[1] == 1
        assert finding.voxels * 5 * 0.7 * 0.8 >= 33.5
        assert sum(finding.probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert finding.type == "undetermined" or finding.probabilities[finding.type] == finding.probability
        assert (finding.probability < 0.4) == (finding.type == "undetermined")
    assert ((seg.lesion_ids > 0) == (seg.labels > 1)).all()
    assert seg.liver_ml == pytest.approx((seg.labels > 0).sum() * 5 * 0.7 * 0.8 / 1000)
    assert seg.warnings == ()
    assert seg.probabilities is None
    assert set(seg.seconds) == {"liver net", "lesion nets", "measures"}


@pytest.mark.parametrize(
    ("order", "flip"),
    list(itertools.product(itertools.permutations(range(3)), itertools.product([False, True], repeat=3))),
)
def test_every_orientation_gives_the_same_lesions_at_the_same_places(cascade, segmented, order, flip):
    scan, laid = turned(segmented.scan, order, flip)
    seg = cascade.segment(scan)
    np.testing.assert_array_equal(seg.labels, laid(segmented.labels))
    np.testing.assert_array_equal(seg.lesion_ids, laid(segmented.lesion_ids))
    assert seg.labels.flags.c_contiguous
    assert seg.slice_axis == order.index(0)
    for a, b in zip(segmented.findings, seg.findings, strict=True):
        assert math.dist(a.centroid_mm, b.centroid_mm) < 1e-6
        place = scan.affine @ [*ndimage.center_of_mass(seg.lesion_ids == b.id), 1]
        assert math.dist(place[:3], b.centroid_mm) < 1e-6
        assert (a.type, a.long_axis_mm, a.voxels) == (b.type, pytest.approx(b.long_axis_mm), b.voxels)


def test_a_slice_goes_the_way_of_a_volume(cascade):
    """D = 1: the same scan with its only slice three times has the same pixels on the middle one."""
    one = blobs((1, 90, 104), seed=3)
    seg = cascade.segment(one)
    assert seg.findings
    assert seg.liver_ml is None
    assert all(finding.volume_ml is None and finding.area_mm2 >= 12.6 for finding in seg.findings)
    three = cascade.segment(replace(one, hu=one.hu.repeat(3, 0)))
    lesion = three.labels[1] > 1
    ids = lesion_ids(lesion[None], 12.6 / 0.56)
    np.testing.assert_array_equal(seg.labels[0] > 1, ids[0] > 0)


def test_the_type_is_the_vote_of_calibrated_probabilities(make_model):
    """One net, by hand: softmax over the types of scores / temperature, the mean over the pixels of the lesion."""
    model = make_model(temperature=2.0)
    scan = blobs((2, 90, 104), seed=1)
    cascade = Cascade(model, device="cpu")
    seg = cascade.segment(scan, probabilities=True)
    net, spec = model.lesions[0].build(), model.lesions[0].spec
    liver = cascade.find_liver(scan.hu)
    box = liver_box(liver)
    assert seg.findings
    assert seg.classes == ("background", "liver", *LESION_IDS)
    np.testing.assert_allclose(seg.probabilities.sum(0)[seg.labels > 0], 1, atol=5e-3)
    scores = []
    with torch.inference_mode():
        for i in range(2):
            around = scan.hu[[max(i - 1, 0), i, min(i + 1, 1)]]
            cut = net(spec.encode(around, box)[None])[0]
            scores.append(paste(resize(cut, box.side), box, *scan.hu.shape[1:]).numpy())
    scores = np.stack(scores, 1)[2:] / 2.0
    shares = np.exp(scores) / np.exp(scores).sum(0)
    for finding in seg.findings:
        expected = shares[:, seg.lesion_ids == finding.id].mean(1)
        np.testing.assert_allclose(list(finding.probabilities.values()), expected, atol=1e-4)


def test_a_given_liver_takes_the_place_of_the_net(cascade):
    scan = blobs((3, 90, 104))
    liver = np.zeros(scan.hu.shape, bool)
    liver[1, 20:60, 20:60] = True
    seg = cascade.segment(scan, liver=liver)
    np.testing.assert_array_equal(seg.labels > 0, liver)
    assert seg.settings["liver"] == "given"
    with pytest.raises(InputError, match="the shape of the scan"):
        cascade.segment(scan, liver=liver[:2])
    empty = cascade.segment(scan, liver=np.zeros_like(liver), probabilities=True)
    assert empty.findings == ()
    assert not empty.labels.any()
    assert empty.probabilities.shape == (5, 3, 90, 104)
    assert "empty" in empty.warnings[0]


@pytest.mark.parametrize("thickness_mm", [3.0, math.nan])
def test_a_slice_in_another_plane_is_refused(cascade, thickness_mm):
    coronal = np.array([[0, 0, -1.0, 0], [1.0, 0, 0, 0], [0, -1.0, 0, 0], [0, 0, 0, 1]])
    hu = noise((1, 90, 104))
    with pytest.raises(InputError, match="an axial slice; got a slice in another plane; give the series"):
        cascade.segment(Scan(hu, "scan", (thickness_mm, 1.0, 1.0), coronal))


@pytest.mark.parametrize(
    ("shape", "affine"), [((90, 1, 104), np.eye(4)), ((90, 104, 1), np.eye(4)[[2, 1, 0, 3]]), ((90, 1, 104), None)]
)
def test_lines_of_pixels_are_no_slices(cascade, shape, affine):
    """As of a coronal slice cut from a NIfTI volume, which keeps the axes of its volume."""
    with pytest.raises(InputError, match="an axial slice; got a slice in another plane; give the series"):
        cascade.segment(Scan(noise(shape), "scan", (1.0, 1.0, 1.0), affine))


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
def test_a_given_liver_gives_the_same_lesions_in_every_orientation(cascade, segmented, order):
    """The labels once lost every lesion where the array of the mask was not in C order."""
    scan, laid = turned(segmented.scan, order, (False, True, False))
    seg = cascade.segment(scan, liver=laid(segmented.labels > 0))
    assert seg.findings
    np.testing.assert_array_equal(seg.labels > 1, seg.lesion_ids > 0)
    np.testing.assert_array_equal(seg.labels, laid(segmented.labels))


def test_no_liver_is_said(cascade):
    seg = cascade.segment(Scan(np.full((2, 64, 64), -1000, np.int16), "air"), liver=None)
    if not seg.labels.any():
        assert "No liver was found" in seg.warnings[-1]


def test_unknown_spacing_is_said_and_measured_in_pixels(cascade):
    seg = cascade.segment(Scan(noise((1, 90, 104)), "png"))
    assert "in pixels" in seg.warnings[0]
    assert "orientation is unknown" in seg.warnings[1]
    assert seg.findings
    for finding in seg.findings:
        assert finding.area_mm2 is finding.long_axis_mm is finding.centroid_mm is None
        assert finding.area_px >= 5


def test_a_model_without_types_calls_every_lesion_lesion(make_model):
    seg = Cascade(make_model("lesion"), device="cpu").segment(blobs((3, 90, 104)))
    assert {(finding.type, len(finding.probabilities)) for finding in seg.findings} == {("lesion", 0)}
    assert set(np.unique(seg.labels[seg.lesion_ids > 0])) == {5}


def test_mirror_images_are_averaged(make_model):
    """With test-time augmentation a mirrored slice gives the mirrored lesions."""
    model = make_model()
    hu = noise((1, 64, 64), seed=2)
    liver = np.ones(hu.shape, bool)
    tta = Cascade(model, device="cpu", tta=True)
    a, b = (tta.segment(Scan(x, "x"), liver=liver, probabilities=True) for x in (hu, hu[..., ::-1].copy()))
    np.testing.assert_allclose(a.probabilities, b.probabilities[..., ::-1], atol=2e-3)
    plain = Cascade(model, device="cpu").segment(Scan(hu, "x"), liver=liver, probabilities=True)
    assert np.abs(plain.probabilities - a.probabilities).max() > 0.05
    assert a.settings["tta"]


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 0)])
def test_a_scan_that_the_model_was_trained_on_is_told(make_model, axes):
    """However it lies: what a model has seen is known by its voxels as they are stored."""
    scan = blobs((3, 90, 104))
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])[:, [2, 1, 0, 3]][:, [*axes, 3]]
    scan = replace(scan, hu=scan.hu.transpose(axes), affine=affine)
    stored = to_canonical(Case(scan, np.zeros(scan.hu.shape, np.uint8), "patient")).scan
    model, says = (
        make_model(),
        "The model has seen this very scan in training or calibration: this says nothing about other scans.",
    )
    seen = Cascade(replace(model, trained_on=("0" * 32, array_checksum(stored.hu))), device="cpu")
    assert says in seen.segment(scan).warnings
    assert says not in Cascade(model, device="cpu").segment(scan).warnings
    hu = scan.hu.copy()
    hu[0, 0, 0] += 1
    assert says not in seen.segment(replace(scan, hu=hu)).warnings


def test_a_model_of_generated_ct_serves_generated_ct_only(make_model):
    cascade, scan = Cascade(make_model(generated=True), device="cpu"), blobs((1, 90, 104))
    with pytest.raises(InputError, match="model of the phantom"):
        cascade.segment(scan)
    assert cascade.segment(replace(scan, generated=True)).labels.shape == scan.hu.shape


def test_a_saved_model_segments_as_the_one_in_memory(make_model, tmp_path):
    model, scan = make_model(members=2), blobs((2, 90, 104))
    model.save(tmp_path / "model")
    held = Cascade.load(tmp_path / "model", device="cpu").segment(scan)
    np.testing.assert_array_equal(held.labels, Cascade(model, device="cpu").segment(scan).labels)
    assert held.model["identity"] == model.identity[:12]
