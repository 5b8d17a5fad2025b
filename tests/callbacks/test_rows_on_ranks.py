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
from lesionseg.results import read_run
from lesionseg.runs import RunInfo

SCHEDULES = Path(__file__).parents[2] / "experiments" / "schedules"
ROWS = sorted(path.stem for path in SCHEDULES.glob("*.yaml"))
RANKS, EPOCHS = 2, 6
#: Two slices a rank, as the deepest feature is one pixel of each. The last validation is not after the last epoch: only
#: there would all ranks have the running statistics of the first one in any case.
SHORT = [
    "--data.batch_size",
    "4",
    "--trainer.check_val_every_n_epoch",
    "4",
    "--trainer.limit_val_batches",
    "1",
    "--trainer.callbacks+",
    "test_rows_on_ranks.BlockHashes",
]


class BlockHashes(pl.Callback):
    """Leaves for each rank the hash of the parameters of every block, before the first epoch and after each."""

    def __init__(self) -> None:
        self.seen: list[dict[str, str]] = []

    def on_train_start(self, trainer, pl_module):
        self._look(trainer)

    def on_train_epoch_end(self, trainer, pl_module):
        self._look(trainer)

    def on_train_end(self, trainer, pl_module):
        path = Path(trainer.default_root_dir) / f"rank{trainer.global_rank}.json"
        path.write_text(json.dumps(self.seen))

    def _look(self, trainer):
        self.seen.append({group["name"]: sha256(group["params"]) for group in trainer.optimizers[0].param_groups})


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


@pytest.mark.parametrize("row", ROWS)
def test_ranks_stay_together_and_freeze_what_the_row_says(trained, row):
    info = RunInfo.read(trained[row])
    assert (info.name, info.state, info.ranks) == (row, "finished", RANKS)
    first, second = (json.loads((trained[row] / f"rank{rank}.json").read_text()) for rank in range(RANKS))
    assert first == second
    steps = json.loads((trained[row] / "schedule.json").read_text())["steps"]
    rates = [step["rates"] for step in steps for _ in range(step["start"], step["stop"])]
    assert len(rates) == EPOCHS
    moved = [{name for name in before if before[name] != after[name]} for before, after in pairwise(first)]
    assert moved == [{name for name, rate in each.items() if rate} for each in rates]


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
