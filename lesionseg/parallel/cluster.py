"""Workers of a Dask cluster that see the same folders under the same paths. Dask gives work out, and out again."""

from __future__ import annotations

import logging
import re
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from lesionseg import __version__
from lesionseg.errors import InputError
from lesionseg.parallel.threads import limit_threads
from lesionseg.parallel.window import as_done, without_result
from lesionseg.request import source_sha256

#: Until a scheduler has answered.
CONNECT_S = 10.0
_ADDRESS = re.compile(r"([a-z]+://)?([^/:\s]+|\[[0-9a-fA-F:]+\]):\d{1,5}")
_START = "start one by `dask scheduler` and give the address that it names, tcp://HOST:PORT"
#: Tasks that the scheduler holds at a time: it stays small, and whoever joins finds work.
_AHEAD = 1000
#: Of the file by which workers show that they see the folder; `prepare` removes such files where a kill left one.
_TOKEN = ".tmp-seen-"

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Cluster:
    """Where to work. Each worker is looked at before work begins.

    Attributes:
        address: of the scheduler, `tcp://HOST:PORT`.
        folder: the workers write into it; it is there.
        ready: called once in every worker, picklable; raises `InputError` where something is missing.

    Raises:
        InputError: no address of that form; (when used) Dask is not installed; no scheduler at the address; no worker,
            one with several threads, with another version, that does not see the folder, or that is not ready.
        ChildProcessError: (when used) a worker is lost while it is looked at; for the rest see `each`.
    """

    address: str
    folder: Path
    ready: Callable[[], object]

    def __post_init__(self) -> None:
        if not _ADDRESS.fullmatch(self.address):
            raise _unlike("--dask", "the address of a Dask scheduler", repr(self.address), _START)


def visible(*paths: Path) -> None:
    """Raise `InputError` for a path that this process does not see."""
    for path in paths:
        if not path.exists():
            raise _unlike(str(path), "a path that every worker sees", "no such file or folder",
                          "give absolute paths in a folder that all machines share")  # fmt: skip


def on_cluster(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    cluster: Cluster,
    killed: Callable[[Item], Result] | None = None,
) -> Generator[Result, None, None]:
    """Results of all items; see `each`.

    A task whose worker is killed goes to another one, up to as often as Dask's `allowed-failures` says (3).
    """
    if not items:
        return
    with _connected(cluster.address) as client:
        work = partial(_work, function, source_sha256(), _processes_by_host(client, cluster))
        begun: dict[Any, Item] = {}
        look = partial(_see_workers, client, cluster.address)
        try:
            for future in as_done(
                lambda item: client.submit(work, item, pure=False), deque(items), begun, _AHEAD, look
            ):
                item = begun.pop(future)
                yield _result(future, item, killed)
        finally:
            if begun:
                client.cancel(list(begun), force=True)


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    try:
        from distributed import Client
    except ImportError:
        raise InputError("--dask", expected="the package distributed", got="none",
                         remedy="pip install distributed", code="dask") from None  # fmt: skip

    class ClosedOnFailure(Client):
        """A client that closes where it cannot begin.

        Else the garbage collector closes it, perhaps in the thread that starts for the next one, and there it waits for
        a lock that is held until that thread has started.
        """

        def start(self, **options: Any) -> Any:
            try:
                return super().start(**options)
            except (OSError, ValueError, TypeError):  # TypeError: a worker answers
                self.close()
                raise

    try:
        client = ClosedOnFailure(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        got = "a worker" if isinstance(error, TypeError) else f"none that answers ({type(error).__name__})"
        raise _unlike(address, "a Dask scheduler", got, _START) from None
    with client, _silent():
        yield client


@contextmanager
def _silent() -> Iterator[None]:
    """Leave out what the client logs of lost connections, in many lines: `_see_workers` tells in one."""
    logger = logging.getLogger("distributed.client")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _processes_by_host(client: Any, cluster: Cluster) -> dict[str, int]:
    """Workers of each machine, after a look at every one of them."""
    from distributed.comm import CommClosedError

    threads = client.nthreads()
    if not threads:
        raise _unlike(cluster.address, "at least one worker", "none",
                      f"start one a core or a GPU: dask worker {cluster.address} --nthreads 1")  # fmt: skip
    if several := [worker for worker, n in threads.items() if n > 1]:
        raise _unlike(f"Dask worker {several[0]}", "one thread, as a process works on one item",
                      f"{threads[several[0]]}", "start it with --nthreads 1, or --nworkers N for more")  # fmt: skip
    with tempfile.NamedTemporaryFile(prefix=_TOKEN, dir=cluster.folder) as token:
        look = partial(_look, Path(token.name), source_sha256(), cluster.ready)
        answers = client.run(look, on_error="return")
    for worker, answer in answers.items():
        if isinstance(answer, InputError):
            raise _unlike(f"Dask worker {worker}: {answer.where}", answer.expected, answer.got, answer.remedy)
        if isinstance(answer, CommClosedError):
            raise _gone(f"Dask worker {worker}")
        if isinstance(answer, OSError):
            raise _unlike(f"Dask worker {worker}", "files that it can read", str(answer), "mend that machine")
        if isinstance(answer, Exception):
            raise _unlike(f"Dask worker {worker}", f"lesionseg {__version__}", f"{type(answer).__name__}: {answer}",
                          "install the same lesionseg on all machines")  # fmt: skip
    return dict(Counter(_host(worker) for worker in threads))


def _look(token: Path, source: str, ready: Callable[[], object]) -> None:
    """In a worker: is it fit for the work?"""
    _refuse_other_source(source)
    if not token.exists():
        raise _unlike(str(token.parent), "the output folder, under the same path", "none, or another one",
                      "give absolute paths in a folder that all machines share")  # fmt: skip
    ready()


def _refuse_other_source(source: str) -> None:
    if source != source_sha256():
        raise _unlike("lesionseg", f"the same source on every worker ({source[:12]})",
                      f"{source_sha256()[:12]}, version {__version__}",
                      "install the same on all machines, and start their workers again")  # fmt: skip


def _work(function: Callable[[Item], Result], source: str, processes_by_host: dict[str, int], item: Item) -> Result:
    """In a worker: one item, with its share of the CPUs. One that has joined since the others were looked at is new."""
    from dask.system import CPU_COUNT
    from distributed import get_worker

    _refuse_other_source(source)
    limit_threads(max(1, CPU_COUNT // processes_by_host.get(_host(get_worker().address), 1)))
    return function(item)


def _host(address: str) -> str:
    from distributed.comm import get_address_host

    return get_address_host(address)


def _result(future: Any, item: Item, killed: Callable[[Item], Result] | None) -> Result:
    from distributed import CancelledError, KilledWorker

    try:
        return future.result()
    except KilledWorker:
        return without_result(item, killed)
    except CancelledError:
        raise _gone("the Dask scheduler") from None


def _see_workers(client: Any, address: str) -> None:
    """Nothing was done for a while: raise `ChildProcessError` where no worker or no scheduler is left."""
    if client.status != "running":
        raise _gone("the Dask scheduler")
    if not client.nthreads():
        raise _gone(f"the last worker of {address}")


def _gone(what: str) -> ChildProcessError:
    return ChildProcessError(f"{what} is gone; start it again, and the same command continues")


def _unlike(where: str, expected: str, got: str, remedy: str) -> InputError:
    return InputError(where, expected=expected, got=got, remedy=remedy, code="dask")
