"""Bytes and texts damaged at random, and what becomes of them at a door."""

from __future__ import annotations

import re
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lesionseg.errors import InputError

#: A read of a small file that takes longer hangs.
HANG_S = 10
#: What `Tally.note` is told of a file that an independent library refuses.
ALONE = "refused by the other library"


class Hang(BaseException):
    """A read took more than `HANG_S`; no `Exception`, so that nothing on the way can take it for one of its own."""


@dataclass
class Tally:
    """What became of the files of one door.

    Attributes:
        count: files.
        outcomes: what became of those that were rightly read or refused.
        faults: one line for each of the others.
    """

    count: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def note(self, read: Callable[[], Any], agrees: Callable[[Any], str | None], what: str) -> None:
        """Read a file; `agrees` tells what an independent reader sees differently (None: nothing)."""
        self.count += 1
        try:
            with _limited(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                held = read()
        except InputError:
            self.outcomes["refused"] += 1
            return
        except Hang:
            self.faults.append(f"{what}: more than {HANG_S} s")
            return
        except Exception as error:  # anything else is what is looked for
            self.faults.append(f"{what}: {type(error).__name__}: {error}")
            return
        difference = agrees(held)
        if difference in (None, ALONE):
            self.outcomes["read" if difference is None else "read by us alone"] += 1
        else:
            self.faults.append(f"{what}: {difference}")


@contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- mutations of bytes ----

#: Numbers that break readers.
EXTREMES = (0, 1, -1, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, -(2**31), 2**32 - 1)


def mutated(original: bytes, rng: np.random.Generator, head: int) -> bytes:
    """The bytes with one kind of damage; three of four hit the first `head` of them."""
    data, within = bytearray(original), head if rng.random() < 0.75 else len(original)
    kind = rng.integers(6)
    if kind == 0:
        for place in rng.integers(0, within, rng.integers(1, 6)):
            data[place] = rng.integers(256)
    elif kind == 1:
        place = int(rng.integers(0, within))
        data[place] ^= 1 << rng.integers(8)
    elif kind == 2:
        value, size = int(rng.choice(np.array(EXTREMES))), int(rng.choice((2, 4)))
        place = int(rng.integers(0, max(within - size, 1))) // 2 * 2
        data[place : place + size] = (value % 256**size).to_bytes(size, "little")
    elif kind == 3:
        place = int(rng.integers(0, max(within - 4, 1))) // 4 * 4
        number = rng.choice((np.nan, np.inf, -np.inf, 0.0, -1.0, 1e-30, 1e30, 1.5))
        data[place : place + 4] = np.float32(number).tobytes()
    elif kind == 4:
        del data[int(rng.integers(0, len(data))) :]
    else:
        first, length = int(rng.integers(0, within)), int(rng.integers(1, 64))
        if rng.random() < 0.5:
            del data[first : first + length]
        else:
            data[first:first] = rng.integers(0, 256, length, np.uint8).tobytes()
    return bytes(data)


# ---- mutations of text ----

#: What may stand in a text by mistake.
TOKENS = (
    "", "null", "NaN", "-1", "0", "1e999", "[]", "{}", "[[", "}", '"', "true", "\x00", "\ufeff", "é", ",", ":", "\t",
    "*a", "&a", "!!python/object:os.system", "2001-13-45", "9" * 400, "../../etc/passwd", "'",
)  # fmt: skip


def mutated_text(text: str, rng: np.random.Generator) -> bytes:
    """The text with one to three kinds of damage, in UTF-8 (rarely not)."""
    for _ in range(rng.integers(1, 4)):
        lines = text.split("\n")
        kind, place = int(rng.integers(7)), int(rng.integers(len(text) + 1))
        line = int(rng.integers(len(lines)))
        if kind == 0:
            text = text[:place]
        elif kind == 1:
            text = text[:place] + TOKENS[rng.integers(len(TOKENS))] + text[place:]
        elif kind == 2:
            text = text[:place] + text[place + int(rng.integers(1, 20)) :]
        elif kind == 3:
            text = "\n".join([*lines[:line], *lines[line + 1 :]])
        elif kind == 4:
            text = "\n".join([*lines[: line + 1], *lines[line:]])
        elif kind == 5:  # one word becomes another
            words = re.split(r"(\W+)", text)
            words[int(rng.integers(len(words)))] = TOKENS[rng.integers(len(TOKENS))]
            text = "".join(words)
        else:
            text = text[:place] + "[" * 3000 + text[place:]
    data = text.encode()
    if rng.random() < 0.1:
        place = int(rng.integers(len(data) + 1))
        data = data[:place] + b"\xff\xfe" + data[place:]
    return data
