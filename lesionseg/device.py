"""Where nets run, and how slices go through trained ones there."""

from __future__ import annotations

import contextlib
import ctypes
import os
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from lesionseg.errors import InputError, first_sentence

Made = TypeVar("Made")

#: Slices at once. On a CPU more are no faster: their activations no longer fit what the allocator keeps between calls.
CPU_BATCH, GPU_BATCH = 1, 8
#: Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class Inference(NamedTuple):
    """How slices go through nets: where, how many at once, and whether their mirror images (left-right) go as well."""

    device: torch.device = torch.device("cpu")
    batch_size: int = 1
    mirror: bool = False


ON_CPU = Inference()


def inference_on(device: str = "auto", batch_size: int | None = None, mirror: bool = False) -> Inference:
    """How slices go through nets on a device; `Cascade` says what device and batch size are, and what is refused."""
    where = _device(device)
    if batch_size is None:
        batch_size = CPU_BATCH if where.type == "cpu" else GPU_BATCH
    if batch_size < 1:
        raise InputError("batch size", expected="1 or more", got=str(batch_size), remedy="leave it out")
    return Inference(where, batch_size, mirror)


def moved(net: nn.Module, device: torch.device) -> nn.Module:
    """A net on a device; `InputError` where a GPU has no room for it, or is in use by another program alone."""
    with _room():
        return net.to(device)


@contextlib.contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
        raise InputError("device", expected="a GPU with room for the nets", got=first_sentence(error),
                         remedy="free it of other programs, or use --device cpu or another one") from error  # fmt: skip


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device, without waiting for what a GPU has to do before it takes it."""
    pinned = tensor.pin_memory() if device.type == "cuda" else tensor
    return pinned.to(device, non_blocking=True)


def gpu_works() -> bool:
    """Whether torch can use a GPU. One that it cannot is hidden from all that asks later, with a warning.

    Lightning lets torch ask the driver alone (`PYTORCH_NVML_BASED_CUDA_CHECK`), which counts GPUs also where it is too
    old for this torch. Even a training on the CPU would then fail: it asks them for their name and random numbers.
    """
    if not torch.cuda.is_available():
        return False
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        warnings.warn(f"the GPU is left alone, as torch cannot use it: {first_sentence(error)}", stacklevel=2)
        return False
    return True


def on_own_gpu(number: int, make: Callable[[], Made]) -> Made:
    """What `make` makes while `cuda` means another GPU in each of several processes.

    Process 0 has the first, and so on, and round again; where that one has no room, the process takes the next.

    Raises:
        InputError: of `make`, on every GPU.
    """
    count = torch.cuda.device_count() if gpu_works() else 1
    if count == 1:
        return make()
    refused: list[InputError] = []
    for i in range(count):
        try:
            with _room():
                torch.cuda.set_device((number + i) % count)
            return make()
        except InputError as error:
            refused.append(error)
    raise refused[0]


def keep_freed_memory() -> None:
    """Let this process keep up to 512 MiB that nets have freed, for the next slice.

    Given back after every slice, each 4 kB of it costs a page fault the next time: a tenth of the time of a slice at
    the size of the paper. Blocks above 32 MiB, whole volumes say, are given back as before. glibc only.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
        mallopt(_M_TRIM_THRESHOLD, 512 << 20)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if gpu_works() else "cpu"
    expected, got = "auto, cpu or cuda", name
    try:
        if name.partition(":")[0] in ("cpu", "cuda"):
            device = torch.device(name)
            return torch.empty(0, device=device).device  # with the number of the GPU, whichever thread asks
    except (RuntimeError, AssertionError) as error:
        got = f"{name} ({first_sentence(error)})"
    raise InputError("device", expected=expected, got=got, remedy="use --device cpu")
