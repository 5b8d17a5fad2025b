"""Every YAML of `experiments/` runs a step, and each owns its own keys."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml

from lesionseg.cli import main
from lesionseg.data.augment import Augmentation
from lesionseg.data.datamodule import LesionDataModule
from lesionseg.inputs import InputSpec
from lesionseg.runs import RunInfo
from lesionseg.tasks import LesionTask

ROOT = Path(__file__).parents[2] / "experiments"
PRETRAIN, SCHEDULES, PROFILES = (
    sorted(path.stem for path in (ROOT / folder).glob("*.yaml")) for folder in ("pretrain", "schedules", "profiles")
)
#: Rows that do not start from the LiTS weights.
WITHOUT_LITS = ("baseline", "baseline_implants", "from_scratch")
#: Rows whose training slices get generated lesions, three in ten.
IMPLANTS = {"baseline_implants": 0.3, "no_freezing_implants": 0.3}
#: For a net of no size, whatever the profile names.
TINY = (
    "--model.init_args.encoder tu-test_resnet --model.init_args.encoder_weights null --data.input.size_px 32 "
    "--data.batch_size 2 --data.num_workers 0 --data.folds 3 --trainer.accelerator cpu --trainer.devices 1 "
    "--trainer.max_epochs 6"
)

#: What a row may say of the net, and no other file does.
KIND_OF_NET = {
    "model.class_path", "model.init_args.deep_supervision", "model.init_args.classification_weight",
    "model.init_args.crop_px",
}  # fmt: skip


def fit(run, store, *parts, more=()):
    configs = [word for part in parts for word in ("--config", str(ROOT / f"{part}.yaml"))]
    place = ["--data.store", str(store), "--trainer.default_root_dir", str(run)]
    return main(["fit", *configs, *place, *more])


def leaves(content, at=""):
    """Dotted keys of nested data; what a schedule says of its blocks is one."""
    for key, value in content.items():
        if isinstance(value, dict) and at + key != "schedule":
            yield from leaves(value, f"{at}{key}.")
        else:
            yield at + key


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("net", PRETRAIN)
def test_pretraining(tmp_path, lits_store, net, profile):
    assert fit(tmp_path / "run", lits_store, f"pretrain/{net}", f"profiles/{profile}", more=TINY.split()) == 0
    run = RunInfo.read(tmp_path / "run")
    assert (run.name, run.state, run.target) == (net, "finished", net)


def digest(batch):
    """Cases, their order and their augmentation."""
    tensors = b"".join(tensor.numpy().tobytes() for tensor in (batch.images, batch.targets))
    return [tuple(place) for place in batch.places], hashlib.sha256(tensors).hexdigest()


@pytest.fixture(scope="module")
def data(slices_store):
    """The data module of the tiny runs for a seed, and every batch of its six epochs."""
    settings = yaml.safe_load((ROOT / "finetune" / "lesion.yaml").read_text())["data"]
    augmentation, keep_empty = Augmentation(**settings["augmentation"]), settings["keep_empty"]

    def make(seed, implants=0.0):
        module = LesionDataModule(slices_store, "typed", InputSpec(32, "liver"), batch_size=2, folds=3, seed=seed,
                                  inner_validation=0.2, keep_empty=keep_empty, augmentation=augmentation,
                                  implant_probability=implants)  # fmt: skip
        module.setup("fit")
        loader, batches = module.train_dataloader(), []
        for epoch in range(6):
            loader.batch_sampler.set_epoch(epoch)
            batches += [digest(batch) for batch in loader]
        return module, batches

    return make


@pytest.mark.parametrize(
    ("schedule", "profile"),
    [*((schedule, "phantom") for schedule in SCHEDULES), *(("baseline", p) for p in PROFILES if p != "phantom")],
)
def test_fine_tuning(tmp_path, slices_store, pretrained, data, monkeypatch, schedule, profile):
    """Every row sees the same cases in the same order, augmented alike, for as many steps."""
    parts, seen = ("finetune/lesion", f"schedules/{schedule}", f"profiles/{profile}"), []
    monkeypatch.setattr(LesionTask, "on_train_batch_start", lambda self, batch, _: seen.append(digest(batch)))
    more = [*TINY.split(), "--model.init_args.weights", str(pretrained)]
    assert fit(tmp_path / "run", slices_store, *parts, more=more) == 0
    run = RunInfo.read(tmp_path / "run")
    assert (run.name, run.state, run.target) == (schedule, "finished", "typed")
    assert (run.weights_sha256 is None) == (schedule in WITHOUT_LITS)
    module, batches = data(seed=0, implants=IMPLANTS.get(schedule, 0.0))
    split = {part: list(cases) for part, cases in asdict(module.split).items()}
    if profile == "phantom":
        assert (seen, json.loads((tmp_path / "run" / "split.json").read_text())) == (batches, split)
        last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
        assert last["global_step"] == len(batches) == 18


def test_rows_with_implants_see_the_same_cases_and_otherwise_the_same_pixels(data):
    (_, plain), (_, implanted) = data(seed=0), data(seed=0, implants=0.3)
    assert [places for places, _ in plain] == [places for places, _ in implanted]
    assert 0 < sum(a == b for a, b in zip(plain, implanted, strict=True)) < len(plain)


def test_another_seed_is_another_order_and_other_augmentation(data):
    (one, first), (other, second) = data(seed=0), data(seed=1)
    assert one.split == other.split
    assert all(a != b for a, b in zip(first, second, strict=True))


def test_the_paper_asks_for_imagenet_and_says_what_to_do_without(tmp_path, slices_store, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    parts = ("finetune/lesion", "schedules/baseline", "profiles/paper")
    assert fit(tmp_path / "run", slices_store, *parts) == 2
    line = capsys.readouterr().err
    assert len(line.splitlines()) == 1
    assert "expected weights 'imagenet' of se_resnet50" in line
    assert "name a local .safetensors or .pt file, or use null for random weights" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_owns_its_name_its_start_the_schedule_and_what_kind_of_net_it_is(schedule):
    content = yaml.safe_load((ROOT / "schedules" / f"{schedule}.yaml").read_text())
    more = {"from_scratch": {"model.init_args.use_encoder_weights"}, "l2_sp": {"model.init_args.l2_sp"},
            **{name: {"data.implant_probability"} for name in IMPLANTS}}  # fmt: skip
    always = {"name", "model.init_args.transfer", "schedule", *more.get(schedule, ())}
    assert always <= set(leaves(content)) <= always | KIND_OF_NET
    assert content["name"] == schedule
    assert content["model"]["init_args"]["transfer"] == (schedule not in WITHOUT_LITS)


def test_no_other_file_sets_what_a_schedule_or_the_place_of_a_run_decides():
    places = {"data.store", "data.fold", "seed_everything", "trainer.default_root_dir", "model.init_args.weights"}
    for path in sorted(ROOT.glob("*/*.yaml")):
        keys = set(leaves(yaml.safe_load(path.read_text())))
        assert not keys & places
        if path.parent.name in ("finetune", "profiles"):
            start = {f"model.init_args.{name}" for name in ("transfer", "use_encoder_weights", "l2_sp")}
            assert not keys & {
                "name",
                "schedule",
                "data.implant_probability",
                *start,
                *KIND_OF_NET - {"model.class_path"},
            }


def test_the_rows_of_the_paper_are_all_there():
    rows = {"baseline", "no_freezing", "freeze_encoder", "hierarchical_freezing", "hierarchical_unfreezing"}
    assert rows <= set(SCHEDULES)
