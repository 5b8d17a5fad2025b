"""`lesionseg implant` in real CT that others made. `LESIONSEG_REAL` names the folder; without it all are skipped."""

import os
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from lesionseg.data import lits
from lesionseg.data.implanted import implant_store
from lesionseg.data.prepare import prepare
from lesionseg.data.records import CaseRecord
from lesionseg.data.store import Store
from lesionseg.implant.host import Host
from lesionseg.labels import LESION_TYPES, LIVER

ROOT = os.environ.get("LESIONSEG_REAL")
pytestmark = [pytest.mark.real, pytest.mark.skipif(not ROOT, reason="LESIONSEG_REAL names no folder")]
REAL = Path(ROOT or ".")


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Store:
    """A scan of 5 mm slices, one of 1 mm."""
    folder = tmp_path_factory.mktemp("real")
    sources = [source for source in lits.cases(REAL / "lits") if source.source_id in ("volume-0", "volume-2")]
    return prepare(sources, folder / "lits", kind="lits", workers=1)


@pytest.fixture(scope="module")
def made(real, tmp_path_factory) -> Store:
    return implant_store(real.path, tmp_path_factory.mktemp("made") / "slices", slices=24, workers=1)


def before(real: Store, made: Store, record: CaseRecord) -> tuple[np.ndarray, np.ndarray]:
    """HU and labels of the slice that a case was, found by its voxels outside of the liver."""
    (old,) = [old for old in real.records if old.voxel_checksum == record.implanted_in]
    hu, labels, now = real.hu(old.case_id), real.labels(old.case_id), made.hu(record.case_id)[0]
    (index,) = [i for i in old.liver_slices if np.array_equal(hu[i][labels[i] == 0], now[labels[i] == 0])]
    return np.array(hu[index]), np.array(labels[index])


def test_implants_in_real_slices_change_the_liver_alone(real, made):
    for record in made.records:
        hu, labels = before(real, made, record)
        lesion, changed = made.labels(record.case_id)[0] > LIVER, made.hu(record.case_id)[0] != hu
        assert not (labels > LIVER).any()
        assert (labels[changed | lesion] == LIVER).all()
        # The rest is equal: by chance, or where a border crosses tissue that has the HU of the lesion.
        assert changed[lesion].mean() > 0.95
        assert ndimage.binary_dilation(changed, iterations=3)[lesion].all()


def test_their_noise_is_that_of_the_liver_around_them(real, made):
    ratios = []
    for record in made.records:
        if record.lesion_types != ("cyst",):  # homogeneous: all that varies is noise
            continue
        core = ndimage.binary_erosion(made.labels(record.case_id)[0] > LIVER, iterations=3)
        hu, labels = before(real, made, record)
        ring = ndimage.binary_dilation(core, iterations=14) & ~ndimage.binary_dilation(core, iterations=7)
        ring &= ndimage.binary_erosion(labels == LIVER, iterations=2)
        if core.sum() > 30 and ring.sum() > 100:
            ratios.append(made.hu(record.case_id)[0][core].std() / hu[ring].std())
    assert len(ratios) >= 4
    assert np.median(ratios) == pytest.approx(1, abs=0.15)


def test_types_sizes_and_contrast_are_plausible(made):
    assert {name for record in made.records for name in record.lesion_types} == set(LESION_TYPES)
    diameters = [lesion.diameter_mm for record in made.records for lesion in record.lesions]
    assert 5 < min(diameters) < np.median(diameters) < 30
    for record in made.records:
        hu, labels = made.hu(record.case_id)[0], made.labels(record.case_id)[0]
        contrast = np.median(hu[labels > LIVER]) - np.median(hu[labels == LIVER])
        assert record.lesion_types == ("hemangioma",) or contrast < -5


def test_the_point_spread_is_the_same_on_every_slice_of_a_scan(real):
    for record in real.records:
        found = []
        for index in record.liver_slices[len(record.liver_slices) // 3 :: len(record.liver_slices) // 8]:
            hu, labels = (part(record.case_id)[index : index + 1] for part in (real.hu, real.labels))
            found.append(Host.measure(hu, labels, record.spacing_mm).blur_mm)
        assert np.median(found) == pytest.approx(1.22, abs=0.1)
        assert np.std(found) < 0.1
