"""Run folders made by hand → `table.md`, `table.csv`, `schedules.png`; and all that must be refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, fields, replace
from itertools import product
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from lesionseg.compare import compare
from lesionseg.errors import InputError
from lesionseg.grid import read_grid
from lesionseg.grid_basis import few_runs
from lesionseg.labels import LESION_TYPES
from lesionseg.paper import PAPER, in_paper_order
from lesionseg.results import (
    LESION_COLUMNS,
    LESIONS_FILE,
    SLICE_COLUMNS,
    SLICES_FILE,
    read_run,
    write_lesions,
    write_slices,
)
from lesionseg.runs import RUN_FILE, RunInfo

TYPES = tuple(LESION_TYPES)
#: What a comparison reads of a run; all else stays blank.
READ = {
    "name": "baseline",
    "state": "finished",
    "config_sha256": "c" * 64,
    "store_sha256": "5" * 64,
    "weights_sha256": None,
    "generated": True,
    "target": "typed",
    "fold": 0,
    "folds": 2,
    "seed": 0,
    "epochs": 8,
    "encoder": "resnet18",
    "encoder_weights": None,
    "commit": "0123456789ab",
    "version": "0.1.0",
    "machine": "CPU only, 2 cores (x86_64)",
    "ranks": 1,
}
INFO = RunInfo(
    **(dict.fromkeys((field.name for field in fields(RunInfo)), "") | READ | {"trained_on": (), "known_before": ()})
)


def make_run(root: Path, schedule: str, fold: int, seed: int, skill: float = 0.5, patients: int = 12) -> Path:
    """A finished run whose test slices depend on the fold alone, and whose predictions on `skill`."""
    folder = root / schedule / f"fold{fold}-seed{seed}"
    weights = None if schedule == "baseline" else "a" * 64
    replace(INFO, name=schedule, fold=fold, seed=seed, weights_sha256=weights).write(folder)
    data, luck = np.random.default_rng(fold), np.random.default_rng([sum(schedule.encode()), fold, seed])
    slices, lesions = [], []
    for p in range(patients):
        patient, hard = f"p{fold}{p:02d}", data.uniform(-0.2, 0.2)
        for s in range(data.integers(1, 4)):
            where = {"case_id": f"{patient}-c", "patient_id": patient, "slice": s}
            n, extra = data.integers(0, 3), luck.integers(0, 2)
            dice1 = np.clip(skill + hard + luck.normal(0, 0.1), 0, 1) if n else (0.0 if extra else np.nan)
            values = {"dice1": dice1, "dice2": dice1 * 0.9, "false_positives": extra}
            slices += [{**where, "figure": figure, "value": value} for figure, value in values.items()]
            for i in range(n + extra):
                row = dict.fromkeys(LESION_COLUMNS, "") | where | {"lesion_id": f"{patient}-{s}-{i}", "area_px": 30 + i}
                row |= {"area_mm2": np.nan, "overlap": 0.0, "found": 0, "kind": "false_positive"}
                if i < n:
                    row |= {"kind": "reference", "type": TYPES[data.integers(3)], "overlap": luck.random() ** 0.5}
                    row["found"] = int(row["overlap"] >= 0.25)
                if row["kind"] == "false_positive" or row["found"]:
                    row["predicted_type"] = row["type"] if luck.random() < skill + hard and i < n else TYPES[i % 3]
                lesions.append(row)
    write_slices(folder, pd.DataFrame(slices, columns=list(SLICE_COLUMNS)))
    write_lesions(folder, pd.DataFrame(lesions, columns=list(LESION_COLUMNS)))
    return folder


def make_grid(root: Path, schedules: dict[str, float], folds: int = 2, seeds: int = 1) -> Path:
    for schedule, skill in schedules.items():
        for fold in range(folds):
            for seed in range(seeds):
                make_run(root, schedule, fold, seed, skill)
    return root


@pytest.fixture(scope="module")
def grid_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rows, two folds, one seed; not to be changed by a test."""
    return make_grid(tmp_path_factory.mktemp("grid"), {"no_freezing": 0.6, "baseline": 0.4})


@pytest.fixture
def root(grid_root: Path, tmp_path: Path) -> Path:
    """A copy of the grid that a test may spoil."""
    return Path(shutil.copytree(grid_root, tmp_path / "finetune"))


def test_tables_and_figure_of_five_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_grid(tmp_path / "finetune", {"lp_ft": 0.5, **dict.fromkeys(reversed(PAPER), 0.6)})
    table = compare(root, tmp_path / "out")
    order = [*PAPER, "lp_ft"]
    assert list(dict.fromkeys(table.schedule)) == order
    written = pd.read_csv(tmp_path / "out" / "table.csv")
    pd.testing.assert_frame_equal(written, table, check_dtype=False, atol=1e-6)
    assert list(written.columns) == [
        *("schedule", "figure", "estimate", "low", "high", "n"),
        *("difference", "difference_low", "difference_high", "resolution"),
        *("p", "p_holm", "effect_size", "smallest_holm", "probability_best", "rank_low", "rank_high"),
    ]
    image = matplotlib.image.imread(tmp_path / "out" / "schedules.png")
    assert image.shape[1] > 1500
    assert image[..., :3].std() > 0.05
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[0] for line in lines[: len(order)]] == [name.split("_")[0] for name in order]
    assert lines[len(order)].startswith("accuracy_all against baseline, given these trained models, Holm over 5 rows:")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        *("report.html", "schedules.png", "table.csv", "table.md"),
    ]


def test_the_text_says_what_it_rests_on(grid_root: Path, tmp_path: Path) -> None:
    table = compare(grid_root, tmp_path)
    text = (tmp_path / "table.md").read_text()
    lesions = read_grid(grid_root).tables("baseline")[1]
    n_lesions = (lesions.kind == "reference").sum()
    for words in (
        *("phantom", "24 patients", f"{n_lesions} lesions", "folds 0, 1 of 2", "seeds 0", "8 epochs", "resnet18"),
        *("no ImageNet", "pretraining aaaaaaaa", "commit 0123456789ab", "CPU only, 2 cores", "store 555555555555"),
        *("given these trained models", "Only 24 patients", "at least 0.25", "definitions are this package's own"),
        *("other data and other definitions", "| hierarchical unfreezing | 0.64 | 0.60 | 0.94 | 0.73 |"),
    ):
        assert words in text
    row = table.set_index(["schedule", "figure"]).loc[("no_freezing", "dice1")]
    assert f"{row.estimate:.3f} [{row.low:.3f}, {row.high:.3f}], {int(row.n)}" in text
    assert f"+{row.difference:.3f} [" in text
    confusion = [
        line
        for line in text[text.index("## Confusion") :].splitlines()
        if line.startswith("| baseline | ") and "." not in line
    ]
    assert sum(int(line.split("|")[-2]) for line in confusion) == n_lesions


def test_the_words_follow_the_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of three rows one is far better in every patient and one has the baseline's skill."""
    root = make_grid(tmp_path / "finetune", {"baseline": 0.2, "no_freezing": 0.9, "freeze_encoder": 0.2})
    table = compare(root, tmp_path / "out").set_index(["schedule", "figure"])
    text, printed = (tmp_path / "out" / "table.md").read_text(), capsys.readouterr().out
    better, same = table.loc[("no_freezing", "accuracy_all")], table.loc[("freeze_encoder", "accuracy_all")]
    assert better.p_holm <= 0.05 < same.p_holm
    assert f"- no freezing: higher: +{better.difference:.3f} [+{better.difference_low:.3f}" in text
    assert "- freeze encoder: no difference shown, p " in text
    assert f"could have shown ≥ about {same.smallest_holm:.3f}." in text
    assert f"  no freezing: higher: +{better.difference:.3f}" in printed
    assert "  no difference shown in the other rows" in printed
    assert table.loc[("no_freezing", "dice1"), "probability_best"] > 0.99


def test_no_power_is_claimed_for_too_few_patients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two folds of three patients: with four rows, even one that is better in all of them has p 0.125 after Holm."""
    for row in (*PAPER,):
        for fold in (0, 1):
            make_run(tmp_path / "finetune", row, fold, 0, skill=0.2 if row == "baseline" else 0.9, patients=3)
    compare(tmp_path / "finetune", tmp_path / "out")
    said = (tmp_path / "out" / "table.md").read_text().split("## Definitions")[0] + capsys.readouterr().out
    assert "could" not in said
    assert said.count("; so few patients or runs can show no difference") == 4 + 1


def test_against_another_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The difference of two rows has the other sign from the other side, and the same p."""
    root = make_grid(tmp_path / "finetune", {"baseline": 0.2, "no_freezing": 0.9, "freeze_encoder": 0.4})
    plain = compare(root, tmp_path / "plain").set_index(["schedule", "figure"])
    table = compare(root, tmp_path / "out", against="no_freezing").set_index(["schedule", "figure"])
    one, other = plain.loc[("no_freezing", "dice1")], table.loc[("baseline", "dice1")]
    assert other.difference == pytest.approx(-one.difference, abs=1e-12)
    assert (other.difference_low, other.difference_high) == pytest.approx((-one.difference_high, -one.difference_low))
    assert other.p == one.p
    assert table.loc["no_freezing"].difference.isna().all()
    text = (tmp_path / "out" / "table.md").read_text()
    assert "## Difference to no freezing, on the same patients" in text
    assert "- baseline: lower: −" in text
    assert "accuracy_all against no freezing" in capsys.readouterr().out
    with pytest.raises(InputError, match="--against: expected a row that was run: baseline, no_freezing, freeze_"):
        compare(root, tmp_path / "out", against="nothing")


def test_the_papers_accuracy_is_drawn_beside_that_of_the_lesions_found(
    grid_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which it most likely is; no panel of the figure is called as the paper calls it."""
    drawn = {}

    def draw(table: object, schedules: object, titles: object, paper: dict, note: str) -> Figure:
        drawn.update(paper["hierarchical_unfreezing"])
        return Figure()

    monkeypatch.setattr("lesionseg.compare.schedules_figure", draw)
    compare(grid_root, tmp_path)
    assert drawn["accuracy_found"] == 0.73
    assert "accuracy_all" not in drawn


def test_two_comparisons_of_the_same_runs_write_the_same_bytes(grid_root: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        compare(grid_root, tmp_path / folder)
    for name in ("table.md", "table.csv", "schedules.png", "report.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_single_row_without_baseline_has_no_differences(tmp_path: Path) -> None:
    table = compare(make_grid(tmp_path / "finetune", {"freeze_encoder": 0.5}, folds=1), tmp_path)
    assert table.difference.isna().all()
    assert "No row `baseline`" in (tmp_path / "table.md").read_text()


def test_several_seeds_are_averaged(tmp_path: Path) -> None:
    root = make_grid(tmp_path / "finetune", {"baseline": 0.4, "no_freezing": 0.6}, seeds=3)
    table = compare(root, tmp_path).set_index(["schedule", "figure"])
    slices = pd.concat(
        run.slices.assign(seed=run.info.seed) for run in read_grid(root).runs if run.info.name == "baseline"
    )
    by_seed = slices[slices.figure == "dice1"].groupby("seed").value.mean()
    assert table.loc[("baseline", "dice1"), "estimate"] == pytest.approx(by_seed.mean(), abs=1e-12)
    text = (tmp_path / "table.md").read_text()
    assert "3 seeds" in text
    assert "over patients and trainings" in text
    assert "given these trained models" not in text


@pytest.mark.parametrize(("folds", "seeds", "warned"), [(2, 1, False), (2, 2, True), (3, 2, True), (3, 3, False)])
def test_few_runs_are_warned_of(folds: int, seeds: int, warned: bool) -> None:
    assert bool(few_runs(folds, seeds)) == warned


def test_every_patient_has_the_fold_that_tests_it(grid_root: Path) -> None:
    grid = read_grid(grid_root)
    assert grid.patient_folds == [int(patient[1]) for patient in grid.patients]
    assert set(grid.patient_folds) == {0, 1}


def test_real_data_with_imagenet_is_not_called_phantom(root: Path, tmp_path: Path) -> None:
    for path in root.glob(f"*/*/{RUN_FILE}"):
        edit_info(path.parent, generated=False, encoder_weights="imagenet")
    compare(root, tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert "real CT" in text
    assert "phantom" not in text
    assert "no ImageNet" not in text


@pytest.mark.parametrize(
    ("changed", "listed"),
    [
        ({}, None),
        ({("no_freezing", 1): "cafe"}, "0123456789ab: baseline, no_freezing; cafe: no_freezing."),
        (dict.fromkeys(product(("baseline", "no_freezing"), (0, 1)), "cafe-dirty"), "cafe-dirty: baseline, no_free"),
        (
            dict.fromkeys(product(("baseline", "no_freezing"), (0, 1)), "cafe, then feed"),
            "cafe, then feed: baseline, no",
        ),
        ({("baseline", 0): None, ("baseline", 1): None}, "0123456789ab: no_freezing; version 0.0.9: baseline."),
    ],
)
def test_rows_of_different_code_are_named(root: Path, tmp_path: Path, changed: dict, listed: str | None) -> None:
    for (row, fold), commit in changed.items():
        edit_info(root / row / f"fold{fold}-seed0", commit=commit, version="0.0.9")
    compare(root, tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert ("Rows may differ by their code" in text) == (listed is not None)
    assert listed is None or f"Rows by code: {listed}" in text


def test_rows_of_different_versions_are_named_outside_a_checkout(root: Path, tmp_path: Path) -> None:
    for row, version in (("baseline", "0.1.0"), ("no_freezing", "0.2.0")):
        for fold in (0, 1):
            edit_info(root / row / f"fold{fold}-seed0", commit=None, version=version)
    compare(root, tmp_path)
    assert "Rows by code: version 0.1.0: baseline; version 0.2.0: no_freezing." in (tmp_path / "table.md").read_text()


def test_rows_of_different_numbers_of_ranks_are_named(root: Path, tmp_path: Path) -> None:
    said = "Rows may differ by the number of ranks that trained them"
    compare(root, tmp_path / "one")
    assert said not in (tmp_path / "one" / "table.md").read_text()
    edit_info(root / "no_freezing" / "fold1-seed0", ranks=4)
    compare(root, tmp_path / "mixed")
    text = (tmp_path / "mixed" / "table.md").read_text()
    assert said in text
    assert "Rows by ranks: 1: baseline, no_freezing; 4: no_freezing." in text


def test_runs_that_marked_nothing_are_named(root: Path, tmp_path: Path) -> None:
    said = "**These runs marked no lesion in any slice of their test part**: no_freezing (fold 1, seed 0)."
    folder = root / "no_freezing" / "fold1-seed0"
    run = read_run(folder)
    missed = run.lesions[run.lesions.kind == "reference"].assign(overlap=0.0, found=0, predicted_type="")
    write_lesions(folder, pd.concat([missed, run.lesions[run.lesions.kind == "false_positive"]]))
    compare(root, tmp_path / "false")
    assert said not in (tmp_path / "false" / "table.md").read_text()
    write_lesions(folder, missed)
    write_slices(folder, run.slices.assign(value=run.slices.value.where(run.slices.figure != "false_positives", 0)))
    compare(root, tmp_path / "silent")
    assert said in (tmp_path / "silent" / "table.md").read_text()


def test_a_run_that_had_nothing_to_mark_is_not_called_silent(root: Path, tmp_path: Path) -> None:
    for folder in (root / row / "fold1-seed0" for row in ("baseline", "no_freezing")):
        run = read_run(folder)
        write_lesions(folder, run.lesions.iloc[:0])
        write_slices(folder, run.slices.assign(value=np.where(run.slices.figure == "false_positives", 0, np.nan)))
    compare(root, tmp_path / "empty")
    assert "marked no lesion" not in (tmp_path / "empty" / "table.md").read_text()


def test_implanted_lesions_are_called_so(root: Path, tmp_path: Path) -> None:
    for path in root.glob(f"*/*/{RUN_FILE}"):
        edit_info(path.parent, generated=False, implanted=True)
    compare(root, tmp_path)
    assert "real CT with implanted lesions" in (tmp_path / "table.md").read_text()


def test_rows_come_in_the_order_of_the_paper() -> None:
    assert in_paper_order(["zz", "hierarchical_unfreezing", "aa", "baseline"]) == [
        *("baseline", "hierarchical_unfreezing", "aa", "zz")
    ]


def edit_info(folder: Path, **changes: object) -> None:
    info = asdict(RunInfo.read(folder)) | changes
    (folder / RUN_FILE).write_text(json.dumps(info))


def edit_table(path: Path, change: object) -> None:
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    change(table).to_csv(path, index=False)  # type: ignore[operator]


def refused(root: Path, output: Path) -> str:
    """The one line with which `compare` refuses; it must leave nothing behind."""
    with pytest.raises(InputError) as error:
        compare(root, output)
    assert not output.exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert "got none" in refused(tmp_path, tmp_path / "out")
    assert "got none" in refused(tmp_path / "nowhere", tmp_path / "out")


def test_all_unfinished_and_missing_cells_are_listed(root: Path, tmp_path: Path) -> None:
    edit_info(root / "baseline" / "fold0-seed0", state="running")
    (root / "no_freezing" / "fold0-seed0" / RUN_FILE).unlink()
    shutil.rmtree(root / "no_freezing" / "fold1-seed0")
    cells = ("baseline/fold0-seed0", "no_freezing/fold0-seed0", "no_freezing/fold1-seed0")
    assert f"3 unfinished or missing: {', '.join(cells)}" in refused(root, tmp_path / "out")


def test_a_fold_and_seed_that_no_row_has_together_is_missing_in_each(tmp_path: Path) -> None:
    """One training a fold, told as two seeds of every patient, would be far too sure of itself."""
    for row in ("baseline", "no_freezing"):
        for number in (0, 1):
            make_run(tmp_path / "finetune", row, number, number)
    cells = [f"{row}/fold{fold}-seed{1 - fold}" for row in ("baseline", "no_freezing") for fold in (0, 1)]
    assert f"4 unfinished or missing: {', '.join(cells)}" in refused(tmp_path / "finetune", tmp_path / "out")


@pytest.mark.parametrize(
    "changes",
    [
        {"config_sha256": "d" * 64},
        {"store_sha256": "d" * 64},
        {"epochs": 9},
        {"folds": 3},
        {"encoder": "resnet50"},
        {"encoder_weights": "imagenet"},
        {"weights_sha256": "d" * 64},
        {"row_sha256": "d" * 64},
    ],
)
def test_runs_that_differ_in_more_than_the_schedule_are_refused(root: Path, tmp_path: Path, changes: dict) -> None:
    edit_info(root / "no_freezing" / "fold1-seed0", **changes)
    assert "no_freezing/fold1-seed0" in refused(root, tmp_path / "out")


def test_rows_of_other_settings_each_alike_within_are_compared(root: Path, tmp_path: Path) -> None:
    for cell in (root / "no_freezing").iterdir():
        edit_info(cell, row_sha256="d" * 64)
    compare(root, tmp_path / "out")
    edit_info(root / "no_freezing" / "fold1-seed0", row_sha256="e" * 64)
    with pytest.raises(InputError, match="the same settings, fold and seed apart, of no_freezing in every run"):
        compare(root, tmp_path / "again")


def test_a_folder_of_another_name_is_no_second_run(root: Path, tmp_path: Path) -> None:
    """`fold01` beside `fold1` would count its patients twice."""
    compare(root, tmp_path / "before")
    shutil.copytree(root / "baseline" / "fold1-seed0", root / "baseline" / "fold01-seed0")
    shutil.copytree(root / "baseline" / "fold1-seed0", root / "baseline" / "fold1-seed00")
    compare(root, tmp_path / "after")
    assert (tmp_path / "after" / "table.csv").read_bytes() == (tmp_path / "before" / "table.csv").read_bytes()


def test_a_row_without_any_start_stands_beside_rows_with_imagenet(root: Path, tmp_path: Path) -> None:
    """`from_scratch` beside `baseline`; but within a row all folds and seeds start alike."""
    for cell in (root / "no_freezing").iterdir():
        edit_info(cell, encoder_weights="imagenet")
    compare(root, tmp_path / "out")
    text = (tmp_path / "out" / "table.md").read_text()
    assert ", ImageNet; configuration" in text
    assert "| baseline | no ImageNet |" in text
    assert "| no freezing | ImageNet" in text


def test_a_copied_or_renamed_run_is_refused(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "no_freezing", root / "freeze_encoder")
    assert "copy or renamed" in refused(root, tmp_path / "out")
    shutil.rmtree(root / "freeze_encoder")
    for row in ("baseline", "no_freezing"):
        shutil.copytree(root / row / "fold1-seed0", root / row / "fold2-seed0")
    assert "copy or renamed" in refused(root, tmp_path / "out")


def test_other_test_patients_in_one_row_are_refused(root: Path, tmp_path: Path) -> None:
    make_run(root, "no_freezing", 1, 0, patients=11)
    assert "test patients, slices and reference lesions" in refused(root, tmp_path / "out")


def test_another_reference_in_one_row_is_refused(root: Path, tmp_path: Path) -> None:
    path = root / "no_freezing" / "fold1-seed0" / LESIONS_FILE
    edit_table(path, lambda t: t.assign(area_px=t.area_px.where(t.kind != "reference", "999")))
    assert "test patients, slices and reference lesions" in refused(root, tmp_path / "out")


def test_runs_that_were_not_tested_are_refused(root: Path, tmp_path: Path) -> None:
    for folder in root.glob("*/fold*"):
        replace(RunInfo.read(folder), folds=1).write(folder)
        (folder / SLICES_FILE).unlink()
    assert "got folds = 1, which leaves no test part; set FOLDS to 2 or more" in refused(root, tmp_path / "out")


def test_a_patient_in_two_folds_is_refused(root: Path, tmp_path: Path) -> None:
    for row in ("baseline", "no_freezing"):
        for name in (SLICES_FILE, LESIONS_FILE):
            path = root / row / "fold1-seed0" / name
            edit_table(path, lambda t: t.assign(patient_id=t.patient_id.replace("p100", "p000")))
    assert "p000 here and in" in refused(root, tmp_path / "out")


def test_a_lesion_type_that_is_no_class_is_refused(root: Path, tmp_path: Path) -> None:
    edit_table(root / "baseline" / "fold0-seed0" / LESIONS_FILE, lambda t: t.replace("cyst", "abscess"))
    assert "got abscess" in refused(root, tmp_path / "out")


def spoil_first(table: pd.DataFrame, which: str, **changes: str) -> pd.DataFrame:
    """Change the first row of a kind (a reference lesion must be found)."""
    index = table.index[(table.kind == which) & ((which != "reference") | (table.found == "1"))][0]
    for column, value in changes.items():
        table.loc[index, column] = value
    return table


SPOILED = {
    "row twice": (SLICES_FILE, lambda t: pd.concat([t, t.iloc[:1]]), "each slice and figure once"),
    "no figure": (SLICES_FILE, lambda t: t.drop(t.index[t.figure == "dice2"][0]), "figure dice2 on every slice"),
    "no patient": (SLICES_FILE, lambda t: t.assign(patient_id=""), "a patient on every row"),
    "two patients": (SLICES_FILE, lambda t: t.assign(case_id="c", slice=range(len(t))), "on every slice"),
    "no number": (SLICES_FILE, lambda t: t.assign(value="high"), "a results table"),
    "a number of a hundred digits": (SLICES_FILE, lambda t: t.assign(slice="9" * 100), "a results table"),
    "column missing": (SLICES_FILE, lambda t: t.drop(columns="value"), "the columns case_id"),
    "false positives": (
        SLICES_FILE,
        lambda t: t.assign(value=t.value.where(t.figure != "false_positives", "7")),
        "as many false positives",
    ),
    "lesion twice": (LESIONS_FILE, lambda t: pd.concat([t, t.iloc[:1]]), "each lesion once"),
    "kind": (LESIONS_FILE, lambda t: spoil_first(t, "reference", kind="other"), "kind reference or false_positive"),
    "slice unknown": (LESIONS_FILE, lambda t: t.assign(slice="99"), "slices of slices.csv"),
    "found by 0.1": (LESIONS_FILE, lambda t: spoil_first(t, "reference", overlap="0.1"), "found where the overlap"),
    "no type": (LESIONS_FILE, lambda t: spoil_first(t, "reference", type=""), "a type for reference lesions"),
    "not typed": (LESIONS_FILE, lambda t: spoil_first(t, "reference", predicted_type=""), "a predicted type"),
    "false type": (LESIONS_FILE, lambda t: spoil_first(t, "false_positive", type="cyst"), "and for no other"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_table_is_refused(root: Path, tmp_path: Path, name: str) -> None:
    file, change, message = SPOILED[name]
    path = root / "baseline" / "fold0-seed0" / file
    edit_table(path, change)
    assert message in (text := refused(root, tmp_path / "out"))
    assert str(path.parent) in text


def test_a_missing_or_broken_file_is_refused(root: Path, tmp_path: Path) -> None:
    (root / "baseline" / "fold0-seed0" / LESIONS_FILE).write_text("")
    assert LESIONS_FILE in refused(root, tmp_path / "out")
    (root / "baseline" / "fold0-seed0" / SLICES_FILE).unlink()
    assert SLICES_FILE in refused(root, tmp_path / "out")


def test_tables_come_back_as_they_were_written(tmp_path: Path) -> None:
    where = {"case_id": "0012", "patient_id": "NA", "slice": 3}
    values = {"dice1": 1 / 3, "dice2": np.nan, "false_positives": 0.0}
    slices = pd.DataFrame([{**where, "figure": figure, "value": value} for figure, value in values.items()])
    lesion = {"lesion_id": "0012-1", **where, "kind": "reference", "type": "cyst", "area_px": 7, "area_mm2": np.nan}
    lesions = pd.DataFrame([lesion | {"overlap": 2 / 7, "found": 1, "predicted_type": "cyst"}])
    INFO.write(tmp_path)
    write_slices(tmp_path, slices)
    write_lesions(tmp_path, lesions[list(reversed(LESION_COLUMNS))])
    run = read_run(tmp_path)
    assert run.info == INFO
    pd.testing.assert_frame_equal(run.slices, slices, check_dtype=False, check_exact=True)
    pd.testing.assert_frame_equal(run.lesions, lesions, check_dtype=False, check_exact=True)
    with pytest.raises(ValueError, match="columns must be"):
        write_slices(tmp_path, slices.drop(columns="value"))


def test_a_run_without_lesions_can_be_read(tmp_path: Path) -> None:
    INFO.write(tmp_path)
    rows = [{"case_id": "c", "patient_id": "p", "slice": 0, "figure": f} for f in ("dice1", "dice2", "false_positives")]
    write_slices(tmp_path, pd.DataFrame(rows).assign(value=[np.nan, np.nan, 0.0]))
    write_lesions(tmp_path, pd.DataFrame(columns=list(LESION_COLUMNS)))
    assert len(read_run(tmp_path).lesions) == 0
