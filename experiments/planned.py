"""Whether the schedules of a grid are there and fit its number of epochs: told before hours of pretraining.

Usage: planned.py PROFILE 'SCHEDULE …' [OPTION …]   (`make finetune`)
    PROFILE: YAML whose `trainer.max_epochs` counts where the options name none
    OPTION: of `lesionseg fit`, as each cell of the grid gets them

What else may be wrong with a schedule, `lesionseg fit` says.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path

import yaml

from lesionseg.errors import InputError
from lesionseg.schedules import FreezeSchedule

SCHEDULES = Path(__file__).parent / "schedules"


def check(name: str, epochs: int) -> None:
    """Raise `InputError` for a schedule that is not there, or is too long for so many epochs."""
    path = SCHEDULES / f"{name}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(name, [other.stem for other in SCHEDULES.glob("*.yaml")])
        remedy = f"perhaps {' or '.join(near)}" if near else "write it, or correct the name"
        raise InputError("SCHEDULES", expected="names of files of experiments/schedules", got=name, remedy=remedy)
    try:
        FreezeSchedule.parse(yaml.safe_load(path.read_text())["schedule"]["trains"]).check_epochs(epochs)
    except InputError as error:
        raise InputError(path, expected=error.expected, got=error.got, remedy=error.remedy) from None


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("profile", type=Path)
    parser.add_argument("schedules", type=str.split)
    parser.add_argument("--trainer.max_epochs", dest="epochs", type=int)
    options, _ = parser.parse_known_args()
    epochs = options.epochs or yaml.safe_load(options.profile.read_text())["trainer"]["max_epochs"]
    try:
        for name in options.schedules:
            check(name, epochs)
    except InputError as error:
        print(f"lesionseg: wrong input: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
