"""Work on many items in local processes: sharing, kills, early ends. Clusters: `test_cluster.py`."""

import gc
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from lesionseg import parallel
from lesionseg.errors import InputError
from lesionseg.parallel import each, worker_count
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


def slow_by(seconds: float, _: int) -> int:
    time.sleep(seconds)
    return os.getpid()


def test_further_processes_join_where_they_would_be_through_before_this_one(monkeypatch):
    """20 items of 50 ms: a second alone; by two, half of it and the time to start."""
    work = partial(slow_by, 0.05)
    monkeypatch.setattr(parallel, "SECONDS_TO_START", 0.1)
    done_by = list(each(work, range(20), workers=2, title=None))
    assert done_by[0] == os.getpid() != done_by[-1]  # the first one tells how long they take
    monkeypatch.setattr(parallel, "SECONDS_TO_START", 0.9)
    assert set(each(work, range(20), workers=2, title=None)) == {os.getpid()}
    assert set(each(work, range(20), workers=1, title=None)) == {os.getpid()}


@pytest.mark.parametrize("loaded_before", [False, True])
def test_threads_are_limited_whether_torch_is_there_yet_or_not(loaded_before):
    """In a process of its own, as torch stays loaded and is told once."""
    lines = ["from lesionseg.parallel.threads import limit_threads", "limit_threads(1)", "import torch"]
    order = [2, 0, 1] if loaded_before else [0, 1, 2]
    script = "; ".join([*(lines[i] for i in order), "print(torch.get_num_threads())"])
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "1\n"


def test_prepare_loads_no_torch():
    """It would take more than half of the time to start, in every process."""
    script = (
        "import sys, lesionseg.data.prepare, lesionseg.data.lits, lesionseg.data.slices; print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "False\n"


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
