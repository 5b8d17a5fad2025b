"""Small cases on disk for the tests of store, check and folds: one .npz a case, read as a door would."""

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from lesionseg.errors import InputError
from lesionseg.scan import Case, CaseSource, Scan

#: Already canonical: D to the head (LPS z up), H to the back, W to the left.
AFFINE = np.array([[0, 0, 0.8, 0], [0, 0.8, 0, 0], [5.0, 0, 0, 0], [0, 0, 0, 1]])


@dataclass
class Made:
    hu: np.ndarray
    labels: np.ndarray
    spacing_mm: tuple[float, float, float] | None = (5.0, 0.8, 0.8)
    affine: np.ndarray | None = field(default_factory=AFFINE.copy)
    generated: bool = False
    warnings: tuple[str, ...] = ()
    study: str | None = None


def made(seed: int, lesion: int = 2, shape: tuple[int, int, int] = (4, 32, 32)) -> Made:
    """Noise around 0 HU, a liver block at 110 HU, a lesion block of 3×4 pixels on two slices (one if D = 1)."""
    rng = np.random.default_rng(seed)
    hu = rng.normal(0, 40, shape).astype(np.int16)
    labels = np.zeros(shape, np.uint8)
    labels[:, 6:26, 5:25] = 1
    labels[: min(2, shape[0]), 10:13, 12:16] = lesion
    hu[labels == 1] += 110
    return Made(hu, labels)


def source(folder: Path, name: str, patient: str, case: Made, delay_s: float = 0.0, options: str = "") -> CaseSource:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.npz"
    np.savez(file, hu=case.hu, labels=case.labels)
    how = (case.spacing_mm, case.affine, case.generated, case.warnings, case.study)
    return CaseSource(name, patient, (file,), partial(_read, file, patient, how, delay_s), options)


def cohort(folder: Path, n: int = 6, delay_s: float = 0.0) -> list[CaseSource]:
    """`n` cases, two a patient, lesion types in turn."""
    return [
        source(folder, f"SURNAME-scan-{i}", f"SURNAME-{i // 2}", made(i, lesion=2 + i % 3), delay_s) for i in range(n)
    ]


def refused(file: Path) -> Case:
    raise InputError(file, expected="a CT", got="a cat", remedy="try again")


def _read(file: Path, patient: str, how: tuple, delay_s: float) -> Case:
    time.sleep(delay_s)
    spacing_mm, affine, generated, warnings, study = how
    arrays = np.load(file)
    scan = Scan(arrays["hu"], file.stem, spacing_mm, affine, generated, study)
    return Case(scan, arrays["labels"], patient, warnings=warnings)
