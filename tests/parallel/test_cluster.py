"""The engine on a real scheduler with real workers: results, kills, and what is refused."""

import gc
import os
import signal
import socket
import sys
import time
from functools import partial

import pytest
from dask.system import CPU_COUNT
from dask_cluster import scheduling, wait_for_workers
from dask_jobs import double, double_slowly, held_tasks, kill_over_three, killed, mark, ready, refuse, threads
from distributed import Client

from lesionseg.errors import InputError
from lesionseg.parallel import Cluster, cluster, each, window
from lesionseg.parallel.cluster import visible
from lesionseg.request import source_sha256


def on(address, folder, function, items, check=ready, **options):
    return each(function, items, workers=None, dask=Cluster(address, folder, check), title=None, **options)


def test_results_of_two_workers_that_share_the_cpus(address, tmp_path):
    assert sorted(on(address, tmp_path, double, range(20))) == list(range(0, 40, 2))
    assert set(on(address, tmp_path, threads, range(4))) == {max(1, CPU_COUNT // 2)}
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_asked_of_a_cluster_without_items(tmp_path):
    assert list(on("tcp://127.0.0.1:1", tmp_path, double, [])) == []


def test_more_items_than_are_on_their_way_come_once(address, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_AHEAD", 3)
    items = [tmp_path / str(n) for n in range(12)]
    assert sorted(on(address, tmp_path, mark, items)) == sorted(path.name for path in items)
    assert {path.read_text() for path in items} == {"done\n"}


def test_an_error_comes_through_and_ends_what_is_left(address, tmp_path):
    with pytest.raises(InputError, match="a cat") as caught:
        list(on(address, tmp_path, refuse, range(50)))
    assert caught.value.remedy == "try again"
    results = on(address, tmp_path, double_slowly, range(50))
    next(results)
    results.close()  # as on Ctrl-C
    with Client(address, set_as_default=False) as client:
        end = time.monotonic() + 30
        while client.run_on_scheduler(held_tasks):
            assert time.monotonic() < end, "tasks are left"
            time.sleep(0.05)


def test_workers_that_are_not_fit_are_refused_before_work(address, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"Dask worker tcp://.*: expected a path that every worker sees"):
        list(on(address, tmp_path, double, [1], check=partial(visible, tmp_path, tmp_path / "none")))
    with pytest.raises(InputError, match="the output folder, under the same path"):
        cluster._look(tmp_path / "of the client alone", source_sha256(), ready)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[__name__], "ready", lambda: __import__("nonesuch"))
        with pytest.raises(InputError, match=r"expected lesionseg .* No module named 'nonesuch'"):
            list(on(address, tmp_path, double, [1], check=sys.modules[__name__].ready))
    monkeypatch.setattr(cluster, "source_sha256", lambda: "9" * 64)
    with pytest.raises(InputError, match=r"expected the same source on every worker \(999999999999\); got .*, version"):
        list(on(address, tmp_path, double, [1]))


def test_a_cluster_without_workers_or_with_threads_is_refused(scheduler, working, tmp_path):
    with pytest.raises(InputError, match=f"at least one worker; got none; .*dask worker {scheduler} --nthreads 1"):
        list(on(scheduler, tmp_path, double, [1]))
    with (
        Client(scheduler, set_as_default=False) as client,
        pytest.raises(ChildProcessError, match="the last worker of"),
    ):
        cluster._see_workers(client, scheduler)  # as it looks while nothing is done
    with working("worker", scheduler, "--nthreads", "2", "--no-nanny"):
        wait_for_workers(scheduler, 1)
        with pytest.raises(InputError, match=r"expected one thread.* got 2; .*--nthreads 1"):
            list(on(scheduler, tmp_path, double, [1]))


def test_a_scheduler_that_is_killed(working, tmp_path, monkeypatch):
    monkeypatch.setattr(window, "LOOK_S", 0.5)
    with scheduling() as address, working("worker", address, "--nthreads", "1", "--no-nanny"):
        wait_for_workers(address, 1)
        results = on(address, tmp_path, double_slowly, range(100))
        next(results)
        with Client(address, set_as_default=False) as client:
            pid = client.run_on_scheduler(os.getpid)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ChildProcessError, match=r"the Dask scheduler is gone; .* the same command continues"):
            list(results)


def test_an_address_where_nobody_listens(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_S", 1.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        for address in (f"tcp://127.0.0.1:{free.getsockname()[1]}", "tcp://nowhere.invalid:1", "abacus://x:1"):
            with pytest.raises(InputError, match=f"{address}: expected a Dask scheduler; got none that answers"):
                list(on(address, tmp_path, double, [1]))
            assert not {client.status for client in gc.get_objects() if isinstance(client, Client)} - {"closed"}


@pytest.mark.parametrize("address", ["", "here", "127.0.0.1", "tcp://127.0.0.1", "tcp://127.0.0.1:many"])
def test_what_is_no_address_is_refused_even_where_nothing_is_to_do(tmp_path, address):
    with pytest.raises(
        InputError, match=f"--dask: expected the address of a Dask scheduler; got '{address}'; .*tcp://H"
    ):
        list(on(address, tmp_path, double, []))


@pytest.mark.parametrize("address", ["localhost:8786", "tcp://10.0.0.1:8786", "tls://[::1]:8786"])
def test_addresses_as_dask_writes_them_are_taken(tmp_path, address):
    assert list(on(address, tmp_path, double, [])) == []


def test_the_address_of_a_worker_is_told_from_that_of_the_scheduler(address, tmp_path):
    with Client(address, set_as_default=False) as client:
        worker = min(client.nthreads())
    with pytest.raises(InputError, match=f"{worker}: expected a Dask scheduler; got a worker; start one by"):
        list(on(worker, tmp_path, double, [1]))


def test_a_worker_that_is_lost_while_it_is_looked_at_is_no_wrong_input(working, tmp_path):
    with scheduling() as address, working("worker", address, "--nthreads", "1", "--no-nanny"):
        wait_for_workers(address, 1)
        with pytest.raises(ChildProcessError, match=r"Dask worker tcp://.* is gone; .* the same command continues"):
            list(on(address, tmp_path, double, [1], check=killed))


def test_without_dask_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"pip install distributed"):
        list(on("tcp://127.0.0.1:1", tmp_path, double, [1]))


def test_an_item_that_kills_every_worker_is_told(address, tmp_path):
    assert list(on(address, tmp_path, kill_over_three, [3], killed=lambda item: -item)) == [-3]
