"""Every row of `experiments/schedules` on two ranks (gloo, CPU): they stay together, and freeze what the row says.

One pair of processes, started as torchrun would, trains all rows one after another.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
import pytorch_lightning as pl
from test_freezing import sha256

from lesionseg.cli import main
from lesionseg.networks import blocks
from lesionseg.results import read_run
from lesionseg.runs import RunInfo

SCHEDULES = Path(__file__).parents[2] / "experiments" / "schedules"
ROWS = sorted(path.stem for path in SCHEDULES.glob("*.yaml"))
RANKS, EPOCHS, VALIDATE_EVERY = 2, 6, 4
#: Two slices a rank, as the deepest feature is one pixel of each. The last validation is not after the last epoch: only
#: there would all ranks have the running statistics of the first one in any case.
SHORT = [
    "--data.batch_size",
    "4",
    "--trainer.check_val_every_n_epoch",
    str(VALIDATE_EVERY),
    "--trainer.limit_val_batches",
    "1",
    "--trainer.callbacks+",
    "test_rows_on_ranks.BlockHashes",
]


class BlockHashes(pl.Callback):
    """Leaves for each rank the hashes of parameters and running statistics of every block: at the start, each epoch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, dict[str, str]]] = []

    def on_train_start(self, trainer, pl_module):
        self._look(pl_module)

    def on_train_epoch_end(self, trainer, pl_module):
        self._look(pl_module)

    def on_train_end(self, trainer, pl_module):
        path = Path(trainer.default_root_dir) / f"rank{trainer.global_rank}.json"
        path.write_text(json.dumps(self.seen))

    def _look(self, pl_module):
        found = blocks(pl_module.net)
        parameters = {name: sha256(each for _, each in block.parameters) for name, block in found.items()}
        self.seen.append({"parameters": parameters, "statistics": statistics(found)})


def statistics(found):
    """Hash of the buffers of each block that has any; those of a net of batch norm are running statistics."""
    buffers = {name: [each for module in block.modules for each in module.buffers(recurse=False)]
               for name, block in found.items()}  # fmt: skip
    return {name: sha256(each) for name, each in buffers.items() if each}


@pytest.fixture(scope="module")
def command(finetuning, pretrained):
    weights = ["--model.init_args.weights", str(pretrained)]
    return lambda run, row: finetuning(run, *weights, *SHORT, "--trainer.devices", str(RANKS), schedule=row)


@pytest.fixture(scope="module")
def trained(once, command):
    """Run folder of each row."""

    def train(folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        group = {**os.environ, **meet, "TORCHELASTIC_RUN_ID": "rows", "WORLD_SIZE": str(RANKS)}
        commands = json.dumps([command(folder / row, row) for row in ROWS])
        ranks = [
            subprocess.Popen([sys.executable, __file__, commands], stderr=subprocess.PIPE, text=True,
                             env={**group, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(RANKS)
        ]  # fmt: skip
        texts = [rank.communicate(timeout=300)[1] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0] * RANKS, "\n".join(texts)

    folder = once("rows-on-ranks", train)
    return {row: folder / row for row in ROWS}


def hashes(run, rank, of):
    """Of every block, at the start and after each epoch, as `BlockHashes` has left them."""
    return [each[of] for each in json.loads((run / f"rank{rank}.json").read_text())]


def rates(run):
    """Of every block in each epoch, as the run's schedule says; 0: frozen."""
    steps = json.loads((run / "schedule.json").read_text())["steps"]
    found = [step["rates"] for step in steps for _ in range(step["start"], step["stop"])]
    assert len(found) == EPOCHS
    return found


def validated(row, epoch):
    """Whether a validation comes after this epoch, from 0; a row with a plateau looks for it after each."""
    return "plateau" in row or (epoch + 1) % VALIDATE_EVERY == 0


@pytest.mark.parametrize("row", ROWS)
def test_ranks_stay_together_and_freeze_what_the_row_says(trained, row):
    info = RunInfo.read(trained[row])
    assert (info.name, info.state, info.ranks) == (row, "finished", RANKS)
    first, second = (hashes(trained[row], rank, "parameters") for rank in range(RANKS))
    assert first == second
    moved = [{name for name in before if before[name] != after[name]} for before, after in pairwise(first)]
    assert moved == [{name for name, rate in each.items() if rate} for each in rates(trained[row])]


@pytest.mark.parametrize("row", ROWS)
def test_frozen_statistics_stay_on_every_rank_and_others_follow_the_batches_of_their_rank(trained, row):
    """Before a step, or a validation, all ranks take over those of the first one (`docs/scaling.md`).

    So a block that freezes keeps the first rank's, and after a validation all have them. After other epochs the ranks
    differ by their share of the last batch.
    """
    first, second = (hashes(trained[row], rank, "statistics") for rank in range(RANKS))
    assert first[0] == second[0]
    for epoch, rate in enumerate(rates(trained[row])):
        before, one, other = first[epoch], first[epoch + 1], second[epoch + 1]
        assert {"stem", "stage1", "stage2", "stage3", "stage4", "decoder"} <= set(one)  # or nothing would be compared
        frozen = {name for name in one if not rate[name]}
        assert frozen == {name for name in one if one[name] == before[name]}
        same = {name for name in one if one[name] == other[name]}
        assert same == (set(one) if validated(row, epoch) else frozen)


@pytest.mark.parametrize("row", ["no_freezing", "y_net", "crop_classifier"])
def test_one_rank_makes_the_same_tables_of_the_weights_of_two(trained, command, tmp_path, row):
    """Of the weights that were saved: batch norm has the running statistics of the first rank, which saves them."""
    shutil.copytree(trained[row], tmp_path / row)
    assert main(["test", *command(tmp_path / row, row)[1:], "--trainer.devices", "1"]) == 0
    shared, alone = read_run(trained[row]), read_run(tmp_path / row)
    pd.testing.assert_frame_equal(alone.slices, shared.slices, rtol=0, atol=1e-12)
    pd.testing.assert_frame_equal(alone.lesions, shared.lesions, rtol=0, atol=1e-12)
    assert (shared.lesions.predicted_type != "").any()


if __name__ == "__main__":
    for each in json.loads(sys.argv[1]):
        if status := main(each):
            sys.exit(status)
