"""The folder of an evaluation: what lies where, and that it holds one evaluation, by one process at a time.

OUT/request.json                  what is evaluated on what
OUT/cases/<case_id>.json          the score of a case, so that an interrupted evaluation continues
OUT/submission/test-segmentation-<case_id>.nii
OUT/{cases,lesions}.csv, OUT/evaluation.{json,md}
OUT/.lock                         one evaluation at a time
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lesionseg.errors import InputError
from lesionseg.locking import one_at_a_time
from lesionseg.request import source_sha256
from lesionseg.writing import remove_parts, write_text

#: Changes with what is kept of a case; folders of another format are not continued.
EVALUATION_FORMAT = 1
REQUEST, CASES, SUBMISSION = "request.json", "cases", "submission"
_LOCK = ".lock"
#: What an evaluation that was killed before it had its request leaves: the lock, and a part of the request.
_BEFORE_REQUEST = re.compile(rf"{re.escape(_LOCK)}|\.{re.escape(REQUEST)}\.\d+")


@contextmanager
def begun(output: Path, request: dict[str, Any]) -> Iterator[None]:
    """Make the folder, or see that it is of the same evaluation, and hold it: one evaluation there at a time."""
    text = json.dumps({"format": EVALUATION_FORMAT, "source": source_sha256(), **request}, indent=1) + "\n"
    busy = InputError(output, expected="one `lesionseg evaluate` at a time", got="another at work",
                      remedy="wait until it ends, or name another folder", code="output-busy")  # fmt: skip
    _refuse_other(output, text)  # before a lock lies in it
    with one_at_a_time(output, _LOCK, busy):
        _refuse_other(output, text)  # as another may have begun there since
        remove_parts(output)
        write_text(output / REQUEST, text)  # first: a folder with anything else is known by it
        (output / CASES).mkdir(exist_ok=True)
        yield


def _refuse_other(output: Path, request: str) -> None:
    """Raise `InputError` unless the folder is not there, as good as empty, or of an evaluation with this request."""
    path = output / REQUEST
    # Before the request is read: one that begins meanwhile shows nothing else without it.
    empty = not output.exists() or (
        output.is_dir() and all(_BEFORE_REQUEST.fullmatch(entry.name) for entry in output.iterdir())
    )
    held = path.read_text() if path.is_file() else None
    if held != request and not (held is None and empty):
        got = "other files" if held is None else "one of another store, model, setting or version of the package"
        raise InputError(output, expected="a new folder, or one of this evaluation", got=got,
                         remedy="name another folder")  # fmt: skip
