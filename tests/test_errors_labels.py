import os
import pickle

import numpy as np
import pytest

from lesionseg.errors import InputError, first_sentence, some
from lesionseg.labels import COLORS, LESION_IDS, LESION_TYPES, NAMES, TARGETS, UNTYPED_LESION, is_lesion, is_liver


def test_an_error_says_file_expected_got_and_remedy_on_one_line():
    error = InputError("a.nii.gz", expected="a CT\nvolume", got="a photo", remedy="name another", code="not-ct")
    assert str(error) == "a.nii.gz: expected a CT volume; got a photo; name another"
    assert error.code == "not-ct"


def test_an_error_about_a_name_that_is_not_utf_8_can_be_printed():
    error = InputError(os.fsdecode(b"M\xfcller.nii"), expected="a CT", got="M\udcfcller", remedy="look")
    assert str(error).encode().startswith(b"M\\udcfcller.nii: expected a CT")
    assert error.brief == "expected a CT; got M\\udcfcller"


def test_an_error_keeps_its_parts_across_processes():
    error = InputError("a", expected="b", got="c", remedy="d", code="e")
    copy = pickle.loads(pickle.dumps(error))
    parts = ("where", "expected", "got", "remedy", "code")
    assert [getattr(copy, part) for part in parts] == ["a", "b", "c", "d", "e"]
    assert str(copy) == str(error)


def test_a_long_story_is_told_in_a_sentence():
    assert first_sentence(ValueError("It broke. Here is why.\nAnd more")) == "It broke"
    assert first_sentence(ValueError()) == "ValueError"


@pytest.mark.parametrize(
    ("n", "told"),
    [(0, "none"), (1, "0"), (4, "0, 1, 2, 3"), (5, "0, 1, 2, 3 and 1 more")],
)
def test_many_things_are_told_by_the_first_and_their_number(n, told):
    assert some(iter(range(n))) == told


def test_the_stored_ids_stay_as_they_are():
    """Stores on disk hold these numbers."""
    assert NAMES == {0: "background", 1: "liver", 2: "cyst", 3: "hemangioma", 4: "metastasis", 5: "lesion"}
    assert LESION_IDS == {"cyst": 2, "hemangioma": 3, "metastasis": 4}
    assert UNTYPED_LESION == 5


def test_every_label_but_background_has_its_own_color():
    assert set(COLORS) == set(NAMES) - {0}
    assert len(set(COLORS.values())) == len(COLORS)


def test_lesions_are_part_of_the_liver():
    labels = np.arange(6, dtype=np.uint8)
    assert is_lesion(labels).tolist() == [False, False, True, True, True, True]
    assert is_liver(labels).tolist() == [False, True, True, True, True, True]


@pytest.mark.parametrize(
    ("name", "classes", "folded"),
    [
        ("liver", ("background", "liver"), [0, 1, 1, 1, 1, 1]),
        ("lesion", ("background", "liver", "lesion"), [0, 1, 2, 2, 2, 2]),
        ("typed", ("background", "liver", "cyst", "hemangioma", "metastasis"), [0, 1, 2, 3, 4, 255]),
    ],
)
def test_targets_fold_the_stored_ids(name, classes, folded):
    target, labels = TARGETS[name], np.arange(6, dtype=np.uint8).reshape(2, 3)
    result = target.apply(labels)
    assert target.name == name
    assert target.classes == classes
    assert result.dtype == np.uint8
    assert result.tolist() == np.reshape(folded, (2, 3)).tolist()
    assert target.lesion_types == classes[2:]


def test_a_typed_class_is_the_id_of_its_type():
    """An untyped lesion has no class in `typed`: 255 is none, and a loss refuses it."""
    typed = TARGETS["typed"]
    assert all(typed.classes[typed.fold[LESION_IDS[name]]] == name for name in LESION_TYPES)
    assert typed.fold[UNTYPED_LESION] >= len(typed.classes)


def test_an_unknown_id_is_no_class():
    with pytest.raises(IndexError):
        TARGETS["lesion"].apply(np.array([6], dtype=np.uint8))
