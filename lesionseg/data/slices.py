"""The door for single slices: `slices.csv`, one lesion mask or label map a row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from lesionseg.data.groups import check_excluded, read_groups
from lesionseg.data.slice_case import PredictsLiver, check_mask_format, holds_liver, is_seg, read_slice_case
from lesionseg.data.table import Row, read_rows
from lesionseg.errors import InputError
from lesionseg.labels import LESION_TYPES
from lesionseg.scan import CaseSource

#: Value of each lesion type in a label map where the caller names no other.
DEFAULT_LABELS = {name: value for value, name in enumerate(LESION_TYPES, 1)}


def cases(
    table: Path,
    *,
    labels: Mapping[str, int] | None = None,
    groups: Path | None = None,
    exclude: Sequence[str] = (),
    predict_liver: PredictsLiver | None = None,
) -> list[CaseSource]:
    """List the slices of a table in its order; no image is read yet.

    Args:
        table: CSV with columns `patient_id,image,mask` and optionally `lesion_type,liver_mask,spacing_mm,window_low_hu,
            window_high_hu` (the window is for PNG); paths relative to its folder. A row with `lesion_type` has a binary
            mask, and the rows of one image are merged; a row without has a label map. A DICOM-SEG may stand for either,
            and for the liver mask where it holds the liver.
        labels: value of each lesion type in the label maps; default 1, 2, … in the order of `LESION_TYPES`. `liver` may
            be among them, and then no liver mask is needed.
        groups: CSV with columns `case,patient` (case: the image as the table names it), over `patient_id`.
        exclude: images to leave out, as the table names them.
        predict_liver: finds the liver of the images that have no liver mask; such cases are marked as predicted.

    Raises:
        InputError: the first problem that `find` lists.
    """
    sources, problems = find(table, labels=labels, groups=groups, exclude=exclude, predict_liver=predict_liver)
    if problems:
        raise problems[0]
    return sources


def find(
    table: Path,
    *,
    labels: Mapping[str, int] | None = None,
    groups: Path | None = None,
    exclude: Sequence[str] = (),
    predict_liver: PredictsLiver | None = None,
) -> tuple[list[CaseSource], list[InputError]]:
    """List the slices as `cases` does, and all problems that show before an image is read."""
    rows, problems = read_rows(table)
    values = dict(DEFAULT_LABELS if labels is None else labels)
    images: dict[Path, list[Row]] = {}
    for row in rows:
        images.setdefault(row.image.resolve(), []).append(row)
    names = [group[0].image_name for group in images.values()]
    patients: dict[str, str] = {}
    try:
        _check_values(values)
        check_excluded(table, exclude, names)
        patients = read_groups(groups, names)
    except InputError as error:
        problems.append(error)
    sources, without_liver = [], []
    for group in images.values():
        first = group[0]
        if first.image_name in exclude:
            continue
        try:
            _check_merge(group)
            for path in (*(row.mask for row in group), *filter(None, [first.liver_mask])):
                check_mask_format(path)
            needs_liver = _needs_liver(group, values)
        except InputError as error:
            problems.append(error)
            continue
        if predict_liver is None and needs_liver:
            without_liver.append(first)
            continue
        patient_id = patients.get(first.image_name, first.patient_id)
        sources.append(_source(tuple(group), patient_id, values, predict_liver if needs_liver else None))
    if without_liver:
        problems.append(
            InputError(
                without_liver[0].where,
                expected="the liver of every image",
                got=f"no liver_mask for {len(without_liver)} of {len(images)} images",
                remedy="fill in liver_mask, or name a trained liver net by --liver RUN",
                code="no-liver",
            )
        )
    return sources, problems


def _check_values(labels: Mapping[str, int]) -> None:
    known = (*LESION_TYPES, "liver")
    values = list(labels.values())
    wrong = [name for name in labels if name not in known]
    if wrong or not labels or len(set(values)) < len(values) or not all(1 <= value <= 255 for value in values):
        raise InputError(
            "labels",
            expected=f"different values from 1 to 255 for {', '.join(known)}",
            got=", ".join(f"{name}={value}" for name, value in labels.items()) or "none",
            remedy="correct the label values",
            code="labels",
        )


def _check_merge(group: Sequence[Row]) -> None:
    """Raise `InputError` unless the rows of one image tell one story: the same image, in several typed binary masks."""
    first = group[0]
    for row in group[1:]:
        for what in ("patient_id", "liver_mask", "spacing_mm", "window_hu"):
            if getattr(row, what) != getattr(first, what):
                raise InputError(
                    row.where,
                    expected=f"the same {what} in all rows of one image",
                    got=f"another than in {first.where.rsplit(':', 1)[-1]}",
                    remedy="make the rows agree",
                    code="rows-differ",
                )
        if row.lesion_type is None or first.lesion_type is None:
            raise InputError(
                row.where,
                expected="one row for an image with a label map, or a lesion_type in each of its rows",
                got="a second row without",
                remedy="fill lesion_type or remove the row",
                code="rows-differ",
            )


def _needs_liver(rows: Sequence[Row], values: Mapping[str, int]) -> bool:
    """Whether neither a liver mask, nor a DICOM-SEG, nor the label map of one image says where its liver is."""
    first = rows[0]
    if first.liver_mask is not None or any(holds_liver(row.mask) for row in rows):
        return False
    return "liver" not in values or first.lesion_type is not None or is_seg(first.mask)


def _source(
    rows: tuple[Row, ...], patient_id: str, values: Mapping[str, int], predict: PredictsLiver | None
) -> CaseSource:
    first = rows[0]
    options = {
        "labels": dict(sorted(values.items())) if first.lesion_type is None else [row.lesion_type for row in rows],
        "spacing_mm": first.spacing_mm,
        "window_hu": first.window_hu,
        "liver": None if predict is None else predict.identity,
    }
    files = [first.image, *(row.mask for row in rows), *((first.liver_mask,) if first.liver_mask else ())]
    return CaseSource(
        first.image_name,
        patient_id,
        tuple(dict.fromkeys(files)),
        partial(read_slice_case, rows, patient_id, dict(values), predict),
        json.dumps(options, sort_keys=True),
    )
