"""The rivals of the benchmarks: that they do the same work as ours. Nothing is timed here."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lesionseg.data import lits
from lesionseg.data.augment import Augmentation
from lesionseg.data.prepare import prepare
from lesionseg.data.pseudonyms import with_pseudonyms

BENCHMARKS = Path(__file__).parents[2] / "experiments" / "benchmarks"


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_ways_to_read_a_slice_return_the_same_bits(phantom_root, tmp_path):
    pytest.importorskip("blosc2")
    import random_slice

    sources = lits.cases(phantom_root / "lits")
    store = prepare(sources, tmp_path / "store", kind="lits", workers=1)
    cases, files = [job.case_id for job in with_pseudonyms(sources, b"")], [source.files for source in sources]
    depths = [store.record(case).shape[0] for case in cases]
    plain, arrays = random_slice.unpacked(files, tmp_path / "nii"), random_slice.npy(files, tmp_path / "npy")
    ways = {
        random_slice.OURS: random_slice.ours(store, cases),
        "nii.gz": random_slice.nifti(files, 1),
        "nii": random_slice.nifti(plain, 1),
        "nii once": random_slice.nifti(plain, 1, once=True),
        "npy": random_slice.mapped(arrays, once=False),
        "npy once": random_slice.mapped(arrays, once=True),
        "MONAI": random_slice.monai(files, tmp_path / "monai"),
        random_slice.PACKED: random_slice.ours(random_slice.pack(store), cases),
    }
    random_slice.refuse_unequal(ways, depths)
    ways["another order"] = random_slice.nifti(files[::-1], 1)
    with pytest.raises(ValueError, match="another order returns something else"):
        random_slice.refuse_unequal(ways, depths)


@pytest.mark.parametrize("side", [96, 320])
def test_a_zoom_and_a_turn_are_told_as_they_are(side):
    from augmentation import shown

    down, across, turn = 0.93, 0.98, 0.1
    theta = torch.tensor([[across * math.cos(turn), -down * math.sin(turn), 0.0],
                          [across * math.sin(turn), down * math.cos(turn), 0.0]])  # fmt: skip

    def way(images, targets):
        grid = torch.nn.functional.affine_grid(theta[None], list(images.shape), align_corners=False)
        return torch.nn.functional.grid_sample(images, grid, align_corners=False), targets

    (told,) = shown(way, side, 1)
    zooms = told[6:8] / 0.25
    assert zooms == pytest.approx([down, across], abs=2e-3)
    assert told[8] == pytest.approx(down / across, abs=2e-3)
    assert abs(told[10]) == pytest.approx(turn, abs=2e-3)
    assert told[11] == pytest.approx(1)


def test_kornias_salt_and_pepper_are_drawn_as_ours():
    pytest.importorskip("kornia")
    from augmentation import KORNIA, OURS, p_value, speckled, ways_of

    noise = Augmentation(0.0, 0.0, 0.0, flip=False, grey_level=0.0)
    torch.manual_seed(0)
    ways = ways_of(noise, 16, [])
    mine, theirs = (speckled(ways[name], 16, 100) for name in (OURS, KORNIA))
    assert p_value(mine, theirs) > 0.05
    assert p_value(mine, speckled(ways_of(replace(noise, salt_pepper=0.1), 16, [])[OURS], 16, 100)) < 0.01


def test_a_range_is_told_from_an_interval_and_a_bound_of_its_upper_end_is_shown():
    from rounds import Row, text

    few, many = (
        Row("step", "ms", np.linspace(1.01, 1.02, n).tolist(), "loop", "rival", [1.0], most=1.03, most_high=1.05)
        for n in (5, 6)
    )
    cells = [[cell.strip() for cell in line.split("|")] for line in text([few.to_json(), many.to_json()]).split("\n")]
    assert [cells[2][6], cells[3][6]] == ["1.01 to 1.02 (range)", "1.01 to 1.02"]
    assert cells[3][8] == "≤ 1.03, upper end ≤ 1.05"


def test_the_joined_table_has_what_is_named_with_its_notes_and_says_what_is_missing(tmp_path):
    from rounds import Row, publish

    for name in ("one", "stale"):
        publish([Row(name, "s", [1.0], "other", "rival", [2.0])], tmp_path / f"{name}.json", notes=[f"as {name} says"])
    command = [sys.executable, str(BENCHMARKS / "joined_table.py"), str(tmp_path), "one", "two"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told == (tmp_path / "performance.md").read_text()
    assert "| one |" in told
    assert "- as one says\n- not in the table, as they measured nothing: two\n" in told
    assert "stale" not in told
    assert json.loads((tmp_path / "one.json").read_text())["notes"] == ["as one says"]
