"""The page as text: every section of the table, charts, matrices and pictures; hostile names stay words."""

import base64
import re
import shutil
from dataclasses import replace

import pandas as pd
import pytest
from markupsafe import escape

from lesionseg.compare import compare
from lesionseg.comparison_page.charts import charts
from lesionseg.comparison_page.histories import read_history
from lesionseg.comparison_page.parts import confusion_columns, confusion_rows, sections, worst_pictures
from lesionseg.errors import InputError
from lesionseg.grid import read_grid
from lesionseg.runs import METRICS_FILE


@pytest.fixture(scope="module")
def output(logged_root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    compare(logged_root, folder)
    return folder


@pytest.fixture(scope="module")
def page(output):
    return (output / "report.html").read_text()


def test_every_section_of_the_table_stands_on_the_page(output, page):
    text = (output / "table.md").read_text()
    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert len(headings) >= 5
    for heading in headings:
        assert page.count(f">{escape(heading)}</h2>") == 1
    for row in (line for line in text.splitlines() if line.startswith("| baseline") and "[" in line):
        for cell in row.strip("| ").split(" | "):
            assert f"<td>{cell}</td>" in page.replace("\N{NO-BREAK SPACE}", " ")


def test_a_section_that_is_new_is_shown_as_it_is():
    text = "# Title\n\n- one\n\n## Ranks\n\n| a | b |\n| --- | --- |\n| 1 [2, 3] | <script>alert(1)</script> |\n"
    first, ranks = sections(text)
    assert (first.heading, first.body.strip()) == ("Title", "<ul>\n<li>one</li>\n</ul>")
    assert ranks.heading == "Ranks"
    assert "<td>1 [2,\N{NO-BREAK SPACE}3]</td>" in ranks.body
    assert "<script>" not in ranks.body


def test_no_name_becomes_an_element(page):
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page


def test_nothing_is_named_that_lies_outside_of_the_page(page):
    addresses = re.findall(r"""(?:src|href)=["']?([^"' >]+)""", page)
    assert all(address.startswith("data:") or address == "x" for address in addresses)
    assert "<script" not in page
    assert " style=" not in page
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert policy.startswith("default-src 'none'; style-src 'sha256-")


def test_what_runs_did_not_log_is_said(page):
    assert "No drift, as these runs were made before it was logged: no freezing." in page
    assert re.search(r"No learning curves, as these runs left no metrics\.csv: &lt;img [^:]+&gt;\.", page)
    assert page.count("data:image/svg+xml") == 2


def test_curves_of_fewer_runs_than_the_row_has_are_told(logged_root, tmp_path):
    root = shutil.copytree(logged_root, tmp_path / "root")
    (root / "baseline" / "fold1-seed0" / METRICS_FILE).unlink()
    compare(root, tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    assert "Curves and drift of fewer runs, as the others left no metrics.csv: baseline (1 of 2)." in text


def test_a_log_that_cannot_be_read_leaves_the_earlier_comparison_whole(logged_root, tmp_path):
    root, output = shutil.copytree(logged_root, tmp_path / "root"), tmp_path / "out"
    compare(root, output)
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    shutil.rmtree(root / "no_freezing")
    (root / "baseline" / "fold0-seed0" / METRICS_FILE).write_text("epoch,train/loss\n0,none\n")
    with pytest.raises(InputError, match=r"metrics\.csv: expected figures by epoch"):
        compare(root, output)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def test_charts_are_drawings_that_do_not_change_from_one_time_to_the_next(logged_root):
    grid = read_grid(logged_root)
    histories = {
        name: read_history([run for run in grid.runs if run.info.name == name]) for name in ("baseline", "no_freezing")
    }
    once, again = charts(histories), charts(histories)
    assert once == again
    assert all(b"<svg" in svg and b"http-equiv" not in svg for svg in once.values())
    assert len(once["baseline"]) > len(once["no_freezing"])  # which has no map of the drift


def test_a_chart_of_what_was_never_measured_says_so(logged_root):
    """Fewer epochs than lie between two validations."""
    grid = read_grid(logged_root)
    history = read_history([run for run in grid.runs if run.info.name == "baseline"])
    losses = {name: curve for name, curve in history.curves.items() if name == "train/loss"}
    whole, short = charts({"whole": history, "short": replace(history, curves=losses)}).values()
    assert b"none logged" in short
    assert b"none logged" not in whole


def test_a_matrix_holds_every_reference_lesion(logged_root):
    grid = read_grid(logged_root)
    lesions = grid.tables("baseline")[1]
    reference = lesions[lesions.kind == "reference"]
    rows, columns = confusion_rows(grid, "baseline"), confusion_columns(grid)
    for kind, cells in rows.items():
        own = reference[reference.type == kind]
        counts = pd.Series([cell.n for cell in cells], index=columns)
        assert counts.sum() == len(own)
        assert counts[kind] == (own.predicted_type == kind).sum()
        assert counts["missed"] == (own.found == 0).sum()
        assert [cell.right for cell in cells] == [name == kind for name in columns]
        assert all(cell.shade == min(int(10 * cell.n / len(own)), 9) for cell in cells)


def test_the_largest_wrong_lesions_are_pictured(logged_root):
    grid = read_grid(logged_root)
    runs = [run for run in grid.runs if run.info.name == "baseline"]
    pictures = worst_pictures(runs)
    lesions = grid.tables("baseline")[1]
    wrong = lesions[(lesions.kind == "reference") & (lesions.type != lesions.predicted_type)]
    areas = [int(re.findall(r"(\d+) px", picture.caption)[0]) for picture in pictures]
    assert areas == sorted(wrong.area_px, reverse=True)[:6]
    taken = [picture.caption for picture in pictures if "taken for" in picture.caption]
    missed = [picture.caption for picture in pictures if ": missed; fold" in picture.caption]
    assert len(taken) + len(missed) == 6
    assert base64.b64decode(pictures[0].source.partition(",")[2]).startswith(b"\x89PNG")
    assert worst_pictures([run for run in grid.runs if run.info.name == "no_freezing"]) == []
