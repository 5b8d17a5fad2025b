"""One case scored: what the cascade finds against the reference, both canonical; arrays in, numbers out.

Empty cases. Dice: both masks empty, undefined; one of them, 0. Surface distance: undefined where either is empty.
Tumour burden (lesion volume over liver volume): 0 where no liver is found, undefined without a liver in the reference.
Where the reference liver itself comes from a net, whatever needs it is undefined.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.spatial import KDTree

from lesionseg.findings import measure_findings
from lesionseg.labels import NAMES, UNTYPED_LESION, is_lesion, is_liver
from lesionseg.lesions import Counts, components
from lesionseg.matching import LesionCounts, Overlaps, match, number_lesions
from lesionseg.metrics import LesionFigures, Row
from lesionseg.results import REFERENCE
from lesionseg.scan import Scan
from lesionseg.segmentation import Finding, Segmentation

PREDICTED = "predicted"
#: Columns of the lesions of a case. `kind` is reference or predicted, `lesion` the id within case and kind. `overlap`
#: is the share of its voxels that lie in lesions of the other kind, `iou` the largest with any of them, `partner` the
#: one it is paired with (0: none). NaN: a size of unknown spacing, `probability` of a reference lesion.
LESION_COLUMNS = ("kind", "lesion", "type", "probability", "voxels", "volume_ml", "long_axis_mm", "first_slice",
                  "last_slice", "overlap", "iou", "partner")  # fmt: skip


@dataclass(frozen=True)
class Burden:
    """Lesion volume over liver volume (lesions included), as predicted and in the reference."""

    predicted: float
    reference: float


@dataclass(frozen=True)
class Elsewhere:
    """What the cascade finds on the slices that hold no liver in the reference: slices, and 2-D components on them."""

    slices: int
    false_positives: int


@dataclass(frozen=True)
class SliceTables:
    """Rows of `LesionFigures.slice_rows` and `LesionFigures.lesion_rows`; the key is the number of the slice."""

    slices: tuple[Row, ...]
    lesions: tuple[Row, ...]


@dataclass(frozen=True)
class CaseScore:
    """All that one case gives to an evaluation.

    Attributes:
        liver: voxels of liver with its lesions; None: no reference.
        lesion: voxels of lesion.
        liver_assd_mm: `surface_distance_mm`; None: undefined, or no reference.
        lesion_assd_mm: the same of lesion.
        burden: None: undefined.
        at_iou: lesions paired one to one at `matching.MIN_IOU`.
        at_any_overlap: lesions that touch any of the other side.
        lesions: rows of `LESION_COLUMNS`, those of the reference first.
        elsewhere: slices that the tables do not hold.
        tables: by name of how the classes were come by, on the slices that hold liver in the reference.
    """

    case_id: str
    patient_id: str
    liver: Counts | None
    lesion: Counts
    liver_assd_mm: float | None
    lesion_assd_mm: float | None
    burden: Burden | None
    at_iou: LesionCounts
    at_any_overlap: LesionCounts
    lesions: tuple[Row, ...]
    elsewhere: Elsewhere
    tables: dict[str, SliceTables]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; NaN becomes null."""
        out: dict[str, Any] = without_nan(asdict(self))
        return out

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> CaseScore:
        """The inverse of `to_json`; `KeyError` or `TypeError` for anything else."""
        tables = {
            name: SliceTables(_with_nan(table["slices"]), _with_nan(table["lesions"]))
            for name, table in data["tables"].items()
        }
        parts = {
            "liver": None if data["liver"] is None else Counts(**data["liver"]),
            "lesion": Counts(**data["lesion"]),
            "burden": None if data["burden"] is None else Burden(**data["burden"]),
            "at_iou": LesionCounts(**data["at_iou"]),
            "at_any_overlap": LesionCounts(**data["at_any_overlap"]),
            "lesions": _with_nan(data["lesions"]),
            "elsewhere": Elsewhere(**data["elsewhere"]),
            "tables": tables,
        }
        return cls(**{**data, **parts})


def score_case(
    found: Segmentation,
    reference: np.ndarray,
    *,
    case_id: str,
    patient_id: str,
    liver_predicted: bool,
    tables: dict[str, SliceTables],
) -> CaseScore:
    """Compare a segmentation with the reference labels (uint8, on the same canonical grid).

    Args:
        found: by the cascade.
        reference: ids of `lesionseg.labels`, (D, H, W).
        case_id: pseudonym.
        patient_id: pseudonym.
        liver_predicted: the liver of the reference comes from a net: no figure of the liver is defined.
        tables: see `CaseScore`.
    """
    liver, reference_liver = is_liver(found.labels), is_liver(reference)
    lesion, reference_lesion = is_lesion(found.labels), is_lesion(reference)
    elsewhere = np.flatnonzero(~reference_liver.any((1, 2)))
    spacing = found.scan.spacing_mm
    reference_ids = number_lesions(reference_lesion)
    overlaps = match(found.lesion_ids, reference_ids)
    return CaseScore(
        case_id=case_id,
        patient_id=patient_id,
        liver=None if liver_predicted else Counts.of(liver, reference_liver),
        lesion=Counts.of(lesion, reference_lesion),
        liver_assd_mm=None if liver_predicted else surface_distance_mm(liver, reference_liver, spacing),
        lesion_assd_mm=surface_distance_mm(lesion, reference_lesion, spacing),
        burden=None if liver_predicted else _burden(found.labels, reference),
        at_iou=overlaps.counts_at_iou(),
        at_any_overlap=overlaps.counts_at_any_overlap(),
        lesions=tuple(_lesion_rows(found, _reference_findings(found.scan, reference, reference_ids), overlaps)),
        elsewhere=Elsewhere(len(elsewhere), sum(components(lesion[i])[1] for i in elsewhere)),
        tables=tables,
    )


def slice_tables(
    predicted: np.ndarray, reference: np.ndarray, slices: Iterable[int], types: Sequence[str]
) -> SliceTables:
    """The figures of `metrics.py` on some slices of a volume, class indices (D, H, W) each; class 2 is `types[0]`.

    With one type all lesion classes are taken for it.
    """
    slices = tuple(slices)
    if not slices:  # the reference has no liver; torchmetrics would warn of figures without a slice
        return SliceTables((), ())
    figures = LesionFigures(types)
    most = 2 if len(types) == 1 else 1 + len(types)
    for index in slices:
        figures.update(np.minimum(predicted[index], most), np.minimum(reference[index], most), index)
    return SliceTables(tuple(figures.slice_rows()), tuple(figures.lesion_rows()))


def surface_distance_mm(a: np.ndarray, b: np.ndarray, spacing_mm: tuple[float, float, float] | None) -> float | None:
    """Average symmetric surface distance of two masks (D, H, W) in mm: over the surface voxels of both, the mean
    distance to the nearest surface voxel of the other (LiTS, arXiv 1901.04056).

    A surface voxel has a neighbour (6, in a single slice 4) that is not of the mask or beyond the border. None where a
    mask is empty or the spacing is unknown.
    """
    if spacing_mm is None or not a.any() or not b.any():
        return None
    first, second = _surface_mm(a, spacing_mm), _surface_mm(b, spacing_mm)
    distances = [KDTree(one).query(other)[0] for one, other in ((first, second), (second, first))]
    return float(np.concatenate(distances).mean())


def _surface_mm(mask: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Places of the surface voxels, (n, 2) of a single slice, else (n, 3); only their box is eroded."""
    spacing = np.asarray(spacing_mm)
    if len(mask) == 1:
        mask, spacing = mask[0], spacing[1:]
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    inside = mask[box]
    surface = np.argwhere(inside & ~ndimage.binary_erosion(inside))
    return (surface + [span.start for span in box]) * spacing


def _burden(predicted: np.ndarray, reference: np.ndarray) -> Burden | None:
    (lesion, liver), (true_lesion, true_liver) = (
        (int(np.count_nonzero(is_lesion(labels))), int(np.count_nonzero(is_liver(labels))))
        for labels in (predicted, reference)
    )
    return Burden(lesion / liver if liver else 0.0, true_lesion / true_liver) if true_liver else None


def _reference_findings(scan: Scan, reference: np.ndarray, ids: np.ndarray) -> tuple[Finding, ...]:
    """The lesions of the reference, measured; the type is that of most voxels, the lower id in a tie."""
    lesion = ids > 0
    votes = np.zeros((int(ids.max()) + 1, UNTYPED_LESION + 1), dtype=np.int64)
    np.add.at(votes, (ids[lesion], reference[lesion]), 1)
    types = [NAMES[int(vote.argmax())] for vote in votes[1:]]
    return measure_findings(scan, ids, types, [{}] * len(types))


def _lesion_rows(found: Segmentation, reference: tuple[Finding, ...], overlaps: Overlaps) -> Iterable[Row]:
    """Rows of `LESION_COLUMNS`, those of the reference first."""
    partner = overlaps.pairs()
    sides: tuple[tuple[str, tuple[Finding, ...], np.ndarray, np.ndarray, dict[int, int]], ...] = (
        (REFERENCE, reference, overlaps.shared.T, overlaps.iou.T, {r: p for p, r in partner.items()}),
        (PREDICTED, found.findings, overlaps.shared, overlaps.iou, partner),
    )
    for kind, lesions, shared, iou, paired in sides:
        for lesion, common, ious in zip(lesions, shared, iou, strict=True):
            yield {
                "kind": kind,
                "lesion": lesion.id,
                "type": lesion.type,
                "probability": math.nan if lesion.probability is None else lesion.probability,
                "voxels": lesion.voxels,
                "volume_ml": math.nan if lesion.volume_ml is None else lesion.volume_ml,
                "long_axis_mm": math.nan if lesion.long_axis_mm is None else lesion.long_axis_mm,
                "first_slice": lesion.slices[0],
                "last_slice": lesion.slices[1],
                "overlap": float(common.sum() / lesion.voxels),
                "iou": float(ious.max(initial=0)),
                "partner": paired.get(lesion.id, 0),
            }


def without_nan(value: Any) -> Any:
    """Plain data for JSON: NaN becomes null."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _with_nan(rows: Iterable[dict[str, Any]]) -> tuple[Row, ...]:
    return tuple({key: math.nan if value is None else value for key, value in row.items()} for row in rows)
