"""A study's folder that takes the place of an earlier one: whatever ends it, one of the two is there, whole."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from lesionseg.study_folder import finished, locked, made, put_in_place


def put(output, version):
    """A result of a version, in its place."""
    with made(output, {"version": version}, "here", {"lesions": version}) as temporary:
        (temporary / "lesions.csv").write_text(str(version))
    put_in_place(temporary, output / "ct", "here")


def dies_at_rename(output, number):
    """Version 1 over version 0 in a process that is killed when it is about to rename for the number-th time."""
    renames, rename = iter(range(number)), Path.rename

    def dying(path, target):
        if next(renames, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(path, target)

    Path.rename = dying
    with locked(output):
        put(output, 1)


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def output(tmp_path):
    """With version 0."""
    with locked(tmp_path):
        put(tmp_path, 0)
    return tmp_path


def test_a_new_result_takes_the_place_at_once(output):
    with locked(output):
        put(output, 1)
        assert names(output) == {"ct", ".lesionseg.lock"}
        (output / "ct").rename(output / "moved away by the user")
    assert names(output) == {"moved away by the user", ".lesionseg.lock"}


@pytest.mark.parametrize("number", [0, 1])
def test_a_kill_leaves_the_earlier_result_and_the_next_start_finds_it(output, number):
    process = multiprocessing.get_context("fork").Process(target=dies_at_rename, args=(output, number))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (output / "ct").exists() == (number == 0)
    with locked(output):
        assert finished(output / "ct", {"version": 0}, "here") == {"lesions": 0}
        assert names(output) == {"ct", ".lesionseg.lock"}
        put(output, 1)
    assert finished(output / "ct", {"version": 1}, "here") == {"lesions": 1}


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_error_leaves_the_earlier_result(output, fault, monkeypatch):
    rename = Path.rename

    def failing(path, target):
        if target == output / "ct" and path.parent == output:
            raise fault
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with locked(output):
        with pytest.raises(type(fault)):
            put(output, 1)
        assert finished(output / "ct", {"version": 0}, "here") == {"lesions": 0}
    assert names(output) == {"ct", ".lesionseg.lock"}
