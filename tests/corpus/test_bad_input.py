"""Every kind of bad input, by the command line: one line, status 2, nothing written; all messages as they read.

`messages.txt` holds them. After a change that is meant: `pytest tests/corpus --messages`, and read the difference.
"""

from pathlib import Path

import bad_folders
import bad_images
import bad_tables
import bad_words
import pytest
from bad_kinds import KINDS, Bench, files

from lesionseg.cli import WRONG_INPUT, main

DOORS = (bad_images, bad_tables, bad_folders, bad_words)
MESSAGES = Path(__file__).with_name("messages.txt")
HEAD = "What the command line says of each kind of bad input.\n"


def readable(text: str, bench: Bench) -> str:
    """Without what differs from machine to machine."""
    for path, name in ((bench.folder, "HERE"), (bench.run, "RUN"), (bench.slices, "STORE"), (bench.lits, "LITS")):
        text = text.replace(str(path), name)
    return text.replace(str(Path(__file__).parents[2]), "REPOSITORY")


@pytest.fixture(scope="module")
def messages(request):
    """Kind → message, as read aloud; with `--messages`, those of this run are written in their place."""
    if not request.config.getoption("--messages", default=False):
        _, _, *rows, _ = MESSAGES.read_text().split("\n")
        yield dict(zip(rows[::2], rows[1::2], strict=True))
        return
    told: dict[str, str] = {}
    yield told
    MESSAGES.write_text(HEAD + "\n" + "".join(f"{kind}\n{told[kind]}\n" for kind in KINDS if kind in told))


@pytest.mark.parametrize("kind", KINDS)
def test_one_line_status_2_and_nothing_written(kind, bench, messages, capsys, request):
    words = KINDS[kind](bench)
    before = dict(files(bench.folder))
    capsys.readouterr()
    try:
        status = main(words)
    except SystemExit as left:  # argparse, which prints how a verb is used first
        status = left.code
    told = capsys.readouterr()
    *usage, line = readable(told.err, bench).rstrip("\n").split("\n")
    assert status == WRONG_INPUT, told
    assert dict(files(bench.folder)) == before
    assert "Traceback" not in told.err
    if line.startswith("lesionseg: wrong input: "):
        assert not usage
        place, _, fault = line.removeprefix("lesionseg: wrong input: ").partition(": expected ")
        expected, got, remedy = fault.split("; ", 2)
        assert place
        assert expected
        assert got.startswith("got ")
        assert remedy
    else:
        assert usage[0].startswith("usage: lesionseg ")
    if request.config.getoption("--messages", default=False):
        messages[kind] = "  " + line
    assert messages[kind] == "  " + line


def test_the_snapshot_holds_each_kind_and_no_other(messages):
    assert list(messages) == list(KINDS)
