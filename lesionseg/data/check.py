"""`check`: every problem of a store, a LiTS folder or a table of slices at once, and the contact sheet of its masks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

import msgspec
import numpy as np
from rich.console import Console

from lesionseg.data import lits, slices
from lesionseg.data.case_files import CASES, array_damage, case_folder
from lesionseg.data.plausible import CODES, Problem, case_problems, cohort_problems, unreadable
from lesionseg.data.pseudonyms import pseudonyms, study_pseudonym
from lesionseg.data.records import CaseRecord, describe
from lesionseg.data.store import CASE_ID, MANIFEST, Store, StoreKind, read_manifest
from lesionseg.errors import InputError, printable
from lesionseg.figures import Panel, contact_sheet
from lesionseg.labels import BACKGROUND, LIVER, is_lesion, is_liver
from lesionseg.parallel import each
from lesionseg.scan import CaseSource, Scan, to_canonical
from lesionseg.writing import whole

#: Folds of the default comparison; a cohort that cannot fill them is reported.
USUAL_FOLDS = 3
MOST_PANELS = 24
_SHEET_DPI = 130


@dataclass(frozen=True)
class CheckResult:
    """What was looked at: problems, errors first, and at most `MOST_PANELS` slices, cases with problems first."""

    cases: int
    problems: tuple[Problem, ...]
    panels: tuple[Panel, ...]

    @property
    def errors(self) -> int:
        """Number of problems that work cannot go on with."""
        return sum(problem.severity == "error" for problem in self.problems)


@dataclass(frozen=True)
class _AnyLiver:
    """Stands for the liver net that `prepare` will be given, so that a table without liver masks can be looked at.

    It calls everything liver, so that the door finds no lesion outside; `_look_at_source` takes that back.
    """

    identity: str = "none"

    def __call__(self, scan: Scan) -> np.ndarray:
        return np.ones(scan.hu.shape, dtype=bool)


@dataclass(frozen=True)
class _Looked:
    """What one case gave; without a record it could not be read."""

    where: str
    problems: tuple[Problem, ...]
    record: CaseRecord | None = None
    panel: Panel | None = None


def check(
    target: Path,
    *,
    labels: Mapping[str, int] | None = None,
    groups: Path | None = None,
    exclude: Sequence[str] = (),
    folds: int = USUAL_FOLDS,
    salt: bytes = b"",
    workers: int | None = None,
) -> CheckResult:
    """Look at every case of a store, a LiTS folder or a table of slices; nothing is changed.

    Args:
        target: folder of a store, folder with LiTS files, or `slices.csv`.
        labels: as for `slices.find`; for a table.
        groups: as for the doors.
        exclude: as for the doors.
        folds: the comparison planned; too few patients for it are reported.
        salt: of the pseudonyms on the contact sheet, as `prepare` takes it.
        workers: processes, see `parallel.worker_count`.

    Raises:
        InputError: nothing there, or options that do not concern what is there.
    """
    if not target.exists():
        expected, remedy = "a store, a LiTS folder or a slices.csv", "check the path"
        raise InputError(target, expected=expected, got="nothing", remedy=remedy, code="no-cases")
    if _is_store(target):
        if labels or groups or exclude:
            _refuse("--labels, --groups, --exclude", "a LiTS folder or a table of slices", f"the store {target}")
        return _check_store(target, folds, workers)
    kind: StoreKind = "slices" if target.is_file() else "lits"
    if kind == "slices":
        found = slices.find(target, labels=labels, groups=groups, exclude=exclude, predict_liver=_AnyLiver())
    elif labels:
        _refuse("--labels", "a table of slices", str(target))
    else:
        found = lits.find(target, groups=groups, exclude=exclude)
    sources, faults = found
    problems = [unreadable(fault) for fault in faults]
    return _gather(partial(_look_at_source, kind=kind, salt=salt), sources, str(target), folds, workers, problems)


def report(
    target: Path,
    sheet: Path,
    *,
    labels: Mapping[str, int] | None = None,
    groups: Path | None = None,
    exclude: Sequence[str] = (),
    folds: int = USUAL_FOLDS,
    salt: bytes = b"",
    workers: int | None = None,
) -> bool:
    """`check`, print all problems, write the contact sheet; true if there is an error."""
    result = check(target, labels=labels, groups=groups, exclude=exclude, folds=folds, salt=salt, workers=workers)
    console = Console()
    print_problems(result, console)
    if result.panels:
        write_contact_sheet(result, sheet)
        console.print(printable(f"contact sheet: {sheet}"), markup=False, highlight=False, soft_wrap=True)
    return result.errors > 0


def print_problems(result: CheckResult, console: Console) -> None:
    """All problems by kind, errors first: code and meaning, every place with what was found, the remedy; then counts.

    One line each, never wrapped, so that the output can be searched.
    """
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    by_kind: dict[tuple[str, str, str], list[Problem]] = defaultdict(list)
    for problem in result.problems:
        by_kind[problem.severity, problem.code, problem.remedy].append(problem)
    for (severity, code, remedy), group in by_kind.items():
        style = "bold red" if severity == "error" else "yellow"
        say(f"{severity} {code}: {CODES.get(code, 'the input cannot be used as it is')}", style=style)
        for problem in group:
            say(printable(f"  {problem.where}: {problem.message}"))
        say(f"  → {remedy}", style="green")
    count = Counter(problem.severity for problem in result.problems)
    say(f"{result.cases} cases: {count['error']} errors, {count['warning']} warnings")


def write_contact_sheet(result: CheckResult, path: Path) -> None:
    """Write the slice with the largest lesion of each case as a PNG, outlines of liver and lesions on it."""
    shown = len(result.panels)
    title = f"{shown} of {result.cases} cases" if shown < result.cases else f"{shown} cases"
    figure = contact_sheet(result.panels, title=f"{title}, each at its largest lesion")
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part:
        figure.savefig(part, dpi=_SHEET_DPI, format="png")


def largest_lesion_slice(labels: np.ndarray) -> int:
    """The slice of a label map (D, H, W) with most lesion; without lesion, with most liver; else the middle one."""
    for mask in (is_lesion(labels), is_liver(labels)):
        area = mask.sum((1, 2))
        if area.any():
            return int(area.argmax())
    return len(labels) // 2


def _refuse(options: str, expected: str, got: str) -> NoReturn:
    raise InputError(options, expected=f"{expected} to apply them to", got=got, remedy="leave them out")


def _check_store(path: Path, folds: int, workers: int | None) -> CheckResult:
    try:
        store = read_manifest(path)
    except InputError as error:
        return CheckResult(0, (unreadable(error),), ())
    return _gather(partial(_look_at_stored, store=store), store.records, str(path), folds, workers, [])


def _gather(
    look: Callable[..., _Looked],
    items: Sequence[CaseSource] | Sequence[CaseRecord],
    cohort: str,
    folds: int,
    workers: int | None,
    problems: list[Problem],
) -> CheckResult:
    where: dict[str, str] = {}
    records: list[CaseRecord] = []
    panels: dict[tuple[int, str], Panel] = {}
    for looked in each(look, items, workers=workers, title="check"):
        problems += looked.problems
        if looked.record is None or looked.panel is None:
            continue
        where[looked.record.case_id] = looked.where
        records.append(looked.record)
        worst = min((problem.severity for problem in looked.problems), default="fine")
        panels[("error", "warning", "fine").index(worst), looked.record.case_id] = looked.panel
        for key in sorted(panels)[MOST_PANELS:]:  # never more in memory than will be shown
            del panels[key]
    if records:
        problems += cohort_problems(records, where, cohort, folds)
    ordered = sorted(problems, key=lambda problem: (problem.severity, problem.code, problem.where, problem.message))
    return CheckResult(len(items), tuple(ordered), tuple(panels[key] for key in sorted(panels)))


def _is_store(target: Path) -> bool:
    """Also one that was never finished; a folder of LiTS may have one that is called as that of the cases is."""
    cases = target / CASES
    return (target / MANIFEST).exists() or (cases.is_dir() and any(CASE_ID.fullmatch(p.name) for p in cases.iterdir()))


def _look_at_source(source: CaseSource, kind: StoreKind, salt: bytes) -> _Looked:
    try:
        case = to_canonical(source.read())
    except InputError as error:
        return _Looked(source.source_id, (unreadable(error),))
    case_id, patient_id = pseudonyms(source, salt)
    record = describe(
        case,
        case_id=case_id,
        patient_id=patient_id,
        study=study_pseudonym(case.scan.study, salt),
        source_checksum="",
        warnings=case.warnings,
    )
    if case.liver_predicted:  # by `_AnyLiver`: not known yet
        case.labels[case.labels == LIVER] = BACKGROUND
        record = msgspec.structs.replace(record, liver_slices=(), liver_box=None)
    where = f"{source.source_id} ({case_id})"
    return _looked(record, case.scan.hu, case.labels, where, kind)


def _look_at_stored(record: CaseRecord, store: Store) -> _Looked:
    damage = array_damage(case_folder(store.path, record.case_id), record, verify=True)
    if damage is not None:
        return _Looked(record.case_id, (unreadable(damage),))
    hu, labels = store.hu(record.case_id), store.labels(record.case_id)
    return _looked(record, hu, labels, record.case_id, store.kind)


def _looked(record: CaseRecord, hu: np.ndarray, labels: np.ndarray, where: str, kind: StoreKind) -> _Looked:
    problems = tuple(case_problems(record, hu, labels, where, kind))
    index = largest_lesion_slice(labels)
    note = " · ".join(_notes(record, index, problems))
    panel = Panel(np.array(hu[index]), np.array(labels[index]), record.case_id, note, record.pixel_mm)
    return _Looked(where, problems, record, panel)


def _notes(record: CaseRecord, index: int, problems: Iterable[Problem]) -> Iterable[str]:
    if record.shape[0] > 1:
        yield f"slice {index + 1}/{record.shape[0]}"
    n = len(record.lesions)
    yield f"{n} lesion{'' if n == 1 else 's'}" if n else "no lesion"
    here = [lesion for lesion in record.lesions if lesion.slices[0] <= index <= lesion.slices[1]]
    if here:
        largest = max(here, key=lambda lesion: lesion.voxels)
        yield f"{largest.voxels} voxels" if largest.diameter_mm is None else f"{largest.diameter_mm:.0f} mm"
    if record.liver_predicted:
        yield "liver predicted" if record.liver_slices else "no liver mask"
    count = Counter(problem.severity for problem in problems)
    yield from (f"{n} {severity}{'' if n == 1 else 's'}" for severity, n in sorted(count.items()))
