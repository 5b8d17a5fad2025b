"""Where trained nets run: devices that are not there, and memory that a net frees."""

import mmap
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from lesionseg.device import inference_on, moved, on_own_gpu, sent
from lesionseg.errors import InputError


@pytest.mark.parametrize("device", ["xpu:7", "abacus", "meta"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(InputError, match="use --device cpu"):
        inference_on(device)


def test_no_slice_at_once_is_refused():
    with pytest.raises(InputError, match="batch size"):
        inference_on("cpu", batch_size=0)


@pytest.mark.parametrize("full", [torch.OutOfMemoryError, torch.AcceleratorError])
def test_a_gpu_without_room_for_a_net_is_told_in_a_line(monkeypatch, full):
    net = nn.Linear(1, 1)
    monkeypatch.setattr(net, "to", lambda _: (_ for _ in ()).throw(full("CUDA error: out of memory. See the manual.")))
    with pytest.raises(InputError, match=r"room for the nets; got CUDA error: out of memory; free it"):
        moved(net, torch.device("cuda"))


@pytest.fixture
def gpus(monkeypatch):
    """So many GPUs, those that another program has, and the one that each process takes and where it puts its nets."""

    def gpus(count, in_use=(), full=()):
        current = [0]

        def take(gpu):
            if gpu in in_use:
                raise torch.AcceleratorError("CUDA error: device busy")
            current[0] = gpu

        def made():
            with pytest.MonkeyPatch.context() as patch:
                net = nn.Linear(1, 1)
                if current[0] in full:
                    patch.setattr(net, "to", lambda _: (_ for _ in ()).throw(torch.OutOfMemoryError("no memory")))
                moved(net, torch.device("cpu"))
            return current[0]

        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "init", lambda: None)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", take)
        return [on_own_gpu(number, made) for number in range(4)]

    return gpus


def test_processes_take_gpus_in_turn_and_pass_over_one_without_room(gpus):
    assert gpus(0) == gpus(1) == [0, 0, 0, 0]
    assert gpus(3) == [0, 1, 2, 0]
    assert gpus(3, in_use=(1,)) == gpus(3, full=(1,)) == [0, 2, 2, 0]
    with pytest.raises(InputError, match="a GPU with room for the nets; got no memory"):
        gpus(2, in_use=(1,), full=(0,))


def test_what_is_sent_arrives():
    assert torch.equal(sent(torch.arange(5), torch.device("cpu")), torch.arange(5))
    assert sent(torch.arange(5), torch.device("meta")).device.type == "meta"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
def test_memory_that_a_net_frees_is_kept_for_the_next_slice():
    """Three blocks written and freed again and again: with each round the system hands out new pages, or none."""
    rounds = """
import resource
for n in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [bytearray(b"x") * (25 << 20) for _ in range(3)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    kept = "from lesionseg.device import keep_freed_memory; keep_freed_memory()" + rounds
    plain, ours = (
        int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for code in (rounds, kept)
    )
    assert ours < 100
    assert plain > 3 * (25 << 20) / mmap.PAGESIZE / 2
