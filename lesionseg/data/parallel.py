"""A function over many items in processes that share the CPUs, show their progress, and never outlive their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import Progress

from lesionseg.errors import InputError

#: More workers than this rarely help (the disk is the limit), and each may hold two volumes.
MOST_WORKERS = 8
#: Work begins in this process; further ones join after this long, as they take seconds to start.
SECONDS_ALONE = 3.0

Item = TypeVar("Item")
Result = TypeVar("Result")


def worker_count(wanted: int | None, items: int) -> int:
    """Processes to use: `wanted`, by default one per CPU and 8 at most; never more than items.

    Raises:
        InputError: `wanted` below 1.
    """
    count = min(os.cpu_count() or 1, MOST_WORKERS) if wanted is None else wanted
    if count < 1:
        raise InputError("workers", expected="at least 1", got=str(wanted), remedy="leave it out for the default")
    return max(1, min(count, items))


def each(
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: int | None, title: str
) -> Generator[Result, None, None]:
    """Results as they come, in any order, with a progress bar on a terminal.

    Args:
        function: picklable, as are items and results.
        items: what to work on.
        workers: see `worker_count`; 1: no further process.
        title: stands before the bar.

    Raises:
        RuntimeError: a worker was killed. What `function` raises comes through, and no further item is begun.
    """
    count, begin = worker_count(workers, len(items)), time.monotonic()
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task(title, total=len(items), visible=bool(items))
        for i, item in enumerate(items):
            if count > 1 and time.monotonic() - begin >= SECONDS_ALONE:
                for result in _in_processes(function, items[i:], count):
                    progress.advance(bar)
                    yield result
                return
            yield function(item)
            progress.advance(bar)


def _in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Generator[Result, None, None]:
    # Spawned, not forked: a fork would copy the locks of torch's threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(workers,))
    try:
        for future in as_completed([pool.submit(function, item) for item in items]):
            yield future.result()
    except BrokenProcessPool as error:
        raise RuntimeError("a worker process was killed, most likely for memory: try fewer workers") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(workers: int) -> None:
    """Share the CPUs, leave Ctrl-C to the parent, and end with the parent even if that is killed."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
