"""`evaluate`: the whole cascade scored on the cases of a store that its nets have not seen."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lesionseg.boxes import Box, liver_box
from lesionseg.cascade_folder import CascadeFolder, fitting_into_memory, process_count
from lesionseg.data.case_files import array_damage, case_folder
from lesionseg.data.records import CaseRecord
from lesionseg.data.store import MANIFEST, Store
from lesionseg.errors import InputError
from lesionseg.evaluation.figures import (
    CASCADE,
    PREDICTED_BOX,
    REFERENCE_BOX,
)
from lesionseg.evaluation.folder import CASES, SUBMISSION, begun
from lesionseg.evaluation.scoring import (
    CaseScore,
    SliceTables,
    score_case,
    slice_tables,
)
from lesionseg.evaluation.tables import write_tables
from lesionseg.formats.nifti_write import write_nifti_labels
from lesionseg.grid_basis import few_patients
from lesionseg.labels import LESION_TYPES, TARGETS, is_liver
from lesionseg.model import Model
from lesionseg.parallel import Cluster, each
from lesionseg.provenance import provenance
from lesionseg.scan import Scan
from lesionseg.segmentation import UNDETERMINED
from lesionseg.writing import remove_parts, write_text

#: Classes of the LiTS challenge: background, liver, lesion.
_LITS = TARGETS["lesion"]


def evaluate(
    store: Path,
    model: Path,
    output: Path,
    *,
    device: str = "auto",
    batch_size: int | None = None,
    tta: bool = False,
    exclude_trained: bool = False,
    submission: bool = False,
    workers: int | None = None,
    dask: str | None = None,
) -> dict[str, Any]:
    """Score the whole cascade of a model on a store and write the tables; an interrupted evaluation continues.

    Args:
        store: made by `prepare`.
        model: made by `export`.
        output: folder of this evaluation.
        device: see `Cascade`.
        batch_size: see `Cascade`.
        tta: see `Cascade`.
        exclude_trained: leave out the patients that the model has seen, in place of refusing the store.
        submission: write the label map of each case as the LiTS challenge takes it.
        workers: processes that score a case each, see `process_count`.
        dask: address of a Dask scheduler whose workers take their place; they see all folders under the same paths.

    Returns:
        what `evaluation.json` holds.

    Raises:
        InputError: no store, no model, a model of generated CT for real CT, patients that the model has seen, a
            folder of something else or one in use; a cluster that is not fit, see `Cluster`; a score that is not there
            although its case was scored.
        ChildProcessError: see `each`; what has been scored stays for the next call.
    """
    opened, loaded = Store.open(store), Model.load(model)
    records, seen = _unseen(opened, loaded, exclude_trained)
    at = CascadeFolder(model, loaded.identity, device, batch_size, tta)
    count = process_count(workers, len(records), at.build(loaded)) if dask is None else 1
    cluster = None if dask is None else Cluster(dask, output, partial(at.ready, store / MANIFEST))
    with begun(output, {"store": opened.manifest_sha256, "model": loaded.identity, "tta": tta}):
        work = _Work(at, replace(opened, records=()), output, _types(loaded, records), submission)
        todo = [record for record in records if not work.done(record)]
        for _ in each(work, todo, workers=count, dask=cluster, title="evaluate"):
            pass
        for folder in (output / CASES, output / SUBMISSION):
            remove_parts(folder)
        scores = _scores(work, records)
        facts = _facts(opened, loaded, records, scores, tta=tta, seen=seen)
        return write_tables(output, scores, work.types, opened.content, facts, loaded)


@dataclass(frozen=True)
class _Work:
    """Scores one case and keeps the score, in any process; so small that it goes along with every case."""

    at: CascadeFolder
    store: Store
    output: Path
    types: tuple[str, ...]
    submission: bool

    def done(self, record: CaseRecord) -> bool:
        return kept(self.score(record)) is not None and (not self.submission or self._submitted(record).exists())

    def __call__(self, record: CaseRecord) -> None:
        if (damage := array_damage(case_folder(self.store.path, record.case_id), record, verify=True)) is not None:
            raise damage
        store = replace(self.store, records=(record,))
        scan, reference = store.scan(record.case_id), np.array(store.labels(record.case_id))
        with fitting_into_memory(scan):
            found = self.at.cascade.segment(scan)
            tables = self._tables(scan, found.labels, reference, record)
        score = score_case(
            found,
            reference,
            case_id=record.case_id,
            patient_id=record.patient_id,
            liver_predicted=record.liver_predicted,
            tables=tables,
        )
        if self.submission:
            self._submitted(record).parent.mkdir(exist_ok=True)
            write_nifti_labels(self._submitted(record), _LITS.apply(found.labels), scan.affine)
        write_text(self.score(record), json.dumps(score.to_json(), allow_nan=False) + "\n")

    def _tables(
        self, scan: Scan, labels: np.ndarray, reference: np.ndarray, record: CaseRecord
    ) -> dict[str, SliceTables]:
        slices, predicted_box = record.liver_slices, liver_box(is_liver(labels))

        def table(predicted: np.ndarray) -> SliceTables:
            return slice_tables(predicted, reference, slices, self.types)

        reference_box = table(self._classes(scan, slices, record.liver_box))
        same = predicted_box == record.liver_box
        return {
            REFERENCE_BOX: reference_box,
            PREDICTED_BOX: reference_box if same else table(self._classes(scan, slices, predicted_box)),
            CASCADE: table(labels),
        }

    def _classes(self, scan: Scan, slices: Sequence[int], box: Box | None) -> np.ndarray:
        """Class indices of the lesion nets; without a liver none look, so all is background."""
        if box is None:
            return np.zeros(scan.hu.shape, dtype=np.uint8)
        return self.at.cascade.find_lesions(scan.hu, np.array(slices, dtype=np.intp), box).classes

    def score(self, record: CaseRecord) -> Path:
        return self.output / CASES / f"{record.case_id}.json"

    def _submitted(self, record: CaseRecord) -> Path:
        return self.output / SUBMISSION / f"test-segmentation-{record.case_id}.nii"


def kept(path: Path) -> CaseScore | None:
    """The score that a file holds; None: no such file, or a torn one."""
    try:
        return CaseScore.from_json(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _unseen(store: Store, model: Model, exclude: bool) -> tuple[list[CaseRecord], int]:
    """The cases of patients of whom the model has seen no scan, and the number of the others."""
    if model.generated and not store.generated:
        raise InputError(store.path, expected="generated CT, as the model was trained on", got="real CT",
                         remedy="export a model from runs on LiTS and your own slices")  # fmt: skip
    trained_on = set(model.trained_on)
    patients = {record.patient_id for record in store.records if record.scans & trained_on}
    unseen = [record for record in store.records if record.patient_id not in patients]
    seen = len(store.records) - len(unseen)
    if seen and not (exclude and unseen):
        got = f"{seen} of {len(store.records)} cases of patients whose scans it was trained on"
        remedy = "leave them out with --exclude-trained" if unseen else "evaluate it on another store"
        raise InputError(store.path, expected="cases that the model has not seen", got=got, remedy=remedy)
    return unseen, seen


def _types(model: Model, records: Sequence[CaseRecord]) -> tuple[str, ...]:
    """Names of the lesion classes to score: the stored ids of lesion types are the class indices of a typed net."""
    typed = len(model.lesion_types) > 1 and all(set(record.lesion_types) <= set(LESION_TYPES) for record in records)
    return (*model.lesion_types, UNDETERMINED) if typed else ("lesion",)


def _scores(work: _Work, records: Sequence[CaseRecord]) -> list[CaseScore]:
    """Those of all cases; figures of some would pass for figures of all."""
    scores = [score for record in records if (score := kept(work.score(record))) is not None]
    if len(scores) != len(records):
        got, remedy = f"{len(scores)} that can be read", "give the command again, which scores the others anew"
        raise InputError(work.output / CASES, expected=f"scores of {len(records)} cases", got=got, remedy=remedy)
    return scores


def _facts(
    store: Store, model: Model, records: Sequence[CaseRecord], scores: Sequence[CaseScore], *, tta: bool, seen: int
) -> list[str]:
    """What the figures rest on, one sentence each."""
    patients, made = len({record.patient_id for record in records}), provenance()
    nets = ", ".join(f"{net.provenance['name']} fold {net.provenance['fold']} seed {net.provenance['seed']}"
                     for net in model.lesions)  # fmt: skip
    lines = [
        f"Data: {store.content}, {len(records)} cases of {patients} patients; "
        f"store {store.manifest_sha256[:12]} ({store.kind}).",
        f"Model: {model.identity[:12]}; lesion nets: {nets}; has seen {len(model.trained_on)} scans, none of those "
        f"scored here; test-time augmentation {'on' if tta else 'off'}.",
        f"Code: commit {made['commit'] or 'unknown'}, version {made['version']}; machine: {made['machine']}.",
    ]
    if seen:
        lines.append(f"Left out: {seen} cases of patients whose scans the model was trained on.")
    if model.selected is not None:
        lines.append("The schedule of the model was chosen by test results.")
    if guessed := sum(record.liver_predicted for record in records):
        lines.append(f"{guessed} cases have no reference liver but one from a net: no figure of the liver counts them, "
                     "and their reference box is that net's.")  # fmt: skip
    if unknown := sum(record.spacing_mm is None for record in records):
        lines.append(f"{unknown} cases of unknown spacing: no figure in mm counts them.")
    slices, extra = (sum(getattr(score.elsewhere, name) for score in scores) for name in ("slices", "false_positives"))
    if slices:
        lines.append(f"{slices} slices hold no liver in the reference and are not among those of the slice figures; "
                     f"the whole cascade finds {extra} lesion components on them.")  # fmt: skip
    lesions: Counter[str] = Counter()
    for record in records:
        lesions[record.patient_id] += len(record.lesions)
    return lines + few_patients(lesions.values(), patients)
