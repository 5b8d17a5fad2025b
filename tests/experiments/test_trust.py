"""The scripts behind `make trust`: that they see what they look for, and find none of it on a few cases."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from lesionseg.errors import InputError

TRUST = Path(__file__).parents[2] / "experiments" / "trust"


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(TRUST))


def raising(error):
    def read():
        raise error

    return read


@pytest.mark.parametrize(
    ("read", "difference", "outcome"),
    [
        (raising(InputError("a", expected="b", got="c", remedy="d")), None, "refused"),
        (lambda: 1, None, "read"),
        (lambda: 1, "refused by the other library", "read by us alone"),
        (lambda: 1, "a voxel differs", "a: a voxel differs"),
        (raising(ValueError("no")), None, "a: ValueError: no"),
        (lambda: time.sleep(5), None, "a: more than 0.2 s"),
    ],
)
def test_each_way_to_fail_is_seen(monkeypatch, read, difference, outcome):
    import tally

    monkeypatch.setattr(tally, "HANG_S", 0.2)
    seen = tally.Tally()
    seen.note(read, lambda held: difference, "a")
    assert seen.count == 1
    assert [*seen.outcomes, *seen.faults] == [outcome]


def test_an_exception_that_swallows_everything_hides_no_hang(monkeypatch):
    import tally

    def read():
        try:
            time.sleep(5)
        except Exception:
            return 1

    monkeypatch.setattr(tally, "HANG_S", 0.2)
    seen = tally.Tally()
    seen.note(read, lambda held: None, "a")
    assert seen.faults == ["a: more than 0.2 s"]


@pytest.mark.parametrize("door", ["nifti", "dicom"])
def test_mutated_images_are_refused_or_read_as_others_read_them(door):
    import fuzz

    tally = getattr(fuzz, f"fuzz_{door}")(60, seed=1)
    assert tally.faults == []
    assert tally.count == 60
    assert min(tally.outcomes["read"], tally.outcomes["refused"]) > 5


def test_the_same_seed_mutates_alike_and_texts_are_changed():
    from tally import mutated, mutated_text

    one, two = (mutated(bytes(500), np.random.default_rng(3), 100) for _ in range(2))
    assert one == two != bytes(500)
    texts = {mutated_text('{"a": [1, 2]}\n', np.random.default_rng(seed)) for seed in range(50)}
    assert len(texts) > 40


def test_a_reader_that_moves_or_changes_a_voxel_is_found(tmp_path):
    from dataclasses import replace

    import fuzz

    from lesionseg.formats.dicom import read_dicom_file
    from lesionseg.formats.nifti import read_nifti

    rng = np.random.default_rng(0)
    nifti, dicom = tmp_path / "a.nii", tmp_path / "a.dcm"
    nifti.write_bytes(fuzz.nifti_originals(tmp_path, rng)[0])
    dicom.write_bytes(fuzz.dicom_bytes(fuzz.dicom_original(rng, fuzz.ExplicitVRLittleEndian), {}))
    for path, scan, differs in (
        (nifti, read_nifti(nifti)[0], fuzz.nibabel_differs),
        (dicom, read_dicom_file(dicom), fuzz.gdcm_differs),
    ):
        assert differs(path, scan) is None
        hu, affine = scan.hu.copy(), scan.affine.copy()
        hu[0, 0, 0] += 1
        affine[0, 3] += 0.1
        assert "1 voxels differ" in differs(path, replace(scan, hu=hu))
        assert "corners 0.1 mm" in differs(path, replace(scan, affine=affine))
        assert "shape" in differs(path, replace(scan, hu=hu[:, :-1]))


def test_a_command_that_is_not_whole_or_ends_elsewhere_after_a_kill_is_found(tmp_path, monkeypatch):
    """In the place of a verb: a process that writes its file in two steps, and one that adds to what it finds."""
    import sys

    import kills
    import small_grid

    monkeypatch.setattr(small_grid, "LESIONSEG", (sys.executable, "-c"))
    begun = "import sys, time; f = open(sys.argv[1], '{}'); print('a', file=f, flush=True); time.sleep(0.5)"
    torn, adding = begun.format("w") + "; print('b', file=f)", begun.format("a")

    def content(path):
        if not path.exists():
            raise InputError(path, expected="", got="", remedy="")
        return path.read_text()

    for script, whole in ((torn, "a\nb\n"), (adding, "a\n")):
        count, rng = kills.Count(), np.random.default_rng(0)
        verb = kills.Verb(lambda path, script=script: [script, str(path)], content)
        for n in range(3):
            kills.disturbed(verb, tmp_path / f"{len(whole)}-{n}", whole, 0.5, rng, count)
        assert count.kills > 3
        assert count.faults


def test_a_grid_that_ends_elsewhere_after_kills_is_found(tmp_path, monkeypatch, capsys):
    """In the place of `make finetune`: what adds to the table that it finds."""
    import sys

    import grid

    script = (
        "import sys, time; from pathlib import Path; run = Path(sys.argv[1].removeprefix('RUN=')) / 'compare'; "
        "run.mkdir(parents=True, exist_ok=True); print('a', file=(run / 'table.csv').open('a')); time.sleep(0.5)"
    )
    monkeypatch.setattr(grid, "COMMAND", (sys.executable, "-c", script))
    monkeypatch.setattr(sys, "argv", ["grid.py", "--kills", "6", "--output", str(tmp_path / "grid.json")])
    assert grid.main() == 1
    assert "compare/table.csv differs" in capsys.readouterr().out


def test_counts_of_hypothesis_are_read_and_the_page_shows_every_row(tmp_path):
    from exactness import rows_of
    from reliability import page
    from rows import Row, publish

    text = (
        "tests/a.py::test_no_patient_twice:\n\n  - during generate phase (1 seconds):\n"
        "    - 1000 passing, 0 failing, and 12 invalid test cases\n\n"
        "tests/a.py::test_other:\n\n    - 7 passing, 1 failing, and 0 invalid test cases\n"
    )
    rows = rows_of(text)
    assert rows == [Row("no patient twice", 1000, 0), Row("other", 8, 1)]
    assert publish(rows, ["it failed"], tmp_path / "exactness.json", seed=3) == 1
    shown = page(tmp_path)
    assert "| no patient twice | 1000 | 0 |  |" in shown
    assert "- it failed" in shown
    assert f"Seed 3, commit {json.loads((tmp_path / 'exactness.json').read_text())['commit']}" in shown


def test_markers_are_found_in_names_links_packed_files_and_wide_text(tmp_path):
    import gzip

    import privacy

    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "slices.csv").write_text(privacy.MARKERS["name"])  # of the user: not looked into
    (tmp_path / f"scan-{privacy.MARKERS['id']}.txt").write_text("")
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(privacy.MARKERS["institution"].encode()))
    (tmp_path / "b.bin").write_bytes(b"\x00\x01" + privacy.MARKERS["physician"].encode("utf-16-le"))
    (tmp_path / "link").symlink_to(tmp_path / privacy.MARKERS["folder"])
    (tmp_path / "store.key.csv").write_text(privacy.MARKERS["birth date"])
    found = {hit for name, content in privacy.contents(tmp_path) for hit in privacy.hits(name, content)}
    words = privacy.MARKERS["id"]
    assert found == {f"id in scan-{words}.txt", "institution in a.nii.gz", "physician in b.bin", "folder in link"}


def test_a_leak_that_is_let_through_is_found(tmp_path, monkeypatch):
    """Two volumes of one patient's, kept apart by nobody: the command in the place of `prepare` takes all."""
    import sys

    import leakage
    import small_grid

    from lesionseg.phantom.write import write_phantom

    write_phantom(tmp_path / "grid" / "source", volumes=1, slices=0, size=48, seed=0)
    rng = np.random.default_rng(0)
    assert leakage.one_scan_twice(tmp_path / "grid", tmp_path / "real", rng) is None
    monkeypatch.setattr(small_grid, "LESIONSEG", (sys.executable, "-c", "pass"))
    assert leakage.one_scan_twice(tmp_path / "grid", tmp_path / "blind", rng) == "status 0: []"


def test_a_second_process_that_breaks_what_the_first_made_is_found(tmp_path, monkeypatch):
    import sys

    import mishaps
    import small_grid
    from kills import Verb

    monkeypatch.setattr(small_grid, "LESIONSEG", (sys.executable, "-c"))
    script = "import sys, time; open(sys.argv[1], 'a').write('a'); time.sleep(0.3)"
    verb = Verb(lambda path: [script, str(path)], lambda path: path.read_text())
    rng = np.random.default_rng(0)
    assert list(mishaps.two_at_once(verb, tmp_path / "b", "a", rng)) == ["another store than that of one"]


@pytest.mark.parametrize(
    ("before", "after", "explained"),
    [
        ("zip(a, b, strict=True)", "zip(a, b, strict=False)", True),
        ("zip(a, b, strict=True)", "zip(a, strict=True)", False),
        ("if n > 0:", "if n >= 0:", False),
    ],
)
def test_a_mutant_without_a_reason_has_none(before, after, explained):
    import mutants

    assert (mutants.reason(before, after) is not None) == explained


def test_survivors_are_read_from_what_mutmut_leaves(tmp_path):
    import mutants

    code = "def x_f__mutmut_orig(n=1):\n    return n + 1\n\n\ndef x_f__mutmut_1(n=1):\n    return n - 1\n"
    code += "\n\ndef x_f__mutmut_2(n=2):\n    return n + 1\n"
    (tmp_path / "mutants" / "lesionseg").mkdir(parents=True)
    (tmp_path / "mutants" / "lesionseg" / "inputs.py").write_text(code)
    (tmp_path / "survived.txt").write_text("lesionseg.inputs.x_f__mutmut_1\nlesionseg.inputs.x_f__mutmut_2")
    changed = [("return n + 1", "return n - 1"), ("def (n=1):", "def (n=2):")]
    assert list(mutants.survivors("inputs.py", tmp_path)) == changed


def test_a_mutant_that_only_a_fork_kills_is_not_taken_as_noticed(tmp_path, monkeypatch):
    import mutants

    (tmp_path / "mutants" / "tests").mkdir(parents=True)
    (tmp_path / "killed.txt").write_text("noticed\nlives")
    test = "import os\n\ndef test_it():\n    assert os.environ['MUTANT_UNDER_TEST'] == 'lives'\n"
    (tmp_path / "mutants" / "tests" / "test_inputs.py").write_text(test)
    assert mutants.unconfirmed("inputs.py", tmp_path) == ["lives"]
