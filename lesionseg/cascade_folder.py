"""The cascade of a model folder in whichever process needs it: built once a process, and how many processes to use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from lesionseg.cascade import Cascade
from lesionseg.device import on_own_gpu
from lesionseg.errors import InputError
from lesionseg.machine import free_memory
from lesionseg.model import Model
from lesionseg.parallel import worker_count, worker_number
from lesionseg.parallel.cluster import visible
from lesionseg.scan import Scan

#: What a process holds at most besides the nets, with a scan of 600 slices: see docs/segment.md.
PROCESS_BYTES = 2.7e9


@dataclass(frozen=True)
class CascadeFolder:
    """How a process gets the cascade. Picklable; `Cascade` says what the fields are.

    Attributes:
        folder: of the model.
        identity: `Model.identity`.
        device: see `Cascade`, as are `batch_size` and `tta`.
    """

    folder: Path
    identity: str
    device: str = "auto"
    batch_size: int | None = None
    tta: bool = False

    def build(self, model: Model) -> Cascade:
        """The cascade of this process, of the model in the folder; it takes the place of an earlier one."""
        if self not in _BUILT:
            _BUILT.clear()
            make = partial(Cascade, model, device=self.device, batch_size=self.batch_size, tta=self.tta)
            _BUILT[self] = on_own_gpu(worker_number(), make) if self.device in ("auto", "cuda") else make()
        return _BUILT[self]

    @property
    def cascade(self) -> Cascade:
        """That of this process. `InputError`: see `Model.load` and `Cascade`; or the folder holds another model."""
        if self in _BUILT:
            return _BUILT[self]
        model = Model.load(self.folder)
        if model.identity != self.identity:
            raise InputError(self.folder, expected=f"the model {self.identity[:12]}", got=model.identity[:12],
                             remedy="leave the folder as it is while it is in use", code="model")  # fmt: skip
        return self.build(model)

    def ready(self, *paths: Path) -> None:
        """Raise `InputError` where this process does not see the paths, or cannot build the cascade."""
        visible(*paths)
        _ = self.cascade


@contextmanager
def fitting_into_memory(scan: Scan) -> Iterator[None]:
    """`InputError` in the place of what the memory of the computer or of a GPU raises when it is full."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise InputError(scan.scan_id, expected="a scan that fits into memory", got=f"{scan.hu.shape} (D, H, W)",
                         remedy="give a smaller --batch-size, or --device cpu", code="memory") from error  # fmt: skip


#: One a process.
_BUILT: dict[CascadeFolder, Cascade] = {}


def process_count(wanted: int | None, items: int, cascade: Cascade) -> int:
    """Local processes that run a cascade each: `wanted`, by default one on a GPU, else one a core that has memory.

    Raises:
        InputError: `wanted` below 1.
    """
    nets = (cascade.model.liver, *cascade.model.lesions)
    nets_bytes = 2 * sum(tensor.nbytes for net in nets for tensor in net.tensors.values())  # as read, and as built
    room = int(free_memory() // (PROCESS_BYTES + nets_bytes))
    return worker_count(wanted, items, most=1 if cascade.how.device.type != "cpu" else max(1, room))
