"""Small segmentations with known content, in any orientation."""

from collections.abc import Callable

import numpy as np
import pytest

from lesionseg.findings import measure_findings
from lesionseg.labels import LESION_IDS, UNTYPED_LESION
from lesionseg.scan import Scan, canonical_axes, from_canonical
from lesionseg.segmentation import Segmentation

NAMES = tuple(LESION_IDS)
#: What the source calls the scan: may name a patient.
SCAN_ID = "Zebulon^Quux^19370401"
#: A model card as `Model.card` gives it, shortened.
CARD = {
    "generated": False,
    "liver": {"encoder": "resnet50", "input": {"size_px": 256}, "sha256": "ab" * 32, "provenance": {"name": "liver"}},
    "lesions": [
        {
            "encoder": "resnet50",
            "input": {"size_px": 256},
            "sha256": "cd" * 32,
            "provenance": {"name": "baseline", "fold": fold, "folds": 3, "seed": 7, "commit": "0123456789ab",
                           "store_sha256": "ef" * 32, "weights_sha256": None},
        }
        for fold in range(3)
    ],
    "thresholds": {"liver": 0.5, "undetermined": 0.5, "min_lesion_mm2": 12.6},
    "temperature": 1.5,
    "calibration": {"lesions": 99, "before": {"ece": 0.123}, "after": {"ece": 0.045}},
    "selected": {"figure": "accuracy_all", "schedule": "baseline", "note": "chosen on the test folds"},
    "provenance": {"commit": "0123456789ab", "version": "0.1.0"},
    "identity": "feedc0ffee00",
    "scans_seen": 42,
}  # fmt: skip


def affine_of(
    order: tuple[int, int, int], flip: tuple[bool, bool, bool], spacing: tuple[float, float, float]
) -> np.ndarray:
    """LPS affine of an array whose axis `order[i]` runs along canonical axis i (head, back, left), or against it."""
    affine = np.zeros((4, 4))
    for i in range(3):
        affine[2 - i, order[i]] = (-1 if flip[i] else 1) * spacing[i]
    affine[:, 3] = (-31.0, 12.5, 700.0, 1.0)
    return affine


def canonical_content(depth: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """HU (D, 40, 48), lesion ids, and the type of each lesion; the first lesion is a C whose middle is liver."""
    noise = np.random.default_rng(0).normal(0, 15, (depth, 40, 48))
    hu, ids, liver = np.full(noise.shape, -90.0), np.zeros(noise.shape, np.uint16), np.zeros(noise.shape, bool)
    liver[depth // 6 : depth - depth // 6, 6:34, 4:44] = True
    middle = depth // 2
    around = slice(max(middle - 2, 0), middle + 3)
    ids[around, 12:26, 8:20] = 1
    ids[around, 16:22, 11:20] = 0
    ids[middle, 10:18, 34:42] = 2
    ids[middle, 25:30, 30:35] = 3
    ids[middle, 30:32, 24:26] = 4
    hu[liver] = 100
    for i, value in enumerate((20, 160, 60, 70), start=1):
        hu[ids == i] = value
    return (hu + noise).astype(np.int16), np.where(liver, ids + 1, 0), ["cyst", "hemangioma", "metastasis", "?"]


def segmentation_of(
    *,
    depth: int = 18,
    order: tuple[int, int, int] = (0, 1, 2),
    flip: tuple[bool, bool, bool] = (False, False, False),
    spacing: tuple[float, float, float] | None = (4.0, 1.5, 1.25),
    affine: np.ndarray | None = None,
    lesions: bool = True,
    liver: bool = True,
    **fields,
) -> Segmentation:
    """What a cascade might find in `canonical_content`, turned as asked; fields of `Segmentation` may be given."""
    hu, numbered, types = canonical_content(depth)
    if affine is None and spacing is not None:
        affine = affine_of(order, flip, spacing)
    labels = np.minimum(numbered, 1).astype(np.uint8)
    for number, name in enumerate(types, start=1):
        labels[numbered == number + 1] = LESION_IDS.get(name, UNTYPED_LESION)
    ids = np.maximum(numbered.astype(int) - 1, 0).astype(np.uint16)
    if not lesions or not liver:
        ids, types, labels = np.zeros_like(ids), [], np.minimum(labels, 1) * liver
    hu, labels, ids = (np.ascontiguousarray(from_canonical(a, affine)) for a in (hu, labels.astype(np.uint8), ids))
    own = None if spacing is None else tuple(float(n) for n in np.linalg.norm(affine[:3, :3], axis=0))
    scan = fields.pop("scan", None) or Scan(hu, SCAN_ID, own, affine)
    votes = [
        {name: 0.8 if name == kind else 0.1 for name in NAMES} if kind in NAMES else dict.fromkeys(NAMES, 1 / 3)
        for kind in types
    ]
    named = [kind if kind in NAMES else "undetermined" for kind in types]
    known = {
        "findings": measure_findings(scan, ids, named, votes),
        "liver_ml": None if spacing is None or depth == 1 or not liver else 123.4,
        "slice_axis": canonical_axes(affine)[0][0],
        "model": CARD,
        "settings": {"tta": False, "liver": "predicted"},
    }
    return Segmentation(scan, labels, ids, **(known | fields))


@pytest.fixture(scope="session")
def make_segmentation() -> Callable[..., Segmentation]:
    return segmentation_of


@pytest.fixture(scope="session")
def make_affine() -> Callable[..., np.ndarray]:
    return affine_of
