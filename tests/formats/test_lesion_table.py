import json

import numpy as np
import pandas as pd
import pytest

from lesionseg.formats.lesion_table import COLUMNS, write_lesions_csv, write_lesions_json
from lesionseg.labels import LESION_TYPES
from lesionseg.scan import Scan
from lesionseg.segmentation import RESEARCH_USE_ONLY, UNDETERMINED, Finding, Segmentation

CYST = Finding(
    id=1,
    type="cyst",
    probabilities={"cyst": 0.7, "hemangioma": 0.2, "metastasis": np.float64(0.1)},
    voxels=1234,
    long_axis_px=31.25,
    short_axis_px=1 / 3,
    area_px=np.int64(401),
    long_axis_mm=21.875,
    short_axis_mm=0.1 + 0.2,
    area_mm2=196.49,
    volume_ml=np.float32(2.5),
    mean_hu=7.123456789012345,
    sd_hu=11.0,
    centroid_mm=(-85.5, 12.25, -901.0),
    centroid_index=(4.5, 6.0, 7.25),
    slices=(3, 6),
    key_slice=5,
)
UNKNOWN = Finding(
    id=2,
    type=UNDETERMINED,
    probabilities={},
    voxels=9,
    long_axis_px=3.0,
    short_axis_px=3.0,
    area_px=9,
    long_axis_mm=None,
    short_axis_mm=None,
    area_mm2=None,
    volume_ml=None,
    mean_hu=-3.0,
    sd_hu=0.0,
    centroid_mm=None,
    centroid_index=(0.0, 1.0, 2.0),
    slices=(0, 0),
    key_slice=0,
)


def segmentation(findings=(CYST, UNKNOWN), **fields):
    scan = Scan(np.zeros((10, 20, 30), np.int16), "MARKER-Doe^Jane", (2.5, 0.7, 0.7), np.eye(4))
    zeros = np.zeros(scan.hu.shape, np.uint8)
    given = {"liver_ml": 1500.5, "slice_axis": 0, "model": {}, "settings": {}} | fields
    return Segmentation(given.pop("scan", scan), zeros, zeros.astype(np.uint16), findings, **given)


def expected(finding, column):
    """What a column of the table means, said once more."""
    if column.startswith("probability_"):
        return finding.probabilities.get(column.removeprefix("probability_"))
    if column.startswith("centroid_"):
        name = column.split("_")[1]
        axes, held = ("xyz", finding.centroid_mm) if name in "xyz" else ("dhw", finding.centroid_index)
        return None if held is None else held[axes.index(name)]
    if column in ("first_slice", "last_slice"):
        return finding.slices[column == "last_slice"]
    return getattr(finding, column)


def test_pandas_reads_the_values_back(tmp_path):
    write_lesions_csv(tmp_path / "lesions.csv", segmentation())
    table = pd.read_csv(tmp_path / "lesions.csv", float_precision="round_trip")
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 2
    for (_, row), finding in zip(table.iterrows(), (CYST, UNKNOWN), strict=True):
        for column in COLUMNS:
            value = expected(finding, column)
            assert pd.isna(row[column]) if value is None else row[column] == value, column
    assert table["id"].dtype == table["area_px"].dtype == table["key_slice"].dtype == np.int64
    last = (tmp_path / "lesions.csv").read_text().splitlines()[2]
    assert last.startswith(f"2,undetermined{',' * len(LESION_TYPES)},,,,,3.0,3.0,9,9,-3.0,0.0,,,,0.0,1.0,2.0,0,0,0")


def test_json_holds_the_same_rows_and_where_they_come_from(tmp_path):
    what = {
        "model": {"identity": "abc", "thresholds": {"liver": 0.5}, "classes": ("a", "b")},
        "settings": {"tta": True, "least": float("nan"), "n": np.int64(3)},
        "warnings": ("One sentence.",),
        "seconds": {"liver net": np.float64(1.5)},
    }
    write_lesions_json(tmp_path / "lesions.json", segmentation(**what))
    text = (tmp_path / "lesions.json").read_text()
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    keys = ["research_use_only", "units", "shape", "liver_ml", "lesions", "model", "settings", "warnings", "seconds"]
    assert list(content) == keys
    assert content["research_use_only"] == RESEARCH_USE_ONLY
    assert content["units"]["diameters"] == "mm"
    assert content["units"]["volume"] == "ml"
    assert content["shape"] == {"d": 10, "h": 20, "w": 30, "slices_along": "d"}
    assert content["liver_ml"] == 1500.5
    for row, finding in zip(content["lesions"], (CYST, UNKNOWN), strict=True):
        assert list(row) == list(COLUMNS)
        for column in COLUMNS:
            assert row[column] == expected(finding, column), column
    assert content["model"] == {"identity": "abc", "thresholds": {"liver": 0.5}, "classes": ["a", "b"]}
    assert content["settings"] == {"tta": True, "least": None, "n": 3}
    assert content["warnings"] == ["One sentence."]
    assert content["seconds"] == {"liver net": 1.5}
    assert "MARKER" not in text


def test_units_say_pixels_where_the_spacing_is_unknown(tmp_path):
    scan = Scan(np.zeros((1, 20, 30), np.int16), "x")
    write_lesions_json(tmp_path / "lesions.json", segmentation((UNKNOWN,), scan=scan, liver_ml=None))
    content = json.loads((tmp_path / "lesions.json").read_text())
    assert content["units"]["diameters"].startswith("px")
    assert content["units"]["area"].startswith("px")
    assert content["units"]["volume"].startswith("voxels")
    assert content["units"]["position"] == "array index"
    assert content["liver_ml"] is None


def test_no_findings(tmp_path):
    write_lesions_csv(tmp_path / "lesions.csv", segmentation(()))
    assert (tmp_path / "lesions.csv").read_text() == ",".join(COLUMNS) + "\n"
    assert pd.read_csv(tmp_path / "lesions.csv").empty
    write_lesions_json(tmp_path / "lesions.json", segmentation(()))
    assert json.loads((tmp_path / "lesions.json").read_text())["lesions"] == []


def test_equal_findings_give_equal_bytes(tmp_path):
    for write, name in ((write_lesions_csv, "csv"), (write_lesions_json, "json")):
        write(tmp_path / f"a.{name}", segmentation())
        write(tmp_path / f"b.{name}", segmentation())
        assert (tmp_path / f"a.{name}").read_bytes() == (tmp_path / f"b.{name}").read_bytes()
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".json"}
