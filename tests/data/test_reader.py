"""Readers end by the word of their training, not by a signal from elsewhere."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from torch.utils.data import DataLoader, Dataset

from lesionseg.data.reader import heed_the_trainer_alone

pytestmark = pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="needs to know who sends a signal")


class Slow(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        time.sleep(0.05)
        return i


def reading():
    """Batches under way, and the process that reads them."""
    batches = iter(DataLoader(Slow(), batch_size=1, num_workers=1, worker_init_fn=heed_the_trainer_alone))
    assert int(next(batches)) == 0
    return batches, batches._workers[0]


@pytest.mark.parametrize("name", ["TERM", "INT", "USR1"])
def test_a_reader_reads_on_when_somebody_else_signals(name):
    batches, reader = reading()
    subprocess.run(["kill", f"-{name}", str(reader.pid)], check=True)
    assert [int(batch) for batch in batches] == list(range(1, 8))


def test_a_reader_ends_when_its_training_says_so():
    _, reader = reading()
    os.kill(reader.pid, signal.SIGTERM)
    reader.join(10)
    assert reader.exitcode == 0


def test_a_reader_ends_when_its_training_is_gone(tmp_path):
    """Torch sees to that, also after a signal that was left alone."""
    code = (
        "import os, pathlib, signal, subprocess\n"
        "from test_reader import reading\n"
        "batches, reader = reading()\n"
        "subprocess.run(['kill', '-TERM', str(reader.pid)])\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(reader.pid))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=os.path.dirname(__file__), timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    pid, until = int((tmp_path / "pid").read_text()), time.monotonic() + 20
    while time.monotonic() < until and alive(pid):
        time.sleep(0.1)
    assert not alive(pid)


def alive(pid):
    """Not even a process that has ended and is not yet collected."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
