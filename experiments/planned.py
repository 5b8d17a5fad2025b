"""Whether a grid can be trained: its schedules in its number of epochs, its folds on the patients that there are.

Usage: planned.py 'SCHEDULE …' [OPTION …]   (`make planned`, and with it `make finetune`: before hours of pretraining)
    OPTION: of `lesionseg fit`, as every cell of the grid gets them, later ones before earlier ones; without
    --data.store, as the slices need a pretrained net first, the folds are not looked at

What else may be wrong with an option, `lesionseg fit` says.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from lesionseg.command_line import read_configs
from lesionseg.data.folds import split
from lesionseg.data.store import Store
from lesionseg.errors import InputError
from lesionseg.request import words
from lesionseg.schedules import FreezeSchedule

SCHEDULES = Path(__file__).parent / "schedules"


def check_schedule(name: str, options: Sequence[str]) -> None:
    """Refuse what would stop the runs of a schedule, or `compare` after them.

    Raises:
        InputError: it is not there, has another name than its file, or more steps than the options give it epochs.
    """
    path = SCHEDULES / f"{name}.yaml"
    if not path.is_file():
        near = get_close_matches(name, [other.stem for other in SCHEDULES.glob("*.yaml")])
        remedy = f"perhaps {' or '.join(near)}" if near else "write it, or correct the name"
        raise InputError("SCHEDULES", expected="names of files of experiments/schedules", got=name, remedy=remedy)
    cell = ["--config", str(path), *options]
    named = read_configs(cell)[str(path)].get("name")
    if named != name:
        raise InputError(path, expected=f"name: {name}, as the file is called", got=str(named), remedy="correct it")
    trains, epochs = setting(cell, "schedule", "trains"), setting(cell, "trainer", "max_epochs")
    if trains is None:
        raise InputError(path, expected="schedule: trains:", got="none", remedy="say when each block trains")
    try:
        schedule = FreezeSchedule.parse(trains)
        if isinstance(epochs, int):
            schedule.check_epochs(epochs)
    except InputError as error:
        raise InputError(path, expected=error.expected, got=error.got, remedy=error.remedy) from None


def check_folds(options: Sequence[str]) -> None:
    """Raise `InputError` where the patients of the store are too few for the folds and their inner validation."""
    store, folds = setting(options, "data", "store"), setting(options, "data", "folds")
    if store is None or not isinstance(folds, int):
        return
    share, seed, given = setting(options, "data", "inner_validation"), setting(options, "data", "split_seed"), {}
    if isinstance(share, int | float):
        given["inner_validation"] = share
    if isinstance(seed, int):
        given["seed"] = seed
    records = Store.open(str(store)).records
    for fold in range(folds):
        split(records, folds=folds, fold=fold, **given)


def setting(cell: Sequence[str], group: str, key: str) -> Any:
    """What a command line and its YAML files set last; None: nothing."""
    configs, value = read_configs(cell), None
    for option, word in pairwise(words(cell)):
        if option in ("-c", "--config"):
            held = configs[word].get(group)
            value = held.get(key, value) if isinstance(held, dict) else value
        elif option == f"--{group}.{key}":
            try:
                value = yaml.safe_load(word)
            except yaml.YAMLError:
                value = word
    return value


def main() -> int:
    schedules, *options = sys.argv[1:]
    try:
        for name in schedules.split():
            check_schedule(name, options)
        check_folds(options)
    except InputError as error:
        print(f"lesionseg: wrong input: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
