"""A cell of the grid, as its run folder describes it, trained by someone else and tested by us.

A neighbour gets what the cell had: the same store, fold, batches, net, pretrained weights and first random numbers.
What it leaves is a row of the same comparison: `run.json` describes the cell whose place it takes, `slices.csv` and
`lesions.csv` come from the same test, `peer.json` says what was trained.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import yaml
from torch import Tensor

from lesionseg.callbacks.results import Results
from lesionseg.data.augment import Augmentation
from lesionseg.data.datamodule import LesionDataModule
from lesionseg.data.dataset import Batch
from lesionseg.inputs import InputSpec
from lesionseg.networks import blocks
from lesionseg.provenance import provenance
from lesionseg.runs import CONFIG_FILE, RunInfo, finished_run, sha256_of
from lesionseg.schedules import FreezeSchedule, ResolvedSchedule
from lesionseg.tasks import LesionTask
from lesionseg.writing import write_text

#: The row whose phases the gradual neighbours follow.
PHASES = Path(__file__).parents[1] / "schedules" / "hierarchical_unfreezing.yaml"
PEER_FILE = "peer.json"

Task = TypeVar("Task", bound=LesionTask)


class PredictedTask(LesionTask):
    """A task whose slices were predicted elsewhere: class indices (H, W), uint8, by position in the test part."""

    predictions: Mapping[int, Tensor]

    def predict_slices(self, batch: Batch) -> list[Tensor]:
        return [self.predictions[place.position] for place in batch.places]


@dataclass(frozen=True)
class Cell:
    """A finished run of `lesionseg fit`: what it is, and its resolved settings."""

    info: RunInfo
    config: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Cell:
        """Read a run folder; `InputError` where it holds no finished run."""
        return cls(finished_run(folder), yaml.safe_load((folder / CONFIG_FILE).read_text()))

    def data(self) -> LesionDataModule:
        """The data module of the cell, split already."""
        settings = dict(self.config["data"])
        augmentation = settings["augmentation"]
        settings["augmentation"] = None if augmentation is None else Augmentation(**augmentation)
        data = LesionDataModule(**{**settings, "input": InputSpec(**settings["input"])})
        data.setup("fit")
        return data

    def task(self, kind: type[Task]) -> Task:
        """The task of the cell as another class, with the weights that the cell's own began with."""
        pl.seed_everything(self.info.seed)
        settings, known = self.config["model"]["init_args"], signature(kind).parameters
        shared = {name: value for name, value in settings.items() if name in known}
        return kind(**{**shared, "input": InputSpec(**settings["input"])})

    def budget(self, folder: Path) -> dict[str, Any]:
        """Arguments of a `Trainer` for as many steps on the same batches; the neighbour's own logs go to the folder."""
        named = ("accelerator", "devices", "precision", "max_epochs", "limit_train_batches", "check_val_every_n_epoch",
                 "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm")  # fmt: skip
        return {
            **{name: self.config["trainer"][name] for name in named},
            "default_root_dir": folder,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }

    def phases(self, task: LesionTask) -> ResolvedSchedule:
        """What trains when in our row `hierarchical_unfreezing`; `InputError` for too few epochs."""
        trains = yaml.safe_load(PHASES.read_text())["schedule"]["trains"]
        return FreezeSchedule.parse(trains).resolve(self.info.epochs, list(blocks(task.net)))

    def leave(
        self,
        folder: Path,
        row: str,
        task: LesionTask,
        data: LesionDataModule,
        *,
        start: str | None = None,
        **facts: Any,
    ) -> None:
        """Test a trained task as `lesionseg fit` does, and leave the run of a row.

        Args:
            folder: of the run, `<row>/fold<k>-seed<s>`.
            row: its name in tables.
            task: what predicts.
            data: of the cell.
            start: what the net started from; None: the weights of the cell.
            facts: more for `peer.json`: what was trained.
        """
        folder.mkdir(parents=True, exist_ok=True)
        quiet = {"logger": False, "enable_checkpointing": False, "callbacks": [Results(folder)]}
        trainer = pl.Trainer(**self.budget(folder), **quiet)
        trainer.test(task, datamodule=data, verbose=False)
        write_text(folder / PEER_FILE, json.dumps({"start": start, **facts}, indent=1) + "\n")
        replace(
            self.info,
            name=row,
            fingerprint=sha256_of({"cell": self.info.fingerprint, "row": row}),
            request_sha256="",
            row_sha256=sha256_of({"cell": self.info.row_sha256, "row": row}),
            weights_sha256=self.info.weights_sha256 if start is None else None,
            **provenance(),  # type: ignore[arg-type]
        ).write(folder)


def places(usage: str) -> tuple[Path, Path]:
    """The cell and the run folder that the command line of a neighbour names."""
    parser = argparse.ArgumentParser(description=usage.splitlines()[0])
    parser.add_argument("cell", type=Path, help="run folder of the row no_freezing, as `lesionseg fit` left it")
    parser.add_argument("folder", type=Path, help="run folder to make, ROW/foldK-seedS")
    options = parser.parse_args()
    return options.cell, options.folder
