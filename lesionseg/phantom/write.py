"""Write the phantom: LiTS-like volumes for pretraining and single typed slices for fine-tuning, in the public layouts.

The two sets differ, as LiTS and a hospital's own slices do:

| | `lits/` (pretraining) | `slices/` (fine-tuning) |
|---|---|---|
| what | volumes of 5 or 4 mm slices | 2 to 4 single slices a patient, 2.5, 3 or 5 mm |
| scanners | Phantom L1, L2 | Phantom S1, S2, S3: other blur, field of view, calibration |
| noise | 14 and 17 HU | 23, 21 and 17 HU |
| lesions | 1–3 hepatocellular carcinomas or 2–8 metastases | 1–3 cysts, 1–3 hemangiomas or 1–6 metastases |
| beside them | 1–3 cysts in a third | one lesion of another type in a sixth |
| labels | liver, lesion; **cysts are left unlabelled**, as LiTS does | liver; cyst, hemangioma, metastasis |

Everything follows from the seed, with one generator a patient: neither the number of processes nor the size of the
other set matters.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from threadpoolctl import threadpool_limits

from lesionseg.errors import InputError
from lesionseg.labels import LESION_TYPES
from lesionseg.machine import cores
from lesionseg.phantom.appearance import DIFFICULTY
from lesionseg.phantom.layouts import write_dicom, write_nifti, write_png
from lesionseg.phantom.lesion import Lesion
from lesionseg.phantom.patient import Imaged, draw_patient, image, liver_span_mm
from lesionseg.phantom.scanner import LITS_SCANNERS, SLICE_SCANNERS

#: A slice passes at most this share of a lesion's diameter from its centre.
LEVEL_SHARE = 0.25
#: Raised with every change that alters a generated voxel.
PHANTOM_VERSION = 1
#: Ids of the types in the PNG masks; `prepare slices` takes them by default.
MASK_IDS = {kind: 1 + i for i, kind in enumerate(LESION_TYPES)}
#: Slices without liver above and below the liver of a LiTS-like volume.
MARGIN_SLICES = 2
#: Borders of the size classes in the summary, mm.
SIZE_CLASSES_MM = (10, 20, 40)
LEAST_SIZE = 32
_LITS, _SLICES = 0, 1  # which set a patient's generator belongs to


@dataclass(frozen=True)
class Written:
    """What one patient added: lines of slices.csv (a volume: none), and lesions as (type, diameter in mm, labelled)."""

    rows: tuple[dict[str, str], ...]
    lesions: tuple[tuple[str, float, bool], ...]


def write_phantom(output: Path, *, volumes: int, slices: int, size: int, seed: int) -> None:
    """Write a generated data set into `output`, whole or not at all; an earlier phantom there is replaced,
    and one of this very recipe is left as it is.

    Args:
        output: folder; gets `lits/`, `slices/` and `phantom.json`.
        volumes: LiTS-like volumes.
        slices: single slices for fine-tuning, of about a third as many patients.
        size: side of the square slices in pixels.
        seed: decides every byte.

    Raises:
        InputError: a number out of range, or `output` holds something else.
    """
    output = Path(output).absolute()
    _check(output, volumes, slices, size, seed)
    arguments = {"volumes": volumes, "slices": slices, "size": size, "seed": seed}
    recipe = {"phantom_version": PHANTOM_VERSION, "arguments": arguments, "difficulty": asdict(DIFFICULTY)}
    if _holds(output, recipe):
        return
    partial_output = output.with_name(f".{output.name}.partial-{os.getpid()}")
    for folder in ("lits", "slices/images", "slices/masks", "slices/livers"):
        (partial_output / folder).mkdir(parents=True)
    try:
        lits = [partial(write_volume, partial_output / "lits", n, size, seed) for n in range(volumes)]
        counts = slices_per_patient(slices, seed)
        own = [partial(write_slices, partial_output / "slices", n, count, size, seed) for n, count in enumerate(counts)]
        written = list(_run([*lits, *own]))
        _write_table(partial_output / "slices" / "slices.csv", written)
        summary = _summarize(written[:volumes], written[volumes:])
        record = {**recipe, **summary}
        (partial_output / "phantom.json").write_text(json.dumps(record, indent=2) + "\n")
        if output.exists():
            shutil.rmtree(output)
        os.replace(partial_output, output)
    finally:
        shutil.rmtree(partial_output, ignore_errors=True)


def _holds(output: Path, recipe: dict[str, Any]) -> bool:
    """Whether a phantom of this very recipe is there already (it is written whole or not at all)."""
    try:
        held = json.loads((output / "phantom.json").read_text())
    except (OSError, ValueError):
        return False
    return json.loads(json.dumps(recipe)) == {key: held.get(key) for key in recipe}


def write_volume(folder: Path, number: int, size: int, seed: int) -> Written:
    """Write `volume-N.nii.gz` and `segmentation-N.nii.gz` of one generated patient."""
    rng = np.random.default_rng([seed, _LITS, number])
    patient = draw_patient(rng, _lits_kinds(rng))
    scanner = LITS_SCANNERS[number % len(LITS_SCANNERS)]
    low, high = liver_span_mm(patient.body)
    count = int(np.ceil((high - low) / scanner.thickness_mm)) + 2 * MARGIN_SLICES
    heights = (low + high) / 2 + (np.arange(count) - (count - 1) / 2) * scanner.thickness_mm
    imaged = image(patient, scanner, heights, size, rng)
    labelled = np.array([False, *(lesion.kind != "cyst" for lesion in patient.lesions)])
    segmentation = imaged.liver.astype(np.int16) + labelled[imaged.lesion]
    write_nifti(folder / f"volume-{number}.nii.gz", imaged.hu, imaged.spacing_mm, float(heights[0]))
    write_nifti(folder / f"segmentation-{number}.nii.gz", segmentation, imaged.spacing_mm, float(heights[0]))
    return Written((), _listed(patient.lesions, imaged, lambda lesion: lesion.kind != "cyst"))


def write_slices(folder: Path, number: int, count: int, size: int, seed: int) -> Written:
    """Write `count` slices of one generated patient: DICOM, mask of types, mask of the liver."""
    rng = np.random.default_rng([seed, _SLICES, number])
    patient_id = f"phantom-{number:04d}"
    patient = draw_patient(rng, _typed_kinds(rng, number, count))
    scanner = SLICE_SCANNERS[int(rng.integers(len(SLICE_SCANNERS)))]
    heights = choose_heights(rng, patient.lesions, count, scanner.thickness_mm)
    imaged = image(patient, scanner, heights, size, rng)
    types = np.array([0, *(MASK_IDS[lesion.kind] for lesion in patient.lesions)])[imaged.lesion]
    rows = []
    for i, height in enumerate(heights):
        name = f"{patient_id}-{i}"
        row = {
            "patient_id": patient_id,
            "image": f"images/{name}.dcm",
            "mask": f"masks/{name}.png",
            "liver_mask": f"livers/{name}.png",
        }
        write_dicom(
            folder / row["image"],
            imaged.hu[i],
            imaged.spacing_mm,
            float(height),
            patient_id=patient_id,
            scanner=scanner.name,
            number=i + 1,
            seed=seed,
        )
        write_png(folder / row["mask"], types[i])
        write_png(folder / row["liver_mask"], imaged.liver[i])
        rows.append(row)
    return Written(tuple(rows), _listed(patient.lesions, imaged, lambda lesion: True))


def slices_per_patient(slices: int, seed: int) -> list[int]:
    """How many slices each patient gives: 2 to 4, the last what is left."""
    rng = np.random.default_rng([seed, 2])
    counts: list[int] = []
    while sum(counts) < slices:
        counts.append(min(int(rng.integers(2, 5)), slices - sum(counts)))
    return counts


def choose_heights(
    rng: np.random.Generator, lesions: tuple[Lesion, ...], count: int, thickness_mm: float
) -> np.ndarray:
    """Heights of `count` slices that each cut a lesion: the largest first, then the others, then again at other levels.

    Slices lie a thickness apart, or a fifth of the lesion where it is too small for that.
    """
    heights: list[float] = []
    ranked = sorted(lesions, key=lambda lesion: -lesion.diameter_mm)
    for attempt in range(50 * count):
        lesion = ranked[(len(heights) + attempt // 10) % len(ranked)]
        height = lesion.center_mm[0] + rng.uniform(-LEVEL_SHARE, LEVEL_SHARE) * lesion.diameter_mm
        gap = min(thickness_mm, 0.2 * lesion.diameter_mm)
        if len(heights) < count and all(abs(height - other) >= gap for other in heights):
            heights.append(height)
    while len(heights) < count:  # no room left in one small lesion
        heights.append(ranked[0].center_mm[0] + float(rng.uniform(-LEVEL_SHARE, LEVEL_SHARE)) * ranked[0].diameter_mm)
    return np.sort(heights)


def _lits_kinds(rng: np.random.Generator) -> list[str]:
    kinds = ["hcc"] * int(rng.integers(1, 4)) if rng.random() < 0.5 else ["metastasis"] * int(rng.integers(2, 9))
    return kinds + ["cyst"] * (int(rng.integers(1, 4)) if rng.random() < 0.35 else 0)


def _typed_kinds(rng: np.random.Generator, number: int, slices: int) -> list[str]:
    """Types of a fine-tuning patient; the main type goes round, so that small sets are balanced.

    At least half as many lesions as slices, so that every slice can cut one.
    """
    main = list(MASK_IDS)[number % len(MASK_IDS)]
    most = {"cyst": 3, "hemangioma": 3, "metastasis": 6}[main]
    kinds = [main] * int(rng.integers((slices + 1) // 2, most + 1))
    if rng.random() < 1 / 6:
        kinds.append(str(rng.choice([kind for kind in MASK_IDS if kind != main])))
    return kinds


def _listed(
    lesions: tuple[Lesion, ...], imaged: Imaged, labelled: Callable[[Lesion], bool]
) -> tuple[tuple[str, float, bool], ...]:
    """The lesions that show in at least one voxel."""
    seen = set(np.unique(imaged.lesion).tolist())
    return tuple((e.kind, e.diameter_mm, labelled(e)) for i, e in enumerate(lesions) if i + 1 in seen)


def _run(tasks: list[partial[Written]]) -> Iterator[Written]:
    """Results in order, from as many processes as pay off, with a progress bar on a terminal."""
    console = Console(stderr=True)
    workers = min(cores(), len(tasks) // 4)
    show = partial(
        track, description="Generating CT", total=len(tasks), console=console, disable=not console.is_terminal
    )
    if workers < 2:
        yield from show(_call(task) for task in tasks)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from show(pool.map(_call, tasks))


def _call(task: partial[Written]) -> Written:
    # One BLAS thread: small products gain nothing from more, and their sums must not depend on the number of cores.
    with threadpool_limits(1):
        return task()


def _write_table(path: Path, written: list[Written]) -> None:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, ["patient_id", "image", "mask", "liver_mask"], lineterminator="\n")
        table.writeheader()
        for patient in written:
            table.writerows(patient.rows)


def _summarize(lits: list[Written], own: list[Written]) -> dict[str, Any]:
    """Lesions that show, by set, type and size class."""
    names = [f"under {SIZE_CLASSES_MM[0]} mm", *(f"{a}-{b} mm" for a, b in pairwise(SIZE_CLASSES_MM))]
    names.append(f"over {SIZE_CLASSES_MM[-1]} mm")
    summary: dict[str, Any] = {}
    for key, patients in (("lits", lits), ("slices", own)):
        counts: dict[str, dict[str, int]] = {}
        for kind, diameter, labelled in (lesion for patient in patients for lesion in patient.lesions):
            sizes = counts.setdefault(kind if labelled else f"{kind} (unlabelled)", dict.fromkeys(names, 0))
            sizes[names[int(np.searchsorted(SIZE_CLASSES_MM, diameter))]] += 1
        summary[key] = {
            "patients": len(patients),
            "slices": sum(len(patient.rows) for patient in patients) if key == "slices" else None,
            "lesions": {kind: counts[kind] for kind in sorted(counts)},
        }
    return summary


def _check(output: Path, volumes: int, slices: int, size: int, seed: int) -> None:
    for name, value, least in (
        ("volumes", volumes, 0),
        ("slices", slices, 0),
        ("size", size, LEAST_SIZE),
        ("seed", seed, 0),
    ):
        if value < least:
            raise InputError(f"--{name}", expected=f"at least {least}", got=str(value), remedy="give a larger number")
    if volumes + slices == 0:
        raise InputError("--volumes, --slices", expected="at least one", got="none", remedy="ask for volumes or slices")
    if output.exists() and not (output / "phantom.json").is_file() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(
            output,
            expected="a new or empty folder or an earlier phantom",
            got="other files",
            remedy="name another folder",
        )
