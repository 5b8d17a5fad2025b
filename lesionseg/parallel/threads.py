"""How many threads one of several processes takes."""

from __future__ import annotations

import os
import sys


def limit_threads(count: int) -> None:
    """Let torch take so many threads in this process, whether it is loaded yet or not: many a task needs none of it."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(count)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(count)
