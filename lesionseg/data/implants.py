"""The door for implants: slices of a store of real CT whose liver is free of lesions, each with lesions of one type."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from lesionseg.data.case_files import case_folder
from lesionseg.data.records import CaseRecord
from lesionseg.data.store import RECORD, Store
from lesionseg.errors import InputError
from lesionseg.implant import implant
from lesionseg.implant.draw import IMPLANT_VERSION, known_spacing
from lesionseg.implant.host import room_mm
from lesionseg.labels import LESION_TYPES
from lesionseg.runs import finished_run
from lesionseg.scan import Case, CaseSource, Scan

#: A slice is taken where a lesion may reach at least this far from its centre: half of them are larger than 14 mm.
LEAST_ROOM_MM = 12.0
#: Most lesions of a slice, by type; metastases come in greater numbers.
MOST_LESIONS = dict.fromkeys(LESION_TYPES, 2) | {"metastasis": 3}


@dataclass(frozen=True)
class Plan:
    """A slice that gets lesions of one type."""

    store: Store
    record: CaseRecord
    index: int
    kind: str
    seed: int

    @property
    def source(self) -> CaseSource:
        """The case that comes of it."""
        name = f"{self.record.case_id}, slice {self.index}"
        recipe = f"implants {IMPLANT_VERSION}: {self.kind}, seed {self.seed}"
        files = (case_folder(self.store.path, self.record.case_id) / RECORD,)  # holds the checksums of the arrays
        return CaseSource(name, self.record.patient_id, files, self.read, f"{recipe}, {name}", pseudonymous=True)

    def before(self) -> tuple[np.ndarray, np.ndarray]:
        """HU and labels (1, H, W) of the slice as it is."""
        here = slice(self.index, self.index + 1)
        return self.store.hu_slices(self.record.case_id, here), self.store.label_slices(self.record.case_id, here)

    def read(self) -> Case:
        """The slice with its lesions, a function of the seed, its scan, its number and the type."""
        record = self.record
        rng = np.random.default_rng([self.seed, int(record.voxel_checksum[:16], 16), self.index])
        kinds = [self.kind] * int(rng.integers(1, MOST_LESIONS[self.kind] + 1))
        made = implant(rng, *self.before(), kinds, record.spacing_mm)
        if made is None:
            where = f"{record.case_id}, slice {self.index}"
            raise InputError(
                where,
                expected=f"room for a {self.kind}",
                got="none found",
                remedy="choose another --seed",
                code="implant",
            )
        affine = None if record.affine is None else np.array(record.affine)
        if affine is not None:
            affine[:3, 3] += affine[:3, 0] * self.index
        scan = Scan(made.hu, f"{record.case_id}-{self.index}", record.spacing_mm, affine)
        return Case(scan, made.labels, record.patient_id, record.liver_predicted, implanted_in=record.voxel_checksum)


def plan(store: Store, *, slices: int | None = None, seed: int = 0, exclude_trained: Path | None = None) -> list[Plan]:
    """Choose slices and types; labels are read, no voxel yet.

    Patients give slices in turn, drawn at random, and the slices of a patient take the lesion types in turn, so that
    neither a patient nor a part of the liver tells the type.

    Args:
        store: of real CT with livers.
        slices: how many; None: every slice with room.
        seed: decides slices and lesions.
        exclude_trained: a finished run; patients with a scan that it has seen are left out.

    Raises:
        InputError: generated CT, no liver, no slice without lesion that has room, too few of them, or nobody left whom
            the run has not seen.
    """
    if store.generated:
        remedy = "take its slices, which hold lesions of every type: lesionseg prepare slices"
        _refuse(store, "real CT", "CT of the phantom", remedy)
    records = _unseen(store, exclude_trained)
    hosts = {patient: _hosts(store, own) for patient, own in _by_patient(records).items()}
    if not any(record.liver_slices for record in records):
        _refuse(store, "a liver in the labels", "none", "use a store whose masks show the liver")
    free = sum(map(len, hosts.values()))
    if not free:
        got = f"none among {sum(len(record.liver_slices) for record in records)} slices with liver"
        _refuse(store, f"liver without lesion and {2 * LEAST_ROOM_MM:g} mm wide", got, "take further scans")
    if slices is not None and not 1 <= slices <= free:
        raise InputError("--slices", expected=f"1 to {free}, as many as are free of lesions", got=str(slices),
                         remedy="choose another number, or none to take them all")  # fmt: skip
    return [Plan(store, *host, kind, seed) for host, kind in _in_turn(hosts, seed)[:slices]]


def _refuse(store: Store, expected: str, got: str, remedy: str) -> None:
    raise InputError(store.path, expected=expected, got=got, remedy=remedy, code="implant")


def _unseen(store: Store, run: Path | None) -> list[CaseRecord]:
    """The cases of all patients of whom a run has seen nothing."""
    seen = set() if run is None else set(finished_run(run).trained_on)
    patients = {record.patient_id for record in store.records if record.scans & seen}
    records = [record for record in store.records if record.patient_id not in patients]
    if not records:
        _refuse(store, f"patients that {run} has not seen", "none", "leave some out of the pretraining: --exclude")
    return records


def _by_patient(records: list[CaseRecord]) -> dict[str, list[CaseRecord]]:
    patients = sorted({record.patient_id for record in records})
    return {patient: [record for record in records if record.patient_id == patient] for patient in patients}


def _hosts(store: Store, records: list[CaseRecord]) -> list[tuple[CaseRecord, int]]:
    """Slices with liver and room, that neither hold a lesion nor lie next to one that does."""
    hosts = []
    for record in records:
        near = {i + step for i in record.lesion_slices for step in (-1, 0, 1)}
        labels, spacing_mm = store.labels(record.case_id), known_spacing(record.spacing_mm, record.shape)
        free = [i for i in record.liver_slices if i not in near]
        hosts += [(record, i) for i in free if room_mm(labels[i : i + 1], spacing_mm).max() >= LEAST_ROOM_MM]
    return hosts


def _in_turn(hosts: dict[str, list[tuple[CaseRecord, int]]], seed: int) -> list[tuple[tuple[CaseRecord, int], str]]:
    """Every host with its lesion type: one of each patient, then another of each, and so on."""
    rows, kinds = [], list(LESION_TYPES)
    for turn, (patient, own) in enumerate(hosts.items()):
        order = np.random.default_rng([seed, int(patient[1:], 16)]).permutation(len(own))
        rows.append([(own[place], kinds[(turn + i) % len(kinds)]) for i, place in enumerate(order)])
    return [taken for row in zip_longest(*rows) for taken in row if taken is not None]
