"""Command lines of `fit`, `validate` and `test`: the YAML files they name, and what is wrong with them, on one line."""

from __future__ import annotations

import re
from argparse import ArgumentError
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from lesionseg.errors import InputError
from lesionseg.request import words
from lesionseg.schedules import refuse_duplicate_keys

#: What jsonargparse says around the one fault that matters, where a type has alternatives.
_AROUND = (r"Does not validate against any of the Union subtypes.*?Errors: - ", r" - Expected a <class 'NoneType'>.*")
#: How jsonargparse names a key: one it does not know, and one whose value is wrong.
_UNKNOWN = re.compile(r"(?:ption '|unrecognized arguments: (?:--)?)([\w.]+)")
_WRONG_VALUE = re.compile(r'Parser key "([\w.]+)": (.*)')


def read_configs(args: Sequence[str]) -> dict[str, Any]:
    """Contents of every YAML file that follows `--config`, by its path.

    Raises:
        InputError: a file that is missing, no YAML, no mapping, or names a key twice.
    """
    paths = [value for option, value in pairwise(words(args)) if option in ("-c", "--config")]
    return {path: _read(path) for path in paths}


def wrong_option(error: ArgumentError, configs: dict[str, Any], verb: str, known: Collection[str]) -> InputError:
    """What the parser found wrong, with the file it stands in and the keys that come close.

    Args:
        error: of jsonargparse, several lines as a rule.
        configs: from `read_configs`.
        verb: `fit`, `validate` or `test`.
        known: every key of this verb.
    """
    text = " ".join(error.message.split())
    for words_around in _AROUND:
        text = re.sub(words_around, "", text)
    remedy = f"`lesionseg {verb} --help all` lists every key"
    if found := _UNKNOWN.search(text):
        near = get_close_matches(found[1], known, n=3, cutoff=0.75)
        got, expected = f"the unknown key {found[1]}", "known keys"
        return InputError(_place(found[1], configs), expected=expected, got=got, remedy=", ".join(near) or remedy)
    if found := _WRONG_VALUE.fullmatch(text):
        return InputError(_place(found[1], configs), expected=f"another {found[1]}", got=found[2], remedy=remedy)
    return InputError("command line", expected=f"options of `lesionseg {verb}`", got=text, remedy=remedy)


def _read(path: str) -> Any:
    try:
        text = Path(path).read_text()
        refuse_duplicate_keys(text, path)
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(path, expected="a YAML file", got=str(error), remedy="check the path") from error
    except yaml.YAMLError as error:
        got = " ".join(str(error).split())
        raise InputError(path, expected="YAML", got=got, remedy="put right what stands there") from error
    if not isinstance(content, dict):
        raise InputError(path, expected="keys with values", got=type(content).__name__, remedy="write `key: value`")
    return content


def _place(key: str, configs: dict[str, Any]) -> str:
    """The last file that holds a dotted key, else the option it is on the command line."""
    holding = [path for path, content in configs.items() if _holds(content, key.split("."))]
    return holding[-1] if holding else f"--{key}"


def _holds(content: Any, key: list[str]) -> bool:
    if not key:
        return True
    return isinstance(content, dict) and key[0] in content and _holds(content[key[0]], key[1:])
