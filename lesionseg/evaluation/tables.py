"""The tables and the text of an evaluation: figures over all cases, a row a case, a row a lesion."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lesionseg.errors import printable
from lesionseg.evaluation.figures import CASCADE, pooled_figures, slice_figures, slice_rows
from lesionseg.evaluation.scoring import LESION_COLUMNS, CaseScore, without_nan
from lesionseg.evaluation.text import definitions, markdown, summary
from lesionseg.model import Model
from lesionseg.segmentation import RESEARCH_USE_ONLY, UNDETERMINED
from lesionseg.statistics import confusion
from lesionseg.writing import write_text


def write_tables(
    output: Path, scores: Sequence[CaseScore], types: Sequence[str], kind: str, facts: Sequence[str], model: Model
) -> dict[str, Any]:
    """Pool the scores, write every table, the text last, and say what came out."""
    volumes, slices, table = pooled_figures(scores), slice_figures(scores), None
    if len(types) > 1:
        table = confusion(slice_rows(scores, CASCADE)[1], types).drop(index=UNDETERMINED)
    ways = {str(way): rows.drop(columns="schedule").set_index("figure") for way, rows in slices.groupby("schedule")}
    content = {
        "use": RESEARCH_USE_ONLY,
        "facts": list(facts),
        "volumes": volumes,
        "slices": {way: rows.to_dict("index") for way, rows in ways.items()},
        "confusion": None if table is None else table.to_dict("index"),
        "definitions": definitions(table is not None).splitlines(),
        "model": model.card,
    }
    write_text(output / "cases.csv", _csv([_case_row(score) for score in scores]))
    lesions = [{"case_id": score.case_id, "patient_id": score.patient_id, **row}
               for score in scores for row in score.lesions]  # fmt: skip
    write_text(output / "lesions.csv", _csv(lesions, ("case_id", "patient_id", *LESION_COLUMNS)))
    write_text(output / "evaluation.json", json.dumps(without_nan(content), indent=1, allow_nan=False) + "\n")
    write_text(output / "evaluation.md", markdown(kind, facts, volumes, slices, table))
    print(printable(f"{summary(volumes)}\n{output / 'evaluation.md'}"))
    return content


def _case_row(score: CaseScore) -> dict[str, Any]:
    return {
        "case_id": score.case_id,
        "patient_id": score.patient_id,
        "liver_dice": None if score.liver is None else score.liver.dice,
        "lesion_dice": score.lesion.dice,
        "liver_assd_mm": score.liver_assd_mm,
        "lesion_assd_mm": score.lesion_assd_mm,
        "burden_predicted": None if score.burden is None else score.burden.predicted,
        "burden_reference": None if score.burden is None else score.burden.reference,
        "reference_lesions": score.at_iou.reference,
        "predicted_lesions": score.at_iou.predicted,
        "paired_lesions": score.at_iou.found,
        "found_lesions_any_overlap": score.at_any_overlap.found,
        "right_lesions_any_overlap": score.at_any_overlap.right,
    }


def _csv(rows: Sequence[Mapping[str, Any]], columns: tuple[str, ...] | None = None) -> str:
    return pd.DataFrame(rows, columns=columns).to_csv(index=False, lineterminator="\n")
