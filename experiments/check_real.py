"""After `make check-real` has trained: print the figures of the unseen patients, draw their slices, judge the liver.

Usage: check_real.py RUNS   where RUNS holds data/lits and fold<k>/{liver,lesion}.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from lesionseg.cascade import load_net, predict_classes
from lesionseg.data.store import Store
from lesionseg.figures import Panel, contact_sheet
from lesionseg.labels import LIVER, UNTYPED_LESION
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
    """`overlay.png`: the reference above, the two nets below, on slices of the unseen cases."""
    nets = {name: load_net(folder / name) for name in ("liver", "lesion")}
    above, below = [], []
    for case_id in case_ids:
        record, hu, labels = store.record(case_id), store.hu(case_id), store.labels(case_id)
        spacing_mm = None if record.spacing_mm is None else record.spacing_mm[1:]
        lesion_px = (labels == UNTYPED_LESION).sum((1, 2))
        chosen = np.argsort(lesion_px, kind="stable")[-SLICES_PER_CASE // len(case_ids) :]
        for index in np.sort(chosen):
            predicted = predict(nets, np.asarray(hu), int(index), record.liver_box)
            note = f"slice {index}"
            above.append(Panel(hu[index], labels[index], f"{case_id}: reference", note, spacing_mm))
            below.append(Panel(hu[index], predicted, f"{case_id}: predicted", note, spacing_mm))
    sheet = contact_sheet(above + below, title=f"{folder.name}: patients not seen in training", columns=len(above))
    sheet.savefig(folder / "overlay.png", dpi=80)
    print(f"  {folder / 'overlay.png'}")


def predict(nets: dict, hu: np.ndarray, index: int, liver_box) -> np.ndarray:
    """Label ids (H, W) of one slice: the liver net on the slice, the lesion net in the reference's liver box."""
    around = hu[max(index - 1, 0) : index + 2]
    middle = index - max(index - 1, 0)
    liver = predict_classes(*nets["liver"][:2], around)[middle]
    lesion = predict_classes(*nets["lesion"][:2], around, liver_box)[middle]
    return np.where(lesion >= 2, UNTYPED_LESION, np.where(liver > 0, LIVER, 0)).astype(np.uint8)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
