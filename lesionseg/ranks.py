"""Training on many ranks (processes, one a device): how they are joined, and what must be as they need it."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Mapping
from contextlib import nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import psutil
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from pytorch_lightning.strategies import DDPStrategy, ParallelStrategy
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from lesionseg.addresses import address_towards, leads_here
from lesionseg.errors import InputError

#: The longest that a rank waits for the others: what ends a run whose rank hangs, or is gone without a word.
TIMEOUT = timedelta(minutes=10)
T = TypeVar("T")


def many_ranks(devices: str | int | list[int], nodes: int, accelerator: Any) -> bool:
    """Whether these settings of a trainer mean more than one rank; told before there is a trainer."""
    if devices in ("auto", -1, "-1"):
        number = 1 if accelerator == "cpu" else max(torch.cuda.device_count(), 1)
    elif isinstance(devices, list) or "," in str(devices):  # which ones, not how many
        number = len(devices if isinstance(devices, list) else str(devices).strip(",").split(","))
    else:
        number = int(devices) if str(devices).isdecimal() else 1
    return nodes * number > 1


def joined() -> DDPStrategy:
    """The strategy of many ranks: blocks freeze after the wrap, and some encoders hold parameters of no use."""
    return _Joined(find_unused_parameters=True, timeout=TIMEOUT)


def with_cluster(plugins: Any) -> list[Any]:
    """Plugins of a trainer, and those of srun's ranks, as Lightning finds them, which then does not queue a job again.

    Lightning would save at SIGUSR1 a checkpoint of its own, and take that before any other from then on. `StopOnSignal`
    saves here, and who queues a job again is SLURM. In a batch script a training is one process, as on any machine,
    however many tasks the job has.
    """
    given = plugins if isinstance(plugins, list) else [] if plugins is None else [plugins]
    told = any(isinstance(plugin, ClusterEnvironment) for plugin in given)
    if not told and SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        return [*given, SLURMEnvironment(auto_requeue=False) if _by_srun() else LightningEnvironment()]
    return given


class _Joined(DDPStrategy):
    def setup_distributed(self) -> None:
        """As Lightning's, once gloo listens where the ranks of other machines can reach it."""
        if self.num_nodes > 1 and self._get_process_group_backend() == "gloo":
            assert self.cluster_environment is not None
            listen_for(self.cluster_environment.main_address)
        super().setup_distributed()

    def _setup_model(self, model: nn.Module) -> DistributedDataParallel:
        """As Lightning's, but that DDP moves no tensor of a batch: `Batch.to` did, and leaves some on the CPU."""
        aside = torch.cuda.stream(torch.cuda.Stream()) if self.root_device.type == "cuda" else nullcontext()
        with aside:  # https://docs.pytorch.org/docs/stable/notes/cuda.html, on DDP and graphs
            return DistributedDataParallel(model, **self._ddp_kwargs)


def leave(status: int, error: BaseException | None = None) -> None:
    """End this process where NCCL joins it to others: its own way out would wait for them, who may never come.

    Lightning destroys NCCL's group as Python ends; that is a collective of all ranks of a machine, and one that fails
    alone would stand there, unseen by what waits for it to end. Nothing is done before the end but to tell `error`.
    """
    if joined_by_nccl():
        if error is not None:
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def joined_by_nccl() -> bool:
    """Whether this process and others are ranks on GPUs."""
    running = torch.distributed.is_available() and torch.distributed.is_initialized()
    return running and torch.distributed.get_backend() == "nccl"


def listen_for(first: str) -> None:
    """Name the network interface that gloo listens on, where it would choose one that no other machine can reach.

    It takes that to which the machine's own name leads: on Debian and Ubuntu 127.0.1.1, this machine alone. The right
    one leads to the first machine; on the first machine it is the one that leads out. Where several do, a line says
    what to set.

    Args:
        first: name or address of the machine of the first rank.
    """
    if os.environ.get("GLOO_SOCKET_IFNAME") or sys.platform != "linux" or not leads_here(socket.gethostname()):
        return
    if (towards := address_towards(first)) is None:
        return
    own = [(name, each.address) for name, addresses in psutil.net_if_addrs().items() for each in addresses
           if each.family == socket.AF_INET]  # fmt: skip
    outward = [name for name, address in own if not leads_here(address)]
    fitting = outward if leads_here(towards) else [name for name, address in own if address == towards]
    if len(fitting) == 1:
        os.environ["GLOO_SOCKET_IFNAME"] = fitting[0]
    elif fitting:
        rank_zero_info(f"should other machines not reach this one: GLOO_SOCKET_IFNAME={' or '.join(fitting)} says how")


def refuse_unfit(trainer: pl.Trainer, task: pl.LightningModule, sync_batchnorm: bool) -> None:
    """Refuse, before anything is trained, what the devices of a trainer cannot do.

    Raises:
        InputError: other ranks were started than the trainer expects; several machines, but nobody has started ranks on
            them; a strategy whose ranks are copies of the first; a LOCAL_RANK around a lone one; synchronised batch
            norm on a CPU, or of a net that it does not fit; `deterministic: true` on a GPU.
    """
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):  # spawn or fork: the run's locks cannot follow
        raise InputError("trainer.strategy", expected="auto or ddp", remedy="set it to one of these",
                         got="one whose ranks are copies of the first")  # fmt: skip
    if trainer.world_size == 1 and rank_zero_only.rank:  # type: ignore[attr-defined]
        raise InputError("LOCAL_RANK", expected="none around a training of one rank",
                         got=os.environ.get("LOCAL_RANK", ""),
                         remedy="unset it: what does not take itself for the first rank writes nothing")  # fmt: skip
    started = _started()  # and not `trainer.world_size`, which is what they say
    if started not in (None, trainer.num_devices * trainer.num_nodes):
        raise InputError("trainer.devices, trainer.num_nodes",
                         expected=f"{started} ranks, as many as torchrun or srun has started",
                         got=f"{trainer.num_devices} x {trainer.num_nodes}",
                         remedy="set them to ranks a machine and machines, alike on all of these")  # fmt: skip
    if started is None and trainer.num_nodes > 1:
        raise InputError("trainer.num_nodes", expected="ranks that torchrun or srun has started on each machine",
                         got="none", remedy="add MEET=host:port to make, or see docs/scaling.md")  # fmt: skip
    device = trainer.strategy.root_device.type
    if sync_batchnorm and isinstance(trainer.strategy, ParallelStrategy):  # which Lightning converts, of one rank too
        _refuse_unsynchronised(task, device)
    strict = torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    if strict and device == "cuda":
        raise InputError("trainer.deterministic", expected="warn on a GPU, where torch has no cross-entropy of images "
                         "that gives the same bits each time", got="true", remedy="set it to warn")  # fmt: skip


def _refuse_unsynchronised(task: pl.LightningModule, device: str) -> None:
    """`InputError` for a net whose batch norms torch cannot synchronise, or must not."""
    if device == "cpu":
        raise InputError("trainer.sync_batchnorm", expected="GPUs, as torch synchronises batch norm on no CPU",
                         got="a CPU", remedy="leave it out")  # fmt: skip
    norms = (module for module in task.modules() if isinstance(module, _BatchNorm))
    # timm's hold the activation that follows, which torch would lose.
    more = sorted({type(norm).__name__ for norm in norms} - {"BatchNorm1d", "BatchNorm2d"})
    if more:
        raise InputError("trainer.sync_batchnorm", expected="an encoder with torch's own batch norms",
                         got=", ".join(more), remedy="leave it out, or take another encoder")  # fmt: skip
    if not task.all_of_the_net_in_each_step:
        raise InputError("trainer.sync_batchnorm", expected="a net that every rank runs whole in each step",
                         got=f"{type(task).__name__}, which leaves out its classifier where a batch has no lesion",
                         remedy="leave it out")  # fmt: skip


class OnAnyRank:
    """Whether something happened on one rank at least: what one leaves alone, the others wait for in vain.

    Every rank asks, by making one. To read the answer at once waits for the device; a step later it is there, and the
    queue of a GPU has not run dry for it.
    """

    def __init__(self, trainer: pl.Trainer, happened: bool | Tensor) -> None:
        self._answer, self._copied = happened, None
        if trainer.world_size > 1:
            count = torch.zeros((), device=trainer.strategy.root_device)
            count += happened  # in place, as to copy a number to the device would wait for it
            torch.distributed.all_reduce(count)  # Lightning's `reduce` would have a barrier before it, at every step
            self._answer = count > 0
        if isinstance(self._answer, Tensor) and self._answer.is_cuda:
            self._answer = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(self._answer, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def __bool__(self) -> bool:
        if self._copied is not None:
            self._copied.synchronize()
        return bool(self._answer)


def of_all_ranks(value: T) -> list[T]:
    """What each rank hands over, in their order; plain data, or what else can be pickled."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    every = [value] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(every, value)
    return every


def over_ranks(trainer: pl.Trainer, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Means over the processes, on the CPU: what all of them can go on with."""
    return {name: trainer.strategy.reduce(value.clone(), reduce_op="mean").cpu() for name, value in values.items()}


def count_from_zero() -> None:
    """Take this process for the first rank where nobody has started ranks: RANK may be of something else around it.

    So may SLURM_PROCID, of an `srun` each of whose tasks runs a training of its own.
    """
    if _started() is None and "LOCAL_RANK" not in os.environ:  # which Lightning tells those that it starts
        rank_zero_only.rank = 0  # type: ignore[attr-defined]


class OneRun(pl.Callback):
    """Refuses ranks that were told different things: they would train together without a word, or wait for ever."""

    def __init__(self, *told: object) -> None:
        """Plain data that must be the same on all ranks."""
        self._told = told

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Ask all ranks, which are joined by now."""
        every = of_all_ranks((*self._told, stage, trainer.check_val_every_n_epoch))
        if other := [str(rank) for rank, told in enumerate(every) if told != every[0]]:
            raise InputError("ranks", expected="the same command, settings, data and checkpoint on all of them",
                             got=f"others on rank {', '.join(other)} than on rank 0",
                             remedy="give the same line on every machine")  # fmt: skip


def told_elsewhere() -> bool:
    """Whether another rank tells how a run has ended: the first of all, of those by torchrun the first on each machine.

    The others end quietly, with status 0: who has started them would else kill the one that tells.
    """
    if torch.distributed.is_torchelastic_launched():
        return os.environ["LOCAL_RANK"] != "0"
    return bool(rank_zero_only.rank)  # type: ignore[attr-defined]


def _started() -> int | None:
    """Ranks that torchrun or srun has started; None: neither has started this one, and Lightning starts the others."""
    if torch.distributed.is_torchelastic_launched():
        return int(os.environ["WORLD_SIZE"])
    if SLURMEnvironment.detect() and _by_srun():
        return int(os.environ["SLURM_STEP_NUM_TASKS"])
    return None


def _by_srun() -> bool:
    """Whether srun has started this process, and not a batch script."""
    return "SLURM_STEP_NUM_TASKS" in os.environ
