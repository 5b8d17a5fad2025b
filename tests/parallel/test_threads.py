"""The limit, in processes of their own: torch asks for it when it is loaded, and stays loaded."""

import os
import subprocess
import sys

import pytest

from lesionseg.machine import cores


@pytest.mark.skipif(cores() < 2, reason="one thread is all there is")
@pytest.mark.parametrize("loaded_before", [False, True])
def test_torch_takes_so_many_threads(loaded_before):
    lines = ["from lesionseg.parallel.threads import limit_threads", "limit_threads(1)", "import torch"]
    order = [2, 0, 1] if loaded_before else [0, 1, 2]
    script = "; ".join([*(lines[i] for i in order), "print(torch.get_num_threads())"])
    assert threads_of(script) == 1
    assert threads_of("import torch; print(torch.get_num_threads())") > 1


def threads_of(script: str) -> int:
    free = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", script], env=free, capture_output=True, text=True, check=True)
    return int(done.stdout)
