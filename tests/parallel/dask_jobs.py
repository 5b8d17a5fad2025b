"""What the tests of the cluster let workers and scheduler do: each of them imports this file."""

import os
import signal
import time
from pathlib import Path

import torch

from lesionseg.errors import InputError


def double(number: int) -> int:
    return 2 * number


def double_slowly(number: int) -> int:
    time.sleep(0.2)
    return double(number)


def kill_over_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return double(number)


def refuse(number: int) -> None:
    raise InputError(f"{number}.nii", expected="a CT", got="a cat", remedy="try again")


def threads(number: int) -> int:
    return torch.get_num_threads()


def mark(path: Path) -> str:
    """Leaves a line for every time it is called."""
    with path.open("a") as file:
        file.write("done\n")
    return path.name


def ready() -> None:
    """Nothing is missing."""


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupted_tasks(dask_scheduler) -> int:
    """How often the scheduler has lost a worker that had a task."""
    return sum(prefix.suspicious for prefix in dask_scheduler.task_prefixes.values())


def held_tasks(dask_scheduler) -> int:
    return len(dask_scheduler.tasks)
