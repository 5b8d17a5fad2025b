import json
import math
from io import StringIO
from pathlib import Path

import msgspec
import nibabel as nib
import numpy as np
import pytest
from made_cases import cohort, made, source
from PIL import Image
from rich.console import Console

from lesionseg.cli import main
from lesionseg.data import check as checking
from lesionseg.data.check import CheckResult, check, largest_lesion_slice, print_problems, report
from lesionseg.data.plausible import Problem, case_problems, cohort_problems
from lesionseg.data.prepare import prepare
from lesionseg.data.records import describe
from lesionseg.data.store import Store
from lesionseg.errors import InputError
from lesionseg.scan import Case, Scan


def found_in(case, kind="slices", predicted=False, warnings=()):
    """Codes and severities of the problems of one made case."""
    scan = Scan(case.hu, "x", case.spacing_mm, case.affine, case.generated)
    ids = {"case_id": "c", "patient_id": "p", "source_checksum": ""}
    record = describe(Case(scan, case.labels, "y", predicted), warnings=warnings, **ids)
    return {(p.code, p.severity) for p in case_problems(record, case.hu, case.labels, "c", kind)}


def test_a_sound_case_has_no_problem():
    assert found_in(made(0)) == set()
    assert found_in(made(0, lesion=5), kind="lits") == set()


def test_grey_values_and_missing_rescale():
    grey = made(0)
    grey.hu = np.clip(grey.hu, 0, 255).astype(np.int16)
    assert found_in(grey) == {("no-negative-hu", "warning")}
    stored = made(0)
    stored.hu += 1024
    assert found_in(stored) == {("no-negative-hu", "warning"), ("liver-hu", "error")}
    padded = made(0)
    padded.hu += 1024
    padded.hu[:, :3] = -2000  # outside of the reconstruction
    assert found_in(padded) == {("no-negative-hu", "warning"), ("liver-hu", "error")}
    padded.hu[:, :3] = -1024  # as readers of DICOM fill it in
    assert found_in(padded) == {("no-negative-hu", "warning"), ("liver-hu", "error")}
    dome = made(0, shape=(1, 32, 32))
    dome.labels[:] = 0
    dome.labels[0, 10:24, 10:24] = 1
    dome.labels[0, 11:23, 11:23] = 3  # a lesion fills the cut; its rim is half lung
    dome.hu[dome.labels == 1] = -400
    assert found_in(dome) == {("liver-hu-unusual", "warning")}
    moved = made(0)
    moved.hu[moved.labels == 1] -= 1000  # the mask lies on air
    assert found_in(moved) == {("liver-hu", "error")}
    fatty = made(0)
    fatty.hu[fatty.labels == 1] -= 140
    assert found_in(fatty) == {("liver-hu-unusual", "warning")}


def test_masks():
    empty = made(0)
    empty.labels[:] = 0
    assert found_in(empty) == {("liver-empty", "error"), ("lesion-empty", "warning")}
    assert found_in(empty, kind="lits") == {("liver-empty", "warning")}
    healthy = made(0)
    healthy.labels[healthy.labels > 1] = 1
    assert found_in(healthy) == {("lesion-empty", "warning")}
    assert found_in(healthy, kind="lits") == set()
    stray = made(0)
    stray.labels[3, 0, 0] = 2
    assert found_in(stray) == {("lesion-outside-liver", "warning"), ("lesion-tiny", "warning")}
    two_types = made(0)
    two_types.labels[0, 10:13, 14:16] = 3  # they touch one another; both lie in the liver
    assert found_in(two_types) == set()
    edge = made(0)
    edge.labels[3, 20:30, 20:28] = 4  # half outside, but touching
    assert found_in(edge) == set()


def test_a_liver_still_to_be_predicted_is_no_fault_of_the_case():
    case = made(0)
    case.labels[case.labels == 1] = 0
    assert found_in(case, predicted=True) == set()


@pytest.mark.parametrize(
    ("spacing_mm", "odd"),
    [
        (None, False),
        ((math.nan, 0.7, 0.7), False),
        ((5.0, 0.7, 0.7), False),
        ((50.0, 0.7, 0.7), True),
        ((math.nan, 0.7, 7.0), True),
        ((1.0, 0.07, 0.07), True),
    ],
)
def test_spacing(spacing_mm, odd):
    case = made(0)
    case.spacing_mm = spacing_mm
    assert found_in(case) == ({("spacing-unusual", "warning")} if odd else set())


def test_remarks_of_a_door_are_passed_on():
    assert found_in(made(0), warnings=("odd",)) == {("remark", "warning")}


def records_of(tmp_path, *cases):
    """(patient, made case) … → records with readable ids."""
    records = []
    for i, (patient, case) in enumerate(cases):
        scan = Scan(case.hu, "x", case.spacing_mm, case.affine, case.generated)
        ids = {"case_id": f"c{i}", "patient_id": patient, "source_checksum": ""}
        records.append(describe(Case(scan, case.labels, patient), **ids))
    return records


def cohort_codes(records, folds):
    where = {record.case_id: f"place of {record.case_id}" for record in records}
    return [(p.code, p.where) for p in cohort_problems(records, where, "all", folds)]


def test_cohort(tmp_path):
    sound = records_of(tmp_path, *((f"p{i}", made(i)) for i in range(3)))
    assert cohort_codes(sound, 3) == []
    assert cohort_codes(sound, 4) == [("few-patients", "all")]
    leak = records_of(tmp_path, ("p0", made(0)), ("p1", made(0)), ("p2", made(2)), ("p2", made(2)))
    assert cohort_codes(leak, 3) == [("same-scan-leak", "place of c1"), ("same-scan", "place of c3")]
    studies = [msgspec.structs.replace(r, study=s) for r, s in zip(sound, ("s1", "s1", "s2"), strict=True)]
    assert cohort_codes(studies, 3) == [("same-study-leak", "place of c1")]
    anonymised = [msgspec.structs.replace(record, study="s1") for record in sound]
    assert cohort_codes(anonymised, 3) == [("same-study", "place of c1")]
    by_slice = records_of(tmp_path, *((f"p{i}", made(i)) for i in range(6)))
    by_slice = [msgspec.structs.replace(record, study=f"s{i // 3}") for i, record in enumerate(by_slice)]
    assert [code for code, _ in cohort_codes(by_slice, 3)] == ["same-study-leak"] * 2
    same = [msgspec.structs.replace(record, patient_id="p0") for record in studies[:2]]
    assert cohort_codes([*same, studies[2]], 2) == []
    generated = made(0)
    generated.generated = True
    assert cohort_codes(records_of(tmp_path, ("p0", generated), ("p1", made(1))), 2) == [("generated-mixed", "all")]
    scarce = records_of(tmp_path, ("p0", made(0, lesion=3)), *((f"p{i}", made(i)) for i in range(1, 4)))
    assert cohort_codes(scarce, 3) == [("scarce-type", "all")]


# --- targets ----------------------------------------------------------------------------------------------------------


def test_store_with_all_kinds_of_damage_is_reported_at_once(tmp_path, capsys, monkeypatch):
    case = made(9)
    case.hu[case.labels == 1] += 900
    sources = [*cohort(tmp_path / "in"), source(tmp_path / "in", "odd", "SURNAME-9", case)]
    with monkeypatch.context() as patch:
        patch.setattr("lesionseg.data.prepare.grey_values", lambda *_: ())  # it would refuse that liver
        store = prepare(sources, tmp_path / "store", kind="slices", workers=1)
    odd = next(r.case_id for r in store.records if store.hu(r.case_id).max() > 900)
    first, second = [r.case_id for r in store.records if r.case_id != odd][:2]
    file = tmp_path / "store" / "cases" / first / "hu.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    (tmp_path / "store" / "cases" / second / "labels.npy").unlink()
    findings = check(tmp_path / "store", workers=1)
    assert [(p.code, odd in p.where or first in p.where or second in p.where) for p in findings.problems[:3]] == [
        ("liver-hu", True),
        ("store-array", True),
        ("store-array", True),
    ]
    assert findings.errors == 3
    assert len(findings.panels) == 5  # those that could be read
    assert findings.panels[0].title == odd  # errors first
    assert "1 error" in findings.panels[0].note
    assert report(tmp_path / "store", tmp_path / "new" / "sheet.png", workers=1)
    assert "7 cases: 3 errors" in capsys.readouterr().out
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        assert min(sheet.size) > 300
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["sheet.png"]


def test_a_store_without_a_good_manifest(tmp_path):
    path = prepare(cohort(tmp_path / "in", n=2), tmp_path / "store", kind="slices", workers=1).path
    content = json.loads((path / "manifest.json").read_text())
    for text in ("{", json.dumps({**content, "format": 0})):
        (path / "manifest.json").write_text(text)
        assert [p.code for p in check(path).problems] == ["store-manifest"]
    (path / "manifest.json").unlink()
    assert [p.code for p in check(path).problems] == ["store-manifest"]


def test_a_healthy_store_passes(tmp_path):
    cases = [source(tmp_path / "in", f"s{i}", f"p{i}", made(i)) for i in range(3)]
    path = prepare(cases, tmp_path / "store", kind="slices", workers=1).path
    assert not report(path, tmp_path / "sheet.png", workers=1)
    assert check(path, workers=1).problems == ()


def write_nifti(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array.transpose(2, 1, 0), np.diag([-0.8, -0.8, 5.0, 1.0])), path)


def test_a_lits_folder(tmp_path):
    for i in range(3):
        case = made(i)
        write_nifti(tmp_path / "lits" / f"volume-{i}.nii.gz", case.hu)
        write_nifti(tmp_path / "lits" / f"segmentation-{i}.nii.gz", np.minimum(case.labels, 2))
    assert check(tmp_path / "lits", workers=1).problems == ()
    write_nifti(tmp_path / "lits" / "volume-3.nii.gz", made(3).hu)
    write_nifti(tmp_path / "lits" / "segmentation-1.nii.gz", made(1).labels * 5)
    (tmp_path / "lits" / "volume-2.nii.gz").write_bytes(b"no gzip")
    findings = check(tmp_path / "lits", workers=1)
    assert {p.code for p in findings.problems if p.severity == "error"} == {"unpaired", "mask-values", "unreadable"}
    assert len(findings.panels) == 1
    with pytest.raises(InputError, match="nothing"):
        check(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert [p.code for p in check(tmp_path / "empty").problems] == ["no-cases"]
    (tmp_path / "moved").mkdir()
    (tmp_path / "lits").rename(tmp_path / "moved" / "cases")  # as a store calls its own
    assert [p.code for p in check(tmp_path / "moved", workers=1).problems] == [p.code for p in findings.problems]


def test_pseudonyms_are_those_of_the_store_that_a_salt_makes(tmp_path, phantom_root):
    root = phantom_root / "lits"
    (tmp_path / "salt").write_bytes(b"secret")
    salt = ["--salt-file", str(tmp_path / "salt")]
    assert main(["prepare", "lits", str(root), "--output", str(tmp_path / "store"), *salt]) == 0
    shown = {panel.title.split()[0] for panel in check(root, salt=b"secret", workers=1).panels}
    assert shown <= {record.case_id for record in Store.open(tmp_path / "store").records}
    assert not shown & {panel.title.split()[0] for panel in check(root, workers=1).panels}
    assert main(["check", str(root), "--output", str(tmp_path / "sheet.png"), *salt]) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [({"groups": Path("groups.csv")}, "--labels, --groups, --exclude: expected a LiTS folder or a table of slices"),
     ({"exclude": ["volume-0"]}, "got the store "), ({"labels": {"cyst": 1}}, "got the store ")],
)  # fmt: skip
def test_options_that_say_how_a_store_is_made_are_refused_for_one(lits_store, options, said):
    with pytest.raises(InputError, match=said):
        check(lits_store, **options)


def test_values_of_labels_are_refused_for_lits(tmp_path):
    with pytest.raises(InputError, match="--labels: expected a table of slices"):
        check(tmp_path, labels={"cyst": 1})


def test_a_table_of_slices_without_liver_can_be_looked_at(tmp_path):
    rows = ["patient_id,image,mask"]
    for i in range(3):
        case = made(i, shape=(1, 32, 32))
        write_nifti(tmp_path / f"image{i}.nii.gz", case.hu)
        write_nifti(tmp_path / f"mask{i}.nii.gz", (case.labels > 1).astype(np.uint8))
        rows.append(f"p{i},image{i}.nii.gz,mask{i}.nii.gz")
    (tmp_path / "slices.csv").write_text("\n".join(rows) + "\n")
    findings = check(tmp_path / "slices.csv", workers=1)
    assert [(p.severity, p.code, p.message) for p in findings.problems] == [
        ("warning", "liver-missing", "3 of 3 cases")
    ]
    assert [panel.note for panel in findings.panels] == ["1 lesion · 4 mm · no liver mask"] * 3
    assert set(np.unique(findings.panels[0].labels)) == {0, 2}


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_the_slice_shown_is_that_with_most_lesion():
    labels = np.zeros((5, 8, 8), np.uint8)
    assert largest_lesion_slice(labels) == 2
    labels[3, :2] = labels[4, :4] = 1
    assert largest_lesion_slice(labels) == 4
    labels[0, 0, :3] = 2
    labels[1, 0, :2] = 3
    assert largest_lesion_slice(labels) == 0


def test_no_more_panels_than_a_sheet_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(checking, "MOST_PANELS", 2)
    store = prepare(cohort(tmp_path / "in"), tmp_path / "store", kind="slices", workers=1)
    findings = check(tmp_path / "store", workers=1)
    assert [panel.title for panel in findings.panels] == [r.case_id for r in store.records[:2]]
    assert findings.cases == 6


def test_problems_are_printed_one_a_line_and_nothing_is_markup():
    problem = Problem("error", "unreadable", "a/[bold]file[/bold].nii", "x" * 200, "mend it")
    out = StringIO()
    print_problems(CheckResult(1, (problem,), ()), Console(file=out, width=40))
    lines = out.getvalue().splitlines()
    assert "  a/[bold]file[/bold].nii: " + "x" * 200 in lines
    assert lines[-1] == "1 cases: 1 errors, 0 warnings"
