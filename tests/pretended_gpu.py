"""A GPU that is none, to find what would fail or wait on one: `python pretended_gpu.py REPORT [COMMAND as JSON] ...`.

Its tensors say that they lie on a device of its own and hold their numbers on the CPU, where all is computed. As on a
GPU, tensors of two devices cannot meet, and NumPy cannot read one. Each command of `lesionseg` runs on it; REPORT tells
how it ended, and of each number that was read from the device, by which functions: there a GPU would be waited for.
Started as torchrun starts ranks, each of them has such a GPU, and they exchange what lies on it alone, as by NCCL.

What it cannot show: kernels, memory, precision, speed, NCCL itself, the C++ of DDP (gradients are averaged here).
"""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.accelerators import Accelerator, AcceleratorRegistry
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy, StrategyRegistry
from torch import distributed
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

torch.inference_mode = torch.no_grad  # type: ignore[misc,assignment]  # its tensors cannot be wrapped

NAME = "pretended"
_setup_privateuseone_for_python_backend(NAME)
GPU = torch.device(NAME, 0)

aten = torch.ops.aten
#: Operations of which the CPU needs a result: CUDA waits for it.
_READ = {aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default, aten.nonzero.default,
         aten.masked_select.default, aten._unique2.default, aten.unique_dim.default, aten.bincount.default,
         aten.repeat_interleave.Tensor}  # fmt: skip
#: Those that look for the places where a mask is true, if they are given one.
_BY_MASK = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
#: Operations that take tensors of two devices, as CUDA does: moves, and places in a tensor.
_MIX = {aten._to_copy.default, aten.copy_.default, aten.index.Tensor}
#: What exchanges Python objects, by tensors on the CPU, which by NCCL would be on the GPU; and what exchanges nothing.
_OF_OBJECTS = {"broadcast_object_list", "all_gather_object", "barrier"}

#: Of each number read since it was last emptied, the functions that led there, the innermost last.
reads: list[list[tuple[str, str]]] = []


class OnGpu(torch.Tensor):
    """A tensor that says it lies on the GPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> OnGpu:
        own = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=GPU
        )
        own.held = held
        return own

    def __repr__(self) -> str:
        return f"OnGpu({self.held})"

    def tolist(self) -> Any:
        _note_read()
        return self.held.tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Saved as a tensor of the CPU: no checkpoint needs the device to be read."""
        plain = torch.nn.Parameter(self.held, self.requires_grad) if isinstance(self, torch.nn.Parameter) else self.held
        return plain.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Pretence(TorchDispatchMode):
    """Within it, what is made on `GPU` or moved there is pretended to lie there."""

    def __enter__(self) -> Pretence:
        # `torch.tensor(…, device=…)` then makes its tensor on the CPU and moves it, where it is seen here.
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    from_gpu = any(isinstance(each, OnGpu) for each in tensors)
    if from_gpu and func not in _MIX and any(each.dim() and not isinstance(each, OnGpu) for each in tensors):
        places = ", ".join(f"{tuple(each.shape)} on {each.device}" for each in tensors)
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, got {places}")
    if func.namespace == "c10d" and tensors and not from_gpu and _OF_OBJECTS.isdisjoint(name for _, name in _stack()):
        raise RuntimeError(f"{func}: No backend type associated with device type cpu")
    if from_gpu and func is aten._upsample_bilinear2d_aa.default:
        _refuse_large_kernels(args[0].shape[-2:], args[1])
    to_gpu = from_gpu
    if func is aten.copy_.default:
        to_gpu = isinstance(args[0], OnGpu)
    elif kwargs.get("device") is not None:
        to_gpu = torch.device(kwargs["device"]).type == NAME
        kwargs = {**kwargs, "device": torch.device("cpu")} if to_gpu else kwargs
    masked = func in _BY_MASK and any(each.dtype == torch.bool for each in tree_leaves(args[1]) if each is not None)
    if from_gpu and (func in _READ or masked or not to_gpu):
        _note_read()
    out = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    given = {id(each.held): each for each in tensors if isinstance(each, OnGpu)}
    return tree_map(lambda each: given[id(each)] if id(each) in given else _placed(each, to_gpu), out)


def _refuse_large_kernels(before: torch.Size, after: list[int]) -> None:
    """CUDA keeps the weights of a smoothed resize, and a buffer, in the shared memory of a block: 48 KB."""
    height, width = (2 * math.ceil(max(old / new, 1)) + 1 for old, new in zip(before, after, strict=True))
    needed = 4 * (32 * width + height + 32 * height)
    if needed > 48 * 1024:
        raise RuntimeError(f"Too much shared memory required: {needed} vs {48 * 1024}")


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnGpu) else value


def _placed(value: Any, on_gpu: bool) -> Any:
    return OnGpu(value) if on_gpu and isinstance(value, torch.Tensor) else value


def _note_read() -> None:
    reads.append(_stack())


def _stack() -> list[tuple[str, str]]:
    frames = traceback.extract_stack()
    return [(Path(frame.filename).name, frame.name) for frame in frames if frame.filename != __file__]


class _Accelerator(Accelerator):
    def setup_device(self, device: torch.device) -> None: ...

    def teardown(self) -> None: ...

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [GPU] * int(devices)

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return NAME


class _Ranks(DDPStrategy):
    """Ranks that average their gradients one by one: the C++ of DDP cannot be pretended."""

    def setup_distributed(self) -> None:
        self.set_world_ranks()
        if not distributed.is_initialized():
            distributed.init_process_group("gloo")

    def _setup_model(self, model: Any) -> Any:
        for tensor in (*model.parameters(), *model.buffers()):
            distributed.broadcast(tensor.detach(), 0)
        return model

    def _register_ddp_hooks(self) -> None: ...

    def post_backward(self, closure_loss: torch.Tensor) -> None:
        for parameter in self.lightning_module.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                distributed.all_reduce(parameter.grad)
                parameter.grad /= self.world_size


def main(report: Path, commands: list[list[str]]) -> None:
    """Run each command on the pretended GPU, and write how it ended and what it read."""
    from lesionseg import cli, device, run_cli

    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    AcceleratorRegistry.register(NAME, _Accelerator)
    StrategyRegistry.register(NAME, SingleDeviceStrategy, device=GPU)
    run_cli.joined = _Ranks  # type: ignore[assignment]
    device._device = lambda name: GPU  # type: ignore[assignment]
    told = []
    for command in commands:
        reads.clear()
        trainer = {"accelerator": NAME, "strategy": "ddp" if ranks > 1 else NAME, "devices": ranks}
        trains = command[0] in ("fit", "validate", "test")
        options = [f"--trainer.{name}={value}" for name, value in trainer.items() if trains]
        with Pretence():
            status = cli.main([*command, *options])
        told.append({"status": status, "reads": list(reads)})
    report.write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [json.loads(each) for each in sys.argv[2:]])
