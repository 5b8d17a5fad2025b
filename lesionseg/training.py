"""`fit`, `validate` and `test`: LightningCLI over the tasks, with what a run must do besides training."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import warnings
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only

from lesionseg.callbacks.freezing import StagedFreezing
from lesionseg.callbacks.guards import FiniteLoss, Interrupted, StopOnSignal
from lesionseg.callbacks.loggers import run_loggers
from lesionseg.callbacks.progress import TimeLeft, progress_bar
from lesionseg.callbacks.results import Results
from lesionseg.data.datamodule import LesionDataModule
from lesionseg.data.folds import imbalance
from lesionseg.data.store import Store
from lesionseg.errors import InputError
from lesionseg.request import request_sha256
from lesionseg.runs import LAST_CHECKPOINT, RunInfo, finished_run, provenance, sha256_of, weights_sha256, write_text
from lesionseg.schedules import refuse_duplicate_keys
from lesionseg.tasks.base import SegmentationTask

#: Settings that change where or how fast a run goes, not what comes out of it; not part of its fingerprint.
_NOT_IN_FINGERPRINT = ("config", "cell", "data.store", "data.num_workers", "model.init_args.weights")
#: What rows of one comparison differ in; all the rest must be equal between them.
_DIFFERS_BETWEEN_ROWS = ("name", "schedule", "model.init_args.transfer", "data.fold", "seed_everything", "data.seed")
_TRAINER_SETTINGS_THAT_COUNT = ("max_epochs", "limit_train_batches", "precision", "gradient_clip_val",
                                "accumulate_grad_batches", "max_steps")  # fmt: skip


class RunIsDone(Exception):  # noqa: N818 (nothing went wrong)
    """The run folder holds the finished run that was asked for."""


class RunCLI(LightningCLI):
    """Builds task, data and trainer from YAML; decides between new, continued and finished runs.

    The run folder is `trainer.default_root_dir`.
    """

    def __init__(self) -> None:
        self.checkpoint: Path | None = None
        super().__init__(
            model_class=SegmentationTask,
            datamodule_class=LesionDataModule,
            subclass_mode_model=True,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            trainer_defaults={
                "use_distributed_sampler": False,
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,
            },
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The three verbs; the checkpoint is the run's own."""
        skip = {
            "model",
            "train_dataloaders",
            "val_dataloaders",
            "dataloaders",
            "datamodule",
            "weights_only",
            "ckpt_path",
        }
        return {"fit": skip, "validate": skip, "test": skip}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The schedule, the run's name, and the settings that two classes must share."""
        parser.add_lightning_class_args(StagedFreezing, "schedule")
        parser.add_argument("--name", type=str, default="run", help="What the run is called in tables.")
        parser.add_argument("--cell", type=str | None, default=None, help="Place in a grid: number/total@side-by-side.")
        parser.link_arguments("data.input", "model.init_args.input")
        parser.link_arguments("data.target", "model.init_args.target")
        parser.link_arguments("seed_everything", "data.seed")

    def before_instantiate_classes(self) -> None:
        """Compare the run asked for with what its folder holds, before anything heavy is built."""
        self.plain = self._plain_config()
        self.run_dir = self._run_dir()
        if self.subcommand != "fit":
            finished_run(self.run_dir)
            self.checkpoint = self.run_dir / LAST_CHECKPOINT
            return
        self.run = self._describe_run()
        held = RunInfo.read(self.run_dir) if (self.run_dir / "run.json").exists() else None
        if held is not None and held.fingerprint == self.run.fingerprint:
            if held.state == "finished":
                rank_zero_only(RunInfo.write)(replace(held, request_sha256=self.run.request_sha256), self.run_dir)
                raise RunIsDone(self.run_dir)
            last = self.run_dir / LAST_CHECKPOINT
            self.checkpoint = last if last.exists() else None
        else:
            self._clear(held)
        if self.checkpoint is not None:
            rank_zero_info(f"continuing {self.run_dir} from its last checkpoint")

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The trainer with the callbacks and loggers of every run, and the strategy that its schedule needs."""
        config = self.config[self.subcommand]
        callbacks: list[pl.Callback] = [
            Results(self.run_dir),
            FiniteLoss(),
            StopOnSignal(self.run_dir / LAST_CHECKPOINT),
            TimeLeft(config.cell),
            *progress_bar(),
            *_checkpoints(
                self.run_dir,
                self.model.monitor if self.datamodule.inner_validation else None,
                config.trainer.check_val_every_n_epoch,
            ),
        ]
        kwargs["callbacks"] = [*(self._get(self.config_init, "trainer").callbacks or []), *callbacks]
        kwargs["enable_progress_bar"] = bool(progress_bar())
        kwargs["logger"] = run_loggers(self.run_dir, self.run) if self.subcommand == "fit" else False
        if config.trainer.strategy == "auto" and _many_devices(config.trainer.devices, config.trainer.num_nodes):
            # Blocks freeze after the wrap, and some encoders hold parameters that no feature reaches.
            kwargs["strategy"] = "ddp_find_unused_parameters_true"
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        """Refuse test cases that the net has seen; leave config, split and description of the run in its folder."""
        self.datamodule.setup("fit")
        self.run = self._with_training_cases()
        self._announce()

    def after_fit(self) -> None:
        """Test the last weights on the test part, then declare the run finished."""
        if self.trainer.interrupted:
            return
        if self.datamodule.folds > 1:
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
        rank_zero_only(RunInfo.write)(_finished(self.run), self.run_dir)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        return {**kwargs, "ckpt_path": self.checkpoint, "weights_only": True}

    def _plain_config(self) -> dict[str, Any]:
        """The resolved config as plain data, links included."""
        text = self.parser.dump(self.config, skip_link_targets=False, skip_none=False)
        return yaml.safe_load(text)[self.subcommand]

    def _run_dir(self) -> Path:
        folder = self.plain["trainer"]["default_root_dir"]
        if folder is None:
            raise InputError(
                "--trainer.default_root_dir", expected="the run folder", got="none", remedy="name the folder of the run"
            )
        return Path(folder)

    def _describe_run(self) -> RunInfo:
        plain = self.plain
        store, init = Store.open(Path(plain["data"]["store"])), plain["model"]["init_args"]
        source = Path(init["weights"]) if init["weights"] and init["transfer"] else None
        if source is not None:
            _refuse_generated_start(source, store)
        weights = weights_sha256(source) if source else None
        relevant = _without(plain, _NOT_IN_FINGERPRINT)
        relevant["trainer"] = {key: plain["trainer"][key] for key in _TRAINER_SETTINGS_THAT_COUNT}
        shared = {"config": _without(relevant, _DIFFERS_BETWEEN_ROWS), "store": store.manifest_sha256}
        encoder_weights = init["encoder_weights"]
        return RunInfo(
            name=plain["name"],
            state="running",
            fingerprint=sha256_of({"config": relevant, "store": store.manifest_sha256, "weights": weights}),
            request_sha256=request_sha256(sys.argv[1:]),
            config_sha256=sha256_of(shared),
            store_sha256=store.manifest_sha256,
            weights_sha256=weights,
            trained_on=(),
            generated=store.generated,
            target=plain["data"]["target"],
            fold=plain["data"]["fold"],
            folds=plain["data"]["folds"],
            seed=plain["data"]["seed"],
            epochs=plain["trainer"]["max_epochs"],
            encoder=init["encoder"],
            encoder_weights=encoder_weights if encoder_weights in (None, "imagenet") else "file",
            **provenance(),  # type: ignore[arg-type]
        )

    def _with_training_cases(self) -> RunInfo:
        """The run with the voxel hashes of all that trains it; `InputError` where a test case is among them."""
        records, parts = self.datamodule.records, self.datamodule.split
        start = finished_run(self.model.weights).trained_on if self.model.weights else ()
        seen = {*start, *(records[case].voxel_sha256 for case in (*parts.train, *parts.validation))}
        known = [case for case in parts.test if records[case].voxel_sha256 in seen]
        if known:
            raise InputError(
                self.datamodule.path,
                expected="test cases that the net never saw",
                got=f"{len(known)} that it was trained on ({', '.join(known[:3])})",
                remedy="leave them out of the pretraining: lesionseg prepare lits --exclude",
            )
        return replace(self.run, trained_on=tuple(sorted(seen)))

    @rank_zero_only
    def _clear(self, held: RunInfo | None) -> None:
        """Make room for a new run; refuse a folder that holds something else."""
        if held is not None:
            shutil.rmtree(self.run_dir)
        elif self.run_dir.exists() and any(self.run_dir.iterdir()):
            raise InputError(
                self.run_dir,
                expected="an empty folder, or one of an earlier run",
                got="a folder with other files",
                remedy="name another --trainer.default_root_dir",
            )

    @rank_zero_only
    def _announce(self) -> None:
        self.run.write(self.run_dir)
        parts = {part: list(cases) for part, cases in asdict(self.datamodule.split).items()}
        write_text(self.run_dir / "split.json", json.dumps(parts, indent=1) + "\n")
        table = imbalance(list(self.datamodule.records.values()), self.datamodule.split)
        rank_zero_info(f"split by patient\n{table.to_string()}")
        write_text(self.run_dir / "config.yaml", yaml.safe_dump(self.plain, sort_keys=False))


def _checkpoints(folder: Path, monitor: str | None, validate_every: int) -> list[pl.Callback]:
    """`last.ckpt` after every epoch, and the weights that did best on the inner validation where there is one.

    Two callbacks: with one, Lightning writes `last.ckpt` only in epochs that gave a new best.
    """
    folder = folder / LAST_CHECKPOINT.parent
    last = ModelCheckpoint(
        folder, filename=LAST_CHECKPOINT.stem, save_on_train_epoch_end=True, enable_version_counter=False
    )
    if monitor is None:
        return [last]
    best = ModelCheckpoint(
        folder,
        filename="best",
        monitor=monitor,
        mode="max",
        save_weights_only=True,
        every_n_epochs=validate_every,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    return [best, last]


def _many_devices(devices: str | int | list[int], nodes: int) -> bool:
    if nodes > 1:
        return True
    if isinstance(devices, list):
        return len(devices) > 1
    if devices in ("auto", -1, "-1"):
        return torch.cuda.device_count() > 1
    return len(devices.split(",")) > 1 if isinstance(devices, str) and "," in devices else int(devices) > 1


def _refuse_generated_start(source: Path, store: Store) -> None:
    if finished_run(source).generated and not store.generated:
        raise InputError(
            source,
            expected="weights trained on real CT, as the store holds real CT",
            got="weights trained on the generated phantom",
            remedy="pretrain on real CT first: make pretrain LITS=/path/to/LiTS",
        )


def _without(config: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """A copy of nested plain data without the given dotted keys."""
    out = {}
    for key, value in config.items():
        if key in keys:
            continue
        below = tuple(k.removeprefix(f"{key}.") for k in keys if k.startswith(f"{key}."))
        out[key] = _without(value, below) if below and isinstance(value, dict) else value
    return out


def _finished(run: RunInfo) -> RunInfo:
    return replace(run, state="finished")


def run(args: list[str]) -> int:
    """Run `fit`, `validate` or `test`; returns the exit status."""
    sys.argv = [sys.argv[0], *args]  # Lightning starts the other ranks with the command line of this one
    _quieten()
    for option, value in pairwise(args):
        if option in ("-c", "--config") and Path(value).is_file():
            refuse_duplicate_keys(Path(value).read_text(), value)
    try:
        RunCLI()
    except RunIsDone as done:
        rank_zero_info(f"{done} is done already")
    except Interrupted:
        raise KeyboardInterrupt from None
    return 0


def _quieten() -> None:
    """Silence what Lightning and W&B say that a user of this package can do nothing about."""
    for message in ("The number of training batches", "The '.*_dataloader' does not have many workers", "isinstance",
                    "Total length of `list`", "Experiment logs directory", "Checkpoint directory"):  # fmt: skip
        warnings.filterwarnings("ignore", message=f".*{message}")
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(lambda r: "litlogger" not in r.getMessage())
