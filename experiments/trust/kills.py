"""SIGKILL and SIGTERM at random moments of every verb that writes: what is left, and what the same command makes of it.

Usage: kills.py [--kills N] [--seed N] [--output JSON]

A round of a verb: in a new place the command is started and killed at a random moment of its usual time, `KILLS` times,
each time in what the last one left; then it runs to its end. After every kill, what a reader may open must be refused
or be what the undisturbed command made, and a checkpoint must load; at the end all must be equal to the last bit. A
command must leave within `LEAVE_S` of a SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count as count_from
from pathlib import Path

import numpy as np
import small_grid
import torch
from rows import Row, asked, publish

from lesionseg.data.store import Store
from lesionseg.errors import InputError
from lesionseg.model import Model
from lesionseg.run_weights import LAST_CHECKPOINT, read_net, tensors_sha256
from lesionseg.runs import finished_run
from lesionseg.study_folder import Record, file_sha256

#: Kills before a command may run to its end.
KILLS = 3
#: A scheduler waits so long between SIGTERM and SIGKILL.
LEAVE_S = 30
#: What `segment` writes without a time in it.
STUDY_FILES = ("segmentation.nii.gz", "lesions.csv")
#: What `evaluate` writes of all cases.
TABLES = ("cases.csv", "lesions.csv", "evaluation.json", "evaluation.md")


@dataclass(frozen=True)
class Verb:
    """A command under test.

    Attributes:
        words: its command line for an output.
        content: what a reader makes of an output, in comparable form; `InputError` where it is refused.
    """

    words: Callable[[Path], list[str]]
    content: Callable[[Path], object]


@dataclass
class Count:
    """What came of the kills of one verb."""

    kills: int = 0
    terms: int = 0
    refused: int = 0
    whole: int = 0
    slowest_s: float = 0.0  # to leave after a SIGTERM
    faults: list[str] = field(default_factory=list)


def verbs(folder: Path) -> dict[str, Verb]:
    """Every verb that writes, on the small grid of a folder."""
    return {
        "prepare": Verb(partial(small_grid.prepare, folder), _store),
        "fit": Verb(lambda run: [*small_grid.fit(folder, run, epochs=6), "--data.num_workers", "1"], _run),
        "export": Verb(partial(small_grid.export, folder, folder / "run"), _model),
        "segment": Verb(partial(small_grid.segment, folder), _studies),
        "evaluate": Verb(partial(small_grid.evaluate, folder), _tables),
    }


def _store(path: Path) -> object:
    return Store.open(path, verify=True).manifest_sha256


def _run(path: Path) -> object:
    last = path / LAST_CHECKPOINT
    if last.exists():
        torch.load(last, map_location="cpu", weights_only=True)  # must load, whatever the run says of itself
    finished_run(path)
    return tensors_sha256(read_net(path)[1]), *(file_sha256(path / name) for name in ("slices.csv", "lesions.csv"))


def _model(path: Path) -> object:
    return Model.load(path).identity


def _studies(path: Path) -> object:
    """Every study that has a folder: it must be whole. Refused while some are missing."""
    found = {}
    for folder in sorted(path.glob("volume-*")):
        record = Record.read(folder)
        if record is None or any(file_sha256(folder / name) != sha256 for name, sha256 in record.files.items()):
            return f"{folder.name} is not whole"
        found[folder.name] = tuple(file_sha256(folder / name) for name in STUDY_FILES)
    if len(found) < 3:
        raise InputError(path, expected="3 studies", got=f"{len(found)}", remedy="")
    return found


def _tables(path: Path) -> object:
    """The tables of an evaluation. Refused while some are missing."""
    found = {name: file_sha256(path / name) for name in TABLES if (path / name).exists()}
    if len(found) < len(TABLES):
        raise InputError(path, expected=f"{len(TABLES)} tables", got=f"{len(found)}", remedy="")
    return found


def disturbed(
    verb: Verb, output: Path, expected: object, usual_s: float, rng: np.random.Generator, count: Count
) -> None:
    """One round; adds to the count. It ends early where the command was faster than its killer."""
    for _ in range(KILLS):
        number = signal.SIGTERM if rng.random() < 0.5 else signal.SIGKILL
        when = f"{number.name} after {(wait_s := float(rng.uniform(0, usual_s))):.1f} s"
        process = _started(verb.words(output))
        try:
            process.wait(wait_s)
            break
        except subprocess.TimeoutExpired:
            count.faults += [f"{when}: {fault}" for fault in _killed(process, number, count)]
        try:
            held = verb.content(output)
        except InputError:
            count.refused += 1
        except Exception as error:  # what a reader must never meet
            count.faults.append(f"{when}: {type(error).__name__}: {error}")
        else:
            count.whole += 1
            if held != expected:
                count.faults.append(f"{when}: read, but not what it should be")
    done = small_grid.run(verb.words(output))
    if done.returncode:
        count.faults.append(f"does not continue: status {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    elif verb.content(output) != expected:
        count.faults.append("continues to another end than the undisturbed command")


def _killed(process: subprocess.Popen[bytes], number: signal.Signals, count: Count) -> list[str]:
    """Send the signal and see the process go, with those it has left, as where a machine goes down.

    SIGTERM goes to all of its processes at once, as a scheduler sends it.
    """
    count.kills += 1
    count.terms += number == signal.SIGTERM
    began, faults = time.monotonic(), []
    if number == signal.SIGTERM:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    try:
        process.wait(LEAVE_S)
    except subprocess.TimeoutExpired:
        faults.append(f"still there {LEAVE_S} s later")
    if number == signal.SIGTERM:
        count.slowest_s = max(count.slowest_s, time.monotonic() - began)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return faults


def _started(words: Sequence[str]) -> subprocess.Popen[bytes]:
    quiet = subprocess.DEVNULL
    return subprocess.Popen([*small_grid.LESIONSEG, *words], stdout=quiet, stderr=quiet, start_new_session=True)


def main() -> int:
    options = asked(__file__, kills=(15, "of each verb, at least"))
    os.environ.update(WANDB_MODE="disabled", OMP_NUM_THREADS="1")
    rows, faults = [], []
    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), np.random.default_rng(options.seed)
        small_grid.made_in(folder)
        for verb_name, verb in verbs(folder).items():
            whole = folder / f"{verb_name}-whole"
            began = time.monotonic()
            small_grid.run(verb.words(whole))
            usual_s, count = time.monotonic() - began, Count()
            expected = verb.content(whole)
            rounds = count_from(1)
            while count.kills < options.kills:
                disturbed(verb, folder / f"{verb_name}-{next(rounds)}", expected, usual_s, rng, count)
            detail = (
                f"after them refused {count.refused}, whole {count.whole}; "
                f"{count.terms} were SIGTERM, after which it left within {count.slowest_s:.1f} s"
            )
            rows.append(Row(f"kills of {verb_name} at random moments", count.kills, len(count.faults), detail))
            faults += [f"{verb_name}: {fault}" for fault in count.faults]
    return publish(rows, faults, options.output, options.seed)


if __name__ == "__main__":
    sys.exit(main())
