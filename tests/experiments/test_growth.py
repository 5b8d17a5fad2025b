"""Benchmarks of many cases: that the many are taken as cases of their own. Nothing is timed here."""

import json
from pathlib import Path

import pytest

from lesionseg.data import lits
from lesionseg.data.datamodule import LesionDataModule
from lesionseg.data.prepare import prepare
from lesionseg.inputs import InputSpec

BENCHMARKS = Path(__file__).parents[2] / "experiments" / "benchmarks"


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.filterwarnings("ignore:.*same voxels")
def test_links_and_other_names_are_cases_of_the_same_patients(phantom_root, tmp_path):
    from prepare import linked, repeated

    cases = lits.cases(phantom_root / "lits")
    many = linked(cases, 3, tmp_path / "many")
    for name, sources in (("links", lits.cases(many, groups=many / "groups.csv")), ("names", repeated(cases, 9))):
        records = prepare(sources, tmp_path / name, kind="lits", workers=1).records
        assert len(records) == 9
        assert len({record.patient_id for record in records}) == len({record.voxel_checksum for record in records}) == 3


def test_a_grown_store_opens_with_so_many_more_patients(slices_store, tmp_path):
    from startup import grown

    data = [
        LesionDataModule(store, "typed", InputSpec(32, "liver"))
        for store in (slices_store, grown(slices_store, 3, tmp_path / "grown"))
    ]
    for module in data:
        module.setup("fit")
    patients = [len({record.patient_id for record in module.store.records}) for module in data]
    assert patients[1] == 3 * patients[0]
    assert len(data[1].store.records) == 3 * len(data[0].store.records)


def test_what_grows_along_a_line_is_told_by_it(tmp_path, monkeypatch, capsys):
    from scaling import main

    grown = [
        {"kind": kind, "slices": n, "setup_s": 2 + 1e-4 * n, "order_s": 1e-3 + 2e-9 * n, "memory_mb": 5 + 2e-3 * n}
        for kind in ("typed", "liver")
        for n in (100, 1000, 10000)
    ]
    prepared = {"start_s": 7.0, "volume_slice_s": 1e-3, "single_slice_s": 5e-3}
    (tmp_path / "startup.json").write_text(json.dumps({"grown": grown}))
    (tmp_path / "prepare.json").write_text(json.dumps({"side": 512, "grown": prepared}))
    monkeypatch.setattr("sys.argv", ["scaling.py", str(tmp_path)])
    main()
    told = (tmp_path / "scaling.md").read_text()
    assert told == capsys.readouterr().out
    assert "| 1,000,000 single slices, n = 1,000,000 | 786 GB | 1.39 h | 102 s | 3 ms | 2 GB |" in told
    assert "| 786 kB x n | 7 s + 5 ms x n | 2 s + 100 µs x n | 1 ms + 2 ns x n | 5 MB + 2 kB x n |" in told


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.000999999, "1 ms"), (0.00099, "990 µs"), (3599.9, "1 h"), (59.96, "60 s"), (-0.5, "-500 ms"), (0.0, "0 ns")],
)
def test_a_cost_is_told_in_the_unit_that_its_figures_reach(value, expected):
    from scaling import told

    assert told("setup", value) == expected
