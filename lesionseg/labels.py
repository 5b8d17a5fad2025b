"""The classes: ids, names, colours, codes, and how each training target folds them.

A further lesion type is one more entry of `LESION_TYPES`; every id, colour, code and target follows from it. The id of
untyped lesions moves with it, which is another `STORE_FORMAT`; the phantom needs the look of the type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Code(NamedTuple):
    """A SNOMED CT concept (scheme `SCT`) as DICOM PS3.16 lists it."""

    value: str
    meaning: str


class LesionType(NamedTuple):
    """A lesion type: its display colour (RGB, 0…255) and its code."""

    color: tuple[int, int, int]
    code: Code


#: Lesion types with a name, in the order of their ids.
LESION_TYPES: dict[str, LesionType] = {
    "cyst": LesionType((66, 165, 245), Code("367643001", "Cyst")),
    "hemangioma": LesionType((255, 193, 7), Code("400210000", "Hemangioma")),
    "metastasis": LesionType((229, 57, 53), Code("128462008", "Metastasis")),
}

BACKGROUND, LIVER = 0, 1
#: Label id of each named lesion type in a stored label map.
LESION_IDS: dict[str, int] = {name: 2 + i for i, name in enumerate(LESION_TYPES)}
#: Label id of a lesion whose type is not known (LiTS names none).
UNTYPED_LESION = 2 + len(LESION_TYPES)

NAMES: dict[int, str] = {
    BACKGROUND: "background",
    LIVER: "liver",
    **{i: name for name, i in LESION_IDS.items()},
    UNTYPED_LESION: "lesion",
}
COLORS: dict[int, tuple[int, int, int]] = {
    LIVER: (102, 187, 106),
    **{LESION_IDS[name]: kind.color for name, kind in LESION_TYPES.items()},
    UNTYPED_LESION: (255, 112, 67),
}
CODES: dict[int, Code] = {
    LIVER: Code("10200004", "Liver"),
    **{LESION_IDS[name]: kind.code for name, kind in LESION_TYPES.items()},
    UNTYPED_LESION: Code("52988006", "Lesion"),
}


def is_lesion(labels: np.ndarray) -> np.ndarray:
    """Boolean mask, same shape as `labels`, of every lesion pixel, typed or not."""
    return labels > LIVER


def is_liver(labels: np.ndarray) -> np.ndarray:
    """Boolean mask, same shape as `labels`, of the liver with all that lies in it (lesions belong to the liver)."""
    return labels >= LIVER


@dataclass(frozen=True)
class Target:
    """What a network is trained to tell apart: class names, and the class that each stored label id becomes."""

    name: str
    classes: tuple[str, ...]
    fold: tuple[int, ...]

    @property
    def lesion_types(self) -> tuple[str, ...]:
        """Names of the classes that are lesions, in class order; class index is 2 + position."""
        return self.classes[2:]

    def apply(self, labels: np.ndarray) -> np.ndarray:
        """Fold stored label ids (any shape, uint8) into class indices of this target (same shape, uint8)."""
        return np.asarray(self.fold, dtype=np.uint8).take(labels)  # twice as fast as by index


_TYPED = tuple(LESION_TYPES)

#: Targets by name: `liver` (first net), `lesion` (LiTS: no types), `typed` (fine-tuning: one class a type).
#: In `typed` an untyped lesion has no class; stores that hold one are refused for it before training.
TARGETS: dict[str, Target] = {
    "liver": Target("liver", ("background", "liver"), (0,) + (1,) * (2 + len(_TYPED))),
    "lesion": Target("lesion", ("background", "liver", "lesion"), (0, 1) + (2,) * (1 + len(_TYPED))),
    "typed": Target("typed", ("background", "liver", *_TYPED), (0, 1, *LESION_IDS.values(), 255)),
}
