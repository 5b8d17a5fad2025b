"""A real Dask cluster on loopback: a scheduler and two workers, each a process of its own."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from dask_cluster import documented, running, scheduling, wait_for_workers
from dask_jobs import interrupted_tasks
from distributed import Client


@pytest.fixture(scope="session")
def working(tmp_path_factory) -> Callable:
    """`with working("worker", ADDRESS, …):` workers of a scheduler."""
    folder = str(tmp_path_factory.mktemp("dask"))
    return lambda *words: running(*words, "--local-directory", folder, "--death-timeout", "60")


@pytest.fixture
def scheduler() -> Iterator[str]:
    """The address of a scheduler that nobody else uses, without workers."""
    with scheduling() as address:
        yield address


@pytest.fixture(scope="session")
def two_workers(working) -> Iterator[str]:
    with ExitStack() as stack:
        address = stack.enter_context(scheduling())
        stack.enter_context(working(*documented("worker", address)))
        yield address


@pytest.fixture
def address(two_workers) -> str:
    """That of a scheduler with two workers; Dask has started again what an earlier test killed."""
    wait_for_workers(two_workers, 2)
    return two_workers


@pytest.fixture
def one_killed(address) -> Callable:
    """`with one_killed(when):` kills a worker with tasks as soon as `when()` is true."""

    @contextmanager
    def kill(when: Callable[[], bool]) -> Iterator[None]:
        def wait_and_kill() -> None:
            while not (when() or ended.is_set()):
                time.sleep(0.002)
            os.kill(pid, signal.SIGKILL)

        ended = threading.Event()
        with Client(address, set_as_default=False) as client:
            pid = next(iter(client.run(os.getpid).values()))
            before = client.run_on_scheduler(interrupted_tasks)
            thread = threading.Thread(target=wait_and_kill)
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join()
            assert client.run_on_scheduler(interrupted_tasks) > before, "the kill hit no task"

    return kill
