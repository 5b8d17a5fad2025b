"""What this process may use of a machine, of which a job or a container often has but a part."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

#: Where the control groups are, and which of them are this process's.
_GROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
#: Of a control group with a limit of memory, in versions 2 and 1: the limit, what is used, and what of that is cache of
#: files (file and key), which gives way as that of the whole machine does.
_MEMORY_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "total_inactive_file"),
)
#: Of one with a limit of CPU time, in versions 2 and 1: the time in a period and the period, in one file or in two.
_CPU_FILES = (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"))


def cores(groups: Path = _GROUPS, own: Path = _OWN) -> int:
    """CPUs that this process may run on, or so many as the CPU time of its job or container is worth, if that is less.

    Args:
        groups: where the control groups are.
        own: the file that tells which of them are this process's.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _control_groups("cpu", groups, own):
        for names in _CPU_FILES:
            with contextlib.suppress(OSError, ValueError):  # of another version; or the time is "max", which is none
                time, period = map(int, " ".join((group / name).read_text() for name in names).split())
                if time > 0 < period:  # -1: no limit
                    count = min(count, max(time // period, 1))
    return count


def free_memory(groups: Path = _GROUPS, own: Path = _OWN) -> int:
    """Bytes that are free to this process: of the machine, or less where the limit of its job or container is near.

    Args: see `cores`.
    """
    free = int(psutil.virtual_memory().available)
    for group in _control_groups("memory", groups, own):
        for limit, used, statistics, cache in _MEMORY_FILES:
            with contextlib.suppress(OSError, ValueError, KeyError):  # of another version; or no limit ("max")
                lines = dict(line.split() for line in (group / statistics).read_text().splitlines())
                room = int((group / limit).read_text()) - int((group / used).read_text()) + int(lines[cache])
                free = min(free, room)
    return max(free, 0)


def _control_groups(controller: str, groups: Path, own: Path) -> Iterator[Path]:
    """The groups whose limits hold for this process, from the outermost, where a container sees its own."""
    yield from (groups, groups / controller)  # of version 2, and of version 1
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers and controller not in controllers.split(","):
            continue
        outermost = groups / controller if controllers else groups
        for depth in range(2, len(parts := Path(path).parts) + 1):
            yield outermost.joinpath(*parts[1:depth])
