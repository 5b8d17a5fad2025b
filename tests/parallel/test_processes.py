"""Work on many items in local processes: sharing, kills, early ends. Clusters: `test_cluster.py`."""

import gc
import os
import time
from pathlib import Path

import pytest

from lesionseg import parallel
from lesionseg.errors import InputError
from lesionseg.machine import cores
from lesionseg.parallel import each, worker_count, worker_number
from lesionseg.parallel.window import without_result


def double(number: int) -> int:
    return 2 * number


def die_over_three(number: int) -> int:
    if number == 3:
        os._exit(9)
    return double(number)


def die_once(path: Path) -> str:
    """Killed over, the first time, any path that does not exist yet."""
    if not path.exists():
        path.touch()
        os._exit(9)
    return path.name


def sleep_over_zero(number: int) -> int:
    time.sleep(0 if number else 600)
    return double(number)


def number_beside_others(folder: Path) -> int:
    """This process's, once as many have come as there are items."""
    (folder / str(os.getpid())).touch()
    while len(list(folder.iterdir())) < 3:
        time.sleep(0.01)
    return worker_number()


def collects(_: int) -> bool:
    return gc.isenabled()


@pytest.fixture
def at_once(monkeypatch):
    """No work in this process."""
    monkeypatch.setattr(parallel, "SECONDS_TO_START", 0.0)


def test_worker_count():
    assert worker_count(3, 10) == 3
    assert worker_count(3, 2) == 2
    assert worker_count(3, 0) == 1
    assert 1 <= worker_count(None, 1000) <= parallel.MOST_WORKERS
    assert worker_count(None, 1000, most=1) == 1
    for wrong in (0, -1):
        with pytest.raises(InputError, match="at least 1"):
            worker_count(wrong, 10)


def test_quick_work_needs_no_further_process():
    seen = set()

    def here(number: int) -> int:  # a local function cannot go to another process
        seen.add(os.getpid())
        return number

    assert sorted(each(here, range(5), workers=4, title="x")) == list(range(5))
    assert seen == {os.getpid()}
    assert list(each(double, [], workers=4, title="x")) == []


def test_processes_are_numbered(at_once, tmp_path):
    assert sorted(each(number_beside_others, [tmp_path] * 3, workers=3, title="x")) == [0, 1, 2]
    assert worker_number() == 0


class Clock:
    """In place of `time`: work takes as long as it says."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def work(self, seconds: float) -> str:
        self.now += seconds
        return "alone"


@pytest.mark.parametrize(
    ("seconds", "workers", "alone"),
    [
        ([1] * 20, 2, 1),  # the first one tells how long they take: 19 s, or 3 s and 10 s
        ([1] * 20, 1, 20),
        ([0.25] * 20, 2, 20),  # 5 s, or 3 s and 2.5 s
        ([0.25] * 20, 4, 1),  # ... and 1.25 s
        ([60, 60], 2, 2),  # one is left, which nobody shares
        ([60, 60, 60], 2, 1),
        ([2, 2, 2], 2, 3),
        ([0] * 5000 + [60] * 10, 2, 5001),  # most of them done before
    ],
)
def test_further_processes_join_where_they_would_be_through_first(monkeypatch, seconds, workers, alone):
    clock = Clock()
    monkeypatch.setattr(parallel, "time", clock)
    monkeypatch.setattr(parallel, "in_processes", lambda work, items, joint, killed: ["joint"] * len(items))
    done = list(each(clock.work, seconds, workers=workers, title=None))
    assert done == ["alone"] * alone + ["joint"] * (len(seconds) - alone)


def test_no_more_processes_than_items_are_left(monkeypatch):
    """They share the cores."""
    clock, asked = Clock(), []
    monkeypatch.setattr(parallel, "time", clock)
    monkeypatch.setattr(parallel, "in_processes", lambda work, items, joint, killed: asked.append(joint) or [])
    list(each(clock.work, [60] * 4, workers=4, title=None))
    assert asked == [3]


def threads(_: int) -> str:
    return os.environ["OMP_NUM_THREADS"]


def test_workers_share_the_cores(at_once, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert set(each(threads, range(4), workers=2, title=None)) == {str(max(1, cores() // 2))}


def test_work_is_done_with_the_collector_on(at_once):
    assert list(each(collects, range(3), workers=2, title="x")) == [True] * 3


def test_an_item_that_kills_its_workers_takes_no_other_along(at_once):
    found = sorted(each(die_over_three, range(8), workers=2, title=None, killed=lambda item: -item))
    assert found == [-3, 0, 2, 4, 8, 10, 12, 14]


def test_a_killed_worker_is_an_error_with_a_way_out():
    with pytest.raises(ChildProcessError, match="fewer workers"):
        without_result(3, None)


def test_what_a_kill_interrupted_is_done_again(at_once, tmp_path):
    (tmp_path / "b").touch()
    assert sorted(each(die_once, [tmp_path / "a", tmp_path / "b"], workers=2, title="x")) == ["a", "b"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_closed_early_its_workers_end_at_once(at_once):
    """As on Ctrl-C, which comes as an exception too: nobody waits ten minutes for the item at work."""
    results = each(sleep_over_zero, [1, 0, 0], workers=2, title="x")
    assert next(results) == 2
    results.close()
    assert children() == []


def children() -> list[str]:
    """Commands of the spawned processes below this one that still run."""
    pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    commands = [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in pids]
    return [command for command in commands if "spawn_main" in command]
