"""A made grid whose runs left logs with known values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_compare import make_grid

from lesionseg.results import read_run

BLOCKS = ("stem", "stage4", "head")
#: The stem trains from epoch 2 on, the rest throughout.
STEPS = [
    {"start": 0, "stop": 2, "rates": {"stem": 0.0, "stage4": 1.0, "head": 1.0}},
    {"start": 2, "stop": 4, "rates": {"stem": 1.0, "stage4": 1.0, "head": 1.0}},
]
HOSTILE = "<img src=x onerror=alert(1)>"


def write_logs(run: Path, level: float, new: bool = True) -> None:
    """`schedule.json` and `metrics.csv` of four epochs; without `new` as runs left them that logged no blocks."""
    (run / "schedule.json").write_text(json.dumps({"epochs": 4, "steps": STEPS}))
    rows = []
    for epoch in range(4):
        row = {"epoch": epoch, "step": 3 * epoch + 2, "train/loss": level - epoch / 10}
        if new:
            row |= {f"trains/{name}": float(name != "stem" or epoch > 1) for name in BLOCKS}
            row |= {f"drift/{name}": level * (epoch + 1) * row[f"trains/{name}"] for name in BLOCKS}
        rows.append(row)
        if epoch % 2:  # the validation of an epoch has a row of its own
            rows.append({"epoch": epoch, "step": 3 * epoch + 2, "val/dice1": level, "val/accuracy_all": level / 2})
    columns = list(dict.fromkeys(name for row in rows for name in row))
    pd.DataFrame(rows, columns=columns).to_csv(run / "metrics.csv", index=False)


@pytest.fixture(scope="session")
def logged_root(tmp_path_factory) -> Path:
    """Three rows of two folds: one with all logs, one with those of older runs, one (of a hostile name) with none."""
    root = make_grid(tmp_path_factory.mktemp("logged"), {"baseline": 0.4, "no_freezing": 0.5, HOSTILE: 0.6})
    for fold, level in enumerate((0.2, 0.6)):
        write_logs(root / "baseline" / f"fold{fold}-seed0", level)
        write_logs(root / "no_freezing" / f"fold{fold}-seed0", level, new=False)
        run = root / "baseline" / f"fold{fold}-seed0"
        lesions = read_run(run).lesions
        (run / "worst").mkdir()
        for name in lesions[(lesions.kind == "reference") & (lesions.predicted_type != lesions.type)].lesion_id:
            Image.fromarray(np.full((8, 16, 3), 99, np.uint8)).save(run / "worst" / f"{name}.png")
    return root
