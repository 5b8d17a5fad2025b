"""How a rank ends that is joined to others; what needs several processes is in `tests/test_ranks.py`."""

import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from lightning_fabric.strategies.launchers.subprocess_script import _ChildProcessObserver

from lesionseg import cli, ranks
from lesionseg.callbacks import lost_ranks
from lesionseg.callbacks.lost_ranks import LostRanks
from lesionseg.errors import InputError

TWO = SimpleNamespace(world_size=2, global_rank=0, strategy=SimpleNamespace(launcher=None), state=None)


class Left(BaseException):
    """In the place of the end of the process; holds its status."""


@pytest.fixture
def nccl(monkeypatch):
    """A rank that NCCL joins to others, whose way out would wait for them."""

    def left(status):
        raise Left(status)

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "nccl")
    monkeypatch.setattr("os._exit", left)


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (InputError("here", expected="this", got="that", remedy="change it"), 2, "lesionseg: wrong input: here"),
        (OSError("no space left"), 1, "lesionseg: failed: no space left"),
        (KeyboardInterrupt(), 130, "lesionseg: interrupted"),
        (ZeroDivisionError("a fault of ours"), 1, "ZeroDivisionError: a fault of ours"),
    ],
)
def test_a_rank_on_a_gpu_that_fails_alone_says_why_and_waits_for_nobody(nccl, monkeypatch, capsys, error, status, told):
    def failing(options):
        raise error

    monkeypatch.setitem(cli.VERBS, "compare", failing)
    with pytest.raises(Left) as left:
        cli.main(["compare", "runs", "--output", "table"])
    assert left.value.args == (status,)
    assert told in capsys.readouterr().err


def test_without_other_ranks_python_ends_as_it_does(monkeypatch):
    monkeypatch.setattr("os._exit", lambda status: pytest.fail("left"))
    assert not ranks.joined_by_nccl()
    ranks.leave(1)


@pytest.mark.parametrize(
    ("elsewhere", "status", "told"),
    [(False, 130, "lesionseg: interrupted; the same command continues\n"), (True, 0, "")],
)
def test_a_second_interrupt_ends_all_ranks_on_gpus_at_once(nccl, monkeypatch, capsys, elsewhere, status, told):
    monkeypatch.setattr("lesionseg.callbacks.lost_ranks.told_elsewhere", lambda: elsewhere)
    with pytest.raises(Left) as left:
        LostRanks().on_exception(TWO, None, KeyboardInterrupt())
    assert left.value.args == (status,)
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_in_the_test_is_an_interrupt(number):
    """And SIGTERM not Lightning's, which asks the other ranks, who may have got none."""
    before, lost = signal.getsignal(number), LostRanks()
    for end in (lambda: lost.teardown(TWO, None, "test"), lambda: lost.on_exception(TWO, None, ValueError())):
        lost.on_test_start(TWO, None)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        end()
        assert signal.getsignal(number) is before


def test_lightnings_own_watch_over_the_ranks_is_dismissed():
    """It would kill the first rank with SIGKILL, and speak of zombies, before that one has said what happened."""
    first = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    rank = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])
    try:
        observer = _ChildProcessObserver(first.pid, [rank], sleep_period=0.2)
        observer.start()
        lost_ranks._dismiss_lightnings_observer()
        assert rank.wait() == 1
        observer.join(30)
        assert not observer.is_alive()
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()


@pytest.mark.parametrize("said", ["NCCL error in: NCCLUtils.cpp:93", "[transport/gloo/tcp/pair.cc:534] closed"])
def test_an_error_of_the_group_is_told_as_the_loss_of_a_rank(monkeypatch, capsys, said):
    monkeypatch.setattr("lesionseg.callbacks.lost_ranks.GRACE_S", 0)
    monkeypatch.setattr("os._exit", lambda status: (_ for _ in ()).throw(Left(status)))
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(Left):
            LostRanks().on_exception(TWO, None, RuntimeError(said))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "rank 0 of 2 has lost another one" in capsys.readouterr().err
