"""Training on many ranks (processes, one a device): how they are joined, and what must be as they need it."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
from datetime import timedelta

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import rank_zero_info

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
    return _Joined(find_unused_parameters=True, timeout=TIMEOUT)


class _Joined(DDPStrategy):
    def setup_distributed(self) -> None:
        """As Lightning's, once gloo listens where the ranks of other machines can reach it."""
        if self.num_nodes > 1 and self._get_process_group_backend() == "gloo":
            assert self.cluster_environment is not None
            listen_for(self.cluster_environment.main_address)
        super().setup_distributed()


def listen_for(first: str) -> None:
    """Name the network interface that gloo listens on, where it would choose one that no other machine can reach.

    It takes that to which the machine's own name leads: on Debian and Ubuntu 127.0.1.1, this machine alone. The right
    one leads to the first machine; on the first machine it is the one that leads out. Where several do, a line says
    what to set.

    Args:
        first: name or address of the machine of the first rank.
    """
    if os.environ.get("GLOO_SOCKET_IFNAME") or sys.platform != "linux" or not _is_here(socket.gethostname()):
        return
    towards, addresses = _address_towards(first), _addresses()
    outward = [name for name, address in addresses.items() if not _is_here(address)]
    fitting = outward if _is_here(towards) else [name for name in outward if addresses[name] == towards]
    if len(fitting) == 1:
        os.environ["GLOO_SOCKET_IFNAME"] = fitting[0]
    elif fitting:
        rank_zero_info(f"should other machines not reach this one: GLOO_SOCKET_IFNAME={' or '.join(fitting)} says how")


def _is_here(name: str) -> bool:
    """Whether a name or an address leads to no other machine; gloo takes one that leads nowhere for such."""
    try:
        return socket.gethostbyname(name).startswith("127.")
    except OSError:
        return True


def _address_towards(other: str) -> str:
    """The address of this machine on the way to another; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        try:
            way.connect((other, 9))
        except OSError:
            return "127.0.0.1"
        return str(way.getsockname()[0])


def _addresses() -> dict[str, str]:
    """The IPv4 address of each network interface that has one (Linux, netdevice(7))."""
    found, get_address = {}, 0x8915
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(any_socket, get_address, struct.pack("256s", name.encode()))
            except OSError:
                continue  # it has none
            found[name] = socket.inet_ntoa(answer[20:24])
    return found


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
