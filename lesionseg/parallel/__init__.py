"""One engine room: a function over many items, in local processes or on a Dask cluster. It knows no data."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

from lesionseg.errors import InputError
from lesionseg.machine import cores
from lesionseg.parallel.cluster import Cluster, on_cluster
from lesionseg.parallel.processes import in_processes, worker_number
from lesionseg.parallel.window import KILLED

__all__ = ["KILLED", "Cluster", "each", "worker_count", "worker_number"]

#: More workers than this rarely help (the disk is the limit), and each holds a volume.
MOST_WORKERS = 8
#: What further processes take to start.
SECONDS_TO_START = 3.0

Item = TypeVar("Item")
Result = TypeVar("Result")


def worker_count(wanted: int | None, items: int, most: int = MOST_WORKERS) -> int:
    """Processes to use: `wanted`, by default one per CPU and `most` at most; never more than items.

    Raises:
        InputError: `wanted` below 1.
    """
    count = min(cores(), most) if wanted is None else wanted
    if count < 1:
        raise InputError("workers", expected="at least 1", got=str(wanted), remedy="leave it out for the default")
    return max(1, min(count, items))


def each(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int | None,
    dask: Cluster | None = None,
    title: str | None,
    killed: Callable[[Item], Result] | None = None,
) -> Generator[Result, None, None]:
    """Results as they come, in any order, with a progress bar on a terminal.

    An item whose worker is killed is begun again elsewhere, so `function` may be called twice for it, and the first
    call may have ended anywhere; its result comes once. Closed early, or on an error, no further item is begun; local
    processes end at once, a Dask worker when it is through with its item.

    Args:
        function: picklable, as are items and results where more than this process works.
        items: what to work on; a bounded number is on its way at a time.
        workers: local processes, see `worker_count`; 1: no further process.
        dask: the cluster that works in their place.
        title: stands before the bar; None: no bar.
        killed: the result of an item that kills every worker that has it; no worker is this process, which begins.

    Raises:
        InputError: see `Cluster`.
        ChildProcessError: an item kills every worker that has it, and `killed` is None; or no Dask worker is left.
            What `function` raises comes through.
    """
    if dask is None:
        results = _locally(function, items, worker_count(workers, len(items)), killed)
    else:
        results = on_cluster(function, items, dask, killed)
    hidden = title is None or not sys.stderr.isatty()
    with Progress(console=Console(stderr=True), transient=True, disable=hidden) as progress, closing(results):
        bar = progress.add_task(title or "", total=len(items), visible=bool(items))
        for result in results:
            yield result
            progress.advance(bar)


def _locally(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, killed: Callable[[Item], Result] | None
) -> Generator[Result, None, None]:
    """Work begins in this process, and goes on in further ones where those would be through first."""
    slowest_s = 0.0
    for i, item in enumerate(items):
        left = len(items) - i
        joint = min(workers, left)
        if joint > 1 and _pays(left, joint, slowest_s):
            yield from in_processes(function, items[i:], joint, killed)
            return
        begin = time.monotonic()
        result = function(item)
        slowest_s = max(slowest_s, time.monotonic() - begin)
        yield result


def _pays(items: int, workers: int, item_s: float) -> bool:
    """Whether processes that are yet to start would be through with so many items before this one.

    What an item takes is that of the slowest so far: many are done in no time where a command goes on.
    """
    return items * item_s >= SECONDS_TO_START + math.ceil(items / workers) * item_s
