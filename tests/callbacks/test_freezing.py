import hashlib
import json
import logging
import os
import subprocess
import sys
import warnings

import pytest
import pytorch_lightning as pl
import segmentation_models_pytorch as smp
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lesionseg.callbacks.freezing import StagedFreezing
from lesionseg.errors import InputError
from lesionseg.networks import blocks, build_unet, parameter_groups
from lesionseg.schedules import FreezeSchedule

EPOCHS, STEPS, LR = 4, 2, 0.01
#: Freeze, thaw and re-freeze (stem); never; thaw late (stage2); freeze late at another rate (stage3); a change of rate.
TRAINS = {
    "stem": [{"start": 0, "stop": 0.25}, {"start": 0.5, "stop": 0.75}],
    "stage1": "never",
    "stage2": [0.5, 1],
    "stage3": [{"start": 0, "stop": 0.75, "rate": 0.5}],
    "encoder": "always",
    "decoder": [{"start": 0, "stop": 0.5}, {"start": 0.5, "stop": 1, "rate": 0.1}],
    "head": "always",
}
#: The same by hand: rate of each block in each epoch.
RATES = {
    "stem": (1, 0, 1, 0),
    "stage1": (0, 0, 0, 0),
    "stage2": (0, 0, 1, 1),
    "stage3": (0.5, 0.5, 0.5, 0),
    "stage4": (1, 1, 1, 1),
    "decoder": (1, 1, 0.1, 0.1),
    "head": (1, 1, 1, 1),
}
FROZEN = [{name for name, rates in RATES.items() if rates[epoch] == 0} for epoch in range(EPOCHS)]


class Task(pl.LightningModule):
    """A tiny U-net that meets everything known to move frozen weights: train() calls, zero gradients, weight decay."""

    def __init__(self, optimizer: str = "adamw", norm: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        if norm:
            self.net = build_unet("tu-test_resnet", classes=2, encoder_weights=None, decoder_channels=(16, 8, 8, 8, 4))
        else:
            plain = {"encoder_weights": None, "decoder_use_norm": False}
            self.net = smp.Unet("tu-test_convnext", **plain, decoder_channels=(8,) * 5, classes=2)
        self.optimizer = optimizer
        self.seen: list[dict] = []

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.seen.append(self.look())
        images, targets = (part[self.global_rank :: self.trainer.world_size] for part in batch)
        return nn.functional.cross_entropy(self.net(images), targets)

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        assert not any(module.training for module in self.net.modules())
        self.net(batch[0])

    def on_train_epoch_start(self) -> None:
        self.train()

    def on_validation_end(self) -> None:
        self.train()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=False)

    def on_validation_model_zero_grad(self) -> None:
        """Lightning would set every gradient to None here, and so hide a stale one."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = parameter_groups(self.net, LR, weight_decay=0.1)
        return torch.optim.AdamW(groups) if self.optimizer == "adamw" else torch.optim.SGD(groups, momentum=0.9)

    def look(self) -> dict:
        """What a training step finds, block by block."""
        groups = {group["name"]: group for group in self.trainer.optimizers[0].param_groups}
        state = self.trainer.optimizers[0].state
        found = {name: [p for _, p in block.parameters] for name, block in blocks(self.net).items()}
        return {
            "epoch": self.trainer.current_epoch,
            "step": self.trainer.global_step,
            "learns": {name: {p.requires_grad for p in parameters} for name, parameters in found.items()},
            "modes": {name: {m.training for m in block.modules} for name, block in blocks(self.net).items()},
            "states": {name: sum(p in state for p in parameters) for name, parameters in found.items()},
            "grads": {name: sum(p.grad is not None for p in parameters) for name, parameters in found.items()},
            "lr": {name: group["lr"] for name, group in groups.items()},
        }


class Hashes(pl.Callback):
    """Hash of the parameters and of all tensors of each block at both ends of each epoch, validation included."""

    def __init__(self) -> None:
        self.start: list[dict] = []
        self.end: list[dict] = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.start.append(_hashes(pl_module.net))

    def on_train_epoch_end(self, trainer, pl_module):
        self.end.append(_hashes(pl_module.net))


def _hashes(net):
    hashes = {}
    for name, block in blocks(net).items():
        weights = [p for _, p in block.parameters]
        buffers = [buffer for module in block.modules for buffer in module.buffers(recurse=False)]
        hashes[name] = tuple(sha256(tensors) for tensors in (weights, buffers))
    return hashes


def sha256(tensors):
    return hashlib.sha256(b"".join(t.detach().cpu().numpy().tobytes() for t in tensors)).hexdigest()


def loader(samples=STEPS * 2, batch_size=2, same=True):
    """Batches of random images; with `same`, every batch is the same one."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(batch_size if same else samples, 3, 32, 32, generator=generator)
    images = images.repeat(samples // len(images), 1, 1, 1)
    return DataLoader(TensorDataset(images, (images[:, 0] > 0).long()), batch_size, shuffle=False)


def fit(tmp_path, task, *callbacks, trains=TRAINS, pace=None, data=None, ckpt_path=None, **options):
    defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": EPOCHS, "num_sanity_val_steps": 1, "logger": False}
    checkpoints = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    trainer = pl.Trainer(
        **{**defaults, **options},
        default_root_dir=tmp_path,
        enable_checkpointing=checkpoints,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[StagedFreezing(trains, **(pace or {})), *callbacks],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(task, data or loader(), loader(samples=2), ckpt_path=ckpt_path, weights_only=True)
    return trainer


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("adamw", {}),
        ("sgd", {}),
        ("adamw", {"precision": "bf16-mixed", "accumulate_grad_batches": 2, "gradient_clip_val": 0.1}),
    ],
)
def test_a_frozen_block_keeps_its_weights_and_its_running_statistics(tmp_path, optimizer, options):
    task, hashes = Task(optimizer), Hashes()
    fit(tmp_path, task, hashes, **options)
    assert len(hashes.end) == EPOCHS
    for epoch, (start, end) in enumerate(zip(hashes.start, hashes.end, strict=True)):
        assert {name for name in start if start[name] == end[name]} == FROZEN[epoch]


def test_every_step_finds_the_state_of_its_epoch(tmp_path):
    task = Task()
    fit(tmp_path, task)
    assert len(task.seen) == EPOCHS * STEPS
    for step, seen in enumerate(task.seen):
        epoch = step // STEPS
        assert (seen["epoch"], seen["step"]) == (epoch, step)
        trains = {name: rates[epoch] > 0 for name, rates in RATES.items()}
        assert seen["learns"] == {name: {on} for name, on in trains.items()}
        assert seen["modes"] == seen["learns"]
        assert seen["lr"] == pytest.approx({name: LR * rates[epoch] for name, rates in RATES.items()}, abs=0)
        assert all(seen["states"][name] == seen["grads"][name] == 0 for name in FROZEN[epoch])
        if step % STEPS:
            assert all(seen["states"][name] for name, on in trains.items() if on)


def test_a_thawed_block_starts_without_momentum(tmp_path):
    task = Task()
    trainer = fit(tmp_path, task, trains={**TRAINS, "stem": [{"start": 0, "stop": 0.5}, {"start": 0.75, "stop": 1}]})
    state = trainer.optimizers[0].state
    counts = {
        name: {int(state[p]["step"]) for _, p in b.parameters if p in state} for name, b in blocks(task.net).items()
    }
    whole = EPOCHS * STEPS
    assert counts == {
        "stem": {STEPS},
        "stage1": set(),
        "stage2": {2 * STEPS},
        "stage3": set(),
        "stage4": {whole},
        "decoder": {whole},
        "head": {whole},
    }


class Messages(logging.Handler):
    """Collects what is logged: whether Lightning's logger passes records on depends on the order of imports."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record):
        self.said.append(record.getMessage())


def test_the_schedule_is_shown_and_left_in_the_run_folder_and_transitions_are_logged(tmp_path):
    logger, messages = logging.getLogger("pytorch_lightning.utilities.rank_zero"), Messages()
    logger.addHandler(messages)
    try:
        fit(tmp_path / "run", Task())
    finally:
        logger.removeHandler(messages)
    resolved = FreezeSchedule.parse(TRAINS).resolve(EPOCHS, list(RATES))
    assert json.loads((tmp_path / "run" / "schedule.json").read_text()) == json.loads(resolved.to_json())
    assert any(resolved.table() in line for line in messages.said)
    assert [line for line in messages.said if "freezes" in line or "thaws" in line] == [
        "stem freezes; optimizer state of 9 parameters dropped",
        "stem thaws",
        "stage2 thaws",
        "stem freezes; optimizer state of 9 parameters dropped",
        "stage3 freezes; optimizer state of 12 parameters dropped",
    ]


@pytest.mark.parametrize("after", range(1, EPOCHS * STEPS))
def test_a_resumed_run_freezes_what_the_uninterrupted_one_does(tmp_path, whole_run, after):
    """From the checkpoint of every step, boundaries included; all batches are equal, so their order does not count."""
    folder, task, weights = whole_run
    again = Task()
    fit(tmp_path, again, ckpt_path=folder / f"after-{after}.ckpt")
    assert _without_grads(again.seen) == _without_grads(task.seen[after:])
    assert all(torch.equal(weights[name], tensor) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize("epoch", range(EPOCHS - 1))
def test_a_run_resumed_from_the_end_of_an_epoch_too(tmp_path, whole_run, epoch):
    folder, task, weights = whole_run
    again = Task()
    fit(tmp_path, again, ckpt_path=folder / f"epoch-{epoch}.ckpt")
    assert _without_grads(again.seen) == _without_grads(task.seen[(epoch + 1) * STEPS :])
    assert all(torch.equal(weights[name], tensor) for name, tensor in again.state_dict().items())


def _without_grads(seen):
    """A new process has None where the old one has zeros, before its first step."""
    return [{key: value for key, value in step.items() if key != "grads"} for step in seen]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A run that was not interrupted, with a checkpoint after each step and after each epoch."""
    folder = tmp_path_factory.mktemp("whole")
    names = {"auto_insert_metric_name": False, "enable_version_counter": False, "save_top_k": -1}
    task = Task()
    fit(
        folder,
        task,
        ModelCheckpoint(folder, filename="after-{step}", every_n_train_steps=1, **names),
        ModelCheckpoint(folder, filename="epoch-{epoch}", every_n_epochs=1, save_on_train_epoch_end=True, **names),
    )
    return folder, task, {name: tensor.clone() for name, tensor in task.state_dict().items()}


class Weights(pl.Callback):
    """Leaves the weights of every rank after every epoch."""

    def on_train_epoch_end(self, trainer, pl_module):
        weights = {name: p.detach().clone() for name, p in pl_module.net.named_parameters()}
        torch.save(
            weights, f"{trainer.default_root_dir}/{trainer.world_size}-{trainer.global_rank}-{trainer.current_epoch}"
        )


DDP_TRAINS = {
    "stage1": [{"start": 0, "stop": 0.25}, {"start": 0.5, "stop": 0.75}],
    "stage2": [0.25, 1],
    "encoder": "always",
    "decoder": "always",
    "head": "always",
}


def train_in_two_processes_and_in_one(folder):
    """Each of two ranks takes half of every batch; without batch norm, their mean gradient is that of the whole."""
    strategy = DDPStrategy(start_method="fork", find_unused_parameters=True, process_group_backend="gloo")
    for options in ({"devices": 2, "strategy": strategy}, {}):
        options |= {"trains": DDP_TRAINS, "use_distributed_sampler": False, "num_sanity_val_steps": 0}
        fit(folder, Task("sgd", norm=False), Weights(), data=loader(8, 4, same=False), **options)


def test_two_processes_stay_together_through_freeze_thaw_and_freeze_again(tmp_path):
    """Forked from a fresh process with one thread: quick, and safe for autograd and OpenMP."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    before = {name: p.detach() for name, p in Task("sgd", norm=False).net.named_parameters()}
    for epoch in range(EPOCHS):
        first, second, alone = (
            torch.load(tmp_path / f"{run}-{epoch}", weights_only=True) for run in ("2-0", "2-1", "1-0")
        )
        for name, weights in alone.items():
            assert (first[name] - second[name]).abs().max() == 0.0
            torch.testing.assert_close(first[name], weights, rtol=1e-4, atol=1e-6)
        still = {name for name in alone if torch.equal(alone[name], before[name])}
        stage1 = {name for name in alone if "stages_0" in name or "stem" in name}
        assert stage1 <= still if epoch in (1, 3) else not stage1 & still
        before = alone


def test_compiled_and_eager_runs_thaw_alike(tmp_path, monkeypatch):
    """Newer versions of torch notice a thaw by themselves, so that the resets are counted too."""
    resets, reset = [], torch._dynamo.reset
    monkeypatch.setattr(torch._dynamo, "reset", lambda: resets.append(len(weights)) or reset())
    trains = {"encoder": [0.5, 1], "decoder": "always", "head": "always"}
    weights = []
    for compiled in (False, True):
        task = Task("sgd", norm=False)
        if compiled:
            task.net.compile(backend="aot_eager")
        fit(tmp_path, task, trains=trains, max_epochs=2, num_sanity_val_steps=0, limit_val_batches=0)
        weights.append({name: tensor.clone() for name, tensor in task.net.state_dict().items()})
    assert resets == [1, 1]
    before = Task("sgd", norm=False).net.state_dict()
    for name, tensor in weights[0].items():
        assert not torch.equal(before[name], tensor)
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-6)


def test_a_second_training_of_the_same_net_starts_from_its_own_schedule(tmp_path):
    task = Task()
    out = {"decoder": "always", "head": "always"}
    fit(tmp_path, task, trains={"encoder": "never", **out}, max_epochs=1)
    fit(tmp_path, task, trains={"encoder": "always", **out}, max_epochs=1)
    assert all(seen["learns"] == seen["modes"] == {name: {True} for name in RATES} for seen in task.seen[STEPS:])


class Unnamed(Task):
    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=LR)


class Scheduled(Task):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)]


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (Unnamed, {}, r"groups stem, .*, head; got 1 optimizers with the groups unnamed; .*parameter_groups"),
        (Scheduled, {}, "set by the freeze schedule alone; got CosineAnnealingLR"),
        (Task, {"trains": {"encoder": "always"}}, "none for decoder, head"),
        (Task, {"trains": {"tail": "always", "encoder": "always", "decoder": "always", "head": "always"}}, "got tail"),
        (Task, {"max_epochs": -1, "max_steps": 3}, "set max_epochs"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(tmp_path, task, options, message):
    module = task()
    with pytest.raises(InputError, match=message):
        fit(tmp_path, module, **options)
    assert not module.seen
    assert not (tmp_path / "schedule.json").exists()


def test_a_wrong_schedule_is_refused_when_it_is_read():
    with pytest.raises(InputError, match="stem: expected"):
        StagedFreezing({"stem": "sometimes"})


if __name__ == "__main__":
    train_in_two_processes_and_in_one(sys.argv[1])
