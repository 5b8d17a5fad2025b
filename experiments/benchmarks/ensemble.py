"""The ensemble of the folds of one schedule against the mean of its single nets, and against itself with mirror images
averaged (`--tta`), on slices that none of them saw.

Usage: ensemble.py RUNS [--schedule NAME] [--slices N] [--seed N] [--output JSON]

RUNS is what `make finetune` left (`runs/phantom`). A new phantom is generated from another seed; the ensemble and every
net alone are exported and go through `lesionseg evaluate`, so the figures are those of the whole cascade. Intervals are
over patients, given these trained nets.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from lesionseg.data import slices
from lesionseg.data.prepare import prepare
from lesionseg.evaluation.evaluate import CASES, evaluate, kept
from lesionseg.evaluation.figures import CASCADE, slice_rows
from lesionseg.export import export
from lesionseg.phantom.write import write_phantom
from lesionseg.provenance import provenance
from lesionseg.statistics import FIGURES, PatientSums, estimates, intervals, patient_sums, resampled, resamples_of
from lesionseg.variance import effective_patients


def sums_of(liver: Path, lesions: list[Path], store: Path, folder: Path, *, tta: bool = False) -> PatientSums:
    """Sums of the figures of the whole cascade with these lesion nets on every case of a store."""
    export(liver, lesions, folder / "model")
    evaluate(store, folder / "model", folder / "scores", device="cpu", tta=tta)
    scores = [score for path in sorted((folder / "scores" / CASES).iterdir()) if (score := kept(path)) is not None]
    return patient_sums(*slice_rows(scores, CASCADE), sorted({score.patient_id for score in scores}), [0])


def table(one: PatientSums, others: list[PatientSums]) -> dict[str, dict[str, float]]:
    """For each figure: that of one way, the mean of the others, their difference with a 95 % interval."""
    mean = np.mean([estimates(other) for other in others], axis=0)
    difference, resamples = estimates(one) - mean, resamples_of(one)
    draws = resampled(one, resamples) - np.mean([resampled(other, resamples) for other in others], axis=0)
    low, high = intervals(difference, draws, effective_patients(one.counts.mean(axis=0)))
    rows = zip(estimates(one), mean, difference, low, high, strict=True)
    names = ("one", "others", "difference", "low", "high")
    return {figure: dict(zip(names, map(float, row), strict=True)) for figure, row in zip(FIGURES, rows, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path)
    parser.add_argument("--schedule", default="baseline")
    parser.add_argument("--slices", type=int, default=240)
    parser.add_argument("--seed", type=int, default=1, help="of the new phantom; that of the runs is 0")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark/ensemble.json"))
    options = parser.parse_args()
    liver, nets = options.runs / "pretrain" / "liver", sorted(options.runs.glob(f"finetune/{options.schedule}/fold*"))
    with tempfile.TemporaryDirectory() as name:
        folder, store = Path(name), Path(name) / "store"
        write_phantom(folder / "source", volumes=0, slices=options.slices, size=128, seed=options.seed)
        prepare(slices.cases(folder / "source" / "slices" / "slices.csv"), store, kind="slices")
        ensemble = sums_of(liver, nets, store, folder / "ensemble")
        mirrored = sums_of(liver, nets, store, folder / "mirrored", tta=True)
        singles = [sums_of(liver, [net], store, folder / f"single-{i}") for i, net in enumerate(nets)]
    tables = {"ensemble, mean single net": table(ensemble, singles),
              "ensemble with mirror images, ensemble": table(mirrored, [ensemble])}  # fmt: skip
    patients = ensemble.sums.shape[1]
    print(f"{options.schedule}: {len(nets)} nets, {options.slices} slices, {patients} patients")
    for compared, figures in tables.items():
        print(f"{compared}, difference")
        for figure, row in figures.items():
            print(f"  {figure:26s} {row['one']:.3f}  {row['others']:.3f}  "
                  f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]")  # fmt: skip
    options.output.parent.mkdir(parents=True, exist_ok=True)
    record = {"schedule": options.schedule, "slices": options.slices, "seed": options.seed, "patients": patients,
              "nets": len(nets), "tables": tables, **provenance()}  # fmt: skip
    options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
