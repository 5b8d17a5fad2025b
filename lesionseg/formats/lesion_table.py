"""The findings of a segmentation as a table, `lesions.csv` and `lesions.json`. Nothing in them names the patient."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lesionseg.labels import LESION_TYPES
from lesionseg.segmentation import RESEARCH_USE_ONLY, Finding, Segmentation
from lesionseg.writing import write_text

#: The columns, the same for every model and input. Lengths in px are those of array pixels, whatever the spacing.
COLUMNS = (
    *("id", "type", *(f"probability_{name}" for name in LESION_TYPES)),
    *("long_axis_mm", "short_axis_mm", "area_mm2", "volume_ml"),
    *("long_axis_px", "short_axis_px", "area_px", "voxels", "mean_hu", "sd_hu"),
    *("centroid_x_mm", "centroid_y_mm", "centroid_z_mm", "centroid_d", "centroid_h", "centroid_w"),
    *("first_slice", "last_slice", "key_slice"),
)


def write_lesions_csv(path: Path, segmentation: Segmentation) -> None:
    """Write one row per finding with the columns `COLUMNS`, whole or not at all; a value not known is left empty.

    Positions in mm are LPS patient coordinates as in DICOM; positions in the array and slices count from 0.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_row(finding) for finding in segmentation.findings)
    write_text(path, text.getvalue())


def write_lesions_json(path: Path, segmentation: Segmentation) -> None:
    """Write the findings with what they mean and where they come from, whole or not at all.

    `lesions` holds the rows of the CSV. A value not known, or not a number, is null.
    """
    d, h, w = segmentation.scan.hu.shape
    content = {
        "research_use_only": RESEARCH_USE_ONLY,
        "units": _units(segmentation),
        "shape": {"d": d, "h": h, "w": w, "slices_along": "dhw"[segmentation.slice_axis]},
        "liver_ml": segmentation.liver_ml,
        "lesions": [_row(finding) for finding in segmentation.findings],
        "model": segmentation.model,
        "settings": segmentation.settings,
        "warnings": segmentation.warnings,
        "seconds": segmentation.seconds,
    }
    write_text(path, json.dumps(_plain(content), indent=2, allow_nan=False) + "\n")


def _row(finding: Finding) -> dict[str, Any]:
    """The columns of one finding; None: not known."""
    position, (d, h, w) = finding.centroid_mm or (None, None, None), finding.centroid_index
    held: dict[str, Any] = {
        **{f"probability_{name}": value for name, value in finding.probabilities.items()},
        **dict(zip(("centroid_x_mm", "centroid_y_mm", "centroid_z_mm"), position, strict=True)),
        **{"centroid_d": d, "centroid_h": h, "centroid_w": w},
        **{"first_slice": finding.slices[0], "last_slice": finding.slices[1]},
    }
    row = {name: held.get(name, getattr(finding, name, None)) for name in COLUMNS}
    return {name: _plain(value) for name, value in row.items()}


def _units(segmentation: Segmentation) -> dict[str, str]:
    """The units of the sizes that are known."""
    known = segmentation.scan.spacing_mm is not None
    return {
        "diameters": "mm" if known else "px (the spacing is unknown)",
        "area": "mm2" if known else "px (the spacing is unknown)",
        "volume": "ml" if segmentation.liver_ml is not None else "voxels (the volume is unknown)",
        "density": "HU",
        "position": "mm, LPS patient coordinates" if segmentation.scan.affine is not None else "array index",
    }


def _plain(value: Any) -> Any:
    """JSON data: numpy's numbers as Python's, tuples as lists, None for what is not a finite number."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
