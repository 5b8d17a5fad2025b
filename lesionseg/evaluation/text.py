"""The text of an evaluation: `evaluation.md`, and the definitions that stand with its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lesionseg.compare_table import FIGURE_DEFINITIONS, HEADINGS, pipe_table
from lesionseg.evaluation.figures import CASCADE, LARGEST, PREDICTED_BOX, REFERENCE_BOX, WAYS
from lesionseg.matching import MIN_IOU
from lesionseg.segmentation import RESEARCH_USE_ONLY, UNDETERMINED
from lesionseg.statistics import RESAMPLES
from lesionseg.wording import cell, difference_cell

VOLUME_HEADINGS: dict[str, str] = {
    "liver_dice_per_case": "liver Dice per case",
    "liver_dice_global": "liver Dice global",
    "liver_assd_mm": "liver ASSD (mm)",
    "lesion_dice_per_case": "lesion Dice per case",
    "lesion_dice_global": "lesion Dice global",
    "lesion_assd_mm": "lesion ASSD (mm)",
    "lesion_recall_iou": f"lesion recall, IoU {MIN_IOU}",
    "lesion_precision_iou": f"lesion precision, IoU {MIN_IOU}",
    "lesion_f1_iou": f"lesion F1, IoU {MIN_IOU}",
    "lesion_recall_any": "lesion recall, any overlap",
    "lesion_precision_any": "lesion precision, any overlap",
    "lesion_f1_any": "lesion F1, any overlap",
    "burden_error_absolute": "tumour burden, mean absolute error",
    "burden_error_rmse": "tumour burden, RMSE",
    LARGEST: "tumour burden, largest error",
}
#: Figures of slices that a model which names no types has.
UNTYPED_FIGURES = ("dice1", "success_rate", "false_positives_per_slice")

VOLUME_DEFINITIONS = f"""\
- **Dice per case**: of the voxels of a case; mean over the cases (n) where the reference or the prediction holds any.
  Both empty: left out; one empty: 0. The liver is the liver with its lesions.
- **Dice global**: of the voxels of all these cases together; the interval is too narrow where few patients hold most of
  them.
- **ASSD**: average symmetric surface distance: over the surface voxels of reference and prediction, the mean distance
  in mm to the nearest surface voxel of the other; mean over the cases (n) where both hold any and the spacing is known.
  A surface voxel has a neighbour (6, in a single slice 4) outside the mask.
- **lesion recall, precision, F1, IoU {MIN_IOU}**: lesions are 3-D connected components (all neighbours), types merged.
  A predicted and a reference lesion are one where intersection over union is at least {MIN_IOU}, one to one. Recall:
  share of the reference lesions (n) so paired; precision: share of the predicted lesions (n); F1: their harmonic mean,
  n the lesions of both. Pooled over all cases.
  In `lesions.csv`, `partner` is the id of the lesion so paired (0: none), `iou` the largest with any lesion of the
  other side, `overlap` the share of the lesion's voxels that the other side calls lesion.
- **any overlap**: a reference lesion is found where a predicted lesion holds one of its voxels; a predicted lesion is
  right where it holds a voxel of a reference lesion.
- **tumour burden**: lesion volume over liver volume, lesions included (0 where no liver is found); the error is
  predicted minus reference, over the cases (n) whose reference holds liver."""
WAY_DEFINITIONS = f"""\
- **{REFERENCE_BOX}**: classes as the lesion nets give them in the liver box of the reference, which is what
  `lesionseg test` scores (there of one net, here of the mean of all).
- **{PREDICTED_BOX}**: the same in the box of the liver that the liver net finds.
- **{CASCADE}**: what a user receives: small lesions and those outside the predicted liver removed, one type a lesion
  by vote of calibrated probabilities. A lesion left `{UNDETERMINED}` counts as found, with a type that no reference has
  (also in Dice2).
- All three are of the slices that hold liver in the reference, as in the tables of a run."""
INTERVAL_DEFINITION = f"""\
- **interval**: 95 %, percentiles of {RESAMPLES} resamples of patients, widened for few patients; none where every
  resample gives the same value: that is no proof of certainty. Of FP / slice, but not of its difference, Student's t on
  the logarithm, which needs two degrees of freedom. The intervals hold given these trained nets, they do not
  cover training anew.
- **resolution**: (1.96 + 0.84) standard errors of the paired difference. With many patients, a true difference of that
  size has an interval that leaves out 0 in 80 % of studies."""


def definitions(typed: bool) -> str:
    """What every figure means, as a list in Markdown."""
    figures = (
        FIGURE_DEFINITIONS if typed else f"{FIGURE_DEFINITIONS}\n- Types are not told apart here: `lesion` is all."
    )
    return "\n".join((VOLUME_DEFINITIONS, figures, WAY_DEFINITIONS, INTERVAL_DEFINITION))


def markdown(
    kind: str,
    facts: Sequence[str],
    volumes: Mapping[str, Mapping[str, Any]],
    slices: pd.DataFrame,
    confusion: pd.DataFrame | None,
) -> str:
    """The whole of `evaluation.md`.

    Args:
        kind: of the data, for the heading.
        facts: what it rests on, one sentence each.
        volumes: from `pooled_figures`.
        slices: from `slice_figures`.
        confusion: of the whole cascade, from `statistics.confusion`; None: types are not told apart.
    """
    rows = [[VOLUME_HEADINGS[name], cell(pd.Series(figure)), str(figure["of"])] for name, figure in volumes.items()]
    heads = {name: text for name, text in HEADINGS.items() if confusion is not None or name in UNTYPED_FIGURES}
    ways = {way: slices[slices.schedule == way].set_index("figure").loc[list(heads)] for way in WAYS}
    parts = [
        f"# The whole cascade evaluated ({kind})",
        "\n".join(f"- {fact}" for fact in (RESEARCH_USE_ONLY, *facts)),
        "## Liver and lesions in 3-D\n\nEstimate [95 % interval], n.",
        pipe_table(["figure", "estimate", "n counts"], rows),
        "## On slices, with the reference liver box beside the predicted one\n\nEstimate [95 % interval], n.",
        pipe_table(["", *heads.values()], [[way, *map(cell, _rows(table))] for way, table in ways.items()]),
        f"Difference to the {REFERENCE_BOX} [95 % interval]; resolution.",
        pipe_table(
            ["", *heads.values()],
            [[way, *map(difference_cell, _rows(table))] for way, table in ways.items() if way != REFERENCE_BOX],
        ),
    ]
    if confusion is not None:
        lines = [[true, *map(str, row), str(sum(row))] for true, *row in confusion.itertuples()]
        parts += [
            "## Confusion of lesion types, whole cascade\n\n"
            "Reference lesions on slices, by true type (rows) and predicted type (columns).",
            pipe_table(["true type", *map(str, confusion.columns), "n"], lines),
        ]
    return "\n\n".join([*parts, "## Definitions\n\n" + definitions(confusion is not None)]) + "\n"


def summary(volumes: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures of volumes, a line each, for the terminal."""
    width = max(map(len, VOLUME_HEADINGS.values()))
    lines = [(VOLUME_HEADINGS[name], cell(pd.Series(figure)), figure["of"]) for name, figure in volumes.items()]
    return "\n".join(f"{heading:{width}}  {estimate} {of}" for heading, estimate, of in lines)


def _rows(table: pd.DataFrame) -> list[pd.Series]:
    return [row for _, row in table.iterrows()]
