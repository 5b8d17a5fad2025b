"""The one error for input that a user can put right."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path


def printable(text: str) -> str:
    """The text with what no encoding can write, such as a byte of a file's name that is not UTF-8, escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class InputError(Exception):
    """Wrong input: says the file, what was expected, what was found, and the remedy, on one line.

    The command line prints it to stderr without a traceback and exits with status 2.

    Attributes:
        code: names the kind of fault and stays the same from version to version (`lesionseg check` lists it).
    """

    def __init__(self, where: str | Path, *, expected: str, got: str, remedy: str, code: str = "input") -> None:
        self.where, self.expected, self.got, self.remedy, self.code = str(where), expected, got, remedy, code
        super().__init__(printable(f"{where}: expected {expected}; got {got}; {remedy}".replace("\n", " ")))

    @property
    def brief(self) -> str:
        """What was expected and found, without where: a path may name a patient."""
        return printable(f"expected {self.expected}; got {self.got}".replace("\n", " "))

    def __reduce__(self) -> tuple:
        """Keep all parts when the error crosses a process border (a worker of `prepare`)."""
        return _rebuild, (self.where, self.expected, self.got, self.remedy, self.code)


def input_error_in(text: str) -> InputError | None:
    """The `InputError` whose message ends a text, such as what torch makes of one in a process that reads."""
    found = re.search(r"InputError: (.*?): expected (.*); got (.*); (.*)$", text.strip())
    if found is None:
        return None
    where, expected, got, remedy = found.groups()
    return InputError(where, expected=expected, got=got, remedy=remedy)


def _rebuild(where: str, expected: str, got: str, remedy: str, code: str) -> InputError:
    return InputError(where, expected=expected, got=got, remedy=remedy, code=code)


def some(items: Iterable[object], most: int = 4) -> str:
    """The first of many things, and how many more there are, as a line of text has room for."""
    every = list(items)
    shown = ", ".join(map(str, every[:most])) or "none"
    return f"{shown} and {len(every) - most} more" if len(every) > most else shown


def first_sentence(error: BaseException) -> str:
    """First sentence of what an error says: torch goes on about its inside, sometimes over pages."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
