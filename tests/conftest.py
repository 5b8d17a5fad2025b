"""What every test shares."""

import os

# Before torch loads, and for every process a test starts. More than one thread waits longer than it works on nets as
# small as those of the tests, above all where tests run side by side.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ["HF_HUB_OFFLINE"] = "1"
# Where the ranks that this process starts meet: below the ports that systems hand out, of which another program may
# take the one that was just free.
os.environ["MASTER_PORT"] = str(20_000 + os.getpid() % 10_000)

import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import settings
from PIL import Image

EXPERIMENTS = Path(__file__).parent.parent / "experiments"

#: Of `make trust`: as many random cases as the properties of what is exact are tried on there.
settings.register_profile("trust", max_examples=1000, deadline=None)


@pytest.fixture(scope="session")
def once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Makes a folder once, whatever the number of test processes: the first makes it, the others wait."""

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        base = tmp_path_factory.getbasetemp()
        folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                partial = folder.with_name(f"{name}.partial")
                shutil.rmtree(partial, ignore_errors=True)
                fill(partial)
                partial.rename(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def phantom_root(once) -> Path:
    """The smallest phantom that serves: three volumes, twelve slices of five patients, each lesion type."""
    from lesionseg.phantom.write import write_phantom

    return once("phantom", lambda folder: write_phantom(folder, volumes=3, slices=12, size=48, seed=0))


@pytest.fixture(scope="session")
def lits_store(once, phantom_root) -> Path:
    from lesionseg.data import lits
    from lesionseg.data.prepare import prepare

    return once("lits", lambda folder: prepare(lits.cases(phantom_root / "lits"), folder, kind="lits", workers=1))


@pytest.fixture(scope="session")
def slices_store(once, phantom_root) -> Path:
    from lesionseg.data import slices
    from lesionseg.data.prepare import prepare

    table = phantom_root / "slices" / "slices.csv"
    return once("slices", lambda folder: prepare(slices.cases(table), folder, kind="slices", workers=1))


@pytest.fixture(scope="session")
def png_store(tmp_path_factory) -> Path:
    """Six slices of six patients, PNG of unknown spacing: nothing in them says that they are generated."""
    from lesionseg.data import slices
    from lesionseg.data.prepare import prepare

    folder, rng = tmp_path_factory.mktemp("png"), np.random.default_rng(0)
    lines = ["patient_id,image,mask,liver_mask,window_low_hu,window_high_hu"]
    for i in range(6):
        liver, lesion = np.zeros((2, 32, 32), np.uint8)
        liver[4:28, 4:28], lesion[10:16, 10:16] = 1, i % 3 + 1
        for name, array in (("image", rng.integers(80, 200, liver.shape)), ("liver", liver), ("mask", lesion)):
            Image.fromarray(array.astype(np.uint8)).save(folder / f"{name}{i}.png")
        lines.append(f"patient{i},image{i}.png,mask{i}.png,liver{i}.png,-200,250")
    (folder / "slices.csv").write_text("\n".join(lines) + "\n")
    return prepare(slices.cases(folder / "slices.csv"), folder / "store", kind="slices", workers=1).path


@pytest.fixture(scope="session")
def pretraining(lits_store) -> Callable[..., list[str]]:
    """Command line of a tiny pretraining from the real YAML; later options go before earlier ones."""

    def command(run: Path, *more: str, net: str = "lesion") -> list[str]:
        configs = (EXPERIMENTS / "pretrain" / f"{net}.yaml", EXPERIMENTS / "profiles" / "phantom.yaml")
        short = "--data.folds 3 --trainer.max_epochs 1 --trainer.limit_train_batches 2 --trainer.limit_val_batches 1"
        return _command(configs, lits_store, run, *short.split(), *more)

    return command


@pytest.fixture(scope="session")
def finetuning(slices_store) -> Callable[..., list[str]]:
    """Command line of a tiny fine-tuning from the real YAML: six epochs of three batches, tested on one patient."""

    def command(run: Path, *more: str, schedule: str = "hierarchical_unfreezing") -> list[str]:
        parts = ("finetune/lesion", f"schedules/{schedule}", "profiles/phantom")
        short = "--data.folds 4 --data.batch_size 2 --trainer.max_epochs 6 --trainer.check_val_every_n_epoch 2"
        return _command([EXPERIMENTS / f"{part}.yaml" for part in parts], slices_store, run, *short.split(), *more)

    return command


def _command(configs: Iterable[Path], store: Path, run: Path, *more: str) -> list[str]:
    named = [word for path in configs for word in ("--config", str(path))]
    place = ["--data.store", str(store), "--trainer.default_root_dir", str(run)]
    return ["fit", *named, *place, "--data.input.size_px", "32", *more]


@pytest.fixture(scope="session")
def pretrained(once, pretraining) -> Path:
    """Run folder of a lesion net that has seen two batches."""
    from lesionseg.cli import main

    return once("pretrained", lambda folder: main(pretraining(folder)))


@pytest.fixture(scope="session")
def make_model() -> Callable:
    """Makes a model of random nets that call about half of the liver lesion, each type somewhere."""
    import torch

    from lesionseg.inputs import InputSpec
    from lesionseg.labels import TARGETS
    from lesionseg.model import Model, Thresholds
    from lesionseg.model_net import PROVENANCE, Net
    from lesionseg.networks import build_unet
    from lesionseg.unet import Naming

    def net(target: str, spec: InputSpec, seed: int) -> Net:
        torch.manual_seed(seed)
        description = {
            "encoder": "tu-test_resnet", "decoder_channels": [8] * 5, "input": asdict(spec), "target": target,
            "classes": list(TARGETS[target].classes), "naming": asdict(Naming()),
        }  # fmt: skip
        provenance = dict.fromkeys(PROVENANCE) | {"name": "made", "fold": seed, "folds": 3, "seed": 0, "epochs": 1}
        made = Net(description, {}, provenance)
        built = build_unet("tu-test_resnet", classes=len(description["classes"]), encoder_weights=None,
                           decoder_channels=[8] * 5).eval()  # fmt: skip
        with torch.no_grad():
            image = torch.nn.functional.interpolate(torch.randn(8, 3, 4, 4), (spec.size_px, spec.size_px))
            scores = built(image).movedim(1, 0).flatten(1)
            head = built.segmentation_head[0]
            head.weight *= 4 / scores.std(1).view(-1, 1, 1, 1)
            head.bias.copy_(-4 * scores.mean(1) / scores.std(1))
            head.bias[1] += 0 if target == "liver" else 14
        return replace(made, tensors={name: tensor.contiguous() for name, tensor in built.state_dict().items()})

    def make(target: str = "typed", members: int = 1, **fields) -> Model:
        lesions = [net(target, InputSpec(64, "liver"), seed) for seed in range(members)]
        small = Thresholds(undetermined=0.4, min_lesion_px=5)
        return Model(net("liver", InputSpec(64, "slice"), 9), tuple(lesions), **{"thresholds": small, **fields})

    return make
