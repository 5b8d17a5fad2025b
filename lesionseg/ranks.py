"""Training on many ranks (processes, one a device): how they are joined, and what must be as they need it."""

from __future__ import annotations

import os
from datetime import timedelta

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.strategies import DDPStrategy

from lesionseg.errors import InputError

#: The longest that a rank waits for the others: what ends a run whose rank hangs, or is gone without a word.
TIMEOUT = timedelta(minutes=10)


def many_ranks(devices: str | int | list[int], nodes: int) -> bool:
    """Whether these settings of a trainer mean more than one rank; told before there is a trainer."""
    if devices in ("auto", -1, "-1"):
        number = max(torch.cuda.device_count(), 1)
    elif isinstance(devices, list) or "," in str(devices):  # which ones, not how many
        number = len(devices if isinstance(devices, list) else str(devices).strip(",").split(","))
    else:
        number = int(devices) if str(devices).isdecimal() else 1
    return nodes * number > 1


def joined() -> DDPStrategy:
    """The strategy of many ranks: blocks freeze after the wrap, and some encoders hold parameters of no use."""
    return DDPStrategy(find_unused_parameters=True, timeout=TIMEOUT)


def refuse_unfit(trainer: pl.Trainer, sync_batchnorm: bool) -> None:
    """Refuse, before anything is trained, ranks that would wait for each other in vain.

    Raises:
        InputError: other ranks were started than the trainer expects; several machines, but nobody has started ranks on
            them; synchronised batch norm on a CPU.
    """
    started = _started()
    if started not in (None, trainer.world_size):
        raise InputError("trainer.devices, trainer.num_nodes",
                         expected=f"{started} ranks, as many as torchrun or srun has started",
                         got=f"{trainer.num_devices} x {trainer.num_nodes}",
                         remedy="set them to the ranks on a machine and the number of machines")  # fmt: skip
    if started is None and trainer.num_nodes > 1:
        raise InputError("trainer.num_nodes", expected="ranks that torchrun or srun has started on each machine",
                         got="none", remedy="add MEET=host:port to make, or see docs/scaling.md")  # fmt: skip
    if sync_batchnorm and trainer.world_size > 1 and trainer.strategy.root_device.type == "cpu":
        raise InputError("trainer.sync_batchnorm", expected="GPUs, as torch synchronises batch norm on no CPU",
                         got="a CPU", remedy="leave it out")  # fmt: skip


def _started() -> int | None:
    """Ranks that torchrun or srun has started; None: neither has started this one, and Lightning starts the others."""
    if torch.distributed.is_torchelastic_launched():
        return int(os.environ["WORLD_SIZE"])
    if SLURMEnvironment.detect():
        return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))  # missing in a batch script, outside of srun
    return None
