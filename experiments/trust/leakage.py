"""A scan that a net has seen in training, among those that test it: refused, whatever it is called.

Usage: leakage.py [--tries N] [--seed N] [--output JSON]

Of one table, random parts are prepared twice, under other salts, so that no name tells that a slice is in both. A net
is trained on the first store, and a fine-tuning from it on the second one is asked for. It must be refused where a
slice of its test part has trained the net, and go on where none has. Which that is, is told here by hashes of the
voxels alone. Then one volume under two patients, in another orientation, packed and of another type: `prepare` must
refuse it.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import small_grid
from rows import Row, asked, publish

from lesionseg.cli import DONE, WRONG_INPUT
from lesionseg.data.store import Store
from lesionseg.runs import SPLIT_FILE


def part(table: Path, share: float, rng: np.random.Generator) -> Path:
    """Another table with some of the patients."""
    rows = list(csv.DictReader(table.open()))
    patients = sorted({row["patient_id"] for row in rows})
    kept = set(rng.permutation(patients)[: max(round(share * len(patients)), 3)])
    path = table.with_name(f"part{rng.integers(10**9)}.csv")
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(row for row in rows if row["patient_id"] in kept)
    return path


def prepared(folder: Path, table: Path, name: str) -> Path:
    """A store of it, under a salt of its own."""
    (folder / f"{name}.salt").write_bytes(os.urandom(16))
    words = ["prepare", "slices", str(table), "--output", str(folder / name)]
    _must([*words, "--salt-file", str(folder / f"{name}.salt"), "--workers", "1"])
    return folder / name


def voxels(store: Path, cases: list[str]) -> set[str]:
    """Hashes of the images of some cases."""
    opened = Store.open(store)
    return {hashlib.sha256(np.ascontiguousarray(opened.hu(case)).tobytes()).hexdigest() for case in cases}


def fit(grid: Path, store: Path, run: Path, fold: int, *more: str) -> list[str]:
    """A tiny training on this store."""
    short = ["--trainer.limit_train_batches", "1", "--data.folds", "3", "--data.fold", str(fold)]
    return [*small_grid.fit(grid, run), "--data.store", str(store), "--data.inner_validation", "0", *short, *more]


def seen_in_training(grid: Path, folder: Path, rng: np.random.Generator) -> str | None:
    """One try: what went wrong. None: nothing, and the answer was the one that the voxels give."""
    table, fold = grid / "source" / "slices" / "slices.csv", int(rng.integers(3))
    before = prepared(folder, part(table, 0.6, rng), "before")
    after = prepared(folder, part(table, 0.8, rng), "after")
    _must(fit(grid, before, folder / "pretrained", int(rng.integers(3))))
    _must(fit(grid, after, folder / "split", fold))  # of its own start: which cases are tested
    trained = json.loads((folder / "pretrained" / SPLIT_FILE).read_text())["train"]
    tested = json.loads((folder / "split" / SPLIT_FILE).read_text())["test"]
    leaks = bool(voxels(before, trained) & voxels(after, tested))
    start = ["--model.init_args.transfer", "true", "--model.init_args.weights", str(folder / "pretrained")]
    done = small_grid.run(fit(grid, after, folder / "tuned", fold, *start))
    if done.returncode != (WRONG_INPUT if leaks else DONE):
        return f"leaks: {leaks}, and status {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"
    return None


def one_scan_twice(grid: Path, folder: Path, rng: np.random.Generator) -> str | None:
    """One volume under two patients: what went wrong."""
    folder.mkdir()
    for kind in ("volume", "segmentation"):
        image = nib.load(next((grid / "source" / "lits").rglob(f"{kind}-0.nii.gz")))
        nib.save(image, folder / f"{kind}-0.nii.gz")
        if kind == "volume":
            axes, signs = rng.permutation(3), rng.choice((-1, 1), 3)
        image = image.as_reoriented(np.stack([axes, signs], 1))
        image = nib.Nifti1Image(np.asarray(image.dataobj).astype(np.float32), image.affine, image.header)
        image.set_data_dtype(np.float32)
        nib.save(image, folder / f"{kind}-7.nii")
    done = small_grid.run(["prepare", "lits", str(folder), "--output", str(folder / "store"), "--workers", "1"])
    if done.returncode != WRONG_INPUT or "each scan under one patient" not in done.stderr:
        return f"status {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"
    return None


def _must(words: list[str]) -> None:
    done = small_grid.run(words)
    if done.returncode:
        sys.exit(f"{' '.join(words[:2])} failed\n{done.stderr}")


def main() -> int:
    options = asked(__file__, tries=(6, "of each kind"))
    os.environ.update(WANDB_MODE="disabled", OMP_NUM_THREADS="1")
    rng, rows, faults = np.random.default_rng(options.seed), [], []
    with tempfile.TemporaryDirectory() as name:
        grid = Path(name) / "grid"
        grid.mkdir()
        _must(small_grid.phantom(grid))
        for what, attempt in (
            ("a slice of the pretraining in the test, under another name", seen_in_training),
            ("one volume under two patients, in another orientation", one_scan_twice),
        ):
            found = []
            for n in range(options.tries):
                folder = Path(name) / f"{attempt.__name__}-{n}"
                if attempt is seen_in_training:
                    folder.mkdir()
                if fault := attempt(grid, folder, rng):
                    found.append(f"{what}, try {n}: {fault}")
            rows.append(Row(what, options.tries, len(found)))
            faults += found
    return publish(rows, faults, options.output, options.seed)


if __name__ == "__main__":
    sys.exit(main())
