"""How many threads torch takes in one of several processes."""

from __future__ import annotations

import os
import sys


def limit_threads(count: int) -> None:
    """Let torch take so many threads at most, as long as this process lives, whether it is loaded yet or not.

    Not imported for this: `prepare` needs no torch, which takes longer to load than all else it needs.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(count)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(count)
