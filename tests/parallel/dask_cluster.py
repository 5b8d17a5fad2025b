"""Schedulers and workers of Dask on loopback, each a process of its own."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distributed import Client

TESTS = Path(__file__).parents[1]
#: Where workers find the package under test, and what tests let them do.
PATHS = (TESTS.parent, TESTS, TESTS / "parallel")


@contextmanager
def running(*words: str) -> Iterator[subprocess.Popen]:
    """`dask …`, ended with all that it has started when the block ends; what it says is left out."""
    command = [sys.executable, "-m", "dask", *words, "--no-dashboard"]
    settings = {"PYTHONPATH": os.pathsep.join(map(str, PATHS)), "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env={**os.environ, **settings}, start_new_session=True, **quiet)
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def scheduling() -> Iterator[str]:
    """A scheduler without workers: its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = f"tcp://127.0.0.1:{port}"
    with running(
        *documented("scheduler", address), "--host", "127.0.0.1", "--port", port, "--idle-timeout", "10 minutes"
    ):
        yield address


def documented(program: str, address: str) -> list[str]:
    """Words of `dask …` as docs/data.md has them, for a scheduler."""
    lines = (TESTS.parent / "docs" / "data.md").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"dask {program}"))
    return line.partition("#")[0].replace("tcp://HOST:8786", address).split()[1:]


def wait_for_workers(address: str, n: int) -> None:
    with Client(address, timeout=60, set_as_default=False) as client:
        client.wait_for_workers(n, timeout=60)
