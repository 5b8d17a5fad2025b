"""What happens beside a command: a worker process dies, another `prepare` is at work, a checkpoint is half there.

Usage: mishaps.py [--tries N] [--seed N] [--output JSON]

After each, a command must end with one line that says so, or go on; then the same command must make what it makes
undisturbed, to the last bit. Two `prepare` begin at once on one store: one of them at least makes it, and the other is
refused or finds it made. A worker that reads the slices of a training is killed. Of a training that was stopped, the
last checkpoint loses its end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import small_grid
from kills import Verb, verbs
from rows import Row, asked, publish

from lesionseg.cli import WRONG_INPUT
from lesionseg.run_weights import LAST_CHECKPOINT, PREVIOUS_CHECKPOINT
from lesionseg.runs import RUN_FILE

Try = Callable[[Verb, Path, object, np.random.Generator], Iterator[str]]
#: A training has begun when its first checkpoint lies there; so long is waited for it.
BEGIN_S = 120


def two_at_once(verb: Verb, output: Path, expected: object, rng: np.random.Generator) -> Iterator[str]:
    """Two of the same, the second up to a second after the first."""
    processes = [_started(verb.words(output))]
    time.sleep(float(rng.uniform(0, 1)))
    processes.append(_started(verb.words(output)))
    ends = [(process.wait(), (process.stderr.read() if process.stderr else "")) for process in processes]
    statuses = [status for status, _ in ends]
    if 0 not in statuses or set(statuses) - {0, WRONG_INPUT}:
        yield f"statuses {statuses}"
    yield from (fault for status, text in ends if status for fault in _wrong_words(text))
    if verb.content(output) != expected:
        yield "another store than that of one"


def worker_killed(verb: Verb, output: Path, expected: object, rng: np.random.Generator) -> Iterator[str]:
    """A process that reads slices for a training."""
    words = [*verb.words(output), "--data.num_workers", "2"]
    process = _started(words)
    children: list[int] = []
    while process.poll() is None and not (children := _loaders(process.pid)):
        time.sleep(0.02)
    time.sleep(float(rng.uniform(0, 0.5)))
    for child in children[:1]:
        os.kill(child, signal.SIGKILL)
    text = process.communicate()[1]
    if process.returncode == 0:
        yield "status 0"
    yield from _wrong_words(text)
    yield from _continued(verb, output, expected, words)


def checkpoint_cut(verb: Verb, output: Path, expected: object, rng: np.random.Generator) -> Iterator[str]:
    """The last checkpoint of a stopped training, which has one before it, loses its end."""
    process, began = _started(verb.words(output)), time.monotonic()
    before = output / PREVIOUS_CHECKPOINT
    while process.poll() is None and not before.exists() and time.monotonic() - began < BEGIN_S:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    last = output / LAST_CHECKPOINT
    if '"finished"' in (output / RUN_FILE).read_text():
        return
    os.truncate(last, int(rng.integers(last.stat().st_size)))
    yield from _continued(verb, output, expected, verb.words(output))


def _continued(verb: Verb, output: Path, expected: object, words: Sequence[str]) -> Iterator[str]:
    done = small_grid.run(words)
    if done.returncode:
        yield f"does not continue: status {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"
    elif verb.content(output) != expected:
        yield "continues to another end"


def _wrong_words(text: str) -> Iterator[str]:
    lines = text.strip().splitlines()
    if "Traceback" in text or not lines or not lines[-1].startswith("lesionseg: "):
        yield f"its last line: {lines[-1:]}"


def _loaders(process: int) -> list[int]:
    """Children of a process, by Linux, that torch has made to read data."""
    try:
        children = [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
        return [child for child in children if b"pt_data" in Path(f"/proc/{child}/comm").read_bytes()]
    except OSError:  # gone in between
        return []


def _started(words: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*small_grid.LESIONSEG, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


TRIES: dict[str, tuple[str, Try]] = {
    "two prepare at once": ("prepare", two_at_once),
    "fit: a worker killed": ("fit", worker_killed),
    "fit: the last checkpoint cut off": ("fit", checkpoint_cut),
}


def main() -> int:
    options = asked(__file__, tries=(5, "of each kind"))
    os.environ.update(WANDB_MODE="disabled", OMP_NUM_THREADS="1")
    rows, faults = [], []
    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), np.random.default_rng(options.seed)
        small_grid.made_in(folder)
        known: dict[str, object] = {}
        for what, (verb_name, attempt) in TRIES.items():
            verb = verbs(folder)[verb_name]
            if verb_name not in known:
                small_grid.run(verb.words(folder / f"{verb_name}-whole"))
                known[verb_name] = verb.content(folder / f"{verb_name}-whole")
            found = []
            for n in range(options.tries):
                output = folder / f"{attempt.__name__}-{n}"
                found += [f"{what}, try {n}: {fault}" for fault in attempt(verb, output, known[verb_name], rng)]
            rows.append(Row(what, options.tries, len(found)))
            faults += found
    return publish(rows, faults, options.output, options.seed)


if __name__ == "__main__":
    sys.exit(main())
