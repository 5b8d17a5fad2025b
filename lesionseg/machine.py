"""What this process may use of a machine, of which a job or a container often has but a part."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

#: Of a control group with a limit of memory, in versions 2 and 1: the limit, what is used, and what of that is cache of
#: files (file and key), which gives way as that of the whole machine does.
_MEMORY_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def cores() -> int:
    """CPUs that this process may run on: those of its job, where a scheduler or `taskset` gave it some."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that are free to this process: of the machine, or less where the limit of its container is near.

    Args:
        groups: where the control groups are.
    """
    free = int(psutil.virtual_memory().available)
    for limit, used, statistics, cache in _MEMORY_FILES:
        try:
            lines = dict(line.split() for line in (groups / statistics).read_text().splitlines())
            room = int((groups / limit).read_text()) - int((groups / used).read_text()) + int(lines[cache])
        except (OSError, ValueError, KeyError):  # of another version; or the limit is "max", which is none
            continue
        free = min(free, room)
    return max(free, 0)
