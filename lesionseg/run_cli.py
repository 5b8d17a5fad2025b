"""LightningCLI over the tasks, with what a run must do besides training: its folder, its checks, its callbacks."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from lesionseg.callbacks.checkpoints import WholeCheckpoints
from lesionseg.callbacks.freezing import StagedFreezing
from lesionseg.callbacks.loggers import run_loggers
from lesionseg.callbacks.lost_ranks import LostRanks
from lesionseg.callbacks.of_a_run import run_callbacks
from lesionseg.callbacks.progress import progress_bar
from lesionseg.command_line import read_configs, wrong_option
from lesionseg.data.datamodule import MOST_SEED, LesionDataModule
from lesionseg.data.folds import imbalance
from lesionseg.errors import InputError, first_sentence
from lesionseg.networks import blocks
from lesionseg.ranks import OneRun, joined, many_ranks, refuse_unfit, with_cluster
from lesionseg.run_checks import (
    refuse_callbacks,
    refuse_other_options,
    refuse_other_split,
    refuse_trial_with_steps,
    with_training_cases,
)
from lesionseg.run_folder import claimed, held_run, refuse_foreign, set_aside
from lesionseg.run_identity import describe_run
from lesionseg.run_weights import LAST_CHECKPOINT, PREVIOUS_CHECKPOINT, checkpoint_to_continue
from lesionseg.runs import CONFIG_FILE, SPLIT_FILE, RunInfo, finished_run
from lesionseg.tasks.base import SegmentationTask
from lesionseg.trainer import Trainer, refuse_limits
from lesionseg.writing import remove_parts, write_text


class RunIsDone(Exception):  # noqa: N818 (nothing went wrong)
    """The run folder holds the finished run that was asked for."""


class RunCLI(LightningCLI):
    """Builds task, data and trainer from YAML; decides between new, continued and finished runs.

    The run folder is `trainer.default_root_dir`.
    """

    def __init__(self, args: Sequence[str], ending: ExitStack) -> None:
        """Run what a command line asks for.

        Args:
            args: the command line, without the program.
            ending: what is held until the run has ended: its folder, from before its first change on, and its logs.
        """
        self.ending = ending
        self.args = list(args)
        self.checkpoint: Path | None = None
        self.configs = read_configs(args)
        self.lost_ranks = LostRanks()
        raising = {"exit_on_error": False}
        super().__init__(
            model_class=SegmentationTask,
            datamodule_class=LesionDataModule,
            trainer_class=Trainer,
            subclass_mode_model=True,
            save_config_callback=None,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={**raising, **{verb: raising.copy() for verb in self.subcommands()}},
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

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; `InputError` for what is wrong with a YAML file or the command line."""
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            known = self._parser(self.args[0]).get_defaults().keys()
            raise wrong_option(error, self.args, self.configs, known) from error
        given = self.config[self.config.subcommand]
        if not 0 <= (seed := given.seed_everything) <= MOST_SEED:
            raise InputError("seed_everything", expected=f"0 to {MOST_SEED}", got=str(seed), remedy="change it")
        if given.trainer.logger is not None:
            raise InputError("trainer.logger", expected="nothing, as a run logs to its own folder and to W&B",
                             got=str(given.trainer.logger),
                             remedy="leave it out; WANDB_MODE=disabled keeps W&B away")  # fmt: skip

    def instantiate_classes(self) -> None:
        """Build task, data and trainer; `InputError` for settings that one of them refuses."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            if isinstance(error.__cause__, InputError):  # jsonargparse wraps what a constructor raises
                raise error.__cause__ from None
            got = first_sentence(error)
            remedy = "change it; --debug shows where it came from"
            raise InputError("settings", expected="values that fit", got=got, remedy=remedy) from error

    def before_instantiate_classes(self) -> None:
        """Compare the run asked for with what its folder holds, before anything heavy is built."""
        self.plain = self._plain_config()
        self.run_dir = self._run_dir()
        self.run = describe_run(self.plain, self.args)
        if self.subcommand != "fit":
            refuse_other_options(self.run_dir, self.run)
            self.checkpoint = self.run_dir / LAST_CHECKPOINT
            return
        held = held_run(self.run_dir)
        if held is None:
            rank_zero_only(refuse_foreign)(self.run_dir)
        rank_zero_only(self.ending.enter_context)(claimed(self.run_dir, held))
        if held is not None and held.fingerprint == self.run.fingerprint:
            if held.state == "finished":
                rank_zero_only(RunInfo.write)(replace(held, request_sha256=self.run.request_sha256), self.run_dir)
                raise RunIsDone(self.run_dir)
            self.checkpoint = checkpoint_to_continue(self.run_dir, self.run.fingerprint)
        if self.checkpoint is not None:
            torn = self.checkpoint.name != LAST_CHECKPOINT.name
            which = f"the checkpoint before, as {LAST_CHECKPOINT} cannot be read" if torn else "its last checkpoint"
            rank_zero_info(f"continuing {self.run_dir} from {which}")

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The trainer with callbacks, loggers and strategy of every run; `InputError` for what a Trainer refuses."""
        config = self.config[self.subcommand]
        # A plateau is looked for after every epoch, whatever the profile says: the steps of training are the same.
        validate_every = 1 if self._freezing().plateau else config.trainer.check_val_every_n_epoch
        kwargs["check_val_every_n_epoch"] = validate_every
        bar = progress_bar(config.trainer.enable_progress_bar)
        given = self._get(self.config_init, "trainer").callbacks or []
        kwargs["callbacks"] = [
            OneRun(self.run.fingerprint, self.checkpoint and self.checkpoint.name),
            *(given if isinstance(given, list) else [given]),
            *run_callbacks(
                self.run_dir,
                seed=self.datamodule.seed,
                cell=config.cell,
                monitor=self.model.monitor if self.datamodule.inner_validation else None,
                validate_every=validate_every,
                lost_ranks=self.lost_ranks,
                bar=bar,
            ),
        ]
        kwargs["enable_progress_bar"] = bool(bar)
        kwargs["logger"] = False
        if self.subcommand == "fit":
            kwargs["logger"] = self.ending.enter_context(run_loggers(self.run_dir, self.run, self.checkpoint))
        many = many_ranks(config.trainer.devices, config.trainer.num_nodes, config.trainer.accelerator)
        if config.trainer.strategy == "ddp" or (config.trainer.strategy == "auto" and many):
            kwargs["strategy"] = joined()  # Lightning's own "ddp" ends at parameters that are frozen
        kwargs["plugins"] = with_cluster(self._get(self.config_init, "trainer").plugins)
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, TypeError, ValueError, RuntimeError, ImportError) as error:
            got = " ".join(str(error).split())
            raise InputError("trainer", expected="settings for this machine", got=got, remedy="change them") from error
        trainer.strategy.checkpoint_io = WholeCheckpoints(self.run_dir, self.run.fingerprint)
        refuse_unfit(trainer, self.model, config.trainer.sync_batchnorm)
        return trainer

    def before_fit(self) -> None:
        """Refuse what does not fit (ranks, schedule, weights) and test cases that the net has seen; describe the run.

        All of it before `_announce`, which puts an earlier run aside.
        """
        self.datamodule.setup("fit")
        if self.checkpoint is not None:
            refuse_other_split(self.run_dir, self.datamodule.split)
        self.datamodule.check_ranks(self.trainer.world_size)
        self.datamodule.check_shared_memory(self.trainer.num_devices)
        validates = bool(self.trainer.limit_val_batches * len(self.datamodule.validation))
        refuse_limits(self.trainer, **self.datamodule.batches())
        refuse_callbacks(self.trainer.callbacks)  # type: ignore[attr-defined]
        epochs, names = self.trainer.max_epochs or 0, list(blocks(self.model.net))
        refuse_trial_with_steps(self.plain["trainer"]["fast_dev_run"], self._freezing().schedule)
        self._freezing().check(epochs, names, validates, self.model.check_start())
        self.run = replace(
            with_training_cases(self.run, self.datamodule, self.model.weights), ranks=self.trainer.world_size
        )
        self._announce()

    def before_validate(self) -> None:
        """Refuse other parts than those of the fit."""
        self.datamodule.setup("validate")
        refuse_other_split(self.run_dir, self.datamodule.split)

    def before_test(self) -> None:
        """Refuse other parts than those of the fit."""
        self.datamodule.setup("test")
        refuse_other_split(self.run_dir, self.datamodule.split)

    def after_test(self) -> None:
        """The run names the code and the machine that have written its tables anew, too."""
        held = finished_run(self.run_dir)
        made = self.run.after(held)
        rank_zero_only(RunInfo.write)(
            replace(held, commit=made.commit, version=made.version, machine=made.machine), self.run_dir
        )

    def after_fit(self) -> None:
        """Test the last weights on the test part, then declare the run finished.

        Raises:
            InputError: its store has changed, or a callback has ended it before its last epoch.
        """
        if self.trainer.interrupted or self.plain["trainer"]["fast_dev_run"]:  # a trial, which leaves no net
            return
        if (epochs := self.trainer.current_epoch) != self.run.epochs:
            raise InputError(self.run_dir, expected=f"the {self.run.epochs} epochs that the schedule is made for",
                             got=f"{epochs}, as a callback of trainer.callbacks ended it",
                             remedy="leave it out, or set trainer.max_epochs")  # fmt: skip
        if self.datamodule.folds > 1:
            self.lost_ranks.watch(self.trainer)
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
        self.datamodule.store.refuse_changed()
        rank_zero_only(RunInfo.write)(replace(self.run, state="finished"), self.run_dir)
        (self.run_dir / PREVIOUS_CHECKPOINT).unlink(missing_ok=True)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        return {**kwargs, "ckpt_path": self.checkpoint, "weights_only": True}

    def _freezing(self) -> StagedFreezing:
        return self._get(self.config_init, "schedule")

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

    @rank_zero_only
    def _announce(self) -> None:
        """Describe the run in its folder; an earlier run there gives way only now that nothing was refused."""
        if self.checkpoint is None:
            if (held := held_run(self.run_dir)) is not None:
                kind = "a finished" if held.state == "finished" else "an unfinished"
                rank_zero_info(f"{kind} run of other settings, data or weights in {self.run_dir} gives way "
                               "once this one has a checkpoint")  # fmt: skip
            set_aside(self.run_dir)
        elif (held := held_run(self.run_dir)) is not None:
            self.run = self.run.after(held)
        remove_parts(self.run_dir / LAST_CHECKPOINT.parent)
        if self.checkpoint == self.run_dir / PREVIOUS_CHECKPOINT:  # or the torn one would take the good one's place
            (self.run_dir / LAST_CHECKPOINT).unlink(missing_ok=True)
        self.run.write(self.run_dir)
        write_text(self.run_dir / SPLIT_FILE, self.datamodule.split.to_json())
        table = imbalance(list(self.datamodule.records.values()), self.datamodule.split)
        rank_zero_info(
            f"{self.run.name}, fold {self.run.fold} of {self.run.folds}, seed {self.run.seed} → {self.run_dir}"
        )
        rank_zero_info(f"split by patient\n{table.to_string()}")
        write_text(self.run_dir / CONFIG_FILE, yaml.safe_dump(self.plain, sort_keys=False))
