"""Whether a grid can be trained and compared: its schedules in its epochs, its folds on the patients that there are.

Usage: planned.py 'SCHEDULE …' [--grid FOLDER --seeds 'SEED …'] [--against ROW] [--table 'CSV …'] [OPTION …]
(`make planned`, and with it `make finetune`: before hours of pretraining)
    FOLDER: of the runs, which are compared with all that lies there
    CSV …: a table of slices that waits for the liver net, and options of `lesionseg prepare slices`
    OPTION: of `lesionseg fit`, as every cell of the grid gets them, later ones before earlier ones; without
    --data.store, as the slices need a pretrained net first, the folds are not looked at

What else may be wrong with an option, `lesionseg fit` says.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import yaml

from lesionseg.arguments import parser
from lesionseg.command_line import read_configs, read_yaml
from lesionseg.data import slices
from lesionseg.data.folds import split
from lesionseg.data.store import Store, read_manifest
from lesionseg.errors import InputError, some
from lesionseg.request import words
from lesionseg.runs import CONFIG_FILE, RUN_FILE, RunInfo, left_by_fit
from lesionseg.schedules import FreezeSchedule

SCHEDULES = Path(__file__).parent / "schedules"
#: Settings that must be alike in a comparison, by their dotted keys (`lesionseg.run_identity`, which loads torch).
_COUNTS = re.compile(
    r"schedule\.|data\.(?!store|fold$|seed|num_workers)|model\.init_args\.(?!weights|compile|channels_last)"
    r"|trainer\.(max_epochs|limit_train_batches|precision|gradient_clip_val|accumulate_grad_batches)$"
)


def check_schedule(name: str, options: Sequence[str]) -> None:
    """Refuse what would stop the runs of a schedule, or `compare` after them.

    Raises:
        InputError: it is not there, has another name than its file, names blocks that there are not, or has more steps
            than the options give it epochs.
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
        schedule.check_names()
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


def check_comparison(root: Path, rows: Sequence[str], seeds: Sequence[int], options: Sequence[str]) -> None:
    """Refuse a grid that could not be compared with what else lies in its folder, before anything is trained.

    Raises:
        InputError: runs that are not asked for are unfinished, of other data, or of other settings as far as they are
            given; or rows will differ in their folds and seeds.
    """
    folds, path = setting(options, "data", "folds"), setting(options, "data", "store")
    if not isinstance(folds, int):
        return
    store = None if path is None else read_manifest(Path(str(path))).manifest_sha256
    cells = {row: set(product(range(folds), seeds)) for row in rows}
    unfit: dict[str, list[str]] = {}
    for folder in sorted(path.parent for path in root.glob(f"*/fold*-seed*/{RUN_FILE}")):
        info, held = RunInfo.read(folder), cells.setdefault(folder.parent.name, set())
        if (info.fold, info.seed) in held:
            continue  # asked for, so trained anew where it is another
        held.add((info.fold, info.seed))
        reason = ""
        if info.state != "finished":
            reason = "unfinished"
        elif store not in (None, info.store_sha256):
            reason = "other data"
        elif other := other_settings(folder, info.name, info.name in rows, options):
            reason = f"other {some(other, 3)}"
        if reason:
            unfit.setdefault(reason, []).append(str(folder.relative_to(root)))
    if unfit:
        got = "; ".join(f"{some(folders, 3)} ({reason})" for reason, folders in unfit.items())
        raise InputError(root, expected="nothing beside the grid that cannot be compared with it", got=got,
                         remedy="ask for them too, move them away, or name another NAME=")  # fmt: skip
    held_by_any = set().union(*cells.values())
    every = set(product({fold for fold, _ in held_by_any}, {seed for _, seed in held_by_any}))
    if fewer := sorted(row for row, held in cells.items() if held != every):
        has = " ".join(map(str, sorted({seed for _, seed in every})))
        raise InputError(root, expected="every fold with every seed in every row",
                         got=f"fewer in {', '.join(fewer)} (seeds of all rows: {has})",
                         remedy="ask for these rows and all those seeds, or name another NAME=")  # fmt: skip


def other_settings(folder: Path, row: str, asked: bool, options: Sequence[str]) -> list[str]:
    """Keys of the numbers and words that a finished run had otherwise than the cells of a grid will have them.

    Args:
        folder: of the run.
        row: its name, which may be that of a file of experiments/schedules.
        asked: cells of this row will be trained, so that its schedule counts.
        options: of every cell. What the file of the row sets as well is not looked at: which comes later is not known.
    """
    if not (folder / CONFIG_FILE).exists():
        return []
    held = _settings(left_by_fit(folder, CONFIG_FILE, read_yaml))
    given, path = _given(options), SCHEDULES / f"{row}.yaml"
    of_row = _given(["--config", str(path)]) if path.is_file() else {}
    alike = {key: given.get(key, of_row.get(key)) for key in given.keys() ^ of_row.keys() if asked or key in given}
    return sorted(key for key in alike.keys() & held.keys() if _COUNTS.match(key) and alike[key] != held[key])


def _given(cell: Sequence[str]) -> dict[str, Any]:
    """What a command line and its YAML files set, by dotted key."""
    configs, given = read_configs(cell), dict[str, Any]()
    for option, word in pairwise(words(cell)):
        if option in ("-c", "--config"):
            given |= _settings(configs[word])
        elif option.startswith("--"):
            given |= _settings({option[2:]: _value(word)})
    return given


def _settings(tree: Any) -> dict[str, Any]:
    """Nested settings by dotted key; when each block trains is one of them."""
    found: dict[str, Any] = {}
    for key, value in tree.items() if isinstance(tree, dict) else ():
        below = isinstance(value, dict) and key != "trains"
        found |= {f"{key}.{name}": leaf for name, leaf in _settings(value).items()} if below else {key: value}
    return found


def check_against(root: Path, rows: Sequence[str], against: str) -> None:
    """Raise `InputError` for a row to compare with that there will not be."""
    there = {*rows, *(path.parent.parent.name for path in root.glob(f"*/fold*-seed*/{RUN_FILE}"))}
    if against not in there:
        raise InputError("AGAINST", expected=f"a row: {', '.join(sorted(there))}", got=against, remedy="correct it")


def numbers(seeds: str) -> list[int]:
    """The seeds; `InputError` where one is no whole number."""
    if wrong := [word for word in seeds.split() if not word.isdecimal()]:
        raise InputError("SEEDS", expected="whole numbers", got=wrong[0], remedy="correct it")
    return [int(word) for word in seeds.split()]


class _SomeNet:
    """Stands for the liver net that there is not yet."""

    identity = "none"


def check_table(line: str) -> None:
    """Raise `InputError` for the first fault of a table of slices that shows before an image is read."""
    given = parser().parse_args(["prepare", "slices", *shlex.split(line), "--output", "none"])
    slices.cases(given.table, labels=given.labels, groups=given.groups, exclude=given.exclude, predict_liver=_SomeNet())


def setting(cell: Sequence[str], group: str, key: str) -> Any:
    """What a command line and its YAML files set last; None: nothing."""
    configs, value = read_configs(cell), None
    for option, word in pairwise(words(cell)):
        if option in ("-c", "--config"):
            held = configs[word].get(group)
            value = held.get(key, value) if isinstance(held, dict) else value
        elif option == f"--{group}.{key}":
            value = _value(word)
    return value


def _value(word: str) -> Any:
    try:
        return read_yaml(word)
    except yaml.YAMLError:
        return word


def main() -> int:
    line = argparse.ArgumentParser(allow_abbrev=False)
    line.add_argument("schedules")
    line.add_argument("--grid", type=Path)
    line.add_argument("--seeds", default="")
    line.add_argument("--against")
    line.add_argument("--table")
    given, options = line.parse_known_args()
    rows = given.schedules.split()
    try:
        for name in rows:
            check_schedule(name, options)
        if given.table is not None:
            check_table(given.table)
        check_folds(options)
        if given.grid is not None:
            check_comparison(given.grid, rows, numbers(given.seeds), options)
            if given.against is not None:
                check_against(given.grid, rows, given.against)
    except InputError as error:
        print(f"lesionseg: wrong input: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
