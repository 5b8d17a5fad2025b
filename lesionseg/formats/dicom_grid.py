"""Where the slices or frames of a CT lie in the patient: cosines as writers round them → one grid at right angles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydicom.dataset import Dataset

from lesionseg.scan import GEOMETRY_TOLERANCE_VOXELS

#: Direction cosines may be rounded to three decimals: each is off by as much as this.
COSINE_ROUNDING = 5e-4
#: Such a rounding turns the normal by at most √6 times as much (radians).
_NORMAL_ROUNDING = 2.5 * COSINE_ROUNDING
#: Groups of functions of a multi-frame CT, and what of them a single slice states, too.
_GROUPS = (
    ("PlanePositionSequence", ("ImagePositionPatient",)),
    ("PlaneOrientationSequence", ("ImageOrientationPatient",)),
    ("PixelMeasuresSequence", ("PixelSpacing", "SliceThickness")),
    ("PixelValueTransformationSequence", ("RescaleSlope", "RescaleIntercept", "RescaleType")),
)


def frame_places(dataset: Dataset) -> list[Dataset]:
    """Place and rescale of each frame of a multi-frame CT, as a single slice states them; None or missing: stated
    nowhere.
    """
    shared, places = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0], []
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        place = Dataset()
        for group, names in _GROUPS:
            for item in (frame if group in frame else shared).get(group) or ():
                for name in names:
                    setattr(place, name, item.get(name))
        places.append(place)
    return places


def axes_of(places: Sequence[Dataset]) -> np.ndarray:
    """Unit vectors at right angles along the normal, the rows and the columns of slices, (3, 3): those closest to what
    the slices state.

    Over a long stack rounded cosines miss by more than a pixel where its slices lie; the normal is then the line of
    their positions, as far as rounding explains the difference. What it does not explain is for `dicom_checks`.
    """
    stated = np.array([place.ImageOrientationPatient for place in places], dtype=float)
    stated = np.median(stated, axis=0).reshape(2, 3)
    axes = _at_right_angles(stated)
    positions = np.array([place.ImagePositionPatient for place in places], dtype=float) @ axes.T
    along, sideways = (positions - positions.mean(axis=0))[:, 0], positions[:, 1:]
    if not np.ptp(along) > 0:
        return axes
    slopes = along @ sideways / (along @ along)
    pixel = np.array(places[0].PixelSpacing, dtype=float)[::-1]  # stated as between rows, between columns
    drifts = np.any(np.abs(slopes) * np.ptp(along) > GEOMETRY_TOLERANCE_VOXELS * pixel)
    if not drifts or np.hypot(*slopes) > _NORMAL_ROUNDING:
        return axes
    normal = axes[0] + slopes @ axes[1:]
    normal /= np.linalg.norm(normal)
    return _at_right_angles(stated - np.outer(stated @ normal, normal))


def positions_mm(places: Sequence[Dataset]) -> np.ndarray:
    """Positions of slices, (D, 3) in mm: along the common normal, along the rows, along the columns."""
    return np.array([place.ImagePositionPatient for place in places], dtype=float) @ axes_of(places).T


def order_of(places: Sequence[Dataset]) -> list[int]:
    """Down the normal of the slices, so that (D, H, W) are right-handed in the patient."""
    return np.argsort(-positions_mm(places)[:, 0]).tolist()


def affine_of(places: Sequence[Dataset]) -> np.ndarray:
    """(4, 4) of slices in their order, index (d, h, w, 1) → mm in the patient; a single one is given 1 mm."""
    normal, rows, columns = axes_of(places)
    first, last = (np.array(places[end].ImagePositionPatient, dtype=float) for end in (0, -1))
    between_rows, between_columns = map(float, places[0].PixelSpacing)
    step_mm = (first - last) @ normal / (len(places) - 1) if len(places) > 1 else 1.0
    affine = np.eye(4)
    affine[:3] = np.stack([-step_mm * normal, between_rows * columns, between_columns * rows, first], axis=1)
    return affine


def _at_right_angles(vectors: np.ndarray) -> np.ndarray:
    """The closest unit vectors at right angles to two that nearly are, (2, 3), below their normal."""
    left, _, right = np.linalg.svd(vectors, full_matrices=False)
    rows, columns = left @ right
    return np.array([np.cross(rows, columns), rows, columns])
