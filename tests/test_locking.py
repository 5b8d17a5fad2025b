"""A folder held by one process at a time."""

import errno
import os
import shutil

import pytest
from filelock import FileLock

from lesionseg.errors import InputError
from lesionseg.locking import one_at_a_time


def held(folder):
    return one_at_a_time(folder, ".lock", InputError(folder, expected="peace", got="another", remedy="wait"))


def put(folder, fault=None):
    """Hold a folder and put a file there; with a fault, that instead."""
    with held(folder):
        if fault:
            raise fault
        (folder / "table.csv").touch()


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_a_second_one_is_refused_and_takes_nothing_away(tmp_path):
    folder = tmp_path / "deep" / "out"
    with held(folder):
        with pytest.raises(InputError, match="expected peace; got another; wait"):
            put(folder)
        assert names(folder) == {".lock"}
        (folder / "mine").touch()
    put(folder)
    assert names(folder) == {".lock", "mine", "table.csv"}


@pytest.mark.parametrize("fault", [OSError, KeyboardInterrupt])
def test_a_new_folder_that_stays_empty_goes_again(tmp_path, fault):
    with pytest.raises(fault):
        put(tmp_path / "out", fault)
    assert names(tmp_path) == set()
    put(tmp_path / "out")
    with pytest.raises(fault):
        put(tmp_path / "out", fault)
    assert names(tmp_path / "out") == {".lock", "table.csv"}


def test_an_empty_folder_of_a_user_stays(tmp_path):
    with held(tmp_path):
        pass
    assert names(tmp_path) == {".lock"}


def test_a_new_folder_is_held_until_it_is_gone(tmp_path, monkeypatch):
    """Else a second process holds it, and it goes under its feet."""
    folder, refused, rmtree = tmp_path / "out", [], shutil.rmtree

    def a_second_one_comes(path, **options):
        with pytest.raises(InputError, match="got another"):
            put(folder)
        refused.append(path)
        rmtree(path, **options)

    monkeypatch.setattr(shutil, "rmtree", a_second_one_comes)
    with held(folder):
        pass
    assert refused == [folder]
    assert names(tmp_path) == set()


@pytest.mark.parametrize("file", ["not yet open", "open"])
def test_a_folder_that_goes_just_now_is_told_in_the_same_words(tmp_path, monkeypatch, file):
    """Between the look at the folder and its lock, the process before removes it."""
    folder, acquire = tmp_path / "out", FileLock.acquire

    def acquired(lock, **options):
        if file == "not yet open":
            folder.rmdir()
            raise FileNotFoundError(2, "No such file or directory", lock.lock_file)
        result = acquire(lock, **options)  # as an old filelock does, of a file that has no name any more
        shutil.rmtree(folder)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(FileLock, "acquire", acquired)
        with pytest.raises(InputError, match="got another"):
            put(folder)
    put(folder)
    assert names(folder) == {".lock", "table.csv"}


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(InputError, match=r"expected a file system that can lock files; got .*; mount it with locks"):
        put(tmp_path / "out")
