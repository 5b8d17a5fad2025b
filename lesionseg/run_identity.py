"""What run a resolved config asks for: its `RunInfo`, with the fingerprint that tells whether a folder holds it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from lesionseg.data.store import Store, read_manifest
from lesionseg.errors import InputError
from lesionseg.provenance import provenance
from lesionseg.request import request_sha256
from lesionseg.run_weights import weights_sha256
from lesionseg.runs import RunInfo, finished_run, sha256_of
from lesionseg.trainer import Trainer

#: Settings that change where or how fast a run goes; not part of its fingerprint. Nor are `trainer.devices` and
#: `trainer.num_nodes`: a run that four GPUs have finished is done for a machine without one.
_NOT_IN_FINGERPRINT = ("config", "cell", "verbose", "data.store", "data.num_workers", "model.init_args.weights",
                       "model.init_args.compile", "model.init_args.channels_last")  # fmt: skip
#: What the runs of one row differ in, and what rows of one comparison; all the rest must be equal between them.
_DIFFERS_WITHIN_ROW = ("data.fold", "seed_everything", "data.seed")
_DIFFERS_BETWEEN_ROWS = (
    "name", "schedule", "model.class_path",
    *(f"model.init_args.{name}" for name in ("transfer", "use_encoder_weights", "l2_sp", "deep_supervision",
                                             "classification_weight", "crop_px")),
    *_DIFFERS_WITHIN_ROW, "data.implant_probability",
)  # fmt: skip
#: The settings of the trainer that count, and those that count where they are not its defaults.
_TRAINER_SETTINGS_THAT_COUNT = ("max_epochs", "limit_train_batches", "precision", "gradient_clip_val",
                                "accumulate_grad_batches")  # fmt: skip
_COUNT_IF_SET = ("fast_dev_run", "limit_val_batches", "limit_test_batches", "min_epochs", "min_steps", "max_time",
                 "gradient_clip_algorithm", "sync_batchnorm", "callbacks", "plugins", "val_check_interval")  # fmt: skip


def describe_run(plain: dict[str, Any], args: Sequence[str]) -> RunInfo:
    """The run that a resolved config asks for, before it has begun.

    Args:
        plain: the config as plain data.
        args: the command line it came from.

    Raises:
        InputError: store or weights are missing, or real CT would be fine-tuned from generated CT.
    """
    store, init = read_manifest(Path(plain["data"]["store"])), plain["model"]["init_args"]
    source = Path(init["weights"]) if init["weights"] and init["transfer"] else None
    if source is not None:
        _refuse_generated_start(source, store)
    weights = weights_sha256(source) if source else None
    relevant = without(plain, _NOT_IN_FINGERPRINT)
    relevant["trainer"] = _trainer_settings(plain["trainer"])
    relevant["model"]["init_args"]["encoder_weights"] = _content(init["encoder_weights"])
    rests_on = {"store": store.manifest_sha256, "weights": weights}
    encoder_weights = init["encoder_weights"] if init["use_encoder_weights"] else None
    return RunInfo(
        name=plain["name"],
        state="running",
        fingerprint=sha256_of({"config": relevant, **rests_on}),
        request_sha256=request_sha256(args),
        config_sha256=sha256_of({"config": without(relevant, _DIFFERS_BETWEEN_ROWS), "store": store.manifest_sha256}),
        row_sha256=sha256_of({"config": without(relevant, _DIFFERS_WITHIN_ROW), **rests_on}),
        store_sha256=store.manifest_sha256,
        weights_sha256=weights,
        trained_on=(),
        generated=store.generated,
        implanted=store.implanted,
        target=plain["data"]["target"],
        fold=plain["data"]["fold"],
        folds=plain["data"]["folds"],
        seed=plain["data"]["seed"],
        epochs=plain["trainer"]["max_epochs"],
        encoder=init["encoder"],
        encoder_weights=encoder_weights if encoder_weights in (None, "imagenet") else "file",
        **provenance(),  # type: ignore[arg-type]
    )


def without(config: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """A copy of nested plain data without the given dotted keys."""
    out = {}
    for key, value in config.items():
        if key in keys:
            continue
        below = tuple(k.removeprefix(f"{key}.") for k in keys if k.startswith(f"{key}."))
        out[key] = without(value, below) if below and isinstance(value, dict) else value
    return out


def _content(named: str | None) -> str | None:
    """What stands for weights by name or by file: the name, or the hash of the file."""
    if named is None or not Path(named).is_file():
        return named
    return hashlib.sha256(Path(named).read_bytes()).hexdigest()


def _trainer_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that decide what comes out of a run, those that cut it short included."""
    defaults = {**signature(pl.Trainer).parameters, **signature(Trainer).parameters}
    counted = {key: settings[key] for key in _TRAINER_SETTINGS_THAT_COUNT}
    return counted | {key: settings[key] for key in _COUNT_IF_SET if _is_set(settings[key], defaults[key].default)}


def _is_set(value: Any, default: Any) -> bool:
    return value != default or (type(value), value) == (int, 1)  # one batch, where 1.0 is all of them


def _refuse_generated_start(source: Path, store: Store) -> None:
    if finished_run(source).generated and not store.generated:
        raise InputError(
            source,
            expected="weights trained on real CT, as the store holds real CT",
            got="weights trained on the generated phantom",
            remedy="pretrain on real CT first: make pretrain LITS=/path/to/LiTS",
        )
