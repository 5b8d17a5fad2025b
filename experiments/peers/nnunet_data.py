"""The slices of the cells and of their pretraining as two datasets of nnU-Net v2, planned and preprocessed by it.

Usage: nnunet_data.py PRETRAINING DATASETS CELL [CELL ...]
    PRETRAINING: run folder of the pretraining; DATASETS: takes raw/ and preprocessed/; CELL: one run folder a fold

Every slice is a case: the liver box that our nets get, HU as they are, one channel; at its own resolution, but with no
more pixels than our nets get, as two cores could not train on them. The splits are ours; nnU-Net's validation cases are
those of our inner validation (the training cases where there is none). It plans for the cells, and the pretraining
follows that plan, as its documentation of fine-tuning says. It draws cases alike, ours in the pretraining few slices
without a lesion (`keep_empty`): a slice with one is listed so often that it sees about as large a share of them.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from cell import Cell
from torch import Tensor

from lesionseg.boxes import Box, crop
from lesionseg.data.datamodule import LesionDataModule
from lesionseg.data.dataset import SliceDataset
from lesionseg.data.slice_table import SliceRef
from lesionseg.inputs import resize, resize_labels

#: Number and name of the datasets of the cells and of the pretraining.
CELLS, PRETRAINING = "Dataset001_Cells", "Dataset002_Pretraining"
#: nnU-Net's plan for both.
PLANS = "nnUNetPlans"
#: Between slices, as nnU-Net says of 2-D files: larger than any spacing in plane, so that it slices along that axis.
BETWEEN_SLICES_MM = 999.0
FILE_ENDING = ".nii.gz"


def environment(datasets: Path, results: Path) -> None:
    """Tell nnU-Net, before it is imported, where its folders are, and to start no other processes while it trains."""
    folders = {"raw": datasets / "raw", "preprocessed": datasets / "preprocessed", "results": results}
    os.environ.update({f"nnUNet_{name}": str(folder) for name, folder in folders.items()})
    os.environ.update(nnUNet_n_proc_DA="0", nnUNet_def_n_proc="1")


def identifier(ref: SliceRef) -> str:
    """What nnU-Net calls a slice."""
    return f"{ref.case_id}-s{ref.slice}"


def box_of(data: LesionDataModule, ref: SliceRef) -> Box:
    """The square that is cut from a slice, as for our nets."""
    record = data.records[ref.case_id]
    return data.input.box(record.liver_box, *record.shape[1:])


def back_on_slice(data: LesionDataModule, ref: SliceRef, probabilities: np.ndarray) -> Tensor:
    """Probabilities (K, S, S) that nnU-Net gives for a slice → classes of the whole slice, uint8 (H, W), as ours."""
    height, width = data.records[ref.case_id].shape[1:]
    return data.input.decode(torch.from_numpy(probabilities), box_of(data, ref), height, width)


def convert(data: LesionDataModule, folder: Path) -> None:
    """Write every slice of a data module as a dataset of nnU-Net: `imagesTr`, `labelsTr`, `dataset.json`."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    refs = [ref for part in (data.train, data.validation, data.test) for ref in part.slices]
    for ref in refs:
        _write_case(data, ref, folder)
    content = {
        "channel_names": {"0": "CT"},
        "labels": {name: i for i, name in enumerate(data.target.classes)},
        "numTraining": len(refs),
        "file_ending": FILE_ENDING,
    }
    (folder / "dataset.json").write_text(json.dumps(content, indent=1))


def _write_case(data: LesionDataModule, ref: SliceRef, folder: Path) -> None:
    assert data.store is not None
    box = box_of(data, ref)
    side = min(box.side, data.input.size_px)
    hu = crop(data.store.hu(ref.case_id)[ref.slice], box, fill=data.input.low_hu)
    classes = crop(data.target.apply(data.store.labels(ref.case_id)[ref.slice]), box, fill=0)
    spacing_mm = [mm * box.side / side for mm in data.records[ref.case_id].spacing_mm or (1.0, 1.0, 1.0)]
    image = resize(torch.from_numpy(hu.astype(np.float32))[None], side)[0].round()
    _write_nifti(folder / "imagesTr" / f"{identifier(ref)}_0000{FILE_ENDING}", image, spacing_mm)
    labels = resize_labels(torch.from_numpy(classes), side)
    _write_nifti(folder / "labelsTr" / f"{identifier(ref)}{FILE_ENDING}", labels, spacing_mm)


def _write_nifti(path: Path, plane: Tensor, spacing_mm: Sequence[float]) -> None:
    """A plane (S, S) as a file of one slice."""
    import SimpleITK as sitk  # noqa: N813 (its usual name)

    image = sitk.GetImageFromArray(plane[None].numpy())
    image.SetSpacing((spacing_mm[2], spacing_mm[1], BETWEEN_SLICES_MM))
    sitk.WriteImage(image, str(path))


def splits(folds: Iterable[LesionDataModule]) -> list[dict[str, list[str]]]:
    """What nnU-Net's `splits_final.json` holds, for the data module of each fold."""
    return [{"train": names_to_draw(data), "val": _names(data.validation) or _names(data.train)} for data in folds]


def names_to_draw(data: LesionDataModule) -> list[str]:
    """Names of the training slices; drawn alike, those with foreground have the share that they have in our epochs."""
    times = round(1 / data.keep_empty) if data.keep_empty else 1
    names, foreground = _names(data.train), data.train.slices.foreground
    found = [name for name, holds in zip(names, foreground, strict=True) if holds]
    empty = [name for name, holds in zip(names, foreground, strict=True) if not holds] if data.keep_empty else []
    return found * times + empty


def _names(part: SliceDataset) -> list[str]:
    return [identifier(ref) for ref in part.slices]


def plan() -> None:
    """Plan for the cells, and preprocess both datasets by that plan."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
    from nnunetv2.experiment_planning.plans_for_pretraining.move_plans_between_datasets import (
        move_plans_between_datasets,
    )

    extract_fingerprints([1, 2], num_processes=1, check_dataset_integrity=True, show_progress_bar=False)
    plan_experiments([1])
    move_plans_between_datasets(1, 2, PLANS)
    preprocess([1, 2], PLANS, configurations=["2d"], num_processes=[1], show_progress_bar=False)


def main(pretraining: Path, datasets: Path, cells: Sequence[Path]) -> None:
    environment(datasets, datasets / "unused")
    os.environ.update(nnUNet_n_proc_DA="1")  # its planner sets that many threads, and 0 are refused
    for name, runs in ((CELLS, cells), (PRETRAINING, [pretraining])):
        raw, preprocessed = datasets / "raw" / name, datasets / "preprocessed" / name
        folds = [Cell.read(run).data() for run in runs]
        convert(folds[0], raw)
        preprocessed.mkdir(parents=True, exist_ok=True)
        (preprocessed / "splits_final.json").write_text(json.dumps(splits(folds), indent=1))
        shutil.copy(raw / "dataset.json", preprocessed)  # it does so itself only where it plans
    plan()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [Path(cell) for cell in sys.argv[3:]])
