"""nnU-Net v2, 2-D, its own trainer on a cell of the grid, where ours trains; only the length of the training is ours.

Usage: nnunet.py CELL FOLDER DATASETS [--pretrained CHECKPOINT] [--adam]   a row: from scratch, or its fine-tuning path
       nnunet.py CELL FOLDER DATASETS --unmirrored RUN [--adam]            the net of a row's run without mirror images
       nnunet.py PRETRAINING FOLDER DATASETS --pretrain [--adam]           leaves FOLDER/checkpoint_final.pth for that
    --adam: by its trainer with Adam at 1e-3, in the place of its default

As many epochs as ours, each over as many slices as one of ours (steps x batch, the batch as it plans it), and a fifth
as many validation steps as training steps, as it does by default. Its network, loss, optimizer, rates, augmentation and
mirrored prediction are its own. It trains on the same slices in the same liver boxes, and its predictions are scored on
whole slices like ours.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from cell import PEER_FILE, Cell, PredictedTask
from nnunet_data import CELLS, FILE_ENDING, PLANS, PRETRAINING, back_on_slice, environment, identifier
from torch import Tensor

from lesionseg.data.datamodule import LesionDataModule
from lesionseg.paper import title
from lesionseg.runs import RunInfo
from lesionseg.trainer import limited

#: Trainers of nnU-Net: its default, plain SGD at 1e-2; and the one that gets further in a short training.
DEFAULT_TRAINER, ADAM_TRAINER = "nnUNetTrainer", "nnUNetTrainerAdam1en3"
CHECKPOINT = "checkpoint_final.pth"
#: The state dict that a row leaves beside its run.
NET_FILE = "nnunet.pt"
#: nnU-Net's own share: 250 training steps and 50 of validation an epoch.
STEPS_PER_VALIDATION_STEP = 5


def device_of(cell: Cell) -> torch.device:
    """Where our net of the cell trains on this machine."""
    wanted = cell.config["trainer"]["accelerator"]
    on_gpu = wanted in ("gpu", "cuda") or (wanted == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if on_gpu else "cpu")


def trainer_of(dataset: str, fold: int, cell: Cell, data: LesionDataModule, adam: bool) -> Any:
    """nnU-Net's trainer for a fold of a dataset, set to as many epochs as a cell has, each of as many slices."""
    from nnunetv2.run.run_training import get_trainer_from_args

    name = ADAM_TRAINER if adam else DEFAULT_TRAINER
    trainer = get_trainer_from_args(dataset, "2d", fold, name, PLANS, device=device_of(cell))
    steps = max(round(slices_per_epoch(cell, data) / trainer.configuration_manager.batch_size), 1)
    trainer.num_epochs, trainer.num_iterations_per_epoch = cell.info.epochs, steps
    trainer.num_val_iterations_per_epoch = max(round(steps / STEPS_PER_VALIDATION_STEP), 1)
    return trainer


def slices_per_epoch(cell: Cell, data: LesionDataModule) -> int:
    """How many slices our nets see in an epoch."""
    return data.batch_size * limited(len(data.train_dataloader()), cell.config["trainer"]["limit_train_batches"])


def predict(trainer: Any, data: LesionDataModule, datasets: Path, *, mirrored: bool = True) -> dict[int, Tensor]:
    """Class indices of every test slice by its position, with the last weights, as nnU-Net predicts: mirrored."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    predictor = nnUNetPredictor(
        use_mirroring=mirrored, perform_everything_on_device=trainer.device.type == "cuda", device=trainer.device,
        allow_tqdm=False,
    )  # fmt: skip
    predictor.manual_initialization(
        trainer.network, trainer.plans_manager, trainer.configuration_manager, [trainer.network.state_dict()],
        trainer.dataset_json, type(trainer).__name__, trainer.inference_allowed_mirroring_axes,
    )  # fmt: skip
    reader, images = trainer.plans_manager.image_reader_writer_class(), datasets / "raw" / CELLS / "imagesTr"
    predictions = {}
    for position, ref in enumerate(data.test.slices):
        image, properties = reader.read_images([str(images / f"{identifier(ref)}_0000{FILE_ENDING}")])
        _, probabilities = predictor.predict_single_npy_array(image, properties, save_or_return_probabilities=True)
        predictions[position] = back_on_slice(data, ref, probabilities[:, 0])
    return predictions


def pretrain(run: Path, folder: Path, datasets: Path, adam: bool) -> None:
    """Train on the slices that our pretraining saw, and leave the last checkpoint in the folder."""
    environment(datasets, folder)
    cell = Cell.read(run)
    pl.seed_everything(cell.info.seed)
    trainer = trainer_of(PRETRAINING, 0, cell, cell.data(), adam)
    trainer.run_training()
    Path(trainer.output_folder, CHECKPOINT).rename(folder / CHECKPOINT)


def train(run: Path, folder: Path, datasets: Path, pretrained: Path | None, adam: bool) -> None:
    """Train in the place of the run, and leave the run `folder`."""
    environment(datasets, folder)
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    cell = Cell.read(run)
    data = cell.data()
    pl.seed_everything(cell.info.seed)
    trainer = trainer_of(CELLS, cell.info.fold, cell, data, adam)
    trainer.disable_checkpointing = True
    trainer.initialize()
    if pretrained is not None:
        load_pretrained_weights(trainer.network, str(pretrained))
    trainer.run_training()
    task = cell.task(PredictedTask)
    task.predictions = predict(trainer, data, datasets)
    row = "nnunet" + "_adam" * adam + "_finetuned" * (pretrained is not None)
    start = "nothing" if pretrained is None else "nnU-Net's own pretraining"
    cell.leave(
        folder, row, task, data, start=start, neighbour=f"nnunetv2 {version('nnunetv2')}",
        trainer=type(trainer).__name__, parameters=sum(p.numel() for p in trainer.network.parameters()),
        patch=trainer.configuration_manager.patch_size, batch=trainer.batch_size,
        steps=trainer.num_epochs * trainer.num_iterations_per_epoch, device=trainer.device.type,
    )  # fmt: skip
    torch.save(trainer.network.state_dict(), folder / NET_FILE)


def test_unmirrored(run: Path, folder: Path, datasets: Path, trained: Path, adam: bool) -> None:
    """Test the net that a row left without mirror images, and leave the run of another row."""
    environment(datasets, folder)
    cell, row = Cell.read(run), RunInfo.read(trained).name
    data, task = cell.data(), cell.task(PredictedTask)
    trainer = trainer_of(CELLS, cell.info.fold, cell, data, adam)
    trainer.initialize()
    trainer.network.load_state_dict(torch.load(trained / NET_FILE, weights_only=True))
    task.predictions = predict(trainer, data, datasets, mirrored=False)
    facts = json.loads((trained / PEER_FILE).read_text())
    cell.leave(folder, f"{row}_unmirrored", task, data, **{**facts, "neighbour": f"the nets of {title(row)}"})


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("run", "folder", "datasets"):
        parser.add_argument(name, type=Path)
    for name in ("--pretrained", "--unmirrored"):
        parser.add_argument(name, type=Path)
    for flag in ("--pretrain", "--adam"):
        parser.add_argument(flag, action="store_true")
    options = parser.parse_args()
    if options.pretrain:
        pretrain(options.run, options.folder, options.datasets, options.adam)
    elif options.unmirrored:
        test_unmirrored(options.run, options.folder, options.datasets, options.unmirrored, options.adam)
    else:
        train(options.run, options.folder, options.datasets, options.pretrained, options.adam)


if __name__ == "__main__":
    main()
