import os

import pytest

from lesionseg import parallel
from lesionseg.errors import InputError
from lesionseg.parallel import each, worker_count


def double(number: int) -> int:
    return 2 * number


def die(number: int) -> int:
    os._exit(9)


def test_worker_count():
    assert worker_count(3, 10) == 3
    assert worker_count(3, 2) == 2
    assert worker_count(3, 0) == 1
    assert 1 <= worker_count(None, 1000) <= parallel.MOST_WORKERS
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


def test_a_killed_worker_is_an_error_with_a_way_out(monkeypatch):
    monkeypatch.setattr(parallel, "SECONDS_ALONE", 0.0)
    with pytest.raises(RuntimeError, match="fewer workers"):
        list(each(die, [1, 2], workers=2, title="x"))
