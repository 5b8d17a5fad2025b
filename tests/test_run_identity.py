"""What changes a run changes its fingerprint, and nothing else does."""

from copy import deepcopy

import pytest
import torch
import yaml

from lesionseg.cli import main
from lesionseg.run_identity import describe_run, without
from lesionseg.runs import RunInfo
from lesionseg.writing import write_text


@pytest.fixture(scope="module")
def run(tmp_path_factory, finetuning, pretrained):
    """A run of no step: all that counts is what was asked for."""
    folder = tmp_path_factory.mktemp("asked") / "run"
    quick = "--trainer.limit_train_batches 1 --trainer.limit_test_batches 1 --data.inner_validation 0"
    assert main(finetuning(folder, "--model.init_args.weights", str(pretrained), *quick.split())) == 0
    return folder


@pytest.fixture
def plain(run):
    return yaml.safe_load((run / "config.yaml").read_text())


def changed(plain, key, value):
    plain, (*parents, last) = deepcopy(plain), key.split(".")
    place = plain
    for parent in parents:
        place = place[parent]
    assert place[last] != value
    place[last] = value
    return describe_run(plain, [])


def test_the_config_left_in_the_folder_describes_the_run(run, plain):
    assert describe_run(plain, []).fingerprint == RunInfo.read(run).fingerprint


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.num_workers", 3),
        ("cell", "2/3@1"),
        ("trainer.default_root_dir", "elsewhere"),
        ("trainer.accelerator", "gpu"),
        ("trainer.devices", 4),
        ("trainer.num_nodes", 2),
        ("trainer.enable_progress_bar", False),
        ("trainer.log_every_n_steps", 1),
        ("trainer.deterministic", True),
        ("model.init_args.compile", True),
        ("model.init_args.channels_last", False),
    ],
)
def test_where_and_how_fast_does_not_count(plain, key, value):
    before, after = describe_run(plain, []), changed(plain, key, value)
    assert (after.fingerprint, after.row_sha256) == (before.fingerprint, before.row_sha256)


#: Key, another value, whether rows of one comparison may differ in it.
COUNTS = [
    ("name", "other", True),
    ("seed_everything", 1, True),
    ("data.seed", 1, True),
    ("data.fold", 1, True),
    ("schedule.trains", {"encoder": "always", "decoder": "always", "head": "always"}, True),
    ("schedule.clock", {"warm_up": 0.1, "end": 0.0}, True),
    ("schedule.plateau", {"patience": 2, "min_delta": 0.0}, True),
    ("model.init_args.transfer", False, True),
    ("model.init_args.deep_supervision", True, True),
    ("model.class_path", "lesionseg.tasks.YNetTask", True),
    ("model.init_args.use_encoder_weights", False, True),
    ("model.init_args.l2_sp", 0.01, True),
    ("model.init_args.lr", 1e-5, False),
    ("model.init_args.loss", "weighted_ce", False),
    ("model.init_args.encoder", "resnet18", False),
    ("data.input.size_px", 64, False),
    ("data.batch_size", 3, False),
    ("data.folds", 5, False),
    ("data.split_seed", 1, False),
    ("data.augmentation", None, False),
    ("trainer.max_epochs", 12, False),
    ("trainer.precision", "bf16-mixed", False),
    ("trainer.limit_train_batches", 2, False),
    ("trainer.limit_test_batches", 2, False),
    ("trainer.fast_dev_run", True, False),
    ("trainer.max_time", "00:00:01:00", False),
    ("trainer.sync_batchnorm", True, False),
    ("trainer.plugins", [{"class_path": "pytorch_lightning.plugins.HalfPrecision"}], False),
]


@pytest.mark.parametrize(("key", "value", "differs_between_rows"), COUNTS)
def test_what_comes_out_counts(plain, key, value, differs_between_rows):
    before, after = describe_run(plain, []), changed(plain, key, value)
    assert after.fingerprint != before.fingerprint
    assert (after.config_sha256 == before.config_sha256) == differs_between_rows
    assert (after.row_sha256 == before.row_sha256) == (key in ("seed_everything", "data.seed", "data.fold"))


def test_another_store_counts_wherever_it_lies(plain, lits_store, tmp_path, slices_store):
    (tmp_path / "moved").symlink_to(slices_store)
    before = describe_run(plain, [])
    assert changed(plain, "data.store", str(tmp_path / "moved")).fingerprint == before.fingerprint
    other = changed(plain, "data.store", str(lits_store))
    assert other.fingerprint != before.fingerprint
    assert other.config_sha256 != before.config_sha256


def test_the_weights_count_not_the_file_they_lie_in(plain, pretrained, tmp_path):
    before, start = describe_run(plain, []), tmp_path / "start"
    (start / "checkpoints").mkdir(parents=True)
    write_text(start / "run.json", (pretrained / "run.json").read_text())
    checkpoint = torch.load(pretrained / "checkpoints" / "last.ckpt", weights_only=True)
    torch.save({**checkpoint, "epoch": 99}, start / "checkpoints" / "last.ckpt")
    assert changed(plain, "model.init_args.weights", str(start)).fingerprint == before.fingerprint
    next(iter(checkpoint["state_dict"].values()))[:] = 0.5
    torch.save(checkpoint, start / "checkpoints" / "last.ckpt")
    assert changed(plain, "model.init_args.weights", str(start)).fingerprint != before.fingerprint


def test_a_file_of_encoder_weights_counts_by_its_content(plain, tmp_path):
    hashes = []
    for name, content in (("a.pt", b"one"), ("b.pt", b"one"), ("b.pt", b"two")):
        (tmp_path / name).write_bytes(content)
        described = changed(plain, "model.init_args.encoder_weights", str(tmp_path / name))
        assert described.encoder_weights == "file"
        hashes.append(described.fingerprint)
    assert hashes[0] == hashes[1] != hashes[2]


def test_without_takes_out_dotted_keys_and_changes_nothing():
    config = {"a": {"b": 1, "c": {"d": 2, "e": 3}}, "bc": 4, "f": None}
    before = deepcopy(config)
    assert without(config, ("a.b", "a.c.d", "f", "none.x")) == {"a": {"c": {"e": 3}}, "bc": 4}
    assert config == before
