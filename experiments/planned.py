"""Whether the schedules of a grid are there and fit its number of epochs: told before hours of pretraining.

Usage: planned.py 'SCHEDULE …' [OPTION …]   (`make planned`, and with it `make finetune`)
    OPTION: of `lesionseg fit`, as every cell of the grid gets them, later ones before earlier ones

What else may be wrong with a schedule, `lesionseg fit` says.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

from lesionseg.command_line import read_configs
from lesionseg.errors import InputError
from lesionseg.request import words
from lesionseg.schedules import FreezeSchedule

SCHEDULES = Path(__file__).parent / "schedules"


def check(name: str, options: Sequence[str]) -> None:
    """Raise `InputError` for a schedule that is not there, or has more steps than the options give it epochs."""
    path = SCHEDULES / f"{name}.yaml"
    if not path.is_file():
        near = get_close_matches(name, [other.stem for other in SCHEDULES.glob("*.yaml")])
        remedy = f"perhaps {' or '.join(near)}" if near else "write it, or correct the name"
        raise InputError("SCHEDULES", expected="names of files of experiments/schedules", got=name, remedy=remedy)
    cell = ["--config", str(path), *options]
    configs, epochs = read_configs(cell), 0
    for option, value in pairwise(words(cell)):
        if option in ("-c", "--config"):
            epochs = (configs[value].get("trainer") or {}).get("max_epochs", epochs)
        elif option == "--trainer.max_epochs":
            epochs = int(value) if value.isdecimal() else None
    trains = (configs[str(path)].get("schedule") or {}).get("trains")
    if trains is None:
        raise InputError(path, expected="schedule: trains:", got="none", remedy="say when each block trains")
    try:
        schedule = FreezeSchedule.parse(trains)
        if isinstance(epochs, int):  # or `fit` says what it wants
            schedule.check_epochs(epochs)
    except InputError as error:
        raise InputError(path, expected=error.expected, got=error.got, remedy=error.remedy) from None


def main() -> int:
    schedules, *options = sys.argv[1:]
    try:
        for name in schedules.split():
            check(name, options)
    except InputError as error:
        print(f"lesionseg: wrong input: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
