"""What is read of the runs' logs, against values worked out by hand."""

import shutil

import pytest

from lesionseg.comparison_page.histories import read_history
from lesionseg.errors import InputError
from lesionseg.results import read_run


def runs(root, schedule):
    return [read_run(folder) for folder in sorted((root / schedule).iterdir())]


def test_curves_are_the_mean_over_runs_with_the_least_and_the_greatest(logged_root):
    curves = read_history(runs(logged_root, "baseline")).curves
    assert set(curves) == {"train/loss", "val/dice1", "val/accuracy_all"}
    loss, dice = curves["train/loss"], curves["val/dice1"]
    assert loss["mean"].tolist() == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert loss.low.tolist() == pytest.approx([0.2, 0.1, 0.0, -0.1])
    assert loss.high.tolist() == pytest.approx([0.6, 0.5, 0.4, 0.3])
    assert dice.index.tolist() == [1, 3]
    assert dice["mean"].tolist() == pytest.approx([0.4, 0.4])


def test_drift_and_phases_of_each_block_from_the_input_on(logged_root):
    history = read_history(runs(logged_root, "baseline"))
    assert list(history.drift) == ["stem", "stage4", "head"]
    assert history.drift["head"].tolist() == pytest.approx([0.4, 0.8, 1.2, 1.6])
    assert history.drift["stem"].tolist() == pytest.approx([0, 0, 1.2, 1.6])
    assert history.trains["stem"].tolist() == [0, 0, 1, 1]
    assert history.marks == [2]


def test_an_older_run_has_the_phases_of_its_schedule(logged_root):
    history = read_history(runs(logged_root, "no_freezing"))
    assert not history.drift.size
    assert history.trains["stem"].tolist() == [0, 0, 1, 1]
    assert history.marks == [2]


def test_runs_without_any_log_have_an_empty_history(logged_root):
    (name,) = {path.name for path in logged_root.iterdir()} - {"baseline", "no_freezing"}
    history = read_history(runs(logged_root, name))
    assert (history.curves, history.marks, history.drift.size) == ({}, [], 0)


def test_a_run_that_thaws_later_than_another_gives_a_mark_of_its_own(logged_root, tmp_path):
    """As where a plateau decides."""
    root = shutil.copytree(logged_root, tmp_path / "grid")
    path = root / "baseline" / "fold1-seed0" / "metrics.csv"
    lines = path.read_text().splitlines()
    column = lines[0].split(",").index("trains/stem")
    third = next(i for i, line in enumerate(lines) if line.startswith("2,"))
    cells = lines[third].split(",")
    assert cells[column] == "1.0"
    cells[column] = "0.0"
    lines[third] = ",".join(cells)
    path.write_text("\n".join(lines) + "\n")
    assert read_history(runs(root, "baseline")).marks == [2, 3]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.csv", b""),
        ("metrics.csv", b"step,train/loss\n0,1\n"),
        ("metrics.csv", b"epoch,step,train/loss\n0,0,low\n"),
        ("metrics.csv", b"epoch,step\n0,0\n0,0,0,0\n"),
        ("metrics.csv", b"epoch,step\n0,\xff\xfe\n"),
        ("schedule.json", b""),
        ("schedule.json", b"[]"),
        ("schedule.json", b'{"steps": 1}'),
        ("schedule.json", b'{"steps": [{"start": 0, "stop": 1, "rates": {"stem": "fast"}}]}'),
        ("schedule.json", b'{"steps": [{"start": 0, "stop": 1000000000000, "rates": {}}]}'),
        ("schedule.json", b'{"steps": [{"start": "0", "stop": 4, "rates": {}}]}'),
        ("schedule.json", b'{"steps": [{"start": 0.5, "stop": 4, "rates": {}}]}'),
        ("schedule.json", b'{"steps": [null]}'),
        ("schedule.json", b"[" * 100000),
    ],
)
def test_a_garbled_log_is_refused_by_its_name(logged_root, tmp_path, name, content):
    root = shutil.copytree(logged_root, tmp_path / "grid")
    (root / "baseline" / "fold1-seed0" / name).write_bytes(content)
    with pytest.raises(InputError, match=f"fold1-seed0/{name}: expected .* remove it"):
        read_history(runs(root, "baseline")[::-1])
