"""A schedule with a clock, and one that waits for a plateau, in real trainings; the surgical rows too."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import DDPStrategy
from test_freezing import EPOCHS, LR, STEPS, Hashes, Task, Weights, fit, loader

from lesionseg.callbacks.freezing import _over_ranks
from lesionseg.pacing import Clock, Plateau

SCHEDULES = Path(__file__).parents[2] / "experiments" / "schedules"
OUT = {"decoder": "always", "head": "always"}
#: At the latest, stage2 thaws before epoch 3; the figures bring it forward to epoch 2.
LATE = {"stage2": [0.75, 1], "encoder": "always", **OUT}
FIGURES = (0.2, 0.1, 0.1, 0.1)


class Judged(Task):
    """A task whose figure on the inner validation is known beforehand, for each rank."""

    monitor = "val/figure"

    def __init__(self, *figures, **options) -> None:
        super().__init__(**options)
        self.figures = figures or (FIGURES,)

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log("val/figure", self.figures[self.global_rank][self.current_epoch])


def learns(task, block):
    """Whether a block learned in each step, and at what rate."""
    return [(seen["learns"][block] == {True}, seen["lr"][block] / LR) for seen in task.seen]


def test_rates_follow_the_age_of_a_block(tmp_path):
    """Half of its own time to warm up, then half a cosine: by hand, at the middle of each of eight steps."""
    task, half = Task(), math.sqrt(0.5) / 2
    fit(tmp_path, task, trains={"stage2": [0.5, 1], "encoder": "always", **OUT}, pace={"clock": Clock(warm_up=0.5)})
    falling = [(1 + math.cos(math.pi * share)) / 2 for share in (0.125, 0.375, 0.625, 0.875)]
    for block in ("stem", "stage1", "stage3", "stage4", "decoder", "head"):
        assert [rate for _, rate in learns(task, block)] == pytest.approx([0.125, 0.375, 0.625, 0.875, *falling])
    assert [on for on, _ in learns(task, "stage2")] == [False] * 4 + [True] * 4
    assert [rate for _, rate in learns(task, "stage2")] == pytest.approx([0] * 4 + [0.25, 0.75, 0.5 + half, 0.5 - half])


def test_a_plateau_brings_a_thaw_forward_and_the_folder_says_so(tmp_path):
    task = Judged()
    fit(tmp_path, task, trains=LATE, pace={"plateau": Plateau(patience=1)})
    assert [on for on, _ in learns(task, "stage2")] == [False] * 2 * STEPS + [True] * 2 * STEPS
    steps = json.loads((tmp_path / "schedule.json").read_text())["steps"]
    assert [(step["start"], step["stop"], step["rates"]["stage2"]) for step in steps] == [(0, 2, 0), (2, 4, 1)]


def test_without_a_plateau_the_latest_time_holds(tmp_path):
    task = Judged((0.1, 0.2, 0.3, 0.4))
    fit(tmp_path, task, trains=LATE, pace={"plateau": Plateau(patience=1)})
    assert [on for on, _ in learns(task, "stage2")] == [False] * 3 * STEPS + [True] * STEPS


PACE = {"clock": Clock(warm_up=0.25, end=0.1), "plateau": Plateau(patience=1)}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """Clock and plateau, not interrupted, with a checkpoint after each step and after each epoch."""
    folder, task = tmp_path_factory.mktemp("paced"), Judged()
    names = {"auto_insert_metric_name": False, "enable_version_counter": False, "save_top_k": -1}
    each = ModelCheckpoint(folder, filename="after-{step}", every_n_train_steps=1, **names)
    end = ModelCheckpoint(folder, filename="epoch-{epoch}", every_n_epochs=1, save_on_train_epoch_end=True, **names)
    trainer = fit(folder, task, each, end, trains=LATE, pace=PACE)
    state = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    return folder, task, state, trainer.optimizers[0].state_dict()


#: Within each epoch, and after its validation, the last one's, too: `StopOnSignal` saves nowhere else.
CHECKPOINTS = [
    *((f"after-{epoch * STEPS + 1}", epoch * STEPS + 1) for epoch in range(EPOCHS)),
    *((f"epoch-{epoch}", (epoch + 1) * STEPS) for epoch in range(EPOCHS)),
]


@pytest.mark.parametrize(("name", "steps"), CHECKPOINTS)
def test_a_resumed_run_keeps_its_pace(tmp_path, whole_run, name, steps):
    """Bit-equal weights, statistics and optimizer; the figures seen before the interruption are not seen again."""
    folder, task, state, optimizer = whole_run
    again = Judged((*[math.nan] * (steps // STEPS), *FIGURES[steps // STEPS :]))
    trainer = fit(tmp_path, again, trains=LATE, pace=PACE, ckpt_path=folder / f"{name}.ckpt")
    assert [(seen["epoch"], seen["lr"], seen["learns"]) for seen in again.seen] == [
        (seen["epoch"], seen["lr"], seen["learns"]) for seen in task.seen[steps:]
    ]
    assert all(torch.equal(state[key], tensor) for key, tensor in again.state_dict().items())
    resumed = trainer.optimizers[0].state_dict()
    assert resumed["param_groups"] == optimizer["param_groups"]
    for key, held in optimizer["state"].items():
        assert all(torch.equal(held[name], value) for name, value in resumed["state"][key].items())
    assert (tmp_path / "schedule.json").read_bytes() == (folder / "schedule.json").read_bytes()


@pytest.mark.parametrize("block", ["stem", "stage1", "stage2", "stage3", "stage4"])
def test_a_surgical_row_moves_one_block_and_the_head(tmp_path, block):
    """Parameters and running statistics of all the others keep their hash, under weight decay."""
    trains = yaml.safe_load((SCHEDULES / f"surgical_{block}.yaml").read_text())["schedule"]["trains"]
    hashes = Hashes()
    fit(tmp_path, Task(), hashes, trains=trains, max_epochs=2)
    first, last = hashes.start[0], hashes.end[-1]
    assert {name for name in first if first[name] != last[name]} == {block, "head"}
    assert {name for name in first if first[name][1] != last[name][1]} == {block}  # the head has no statistics


STAGE2 = "encoder.model.stages_1.downsample.1.weight"
#: Alone, rank 0 would thaw before epoch 4, and rank 1 before epoch 2; their mean is first no better after epoch 2.
APART = ((0.1, 0.8, 0.85, 0.1, 0.1), (0.5, 0.1, 0.0, 0.0, 0.0))


def train_in_two_processes(folder):
    """Each rank sees half of every batch and has a figure of its own."""
    strategy = DDPStrategy(start_method="fork", find_unused_parameters=True, process_group_backend="gloo")
    options = {"devices": 2, "strategy": strategy, "use_distributed_sampler": False, "num_sanity_val_steps": 0}
    trains = {"stage2": [0.8, 1], "encoder": "always", **OUT}
    pace = {"plateau": Plateau(patience=1)}
    data = loader(4, 4, same=False)
    fit(folder, Judged(*APART, optimizer="sgd", norm=False), Weights(), trains=trains, pace=pace, data=data,
        max_epochs=5, **options)  # fmt: skip


def test_two_processes_with_different_figures_thaw_in_the_same_epoch(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    moved = []
    for rank in range(2):
        weights = [torch.load(tmp_path / f"2-{rank}-{epoch}", weights_only=True) for epoch in range(5)]
        start = {name: p.detach() for name, p in Task("sgd", norm=False).net.named_parameters()}
        pairs = zip([start, *weights[:-1]], weights, strict=True)
        moved.append([not torch.equal(a[STAGE2], b[STAGE2]) for a, b in pairs])
    assert moved == [[False, False, False, True, True]] * 2
    for epoch in range(5):
        first, second = (torch.load(tmp_path / f"2-{rank}-{epoch}", weights_only=True) for rank in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_figure_is_reduced_on_the_device_and_in_a_copy():
    """NCCL reduces there alone, in place; `meta` stands for the GPU."""
    given, reduced = torch.tensor(0.25), []

    def reduce(own, reduce_op):
        reduced.append((own.device.type, own is given, reduce_op))
        return torch.tensor(0.5)

    for device in ("meta", "cpu"):
        strategy = SimpleNamespace(root_device=torch.device(device), reduce=reduce, broadcast=lambda mean: mean)
        assert _over_ranks(SimpleNamespace(strategy=strategy), given) == 0.5
    assert reduced == [("meta", False, "mean"), ("cpu", False, "mean")]


if __name__ == "__main__":
    train_in_two_processes(sys.argv[1])
