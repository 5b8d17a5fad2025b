"""`Results`: the tables a run leaves of its test part."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytorch_lightning as pl
from torchmetrics import Metric

from lesionseg.data.datamodule import LesionDataModule
from lesionseg.data.dataset import SliceDataset
from lesionseg.lesions import REFERENCE
from lesionseg.metrics import LesionFigures, LiverDice
from lesionseg.results import write_cases, write_lesions, write_slices


class Results(pl.Callback):
    """Writes `slices.csv` and `lesions.csv` (lesion nets) or `cases.csv` (liver net) when a test has ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather over all ranks, write on the first."""
        data, metric = trainer.datamodule, pl_module.get_submodule("test_metric")  # type: ignore[attr-defined]
        assert isinstance(data, LesionDataModule)
        assert isinstance(metric, Metric)
        figures = pl_module.figures(metric)  # type: ignore[operator]
        pl_module.log_dict({f"test/{name}": float(value) for name, value in figures.items()})
        if trainer.is_global_zero:
            if isinstance(metric, LesionFigures):
                write_slices(self.folder, _slice_table(metric, data))
                write_lesions(self.folder, lesion_table(metric, data, data.test))
            elif isinstance(metric, LiverDice):
                write_cases(self.folder, _case_table(metric, data))
        metric.reset()


def _slice_table(metric: LesionFigures, data: LesionDataModule) -> pd.DataFrame:
    rows = pd.DataFrame(metric.slice_rows())
    return _located(rows, data, data.test)[["case_id", "patient_id", "slice", "figure", "value"]]


def lesion_table(metric: LesionFigures, data: LesionDataModule, part: SliceDataset) -> pd.DataFrame:
    """Lesions of a part of the data, with ids of their own and their area in mm² (empty: the spacing is unknown).

    Rows are those of `metric.lesion_rows()`, in its order.
    """
    columns = ["slice_key", "kind", "type", "area_px", "overlap", "found", "predicted_type"]
    rows = _located(pd.DataFrame(metric.lesion_rows(), columns=columns), data, part)
    rows["area_mm2"] = rows["area_px"] * rows["case_id"].map(lambda case: _pixel_mm2(data, case)).astype(float)
    rows["lesion_id"] = [
        lesion_id(case, index, kind, n)
        for case, index, kind, n in zip(
            rows["case_id"], rows["slice"], rows["kind"], rows.groupby(["slice_key", "kind"]).cumcount(), strict=True
        )
    ]
    return rows[["lesion_id", "case_id", "patient_id", "slice", "kind", "type", "area_px", "area_mm2", "overlap",
                 "found", "predicted_type"]]  # fmt: skip


def lesion_id(case: str, index: int, kind: str, n: int) -> str:
    """Of the n-th lesion of a kind on a slice, from 0, in the order of `lesions.compare_slice`."""
    return f"{case}-s{index}-{'r' if kind == REFERENCE else 'f'}{n}"


def _located(rows: pd.DataFrame, data: LesionDataModule, part: SliceDataset) -> pd.DataFrame:
    """Add case, patient and slice number to rows that know only the position of their slice."""
    refs = [part.slices[int(key)] for key in rows["slice_key"]]
    rows["case_id"] = [ref.case_id for ref in refs]
    rows["slice"] = [ref.slice for ref in refs]
    rows["patient_id"] = [data.records[ref.case_id].patient_id for ref in refs]
    return rows


def _pixel_mm2(data: LesionDataModule, case_id: str) -> float:
    pixel_mm = data.records[case_id].pixel_mm
    return math.nan if pixel_mm is None else math.prod(pixel_mm)


def _case_table(metric: LiverDice, data: LesionDataModule) -> pd.DataFrame:
    rows = pd.DataFrame(metric.case_rows())
    assert data.store is not None
    records = [data.store.records[int(key)] for key in rows["case_key"]]
    return pd.DataFrame(
        {
            "case_id": [record.case_id for record in records],
            "patient_id": [record.patient_id for record in records],
            "liver_dice": rows["dice"],
        }
    )
