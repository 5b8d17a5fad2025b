"""`segment`: studies → folders with what a user receives. One bad study stops no other; interrupted, it continues.

OUT/NAME/       one a study, see `deliver` and `study_folder`
OUT/summary.csv of inputs with several studies, one row a study
"""

from __future__ import annotations

import csv
import gc
import io
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lesionseg import __version__
from lesionseg.cascade import Cascade
from lesionseg.deliver import FORMATS, deliver, formats_of, read_liver_mask
from lesionseg.errors import InputError, printable
from lesionseg.model import Model
from lesionseg.runs import write_text
from lesionseg.scan import Scan, canonical_axes
from lesionseg.segmentation import RESEARCH_USE_ONLY, Segmentation
from lesionseg.studies import LABEL_MAP, Found, Study, find_studies
from lesionseg.study_folder import file_sha256, finished, locked, made, refuse_replacing

SUMMARY = "summary.csv"
#: How a study may end.
Ending = Literal["segmented", "done already", "passed over", "refused", "failed"]
#: Scan, and the liver where it is given → segmentation.
Segmenter = Callable[[Scan, np.ndarray | None], Segmentation]

#: Of `summary.csv`, by `_COLUMNS`.
Row = dict[str, Any]

_SECONDS = ("read_s", "segment_s", "write_s")
_COLUMNS = ("study", "ending", "slices", "lesions", "liver_ml", *_SECONDS, "reason")


@dataclass(frozen=True)
class Wish:
    """What is asked of every study.

    Attributes:
        formats: from `deliver.FORMATS`; None: all that fit the input.
        liver_mask: in the place of the liver net.
        identity: what else decides the result (model, test-time augmentation, probabilities), plain JSON data.
    """

    formats: tuple[str, ...] | None = None
    liver_mask: Path | None = None
    identity: dict[str, Any] = field(default_factory=dict)

    def made_of(self, study: Study) -> dict[str, Any]:
        """All that decides what a study's folder holds, plain JSON data. `InputError`: a format that does not fit."""
        return {
            "input": study.fingerprint(),
            "formats": list(formats_of(study, self.formats)),
            "liver_mask": self.liver_mask and file_sha256(self.liver_mask),
            "version": __version__,
            **self.identity,
        }


@dataclass(frozen=True)
class Outcome:
    """What became of a study.

    Attributes:
        study: its name.
        ending: see `Ending`.
        facts: slices, lesions, liver_ml; empty where there is no segmentation.
        seconds: read, segment, write; empty where it was not segmented now.
        reason: of what was not segmented, one line; names no file, as the path of one may name a patient.
        told: the same for the terminal, with the file; empty: as `reason`.
    """

    study: str
    ending: Ending
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    told: str = ""

    @property
    def row(self) -> Row:
        """Its line of the summary, with the columns `_COLUMNS`."""
        seconds = {f"{name}_s": f"{value:.3f}" for name, value in self.seconds.items()}
        held = {"study": self.study, "ending": self.ending, **self.facts, **seconds, "reason": self.reason}
        return {name: "" if held.get(name) is None else held[name] for name in _COLUMNS}


def segment(
    path: Path,
    output: Path,
    model: Path,
    *,
    series: str | None = None,
    formats: Sequence[str] | None = None,
    liver_mask: Path | None = None,
    probabilities: bool = False,
    tta: bool = False,
    device: str = "auto",
    batch_size: int | None = None,
) -> list[Outcome]:
    """Segment every study of an input. One that is done, of the same files and by the same model, is left as it is.

    Args:
        path: a NIfTI file, a DICOM file, or a folder of any nesting, see `studies.find_studies`.
        output: takes one folder a study; nothing else in it is touched.
        model: folder made by `lesionseg export`.
        series: the CT series to take, by its UID or the end of it.
        formats: from `deliver.FORMATS`; None: all that fit the input.
        liver_mask: in the place of the liver net, for a single study; see `deliver.read_liver_mask`.
        probabilities: write the probability of every class as well.
        tta: see `Cascade`.
        device: see `Cascade`.
        batch_size: see `Cascade`.

    Returns:
        what became of each study.

    Raises:
        InputError: no study, or a single one and that is refused; several and a liver mask; an output in the input, in
            use, or no folder; a model or device that is not there.
    """
    if wrong := sorted(set(formats or ()) - set(FORMATS)):
        expected, remedy = f"some of {','.join(FORMATS)}", "name them with commas between them"
        raise InputError("--formats", expected=expected, got=",".join(map(repr, wrong)), remedy=remedy)
    found = find_studies(path, series)
    _refuse_inside(output, path)
    if liver_mask is not None and len(found.studies) > 1:
        got = f"{len(found.studies)} studies in {path}"
        raise InputError("--liver-mask", expected="a single study", got=got, remedy="segment them one by one")
    if liver_mask is not None and not liver_mask.is_file():
        raise InputError(
            liver_mask, expected="a NIfTI file or a DICOM-SEG", got="no such file", remedy="check the path"
        )
    held = Model.load(model)
    cascade = Cascade(held, device=device, batch_size=batch_size, tta=tta)
    identity = {"model": held.identity, "tta": tta, "probabilities": probabilities}
    wish = Wish(None if formats is None else tuple(formats), liver_mask, identity)
    return segment_studies(
        found, output, lambda scan, liver: cascade.segment(scan, liver=liver, probabilities=probabilities), wish
    )


def segment_studies(found: Found, output: Path, segmenter: Segmenter, wish: Wish) -> list[Outcome]:
    """`segment`, with any function that segments. Says what it does on stdout, and warnings on stderr."""
    number = len(found.studies)
    attempt = _attempt if number > 1 else _one
    outcomes: list[Outcome] = []
    for text in found.passed_over:
        print(printable(f"passed over: {text}"), flush=True)
    with locked(output):
        earlier = _read_summary(output / SUMMARY) if number > 1 else {}
        for i, study in enumerate(found.studies, 1):
            print(f"[{i}/{number}] {study.name}", flush=True)
            outcomes.append(attempt(study, output, segmenter, wish))
            if outcomes[-1].ending != "segmented":
                told = outcomes[-1].told or outcomes[-1].reason
                print(f"  {outcomes[-1].ending}{': ' * bool(told)}{told}", flush=True)
            if number > 1:
                _write_summary(output / SUMMARY, earlier, outcomes)
                gc.collect()  # figures hold themselves; left alone, 30 studies would pile up before Python looks
    if number > 1:
        print(f"\n{_table(outcomes)}\n")
    count = Counter(outcome.ending for outcome in outcomes)
    endings = ", ".join(f"{n} {ending}" for ending, n in count.items())
    print(f"{endings}; in {printable(str(output))}. {RESEARCH_USE_ONLY}", flush=True)
    return outcomes


def _attempt(study: Study, output: Path, segmenter: Segmenter, wish: Wish) -> Outcome:
    """One study of several: whatever is wrong with it becomes the reason."""
    try:
        return _one(study, output, segmenter, wish)
    except InputError as error:
        if error.code == LABEL_MAP:
            return Outcome(study.name, "passed over", reason=error.got)
        return Outcome(study.name, "refused", reason=error.brief, told=str(error))
    except (OSError, RuntimeError) as error:
        kind, told = type(error).__name__, printable(" ".join(f"{type(error).__name__}: {error}".split()))
        reason = f"{kind}: {error.strerror or 'unknown'}" if isinstance(error, OSError) else told
        return Outcome(study.name, "failed", reason=reason, told=told)
    except Exception as error:  # a fault of the package; its text may quote a header, and so the patient
        hint = "segment it alone with --debug to see where"
        return Outcome(study.name, "failed", reason=f"{type(error).__name__}; {hint}")


def _one(study: Study, output: Path, segmenter: Segmenter, wish: Wish) -> Outcome:
    folder, made_of = output / study.name, wish.made_of(study)
    facts = finished(folder, made_of, study.place)
    if facts is not None:
        return Outcome(study.name, "done already", facts)
    refuse_replacing(folder, study.place)
    start = time.perf_counter()
    scan, remarks = study.read()
    scan = replace(scan, scan_id=study.name)
    liver = None if wish.liver_mask is None else read_liver_mask(wish.liver_mask, scan, study)
    read = time.perf_counter()
    print(f"  {_scan_line(scan)}", flush=True)
    found = _segmented(segmenter, scan, liver)
    done = time.perf_counter()
    seconds = {"read": read - start, **found.seconds}
    found = replace(found, warnings=(*remarks, *found.warnings), seconds=seconds)
    facts = {"slices": scan.hu.shape[found.slice_axis], "lesions": len(found.findings),
             "liver_ml": None if found.liver_ml is None else round(found.liver_ml)}  # fmt: skip
    with made(folder, made_of, study.place, facts) as temporary:
        found = deliver(found, study, temporary, wish.formats)
    write = time.perf_counter() - done
    for text in found.warnings:
        print(f"lesionseg: {study.name}: {text}", file=sys.stderr, flush=True)
    print(f"  {_findings_line(found)}\n  {_seconds_line({**seconds, 'write': write})}", flush=True)
    return Outcome(study.name, "segmented", facts, {"read": read - start, "segment": done - read, "write": write})


def _segmented(segmenter: Segmenter, scan: Scan, liver: np.ndarray | None) -> Segmentation:
    try:
        return segmenter(scan, liver)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise InputError(scan.scan_id, expected="a scan that fits into memory", got=f"{scan.hu.shape} (D, H, W)",
                         remedy="give a smaller --batch-size, or --device cpu", code="memory") from error  # fmt: skip


def _refuse_inside(output: Path, path: Path) -> None:
    if path.is_dir() and output.resolve().is_relative_to(path.resolve()):
        raise InputError(output, expected="an output outside the input", got=f"one in {path}",
                         remedy="name another output folder", code="output")  # fmt: skip


def _scan_line(scan: Scan) -> str:
    order, _ = canonical_axes(scan.affine)
    depth, height, width = (scan.hu.shape[axis] for axis in order)
    size = f"{depth} slice{'s' if depth > 1 else ''} of {height} x {width}"
    if scan.spacing_mm is None:
        return f"{size}, spacing unknown"
    spacing = [scan.spacing_mm[axis] for axis in order]
    return f"{size}, voxels of {' x '.join('unknown' if np.isnan(mm) else f'{mm:.3g}' for mm in spacing)} mm"


def _findings_line(found: Segmentation) -> str:
    liver = "" if found.liver_ml is None else f"liver {found.liver_ml:.0f} ml, "
    count = Counter(finding.type for finding in found.findings)
    kinds = f" ({', '.join(f'{n} {name}' for name, n in count.items())})" if count else ""
    return f"{liver}{len(found.findings)} lesion{'' if len(found.findings) == 1 else 's'}{kinds}"


def _seconds_line(seconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())


def _read_summary(path: Path) -> dict[str, Row]:
    """Rows of earlier calls by study; `InputError` for any other file, as one with columns of the user's."""
    if not path.exists():
        return {}
    try:
        header, *rows = csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))
    except (OSError, ValueError, csv.Error):
        header, rows = [], []
    if header != list(_COLUMNS) or any(len(row) != len(_COLUMNS) for row in rows):
        raise InputError(path, expected=f"none, or one with the columns {', '.join(_COLUMNS)} alone",
                         got="another file", remedy="move it away, or name another output folder",
                         code="output")  # fmt: skip
    return {row[0]: dict(zip(_COLUMNS, row, strict=True)) for row in rows}


def _write_summary(path: Path, earlier: Mapping[str, Row], outcomes: Sequence[Outcome]) -> None:
    """Rows of earlier calls stay but for studies of this call; one that is done already took its time earlier."""
    rows = dict(earlier)
    for outcome in outcomes:
        before = earlier.get(outcome.study, {}) if outcome.ending == "done already" else {}
        took = {name: value for name, value in before.items() if name in _SECONDS}
        rows[outcome.study] = {**outcome.row, **took}
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[name] for name in sorted(rows))
    write_text(path, text.getvalue())


def _table(outcomes: Sequence[Outcome]) -> str:
    """The rows of `summary.csv` for the eye: aligned, without the reasons, which have been told."""
    names = _COLUMNS[:-1]
    rows = [names, *(tuple(str(outcome.row[name]) for name in names) for outcome in outcomes)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(names))]
    aligned = (
        [cell.ljust(n) if i < 2 else cell.rjust(n) for i, (cell, n) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    )
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)
