"""Command lines of `fit`, `validate` and `test`: the YAML files they name, and what is wrong with them, on one line."""

from __future__ import annotations

import re
from argparse import ArgumentError
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from lesionseg.arguments import where_keys_are_listed
from lesionseg.errors import InputError
from lesionseg.request import words

#: Settings of a run hold a few hundred values; aliases that stand for each other soon stand for millions.
_MAX_NODES = 100_000
#: What jsonargparse says around the one fault that matters, where a type has alternatives.
_AROUND = (r"Does not validate against any of the Union subtypes.*?Errors: - ", r" - Expected a NoneType.*")
#: How jsonargparse names a key: one it does not know, and one whose value is wrong.
_UNKNOWN = re.compile(r"(?:ption '|unrecognized arguments: (?:--)?)([\w.]+)")
_WRONG_TYPE = re.compile(r'Parser key "([\w.]+)": Expected an? (.*)\. Got value: (.*)')
_WRONG_VALUE = re.compile(r'Parser key "([\w.]+)": (.*)')


def read_configs(args: Sequence[str]) -> dict[str, Any]:
    """Contents of every YAML file that follows `--config`, by its path.

    Raises:
        InputError: a file that is missing, no YAML, no mapping, or names a key twice.
    """
    paths = [value for option, value in pairwise(words(args)) if option in ("-c", "--config")]
    return {path: _read(path) for path in paths}


class _Loader(yaml.SafeLoader):
    """Takes 1e-3 for a number, as YAML 1.2 and the parser of the settings do; YAML 1.1 wants 1.0e-3."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(text: str) -> Any:
    """Plain data from YAML; `yaml.YAMLError`, `ValueError` or `RecursionError` where it is none."""
    return yaml.load(text, _Loader)


def refuse_duplicate_keys(text: str, where: str | Path) -> None:
    """Refuse YAML in which a mapping names a key twice (YAML readers silently keep the last).

    Raises:
        InputError: a doubled key, with its name and line; a key that is no word; aliases that stand for themselves, or
            for more than any settings hold.
    """
    waiting, seen_nodes = [yaml.compose(text)], 0
    while waiting:
        node = waiting.pop()
        seen_nodes += 1
        if seen_nodes > _MAX_NODES:
            raise InputError(where, expected=f"at most {_MAX_NODES} values, aliases written out", got="more",
                             remedy="write out what the aliases stand for")  # fmt: skip
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            _check_keys([key for key, _ in node.value], where)
            waiting += [value for _, value in node.value]


def _check_keys(keys: Sequence[yaml.Node], where: str | Path) -> None:
    """Raise `InputError` unless the keys of a mapping are different words."""
    seen: set[str] = set()
    for key in keys:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            got = f"a list or mapping in line {line}"
            raise InputError(where, expected="keys that are words", got=got, remedy="write `key: value`")
        if key.value in seen:
            got = f"{key.value!r} again in line {line}"
            raise InputError(where, expected="each key once", got=got, remedy="remove one of the two")
        seen.add(key.value)


def wrong_option(
    error: ArgumentError, args: Sequence[str], configs: dict[str, Any], known: Iterable[str]
) -> InputError:
    """What the parser found wrong, with the option or the file it stands in and the keys that come close.

    Args:
        error: of jsonargparse, several lines as a rule.
        args: the command line, the verb first.
        configs: from `read_configs`.
        known: every key of the verb.
    """
    text = re.sub(r"<class '(\w+)'>|typing\.", r"\1", " ".join(error.message.split()))
    for around in _AROUND:
        text = re.sub(around, "", text)
    remedy = where_keys_are_listed(args[0])
    if found := _UNKNOWN.search(text):
        if near := get_close_matches(found[1], list(known), n=3, cutoff=0.75):
            remedy = f"perhaps {' or '.join(near)}"
        place = _place(found[1], args, configs)
        return InputError(place, expected="known keys", got=f"the unknown key {found[1]}", remedy=remedy)
    if found := _WRONG_TYPE.fullmatch(text):
        return InputError(_place(found[1], args, configs), expected=found[2], got=found[3], remedy=remedy)
    if found := _WRONG_VALUE.fullmatch(text):
        return InputError(_place(found[1], args, configs), expected="a value that fits", got=found[2], remedy=remedy)
    return InputError("command line", expected=f"options of `lesionseg {args[0]}`", got=text, remedy=remedy)


def _read(path: str) -> Any:
    try:
        text = Path(path).read_text()
        refuse_duplicate_keys(text, path)
        content = read_yaml(text)
    except OSError as error:
        raise InputError(path, expected="a YAML file", got=str(error.strerror), remedy="check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(path, expected="a YAML file", got="no UTF-8", remedy="save it as UTF-8") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # 2001-13-45 is a date of no month, a ValueError
        got = " ".join(str(error).split())
        raise InputError(path, expected="YAML", got=got, remedy="put right what stands there") from error
    if not isinstance(content, dict):
        got = "an empty file" if content is None else f"a {type(content).__name__}"
        raise InputError(path, expected="keys with values", got=got, remedy="write `key: value`")
    return content


def _place(key: str, args: Sequence[str], configs: dict[str, Any]) -> str:
    """Where a dotted key was given last: in a file, told as `file: key`, or as an option."""
    place = f"--{key}"
    for option, value in pairwise([*words(args), ""]):
        if option in ("-c", "--config") and _holds(configs.get(value), key.split(".")):
            place = f"{value}: {key}"
        elif option == f"--{key}" or option.startswith(f"--{key}."):
            place = f"--{key}"
    return place


def _holds(content: Any, key: list[str]) -> bool:
    if not key:
        return True
    return isinstance(content, dict) and key[0] in content and _holds(content[key[0]], key[1:])
