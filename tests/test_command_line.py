import pytest

from lesionseg.command_line import read_yaml, refuse_duplicate_keys
from lesionseg.errors import InputError


def test_yaml_may_hold_so_many_values(monkeypatch):
    monkeypatch.setattr("lesionseg.command_line._MAX_NODES", 4)
    refuse_duplicate_keys("a: [1, 2]\n", "four.yaml")
    with pytest.raises(InputError) as error:
        refuse_duplicate_keys("a: [1, 2, 3]\n", "five.yaml")
    remedy = "write out what the aliases stand for"
    assert str(error.value) == f"five.yaml: expected at most 4 values, aliases written out; got more; {remedy}"


def test_duplicate_keys_are_refused_at_any_depth():
    refuse_duplicate_keys("", "empty.yaml")
    refuse_duplicate_keys("a: {x: 1}\nb: {x: 1}\n", "fine.yaml")
    for text, line in (
        ("a: 1\nb: 2\na: 3\n", 3),
        ("s:\n  trains:\n    stem: [0, 1]\n    stem: never\n", 4),
        ("- {a: 1, a: 2}", 1),
        ("s: {x: 1, x: 2}\nt: {y: 1}\n", 1),
    ):
        with pytest.raises(
            InputError, match=f"same.yaml: expected each key once; got .* again in line {line}; remove one of the two$"
        ):
            refuse_duplicate_keys(text, "same.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [*a]\n", "aliases"),
        ("a: &a {b: *a}\n", "aliases"),
        ("".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]\n" for i in range(9)), "aliases"),
        ("[a]: 1\n", "^odd.yaml: expected keys that are words; got a list or mapping in line 1; write `key: value`$"),
        ("x: 1\n? {a: 1}\n: 2\n", "keys that are words; got a list or mapping in line 2"),
    ],
    ids=["a list in itself", "a mapping in itself", "a billion", "a list as key", "a mapping as key"],
)
def test_yaml_that_is_no_settings_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        refuse_duplicate_keys(text, "odd.yaml")


def test_numbers_are_those_of_the_parser_of_settings():
    text = "[1e-3, 1E+2, .5e1, 2.e-1, -1e3, 1.5, 7, e3, 1e, '1e-3', 0x10]"
    expected = [1e-3, 100.0, 5.0, 0.2, -1000.0, 1.5, 7, "e3", "1e", "1e-3", 16]
    assert read_yaml(text) == expected
    assert [type(value) for value in read_yaml(text)] == [type(value) for value in expected]
