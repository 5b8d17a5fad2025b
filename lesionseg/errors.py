"""The one error for input that a user can put right."""

from __future__ import annotations

from pathlib import Path


class InputError(Exception):
    """Wrong input: says the file, what was expected, what was found, and the remedy, on one line.

    The command line prints it to stderr without a traceback and exits with status 2.
    """

    def __init__(self, where: str | Path, *, expected: str, got: str, remedy: str) -> None:
        self.where, self.expected, self.got, self.remedy = str(where), expected, got, remedy
        super().__init__(f"{where}: expected {expected}; got {got}; {remedy}".replace("\n", " "))

    def __reduce__(self) -> tuple:
        """Keep all four parts when the error crosses a process border (a worker of `prepare`)."""
        return _rebuild, (self.where, self.expected, self.got, self.remedy)


def _rebuild(where: str, expected: str, got: str, remedy: str) -> InputError:
    return InputError(where, expected=expected, got=got, remedy=remedy)
