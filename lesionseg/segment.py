"""`segment`: studies → folders with what a user receives. One bad study stops no other; interrupted, it continues.

OUT/NAME/       one a study, see `deliver` and `study_folder`
OUT/summary.csv of inputs with several studies, one row a study; where it is, also of further single ones
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lesionseg.cascade_folder import CascadeFolder, fitting_into_memory, process_count
from lesionseg.deliver import FORMATS, deliver, formats_of, read_liver_mask
from lesionseg.errors import InputError, printable
from lesionseg.model import Model
from lesionseg.outcomes import (
    SUMMARY,
    Outcome,
    Row,
    beside_earlier,
    read_summary,
    summary_table,
    unsegmented,
    write_summary,
)
from lesionseg.parallel import KILLED, Cluster, each
from lesionseg.request import source_sha256
from lesionseg.scan import Scan, canonical_axes
from lesionseg.segmentation import RESEARCH_USE_ONLY, Segmentation
from lesionseg.studies import Found, Study, find_studies
from lesionseg.study_folder import Record, file_sha256, finished, locked, made, put_in_place, refuse_replacing

#: Scan, and the liver where it is given → segmentation.
Segmenter = Callable[[Scan, np.ndarray | None], Segmentation]


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
            "source": source_sha256(),
            **self.identity,
        }


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
    workers: int | None = None,
    dask: str | None = None,
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
        workers: processes that segment a study each, see `process_count`.
        dask: address of a Dask scheduler whose workers take their place; they see all folders under the same paths.

    Returns:
        what became of each study.

    Raises:
        InputError: no study, or a single one and that is refused; several and a liver mask; an output in the input, in
            use, or no folder; a model or device that is not there; a cluster that is not fit, see `Cluster`.
        ChildProcessError: no worker of the cluster is left.
    """
    if wrong := sorted(set(formats or ()) - set(FORMATS)):
        expected, remedy = f"some of {','.join(FORMATS)}", "name them with commas between them"
        raise InputError("--formats", expected=expected, got=",".join(map(repr, wrong)), remedy=remedy)
    found = find_studies(path, series)
    _refuse_inside(output, path)
    if liver_mask is not None:
        _refuse_liver_mask(liver_mask, path, len(found.studies))
    held = Model.load(model)
    at = CascadeFolder(model, held.identity, device, batch_size, tta)
    identity = {"model": held.identity, "tta": tta, "probabilities": probabilities}
    wish = Wish(None if formats is None else tuple(formats), liver_mask, identity)
    segmenter = partial(_segment_scan, at, probabilities=probabilities)
    if dask is None:
        workers = process_count(workers, len(found.studies), at.build(held))
        return segment_studies(found, output, segmenter, wish, workers=workers)
    cluster = Cluster(dask, output, partial(at.ready, found.studies[0].files[0]))
    return segment_studies(found, output, segmenter, wish, dask=cluster)


def _segment_scan(at: CascadeFolder, scan: Scan, liver: np.ndarray | None, *, probabilities: bool) -> Segmentation:
    return at.cascade.segment(scan, liver=liver, probabilities=probabilities)


def segment_studies(
    found: Found,
    output: Path,
    segmenter: Segmenter,
    wish: Wish,
    *,
    workers: int = 1,
    dask: Cluster | None = None,
) -> list[Outcome]:
    """`segment`, with any function that segments; it is picklable where more than this process works.

    Says what it does on stdout, and warnings on stderr. Where studies run side by side, all of one study together.
    """
    number = len(found.studies)
    work = _Work(output, segmenter, wish, number, None if dask else os.getpid())
    by_name = {study.name: study for study in found.studies}
    outcomes: list[Outcome] = []
    for text in found.passed_over:
        _say(f"passed over: {text}")
    with locked(output):
        earlier = _summary(output, number)
        numbered = list(enumerate(found.studies, 1))
        engine = each(work, numbered, workers=workers, dask=dask, title=None, killed=work.killed)
        with closing(engine) as results:
            for outcome, lines in results:
                for line in lines:
                    _say(line)
                outcomes.append(outcome := _in_place(outcome, by_name[outcome.study], output, number))
                for text in outcome.warnings:
                    print(f"lesionseg: {outcome.study}: {text}", file=sys.stderr, flush=True)
                if earlier is not None:
                    write_summary(output / SUMMARY, earlier, outcomes)
    if number > 1:
        print(f"\n{summary_table(outcomes)}\n")
    count = Counter(outcome.ending for outcome in outcomes)
    endings = ", ".join(f"{n} {ending}" for ending, n in count.items())
    _say(f"{endings}; in {output}. {RESEARCH_USE_ONLY}")
    return outcomes


def _summary(output: Path, number: int) -> dict[str, Row] | None:
    """The rows that a call of so many studies adds to; None: it keeps no summary, as a single study begins none."""
    path = output / SUMMARY
    try:
        return read_summary(path) if number > 1 or path.exists() else None
    except InputError:
        if number > 1:
            raise
        return None  # a single study does not write there, whatever it is


def _say(text: str) -> None:
    print(printable(text), flush=True)


@dataclass(frozen=True)
class _Work:
    """What a process does with a study: its outcome, and the lines about it that are still to be said.

    Attributes:
        number: of studies.
        speaker: the process that says them at once, as it works on nothing else meanwhile.
    """

    output: Path
    segmenter: Segmenter
    wish: Wish
    number: int
    speaker: int | None

    def __call__(self, numbered: tuple[int, Study]) -> tuple[Outcome, list[str]]:
        i, study = numbered
        lines: list[str] = []
        say = _say if os.getpid() == self.speaker else lines.append
        say(self._heading(i, study))
        attempt = _attempt if self.number > 1 else _one
        outcome = _beside_earlier(attempt(study, self.output, self.segmenter, self.wish, say), self.output)
        if outcome.ending != "segmented":
            say(outcome.line)
        if self.number > 1 and outcome.ending != "done already":
            gc.collect()  # figures hold themselves; left alone, 30 studies would pile up before Python looks
        return outcome, lines

    def killed(self, numbered: tuple[int, Study]) -> tuple[Outcome, list[str]]:
        """The same for a study over which every process was killed."""
        outcome = _beside_earlier(Outcome(numbered[1].name, "failed", reason=KILLED), self.output)
        return outcome, [self._heading(*numbered), outcome.line]

    def _heading(self, i: int, study: Study) -> str:
        return f"[{i}/{self.number}] {study.name}"


def _beside_earlier(outcome: Outcome, output: Path) -> Outcome:
    """The outcome, which tells where results lie there that are not of it."""
    without = outcome.ending not in ("segmented", "done already")
    return beside_earlier(outcome) if without and Record.read(output / outcome.study) is not None else outcome


def _attempt(study: Study, output: Path, segmenter: Segmenter, wish: Wish, say: Callable[[str], object]) -> Outcome:
    """One study of several: whatever is wrong with it becomes the reason."""
    try:
        return _one(study, output, segmenter, wish, say)
    except Exception as error:  # one bad study stops no other
        return unsegmented(study.name, error)


def _one(study: Study, output: Path, segmenter: Segmenter, wish: Wish, say: Callable[[str], object]) -> Outcome:
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
    say(f"  {_scan_line(scan)}")
    with fitting_into_memory(scan):
        found = segmenter(scan, liver)
    done = time.perf_counter()
    seconds = {"read": read - start, **found.seconds}
    found = replace(found, warnings=(*remarks, *found.warnings), seconds=seconds)
    facts = {"slices": scan.hu.shape[found.slice_axis], "lesions": len(found.findings),
             "liver_ml": None if found.liver_ml is None else round(found.liver_ml),
             "liver": found.settings.get("liver"), "tta": found.settings.get("tta"),
             "model": found.model.get("identity")}  # fmt: skip
    with made(output, made_of, study.place, facts) as temporary:
        found = deliver(found, study, temporary, wish.formats)
    write = time.perf_counter() - done
    say(f"  {_findings_line(found)}")
    say(f"  {_seconds_line({**seconds, 'write': write})}")
    took = {"read": read - start, "segment": done - read, "write": write}
    return Outcome(study.name, "segmented", facts, took, warnings=found.warnings, made=temporary)


def _in_place(outcome: Outcome, study: Study, output: Path, number: int) -> Outcome:
    """Put in place what was made: here and not in the workers, so that a study begun twice still has one result."""
    try:
        if outcome.made is not None:
            put_in_place(outcome.made, output / study.name, study.place)
    except Exception as error:  # nor does one whose place cannot be had
        if number == 1:
            raise
        outcome = _beside_earlier(unsegmented(study.name, error), output)
        _say(outcome.line)
    return outcome


def _refuse_liver_mask(mask: Path, path: Path, studies: int) -> None:
    if studies > 1:
        got = f"{studies} studies in {path}"
        raise InputError("--liver-mask", expected="a single study", got=got, remedy="segment them one by one")
    if not mask.is_file():
        raise InputError(mask, expected="a NIfTI file or a DICOM-SEG", got="no such file", remedy="check the path")


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
