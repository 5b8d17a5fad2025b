import numpy as np
import pytest
from scipy import ndimage

from lesionseg.phantom.anatomy import Body
from lesionseg.phantom.patient import draw_patient, image, liver_span_mm
from lesionseg.phantom.scanner import LITS_SCANNERS
from lesionseg.phantom.trunk import Organ

#: HU that each organ of a scan must have on average (parenchyma and blood pool: portal-venous phase).
EXPECTED_HU = {
    Organ.FAT: (-125, -80),
    Organ.MUSCLE: (45, 75),
    Organ.BONE: (300, 1000),
    Organ.LUNG: (-950, -700),
    Organ.AORTA: (150, 180),
    Organ.CAVA: (150, 180),
    Organ.KIDNEY: (165, 200),
    Organ.SPLEEN: (105, 135),
    Organ.LIVER: (100, 120),
}


@pytest.fixture(scope="module")
def imaged():
    patient = draw_patient(np.random.default_rng(7), ["metastasis"] * 3 + ["cyst"] * 2)
    low, high = liver_span_mm(patient.body)
    scanner = LITS_SCANNERS[0]
    heights = np.arange(low - 12, high + 12, scanner.thickness_mm)
    return patient, image(patient, scanner, heights, 96, np.random.default_rng(0))


@pytest.mark.parametrize("organ", EXPECTED_HU, ids=lambda organ: organ.name)
def test_organs_have_the_hu_of_the_portal_venous_phase(imaged, organ):
    _, slices = imaged
    core = ndimage.binary_erosion(slices.organ == organ, np.ones((1, 2, 2)))
    assert core.sum() > 20
    low, high = EXPECTED_HU[organ]
    assert low <= slices.hu[core].mean() <= high


def test_vessels_in_the_liver_are_brighter_than_the_liver():
    body = Body.draw(np.random.default_rng(2))
    across = np.linspace(-160, 160, 320)
    for z in (0.0, 20.0):
        plane = body.plane(z, across, across)
        body.paint(plane)
        veins = np.isin(plane.organ, (Organ.PORTAL_VEIN, Organ.HEPATIC_VEIN)) & (plane.liver > 0.99)
        assert veins.sum() > 20
        assert 140 < np.median(plane.hu[veins]) <= 180
        assert 100 <= np.median(plane.hu[(plane.organ == Organ.LIVER) & (plane.liver > 0.99)]) <= 120


def test_anatomy_lies_where_it_belongs(imaged):
    _, slices = imaged

    def center(organ):
        return np.argwhere(slices.organ == organ).mean(0)

    assert center(Organ.LIVER)[2] < 48 < center(Organ.SPLEEN)[2]  # W runs to the patient's left
    assert center(Organ.BONE)[1] > center(Organ.LIVER)[1]  # H runs to the back
    assert center(Organ.LUNG)[0] > center(Organ.LIVER)[0] > center(Organ.KIDNEY)[0]  # D runs to the head
    assert center(Organ.CAVA)[2] < center(Organ.AORTA)[2]


def test_liver_is_one_piece_of_plausible_volume_between_empty_slices(imaged):
    _, slices = imaged
    assert not slices.liver[[0, -1]].any()
    parts, count = ndimage.label(slices.liver)
    assert np.bincount(parts.ravel())[1:].max() > 0.98 * slices.liver.sum()
    assert count < 6
    assert 900 < slices.liver.sum() * np.prod(slices.spacing_mm) / 1000 < 2600


def test_neighbouring_slices_agree(imaged):
    _, slices = imaged
    area = slices.liver.sum((1, 2))
    full = np.flatnonzero(area > 0.25 * area.max())
    for i in full[:-1]:
        both = (slices.liver[i] & slices.liver[i + 1]).sum()
        assert 2 * both / (area[i] + area[i + 1]) > 0.8


def test_lesions_lie_in_the_liver_apart_from_each_other(imaged):
    patient, slices = imaged
    assert len(patient.lesions) == 5
    assert not (slices.lesion > 0)[~slices.liver].any()
    for i, lesion in enumerate(patient.lesions):
        center = np.array(lesion.center_mm)
        assert patient.body.liver_distance_mm(*center[:, None]) < 0
        for other in patient.lesions[:i]:
            gap = np.linalg.norm(center - other.center_mm) - (lesion.diameter_mm + other.diameter_mm) / 2
            assert gap > 0


def test_some_lesions_are_subcapsular():
    depths = []
    for seed in range(12):
        patient = draw_patient(np.random.default_rng(seed), ["metastasis"] * 4)
        for lesion in patient.lesions:
            depth = -patient.body.liver_distance_mm(*np.array(lesion.center_mm)[:, None])[0]
            depths.append(depth / (lesion.diameter_mm / 2))
    share = np.mean(np.array(depths) < 1)
    assert 0.08 < share < 0.5


def test_blood_and_liver_stay_in_range_over_patients_and_scanners():
    drawn = [Body.draw(np.random.default_rng(seed)).tissue for seed in range(40)]
    offsets = [-3.0, 3.0]
    for tissue in drawn:
        assert all(100 <= tissue.liver + offset <= 120 for offset in offsets)
        assert all(150 <= tissue.vessel - 2 + offset <= 180 for offset in offsets)


def test_body_fits_the_field_of_view():
    for seed in range(8):
        body = Body.draw(np.random.default_rng(seed))
        fov = LITS_SCANNERS[0].fov_mm(body.width_mm)
        across = np.linspace(-fov / 2, fov / 2, 120)
        plane = body.plane(0.0, across, across)
        body.paint(plane)
        assert (plane.hu[:, [0, -1]] <= -900).mean() > 0.9
        assert plane.hu[:3].max() < -900
