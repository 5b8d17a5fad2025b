import csv
import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from made_cases import AFFINE, cohort, made, refused, source

from lesionseg import parallel
from lesionseg.data.prepare import prepare
from lesionseg.data.store import Store
from lesionseg.errors import InputError

HERE = Path(__file__).parent


def tree(folder):
    """Every file with its time of change and its bytes."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.parametrize(
    ("door", "needless"), [("lits", ["torch", "highdicom"]), ("slices", ["torch"])], ids=["lits", "slices"]
)
def test_a_process_that_prepares_loads_no_more_than_it_needs(door, needless):
    """They would be most of the time it takes to start."""
    script = f"import sys, lesionseg.data.prepare, lesionseg.data.{door}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "numpy" in done.stdout.split()
    assert not set(needless) & set(done.stdout.split())


def test_the_same_input_gives_the_same_manifest(tmp_path):
    sources = cohort(tmp_path / "in")
    one = prepare(sources, tmp_path / "one", kind="lits", workers=1)
    two = prepare(sources[::-1], tmp_path / "two", kind="lits", workers=1)
    assert one.manifest_sha256 == two.manifest_sha256
    assert len(one.records) == 6


def test_processes_give_the_same_store(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "SECONDS_TO_START", 0.0)
    sources = cohort(tmp_path / "in", n=3)
    bad = dataclasses.replace(sources[0], source_id="x", read=partial(refused, Path("cat")))
    with pytest.raises(InputError, match="a cat") as caught:  # comes whole through the process border
        prepare([*sources, bad], tmp_path / "two", kind="lits", workers=2)
    assert caught.value.remedy == "try again"
    assert not list((tmp_path / "two").glob(".tmp-*"))
    made_there = {path: path.stat().st_mtime_ns for path in (tmp_path / "two" / "cases").glob("*/hu.npy")}
    assert made_there
    two = prepare(sources, tmp_path / "two", kind="lits", workers=1)
    assert {path: path.stat().st_mtime_ns for path in made_there} == made_there
    assert two.manifest_sha256 == prepare(sources, tmp_path / "one", kind="lits", workers=1).manifest_sha256


def test_unchanged_input_is_not_prepared_again(tmp_path):
    sources = cohort(tmp_path / "in")
    prepare(sources, tmp_path / "store", kind="lits", workers=1)
    before = tree(tmp_path)
    broken = [dataclasses.replace(s, read=partial(refused, s.files[0])) for s in sources]
    prepare(broken, tmp_path / "store", kind="lits", workers=1)
    assert tree(tmp_path) == before


def test_only_changed_and_new_cases_are_prepared(tmp_path):
    sources, path = cohort(tmp_path / "in"), tmp_path / "store"
    old = prepare(sources[:5], path, kind="lits", workers=1)
    before = tree(path / "cases")
    changed = source(tmp_path / "in", sources[1].source_id, sources[1].patient_id, made(77))
    reread = dataclasses.replace(sources[2], options="another label map")
    new = prepare([sources[0], changed, reread, sources[3], sources[5]], path, kind="lits", workers=1)
    after = tree(path / "cases")
    kept = {name.split("/")[0] for name in after if after[name][0] == before.get(name, (0,))[0]}
    assert len(kept) == 2  # 0 and 3; 1 and 2 changed, 4 is gone, 5 is new
    assert len(new.records) == 5
    fresh = prepare([sources[0], changed, reread, sources[3], sources[5]], tmp_path / "fresh", kind="lits", workers=1)
    assert new.manifest_sha256 == fresh.manifest_sha256 != old.manifest_sha256
    assert {p.name for p in (path / "cases").iterdir()} == {r.case_id for r in new.records}


def test_a_case_whose_files_are_damaged_is_made_again(tmp_path):
    sources, path = cohort(tmp_path / "in", n=3), tmp_path / "store"
    whole = prepare(sources, path, kind="lits", workers=1)
    first, second, third = (path / "cases" / record.case_id for record in whole.records)
    (first / "hu.npy").write_bytes(b"")
    (second / "record.json").write_text("{")
    (third / "labels.npy").unlink()
    assert prepare(sources, path, kind="lits", workers=1).manifest_sha256 == whole.manifest_sha256
    Store.open(path, verify=True)


def test_a_record_that_names_another_patient_is_made_again(tmp_path):
    sources, path = cohort(tmp_path / "in", n=2), tmp_path / "store"
    whole = prepare(sources, path, kind="lits", workers=1)
    one, other = whole.records
    file = path / "cases" / one.case_id / "record.json"
    file.write_bytes(file.read_bytes().replace(f'"{one.patient_id}"'.encode(), f'"{other.patient_id}"'.encode()))
    assert prepare(sources, path, kind="lits", workers=1).manifest_sha256 == whole.manifest_sha256


def test_a_manifest_of_no_known_kind_is_written_anew(tmp_path):
    sources, path = cohort(tmp_path / "in", n=2), tmp_path / "store"
    whole = prepare(sources, path, kind="lits", workers=1)
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"lits"', '"foo"'))
    assert prepare(sources, path, kind="lits", workers=1).manifest_sha256 == whole.manifest_sha256


def test_arrays_are_stored_canonical(tmp_path):
    case = made(0)
    case.hu, case.labels = case.hu[:, ::-1, :].copy(), case.labels[:, ::-1, :].copy()
    case.affine = AFFINE @ np.array([[1, 0, 0, 0], [0, -1, 0, 31], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    store = prepare([source(tmp_path / "in", "a", "b", case)], tmp_path / "store", kind="lits", workers=1)
    np.testing.assert_array_equal(store.hu(store.records[0].case_id), made(0).hu)
    np.testing.assert_allclose(store.records[0].affine, AFFINE)


# --- interruption -----------------------------------------------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
from lesionseg import parallel
from lesionseg.data.prepare import prepare
from made_cases import cohort
if __name__ == "__main__":
    folder, workers, delay_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    parallel.SECONDS_TO_START = 0.0
    sources = cohort(folder / "in", delay_s=delay_s)
    print("begin", flush=True)
    prepare(sources, folder / "store", kind="lits", workers=workers)
"""


def start(folder, workers, delay_s):
    script = folder / "script.py"
    script.write_text(SCRIPT)
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    command = [sys.executable, str(script), str(folder), str(workers), str(delay_s)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE)


def wait_for_cases(folder, n):
    end = time.monotonic() + 60
    while len(list((folder / "store" / "cases").glob("*"))) < n:
        assert time.monotonic() < end, "prepare did not get far"
        time.sleep(0.01)


def children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for children in /proc")
def test_killed_with_its_workers_then_continued(tmp_path):
    process = start(tmp_path, workers=2, delay_s=0.3)
    wait_for_cases(tmp_path, 2)
    with pytest.raises(InputError, match="one prepare at a time"):
        prepare(cohort(tmp_path / "in"), tmp_path / "store", kind="lits", workers=1)
    assert process.poll() is None, "it had ended already"
    below = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(below) >= 2
    with pytest.raises(InputError, match="unfinished"):
        Store.open(tmp_path / "store")
    end = time.monotonic() + 20
    while any(map(alive, below)):
        assert time.monotonic() < end, "workers outlive their killed parent"
        time.sleep(0.05)
    (tmp_path / "store" / ".tmp-left").mkdir(exist_ok=True)
    (tmp_path / "store" / ".tmp-left" / "hu.npy").write_bytes(b"half")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "store" / "cases").glob("*/*")}
    assert len(times) >= 6
    store = prepare(cohort(tmp_path / "in"), tmp_path / "store", kind="lits", workers=1)
    assert {p: p.stat().st_mtime_ns for p in times} == times  # whole cases are kept
    fresh = prepare(cohort(tmp_path / "in"), tmp_path / "fresh", kind="lits", workers=1)
    assert store.manifest_sha256 == fresh.manifest_sha256
    Store.open(tmp_path / "store", verify=True)
    assert not list((tmp_path / "store").glob(".tmp-*"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_kill_at_any_moment_leaves_a_whole_store_or_none(tmp_path):
    """30 kills while a store is brought from one set of sources to another; each is then continued."""
    rng = np.random.default_rng(0)
    sources = cohort(tmp_path / "in", n=5, delay_s=0.01)  # or most kills come before or after the work
    path = tmp_path / "store"
    before = prepare(sources, path, kind="lits", workers=1).manifest_sha256
    seen = set()
    for i in range(30):
        changed = [dataclasses.replace(s, options=str(i)) for s in np.roll(sources, i)[:4]]
        begin = time.monotonic()
        expected = prepare(changed, tmp_path / f"fresh{i}", kind="lits", workers=1).manifest_sha256
        duration = time.monotonic() - begin
        child = os.fork()
        if not child:
            try:
                prepare(changed, path, kind="lits", workers=1)
            finally:
                os._exit(0)
        time.sleep(rng.uniform(0, 1.2) * duration)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        seen.add(state := state_of(path))
        assert state in (before, expected, "unfinished")
        before = prepare(changed, path, kind="lits", workers=1).manifest_sha256
        assert before == expected == state_of(path)
        assert not list(path.glob(".tmp-*"))
    assert "unfinished" in seen, "no kill fell into the work"


def state_of(path):
    """Checksum of the manifest of a store whose every voxel is as it says, or what `Store.open` says is wrong."""
    try:
        return Store.open(path, verify=True).manifest_sha256
    except InputError as error:
        return "unfinished" if "unfinished" in error.got else error


def test_the_lock_is_free_after_an_error(tmp_path):
    sources = cohort(tmp_path / "in", n=3)
    bad = dataclasses.replace(sources[2], read=partial(refused, sources[2].files[0]))
    with pytest.raises(InputError, match="a cat"):
        prepare([*sources[:2], bad], tmp_path / "store", kind="lits", workers=1)
    assert not (tmp_path / "store" / "manifest.json").exists()
    assert len(list((tmp_path / "store" / "cases").iterdir())) == 2  # those before it stay for the next call
    prepare(sources, tmp_path / "store", kind="lits", workers=1)
    with FileLock(tmp_path / "store" / ".lock"), pytest.raises(InputError, match="one prepare at a time"):
        prepare(sources, tmp_path / "store", kind="lits", workers=1)


def test_an_error_while_updating_leaves_no_manifest_that_lies(tmp_path):
    sources = cohort(tmp_path / "in", n=3)
    prepare(sources, tmp_path / "store", kind="lits", workers=1)
    bad = dataclasses.replace(sources[2], options="new", read=partial(refused, sources[2].files[0]))
    with pytest.raises(InputError, match="a cat"):
        prepare([*sources[:2], bad], tmp_path / "store", kind="lits", workers=1)
    with pytest.raises(InputError, match="unfinished"):
        Store.open(tmp_path / "store")


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0, reason="a read-only folder does not stop root; uses /dev/full"
)
def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(file, array):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    sources = cohort(tmp_path / "in", n=3)
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(OSError, match="No space"):
            prepare(sources, tmp_path / "store", kind="lits", workers=1)
    assert not (tmp_path / "store").exists()
    assert len(prepare(sources, tmp_path / "store", kind="lits", workers=1).records) == 3


# --- names ------------------------------------------------------------------------------------------------------------


def test_no_name_of_the_source_gets_into_the_store(tmp_path):
    cases = [made(i) for i in range(2)]
    folder = tmp_path / "SURNAME-folder"
    sources = [source(folder, f"SURNAME-scan-{i}", f"SURNAME-{i}", case) for i, case in enumerate(cases)]
    told = [
        source(
            folder, s.source_id, s.patient_id, dataclasses.replace(case, warnings=(f"{s.files[0]}: {s.source_id} odd",))
        )
        for s, case in zip(sources, cases, strict=True)
    ]
    with pytest.warns(UserWarning, match="and 1 more: this case: this case odd") as heard:
        store = prepare(told, tmp_path / "store", kind="lits", workers=1, salt=b"pepper")
    assert len(heard) == 1
    for file in (tmp_path / "store").rglob("*"):
        assert "SURNAME" not in file.name
        assert file.is_dir() or b"SURNAME" not in file.read_bytes()
    assert all(re.fullmatch(r"p[0-9a-f]{10}-[0-9a-f]{6}", record.case_id) for record in store.records)


def test_the_key_table_lies_beside_the_store(tmp_path):
    store = prepare(cohort(tmp_path / "in"), tmp_path / "store", kind="lits", workers=1)
    with open(tmp_path / "store.key.csv", newline="") as file:
        rows = {row["case_id"]: row for row in csv.DictReader(file)}
    assert set(rows) == {record.case_id for record in store.records}
    for record in store.records:
        row = rows[record.case_id]
        assert row["patient_id"] == record.patient_id
        assert row["source_patient_id"] == f"SURNAME-{int(row['source_id'][-1]) // 2}"
    assert (tmp_path / "store.key.csv").stat().st_mode & 0o077 == 0


def test_the_key_table_of_the_folder_one_stands_in_lies_beside_it(tmp_path, monkeypatch):
    sources = cohort(tmp_path / "in")
    (tmp_path / "store").mkdir()
    monkeypatch.chdir(tmp_path / "store")
    prepare(sources, ".", kind="lits", workers=1)
    assert (tmp_path / "store.key.csv").is_file()
    assert (tmp_path / "store" / "manifest.json").is_file()


def test_salt_changes_every_pseudonym(tmp_path):
    sources = cohort(tmp_path / "in")
    plain = prepare(sources, tmp_path / "a", kind="lits", workers=1)
    salted = prepare(sources, tmp_path / "b", kind="lits", workers=1, salt=b"pepper")
    assert not {r.patient_id for r in plain.records} & {r.patient_id for r in salted.records}
    assert len({r.patient_id for r in salted.records}) == 3


# --- refused ----------------------------------------------------------------------------------------------------------


def test_one_scan_under_two_patients_is_refused(tmp_path):
    sources = [source(tmp_path / "in", name, name, made(0)) for name in ("a", "b")]
    with pytest.raises(InputError, match="each scan under one patient") as caught:
        prepare(sources, tmp_path / "store", kind="lits", workers=1)
    assert caught.value.code == "same-scan-leak"
    assert not (tmp_path / "store" / "manifest.json").exists()
    told = re.findall(r"p[0-9a-f]{10}-[0-9a-f]{6}", str(caught.value))
    with open(tmp_path / "store.key.csv") as stream:
        names = {row["case_id"]: row["source_id"] for row in csv.DictReader(stream)}
    assert sorted(names[case] for case in told) == ["a", "b"]


def test_one_dicom_study_under_two_patients_is_refused(tmp_path):
    """A slip in the table: neighbours of one scan would be learned from and tested."""
    sources = []
    for i, (patient, study) in enumerate(
        [("p1", "1.2.3"), ("P1", "1.2.3"), ("p2", "1.2.4"), ("p3", None), ("p4", None)]
    ):
        case = made(i)
        case.study = study
        sources.append(source(tmp_path / "in", f"s{i}", patient, case))
    with pytest.raises(InputError, match="each DICOM study") as caught:
        prepare(sources, tmp_path / "store", kind="lits", workers=1)
    assert caught.value.code == "same-study-leak"
    store = prepare(sources[1:], tmp_path / "store", kind="lits", workers=1)
    kept = [record.study for record in store.records]
    assert kept.count(None) == 2
    assert all(re.fullmatch("s[0-9a-f]{16}", study) for study in kept if study)
    salted = prepare(sources[1:], tmp_path / "salted", kind="lits", workers=1, salt=b"pepper")
    assert not {record.study for record in salted.records} & {study for study in kept if study}


@pytest.mark.parametrize("patients", [2, 4])
def test_a_uid_of_all_patients_is_no_study(tmp_path, patients):
    """An anonymiser wrote it: refused, such data could not be prepared at all."""
    sources = []
    for i in range(patients):
        case = made(i)
        case.study = "1.2.3"
        sources.append(source(tmp_path / "in", f"s{i}", f"p{i}", case))
    with pytest.warns(UserWarning, match="share a StudyInstanceUID; see that no patient has two names"):
        assert len(prepare(sources, tmp_path / "store", kind="lits", workers=1).records) == patients


def test_a_liver_that_is_not_in_hounsfield_units_is_refused(tmp_path):
    case = made(0)
    case.hu += 1024  # the rescale was left out
    with pytest.raises(
        InputError, match="a: expected a liver in Hounsfield units; got median of the liver 11"
    ) as caught:
        prepare([source(tmp_path / "in", "a", "a", case)], tmp_path / "store", kind="lits", workers=1)
    assert caught.value.code == "liver-hu"


def test_values_without_fat_or_air_are_warned_of(tmp_path):
    cases = [made(seed) for seed in range(3)]
    for case in cases[:2]:
        case.hu = np.clip(case.hu, 0, 255).astype(np.int16)  # a picture
    sources = [source(tmp_path / "in", f"s{i}", f"p{i}", case) for i, case in enumerate(cases)]
    with pytest.warns(UserWarning, match="and 1 more: no voxel lies below 0 HU"):
        store = prepare(sources, tmp_path / "store", kind="lits", workers=1)
    assert sorted(len(record.warnings) for record in store.records) == [0, 1, 1]


def test_cases_that_leave_a_store_are_told(tmp_path):
    sources = cohort(tmp_path / "in")
    store = prepare(sources, tmp_path / "store", kind="lits", workers=1)
    with pytest.warns(UserWarning, match="5 cases removed from the store, as no longer in the input: p") as told:
        left = prepare(sources[:1], tmp_path / "store", kind="lits", workers=1)
    named = re.findall(r"p[0-9a-f]{10}-[0-9a-f]{6}", str(told[0].message))
    assert named == sorted({r.case_id for r in store.records} - {r.case_id for r in left.records})[:3]


def test_an_address_that_is_none_leaves_the_store_as_it_was(tmp_path):
    sources = [source(tmp_path / "in", name, name, made(seed)) for seed, name in enumerate(("a", "b"))]
    store = prepare(sources[:1], tmp_path / "store", kind="lits", workers=1)
    with pytest.raises(InputError, match="--dask: expected the address of a Dask scheduler"):
        prepare(sources, tmp_path / "store", kind="lits", dask="")
    assert Store.open(store.path).records == store.records


def test_one_scan_twice_under_one_patient_is_warned_of(tmp_path):
    sources = [source(tmp_path / "in", name, "p", made(0)) for name in ("a", "b")]
    with pytest.warns(UserWarning, match="same voxels as"):
        store = prepare(sources, tmp_path / "store", kind="lits", workers=1)
    assert [len(record.warnings) for record in store.records] == [0, 1]


def test_generated_cases_keep_to_themselves(tmp_path):
    real, generated = made(0), made(1)
    generated.generated = True
    sources = [source(tmp_path / "in", "a", "a", real), source(tmp_path / "in", "b", "b", generated)]
    with pytest.raises(InputError, match="1 generated among 2"):
        prepare(sources, tmp_path / "store", kind="lits", workers=1)
    assert prepare(sources[1:], tmp_path / "store", kind="lits", workers=1).generated


def test_an_empty_mask_is_refused_for_slices_and_warned_of_for_volumes(tmp_path):
    case = made(0)
    case.labels[:] = 0
    sources = [source(tmp_path / "in", "a", "a", case)]
    with pytest.raises(InputError, match="empty mask"):
        prepare(sources, tmp_path / "slices", kind="slices", workers=1)
    with pytest.warns(UserWarning, match="no liver"):
        store = prepare(sources, tmp_path / "lits", kind="lits", workers=1)
    assert store.records[0].liver_box is None


def test_sources_are_checked_before_anything_is_made(tmp_path):
    sources = cohort(tmp_path / "in", n=1)
    for wrong, says in (([], "none"), ([*sources, *sources], "2 times")):
        with pytest.raises(InputError, match=says):
            prepare(wrong, tmp_path / "store", kind="lits", workers=1)
    assert not (tmp_path / "store").exists()
    sources[0].files[0].unlink()
    with pytest.raises(InputError, match="readable file"):
        prepare(sources, tmp_path / "store", kind="lits", workers=1)
    with pytest.raises(InputError, match="at least 1"):
        prepare(cohort(tmp_path / "in", n=1), tmp_path / "store", kind="lits", workers=0)


def test_folders_that_are_no_store_are_left_alone(tmp_path):
    sources = cohort(tmp_path / "in", n=2)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    (tmp_path / "cased" / "cases" / "case-1").mkdir(parents=True)
    prepare(sources, tmp_path / "slices", kind="slices", workers=1)
    before = tree(tmp_path)
    for name, says in (("file", "a file"), ("mine", "thesis.tex"), ("cased", "case-1"), ("slices", "one of slices")):
        with pytest.raises(InputError, match=says) as caught:
            prepare(sources, tmp_path / name, kind="lits", workers=1)
        assert caught.value.code == "store-folder"
    assert tree(tmp_path) == before


def test_no_warning_without_reason(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare(cohort(tmp_path / "in"), tmp_path / "store", kind="lits", workers=1)
