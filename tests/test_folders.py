"""Files below a folder: through links, once each, and none where a folder cannot be read."""

import os

import pytest

from lesionseg.errors import InputError
from lesionseg.folders import files_below, walk


@pytest.fixture
def root(tmp_path):
    hidden = ("root/b/.hidden.nii", "root/.trash/3.nii", "root/lost+found/5.nii")
    for name in ("root/b/2.nii", "root/1.nii", "disk/deep/4.nii", *hidden):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "deep" / "back").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "broken.nii").symlink_to(tmp_path / "nowhere")
    return tmp_path / "root"


def test_links_are_followed_once(root):
    assert [str(path.relative_to(root)) for path in files_below(root)] == ["1.nii", "b/2.nii", "linked/deep/4.nii"]
    assert files_below(root / "1.nii") == files_below(root / "none") == []


def test_who_walks_chooses_the_way(root):
    seen = []
    for here, folders, _ in walk(root, seen.append):
        seen.append(here.name)
        folders[:] = [name for name in folders if name != "linked"]
    assert seen == ["root", "b"]


@pytest.mark.parametrize("closed", ["", "b"])
def test_a_folder_that_cannot_be_read_is_told(root, monkeypatch, closed):
    scandir = os.scandir

    def refusing(path):
        if path == str(root / closed):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", lambda path: refusing(os.fspath(path)))
    with pytest.raises(InputError, match="a folder that can be read; got Permission denied") as error:
        files_below(root)
    assert error.value.where == str(root / closed)
