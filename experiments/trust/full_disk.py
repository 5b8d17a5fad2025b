"""A disk that is full, at sizes between nothing and what a verb writes, or read-only; shared memory that is too small.

Usage: full_disk.py [--tries N] [--seed N] [--output JSON]   (as root)

The output lies on a tmpfs that is too small, or that nothing can be written to. The command must end with another
status than 0 and one line that says so, without a traceback; what a reader may open must be refused or be what the
command makes where there is room. Then the disk grows, or can be written to, and the same command must make that.
A training with processes that read slices must be refused where /dev/shm cannot hold their batches.
Without leave to mount, nothing is tried, and the row says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import small_grid
from kills import Verb, verbs
from rows import Row, asked, publish

from lesionseg.errors import InputError

ROOM = "512m"
_OWN_MOUNTS = "LESIONSEG_OWN_MOUNTS"


def with_own_mounts() -> bool:
    """Go on with mounts that no other process sees and that end with this one; False: there is no leave to."""
    if _OWN_MOUNTS in os.environ:
        return True
    if shutil.which("unshare") and subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0:
        os.environ[_OWN_MOUNTS] = "yes"
        os.execvp("unshare", ["unshare", "--mount", sys.executable, *sys.argv])
    return False


@contextmanager
def disk(folder: Path, size: str) -> Iterator[Path]:
    """A tmpfs of this size."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def mended(folder: Path) -> None:
    """Give the disk room, and leave to write."""
    subprocess.run(["mount", "-o", f"remount,rw,size={ROOM}", folder], check=True)


def used_kib(folder: Path) -> int:
    """What lies on it."""
    held = os.statvfs(folder)
    return (held.f_blocks - held.f_bfree) * held.f_frsize // 1024


def tried(verb: Verb, output: Path, expected: object) -> Iterator[str]:
    """What goes wrong on a disk that is too small or read-only, and after that has been mended."""
    yield from ends_in_one_line(verb.words(output))
    try:
        if verb.content(output) != expected:
            yield "read, but not what it should be"
    except InputError:
        pass
    except Exception as error:  # what a reader must never meet
        yield f"{type(error).__name__}: {error}"
    mended(output.parent)
    done = small_grid.run(verb.words(output))
    if done.returncode:
        yield f"does not continue: status {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"
    elif verb.content(output) != expected:
        yield "continues to another end"


def ends_in_one_line(words: Sequence[str]) -> Iterator[str]:
    """What is wrong with how a command ends that cannot do its work."""
    done = small_grid.run(words)
    lines = done.stderr.strip().splitlines()
    if done.returncode == 0:
        yield "status 0"
    elif "Traceback" in done.stderr or not lines or not lines[-1].startswith("lesionseg: "):
        yield f"status {done.returncode}, and its last line: {lines[-1:]}"


def small_shared_memory(folder: Path) -> Iterator[str]:
    """What goes wrong where /dev/shm is smaller than the batches of the processes that read slices."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", "/dev/shm"], check=True)
    try:
        yield from ends_in_one_line([*small_grid.fit(folder, folder / "small-shm"), "--data.num_workers", "2"])
    finally:
        subprocess.run(["umount", "--lazy", "/dev/shm"], check=True)


def main() -> int:
    options = asked(__file__, tries=(5, "of each verb"))
    if not with_own_mounts():
        return publish([Row("a full disk", 0, 0, "not tried: no leave to mount")], [], options.output, options.seed)
    os.environ.update(WANDB_MODE="disabled", OMP_NUM_THREADS="1")
    rows, faults, rng = [], [], np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small_grid.made_in(folder)
        for verb_name, verb in verbs(folder).items():
            with disk(folder / f"{verb_name}-whole", ROOM) as whole:
                small_grid.run(verb.words(whole / "out"))
                expected, most_kib = verb.content(whole / "out"), used_kib(whole)
            found = []
            for n, share in enumerate(rng.uniform(0, 0.9, options.tries)):
                size = f"{max(int(share * most_kib), 16)}k"
                with disk(folder / f"{verb_name}-{n}", size) as small:
                    found += [
                        f"{verb_name}, {size} of {most_kib}k: {fault}" for fault in tried(verb, small / "out", expected)
                    ]
            rows.append(
                Row(f"{verb_name} on a disk that is too small", options.tries, len(found), f"it takes {most_kib} kB")
            )
            faults += found
            with disk(folder / f"{verb_name}-read-only", "64k") as closed:
                subprocess.run(["mount", "-o", "remount,ro", closed], check=True)
                found = [f"{verb_name}, read-only: {fault}" for fault in tried(verb, closed / "out", expected)]
            rows.append(Row(f"{verb_name} where nothing can be written", 1, len(found)))
            faults += found
        found = list(small_shared_memory(folder))
        rows.append(Row("fit with a /dev/shm of 16 kB", 1, len(found)))
        faults += found
    return publish(rows, faults, options.output, options.seed)


if __name__ == "__main__":
    sys.exit(main())
