"""After `make check-real` has trained: print the figures of the unseen patients, draw their slices, judge the liver.

Usage: check_real.py RUNS   where RUNS holds data/lits and fold<k>/{liver,lesion,model}.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from lesionseg.cascade import Cascade
from lesionseg.data.store import Store
from lesionseg.figures import Panel, contact_sheet
from lesionseg.labels import UNTYPED_LESION
from lesionseg.results import read_run

#: Dice of the liver that training for minutes must reach on the one patient scanned in thin slices with few lesions.
LEAST_LIVER_DICE = {3: 0.93}
SLICES_PER_CASE = 6


def main(root: Path) -> int:
    """Report every fold that was trained; 1 where the liver falls short."""
    store, short = Store.open(root / "data" / "lits"), False
    for folder in sorted(root.glob("fold*")):
        fold = int(folder.name.removeprefix("fold"))
        cases = pd.read_csv(folder / "liver" / "cases.csv")
        figures = pd.read_csv(folder / "lesion" / "metrics.csv").filter(like="test/").dropna(how="all").iloc[-1]
        print(f"fold {fold}: unseen {', '.join(cases['case_id'])}")
        print(f"  liver Dice per case: {', '.join(f'{dice:.3f}' for dice in cases['liver_dice'])}")
        wanted = ("dice1", "success_rate", "false_positives_per_slice", "lesions_n", "slices_n")
        print("  lesions:", ", ".join(f"{name} {figures[f'test/{name}']:.3f}" for name in wanted))
        read_run(folder / "lesion")  # the tables are whole and agree with each other
        draw(store, folder, list(cases["case_id"]))
        short |= cases["liver_dice"].mean() < LEAST_LIVER_DICE.get(fold, 0)
    return int(short)


def draw(store: Store, folder: Path, case_ids: list[str]) -> None:
    """`overlay.png`: the reference above, what the whole cascade finds below, on slices of the unseen cases."""
    cascade, above, below = Cascade.load(folder / "model", device="cpu"), [], []
    for case_id in case_ids:
        record, hu, labels = store.record(case_id), store.hu(case_id), store.labels(case_id)
        predicted = cascade.segment(store.scan(case_id)).labels
        spacing_mm = None if record.spacing_mm is None else record.spacing_mm[1:]
        lesion_px = (labels == UNTYPED_LESION).sum((1, 2))
        chosen = np.argsort(lesion_px, kind="stable")[-SLICES_PER_CASE // len(case_ids) :]
        for index in np.sort(chosen):
            note = f"slice {index}"
            above.append(Panel(hu[index], labels[index], f"{case_id}: reference", note, spacing_mm))
            below.append(Panel(hu[index], predicted[index], f"{case_id}: predicted", note, spacing_mm))
    sheet = contact_sheet(above + below, title=f"{folder.name}: patients not seen in training", columns=len(above))
    sheet.savefig(folder / "overlay.png", dpi=80)
    print(f"  {folder / 'overlay.png'}")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
