"""A file written whole or not at all."""

import pytest

from lesionseg.writing import remove_parts, whole


def names(folder):
    return [path.name for path in folder.iterdir()]


def test_a_file_takes_its_place_when_it_is_whole(tmp_path):
    (tmp_path / "table.csv").write_text("old")
    with whole(tmp_path / "table.csv") as part:
        part.write_text("new")
        assert (tmp_path / "table.csv").read_text() == "old"
    assert (tmp_path / "table.csv").read_text() == "new"
    assert names(tmp_path) == ["table.csv"]


def write_half(path, fault):
    with whole(path) as part:
        part.write_text("half")
        raise fault


@pytest.mark.parametrize("fault", [OSError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there(tmp_path, fault):
    (tmp_path / "table.csv").write_text("old")
    with pytest.raises(fault):
        write_half(tmp_path / "table.csv", fault)
    assert (tmp_path / "table.csv").read_text() == "old"
    assert names(tmp_path) == ["table.csv"]


def test_an_error_before_the_first_byte_is_told_as_it_is(tmp_path):
    with pytest.raises(PermissionError):
        write_nothing(tmp_path / "table.csv")
    assert names(tmp_path) == []


def write_nothing(path):
    with whole(path):
        raise PermissionError


def test_what_a_killed_writer_left_is_removed(tmp_path):
    for name in ("table.csv", ".table.csv.123", ".hidden", ".hidden.txt"):
        (tmp_path / name).touch()
    remove_parts(tmp_path)
    assert sorted(names(tmp_path)) == [".hidden", ".hidden.txt", "table.csv"]
    remove_parts(tmp_path / "none")


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    for path in (tmp_path / "none" / "table.csv", tmp_path, tmp_path / ("a" * 250)):  # where no file can be
        with pytest.raises(OSError, match=rf"\] .*: '{path}'$"):
            write_as_asked(path)


def write_as_asked(path):
    with whole(path) as part:
        part.write_text("new")
