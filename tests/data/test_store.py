import json
import math
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from made_cases import cohort, made, source

from lesionseg.data.prepare import prepare
from lesionseg.data.store import Store, read_manifest
from lesionseg.errors import InputError


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    return prepare(cohort(folder / "in", n=3), folder / "store", kind="slices", workers=1).path


@pytest.fixture
def path(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "store")


def truncate(file):
    file.write_bytes(file.read_bytes()[:-7])


def test_store_gives_back_what_was_put_in(path):
    store = Store.open(path, verify=True)
    assert store.kind == "slices"
    assert not store.generated
    assert [record.case_id for record in store.records] == sorted(record.case_id for record in store.records)
    kept = {made_case.hu.tobytes(): made_case for made_case in (made(i, lesion=2 + i % 3) for i in range(3))}
    for record in store.records:
        hu, labels = store.hu(record.case_id), store.labels(record.case_id)
        assert isinstance(hu, np.memmap)
        assert not hu.flags.writeable
        assert hu.dtype == np.int16
        np.testing.assert_array_equal(labels, kept[hu.tobytes()].labels)
        assert store.record(record.case_id) is record
    again = pickle.loads(pickle.dumps(store))  # goes to the workers of a DataLoader
    assert again == store


def test_a_manifest_is_parsed_once_until_it_changes(path):
    store = read_manifest(path)
    assert read_manifest(path) is store
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "cases": manifest["cases"][:-1]}))
    assert read_manifest(path).records == store.records[:-1]


def test_slices_read_are_those_of_the_map(path):
    store = Store.open(path)
    for record in store.records:
        for part in (slice(0, 2), slice(1, 4), slice(2, 3), slice(3, 5)):
            hu, labels = store.hu_slices(record.case_id, part), store.label_slices(record.case_id, part)
            assert (hu.dtype, labels.dtype) == (np.int16, np.uint8)
            np.testing.assert_array_equal(hu, store.hu(record.case_id)[part])
            np.testing.assert_array_equal(labels, store.labels(record.case_id)[part])


@pytest.mark.parametrize("damage", [truncate, Path.unlink], ids=["cut", "gone"])
def test_an_array_that_changed_after_opening_is_not_read(path, damage):
    store = Store.open(path)
    case_id = store.records[-1].case_id
    damage(path / "cases" / case_id / "hu.npy")
    depth = store.record(case_id).shape[0]
    for read in (store.hu, lambda case_id: store.hu_slices(case_id, slice(depth - 1, depth))):
        with pytest.raises(InputError, match=r"no file|bytes|shorter|no readable"):
            read(case_id)


def test_unknown_thickness_stays_unknown(tmp_path):
    case = made(0, shape=(1, 32, 32))
    case.spacing_mm = (math.nan, 0.7, 0.7)
    prepare([source(tmp_path / "in", "a", "b", case)], tmp_path / "store", kind="slices", workers=1)
    assert "NaN" not in (tmp_path / "store" / "manifest.json").read_text()
    (record,) = Store.open(tmp_path / "store").records
    assert math.isnan(record.spacing_mm[0])
    assert record.spacing_mm[1:] == (0.7, 0.7)


def edit(path, change):
    manifest = path / "manifest.json"
    content = json.loads(manifest.read_text())
    change(content)
    manifest.write_text(json.dumps(content))


def first_case(path):
    return min((path / "cases").iterdir())


FAULTS = {
    "no store": (shutil.rmtree, "no manifest.json"),
    "unfinished": (lambda path: (path / "manifest.json").unlink(), "unfinished"),
    "empty manifest": (lambda path: (path / "manifest.json").write_text(""), "manifest"),
    "not JSON": (lambda path: (path / "manifest.json").write_bytes(b"\xff\x00{"), "manifest"),
    "deep JSON": (lambda path: (path / "manifest.json").write_text("[" * 100_000), "manifest"),
    "a list": (lambda path: (path / "manifest.json").write_text("[1]"), "manifest"),
    "other format": (lambda path: edit(path, lambda c: c.update(format=99)), "format 99"),
    "other kind": (lambda path: edit(path, lambda c: c.update(kind="x")), r"\$.kind"),
    "no cases": (lambda path: edit(path, lambda c: c.update(cases=[])), "no cases"),
    "cases are text": (lambda path: edit(path, lambda c: c.update(cases=["a"])), r"\$.cases\[0\]"),
    "cases are a number": (lambda path: edit(path, lambda c: c.update(cases=1)), r"\$.cases"),
    "doubled case": (lambda path: edit(path, lambda c: c["cases"].append(c["cases"][0])), "doubled"),
    "way out": (lambda path: edit(path, lambda c: c["cases"][0].update(case_id="../../x")), "no case id"),
    "infinite shape": (lambda path: edit(path, lambda c: c["cases"][0].update(shape=[1e999, 1, 1])), "malformed"),
    "other shape": (lambda path: edit(path, lambda c: c["cases"][0].update(shape=[1, 32, 32])), "slices beyond the 1"),
    "other size": (lambda path: edit(path, lambda c: c["cases"][0].update(shape=[4, 32, 31])), "shape"),
    "case gone": (lambda path: shutil.rmtree(first_case(path)), "hu.npy"),
    "labels gone": (lambda path: (first_case(path) / "labels.npy").unlink(), "labels.npy"),
    "short array": (lambda path: truncate(first_case(path) / "hu.npy"), "hu.npy"),
    "empty array": (lambda path: (first_case(path) / "hu.npy").write_bytes(b""), "hu.npy"),
    "long array": (lambda path: (first_case(path) / "hu.npy").open("ab").write(b"0000"), "8324 bytes"),
    "other type": (lambda path: np.save(first_case(path) / "hu.npy", np.zeros((4, 32, 32))), "32896 bytes"),
    "pickle": (
        lambda path: np.save(first_case(path) / "hu.npy", np.array([{}], object), allow_pickle=True),
        "hu.npy: expected int16 array",
    ),
}
#: Faults in files of the right size, which show when they are read.
HIDDEN = {
    "other type": lambda file: np.save(file, np.zeros((4, 32, 32), np.float16)),
    "other shape": lambda file: np.save(file, np.zeros((2, 64, 32), np.int16)),
    "no array": lambda file: file.write_bytes(bytes(8320)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_store_is_refused(path, fault):
    damage, says = FAULTS[fault]
    damage(path)
    with pytest.raises(InputError, match=says) as caught:
        Store.open(path)
    assert "\n" not in str(caught.value)
    assert caught.value.code in ("store-manifest", "store-array")


@pytest.mark.parametrize("fault", HIDDEN)
def test_a_file_of_the_right_size_is_refused_when_it_is_read(path, fault):
    HIDDEN[fault](first_case(path) / "hu.npy")
    store = Store.open(path)
    case_id = first_case(path).name
    reads = (
        lambda: store.hu(case_id),
        lambda: store.hu_slices(case_id, slice(0, 1)),
        lambda: Store.open(path, verify=True),
    )
    for read in reads:
        with pytest.raises(InputError, match="expected int16 array") as caught:
            read()
        assert caught.value.code == "store-array"
    store.labels(first_case(path).name)


@pytest.mark.parametrize("name", ["hu.npy", "labels.npy"])
def test_a_changed_voxel_is_found_by_its_checksum(path, name):
    file = first_case(path) / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    Store.open(path)
    with pytest.raises(InputError, match=r"expected checksum .* got other voxels; remove .*, then run `lesionseg prep"):
        Store.open(path, verify=True)


def test_label_ids_that_there_are_not_are_refused_when_a_slice_is_read(path):
    file = first_case(path) / "labels.npy"
    content = bytearray(file.read_bytes())
    content[-1] = 88
    file.write_bytes(content)
    store = Store.open(path)
    (depth, *_) = store.record(first_case(path).name).shape
    store.label_slices(first_case(path).name, slice(0, depth - 1))
    with pytest.raises(InputError, match=r"expected label ids up to 5; got 88; remove .*/cases/"):
        store.label_slices(first_case(path).name, slice(depth - 1, depth))


def test_garbled_bytes_are_an_input_error_or_harmless(path):
    """Random changes of the manifest and of an array's header: `InputError` or a store, never another exception."""
    rng = np.random.default_rng(0)
    refused = 0
    for file, length in ((path / "manifest.json", None), (first_case(path) / "hu.npy", 128)):
        whole = file.read_bytes()
        for _ in range(300):
            garbled = bytearray(whole)
            for place in rng.integers(0, length or len(whole), size=rng.integers(1, 5)):
                garbled[place] = rng.integers(256)
            file.write_bytes(garbled if rng.random() < 0.7 else garbled[: rng.integers(len(garbled))])
            try:
                store = Store.open(path)
                for record in store.records:
                    store.hu(record.case_id)
            except InputError:
                refused += 1
        file.write_bytes(whole)
    assert refused > 400
    Store.open(path, verify=True)


def test_a_case_is_given_as_a_scan(slices_store):
    store = Store.open(slices_store)
    for record in store.records:
        scan = store.scan(record.case_id)
        np.testing.assert_array_equal(scan.hu, store.hu(record.case_id))
        assert not isinstance(scan.hu, np.memmap)
        assert (scan.scan_id, scan.spacing_mm, scan.generated) == (record.case_id, record.spacing_mm, True)
        np.testing.assert_array_equal(scan.affine, record.affine)
