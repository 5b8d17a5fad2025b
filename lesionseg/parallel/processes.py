"""Local processes that share the CPUs, survive the kill of one of them, and never outlive their parent."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from typing import TypeVar

from lesionseg.machine import cores
from lesionseg.parallel.threads import limit_threads
from lesionseg.parallel.window import as_done, without_result

Item = TypeVar("Item")
Result = TypeVar("Result")

_number = 0


def worker_number() -> int:
    """Which of the processes that work side by side this one is, counted from 0, which is also any other process."""
    return _number


def in_processes(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    killed: Callable[[Item], Result] | None = None,
) -> Generator[Result, None, None]:
    """Results of all items; see `each`.

    Which item a worker was killed over does not show, so all that were begun are done again, one by one, each with
    the memory of the machine to itself; what is killed then has no result.
    """
    waiting = deque(items)
    while waiting:
        suspects = deque((yield from _until_killed(function, waiting, workers)))
        while suspects:
            begun = yield from _until_killed(function, suspects, 1)
            if begun:  # in their order, by one worker
                suspects.extendleft(reversed(begun[1:]))
                yield without_result(begun[0], killed)


def _until_killed(
    function: Callable[[Item], Result], waiting: deque[Item], workers: int
) -> Generator[Result, None, list[Item]]:
    """Results of the items, which are taken from `waiting`; returns those that were begun when a worker was killed."""
    begun: dict[Future[Result], Item] = {}
    with _pool(workers) as pool:
        try:
            # One more than there are workers lies ready, so that none waits.
            for future in as_done(lambda item: pool.submit(_apply, function, item), waiting, begun, workers + 1):
                result = future.result()
                del begun[future]
                yield result
        except BrokenProcessPool:
            for future in wait(begun).done:
                if future.exception() is None:
                    del begun[future]
                    yield future.result()
    return list(begun.values())


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Workers that end at once when the block is left before they are through, or when this process dies."""
    # Spawned, not forked: a fork would copy the locks of torch's threads.
    context = multiprocessing.get_context("spawn")
    lifeline, held = context.Pipe(duplex=False)
    started = context.Value("i", 0)
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(workers, lifeline, started))
    try:
        yield pool
    except BaseException:
        held.close()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        held.close()
        lifeline.close()


def _start_worker(workers: int, lifeline: Connection, started: Synchronized[int]) -> None:
    """Take a number, share the CPUs, leave Ctrl-C to the parent, and end with the parent even if that is killed."""
    global _number
    with started.get_lock():
        _number = started.value
        started.value += 1
    gc.disable()  # until the first item, with which what the function needs is imported (`collector_at_rest`)
    limit_threads(max(1, cores() // workers))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def _apply(function: Callable[[Item], Result], item: Item) -> Result:
    gc.enable()
    return function(item)


def _end_with(lifeline: Connection) -> None:
    """End this process when the parent, which writes nothing, closes its end or is gone."""
    lifeline.poll(None)
    os._exit(1)
