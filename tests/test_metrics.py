"""Metrics against plain NumPy over all slices; padded and uneven process groups give the very same figures."""

from __future__ import annotations

import math
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sklearn.metrics import f1_score

from lesionseg.lesions import compare_slice
from lesionseg.metrics import LesionFigures, LiverDice

TYPES = ("cyst", "hemangioma", "metastasis")
N_SLICES, SIDE = 11, 12
#: Slices that each process of a group sees: a sampler pads by repeating; in the last group one process sees none.
GROUPS = [
    [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 0]],
    [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 0]],
    [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0], [10, 9, 8], []],
]


def made_slice(key: int) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and reference class indices (H, W) of slice `key`: blobs, some missed, some added, some mistyped."""
    rng = np.random.default_rng(key)
    reference, predicted = np.ones((2, SIDE, SIDE), np.uint8)
    if key == 3:
        return predicted, reference
    for _ in range(4):
        (h, w), side, lesion_type = rng.integers(0, SIDE - 3, 2), rng.integers(1, 4), rng.integers(2, 5)
        fate = rng.random()
        if fate < 0.85:
            reference[h : h + side, w : w + side] = lesion_type
        if fate > 0.15:
            predicted[h : h + side, w + 1 : w + 1 + side] = rng.integers(2, 5) if fate < 0.4 else lesion_type
    return predicted, reference


def filled(keys: list[int]) -> tuple[LesionFigures, LiverDice]:
    figures, liver = LesionFigures(TYPES), LiverDice()
    for key in keys:
        predicted, reference = made_slice(key)
        figures.update(torch.from_numpy(predicted), torch.from_numpy(reference), key)
        liver.update(predicted > 2, reference > 2, key // 4, key % 4)
    return figures, liver


def everything(figures: LesionFigures, liver: LiverDice) -> dict[str, object]:
    """All that the metrics give; `compute` first, as on every process."""
    values = {**figures.compute(), **liver.compute()}
    tables = {"slices": figures.slice_rows(), "lesions": figures.lesion_rows(), "cases": liver.case_rows()}
    return {"figures": values, **tables}


def run_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=3)
    for number, parts in enumerate(GROUPS):
        group = dist.new_group(list(range(len(parts))))
        if rank >= len(parts):
            continue
        metrics = filled(parts[rank])
        for metric in metrics:
            metric.process_group = group
        Path(folder, f"group{number}-rank{rank}").write_bytes(pickle.dumps(everything(*metrics)))
    dist.barrier()
    dist.destroy_process_group()


def same(a: object, b: object) -> bool:
    """Equal to 1e-12, NaN equal to NaN, through lists and dicts."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=0, abs_tol=1e-12) or (math.isnan(a) and math.isnan(b))
    return a == b


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_two_and_three_processes_equal_one(tmp_path: Path) -> None:
    multiprocessing.set_forkserver_preload(
        ["torchmetrics", "sklearn.metrics", "scipy.ndimage"]
    )  # imported once, not thrice
    mp.start_processes(run_rank, args=(str(tmp_path),), nprocs=3, start_method="forkserver")
    expected = everything(*filled(list(range(N_SLICES))))
    for number, parts in enumerate(GROUPS):
        for rank in range(len(parts)):
            got = pickle.loads(Path(tmp_path, f"group{number}-rank{rank}").read_bytes())
            assert same(got, expected), f"group {number}, rank {rank}"


def test_figures_are_means_over_slices_and_shares_of_all_lesions() -> None:
    slices = [compare_slice(*made_slice(key), 3) for key in range(N_SLICES)]
    lesions = [lesion for figures in slices for lesion in figures.lesions]
    right = [lesion.predicted_type == lesion.type for lesion in lesions]
    found = [lesion.found for lesion in lesions]
    assert 0 < sum(right) < sum(found) < len(found), "the made slices must hold missed and mistyped lesions"
    got = filled(list(range(N_SLICES)))[0].compute()
    expected = {
        "dice1": np.nanmean([s.dice1 for s in slices]),
        "dice2": np.nanmean([s.dice2 for s in slices]),
        "dice1_n": np.isfinite([s.dice1 for s in slices]).sum(),
        "dice2_n": np.isfinite([s.dice2 for s in slices]).sum(),
        "success_rate": np.mean(found),
        "accuracy_all": np.mean(right),
        "accuracy_found": np.mean([r for r, f in zip(right, found, strict=True) if f]),
        "lesions_n": len(lesions),
        "false_positives_per_slice": np.mean([len(s.false_positives) for s in slices]),
        "slices_n": N_SLICES,
        **{f"dice_{name}": np.nanmean([s.dice_types[i] for s in slices]) for i, name in enumerate(TYPES)},
    }
    assert got == pytest.approx(expected, abs=1e-12)
    assert expected["dice1_n"] < N_SLICES


def test_the_order_of_slices_and_repeats_change_nothing() -> None:
    keys = np.random.default_rng(0).permutation([*range(N_SLICES), 3, 7, 7]).tolist()
    assert same(everything(*filled(keys)), everything(*filled(list(range(N_SLICES)))))


def test_tables_hold_every_lesion_of_a_slice() -> None:
    metric = LesionFigures(TYPES)
    reference = np.array([[2, 2, 1, 3, 1, 1]], np.uint8)
    predicted = np.array([[4, 2, 1, 1, 1, 3]], np.uint8)
    metric.update(predicted, reference, 7)
    columns = ("slice_key", "kind", "type", "area_px", "overlap", "found", "predicted_type")
    rows = [
        (7, "reference", "cyst", 2, 1.0, 1, "cyst"),
        (7, "reference", "hemangioma", 1, 0.0, 0, ""),
        (7, "false_positive", "", 1, 0.0, 0, "hemangioma"),
    ]
    assert metric.lesion_rows() == [dict(zip(columns, row, strict=True)) for row in rows]
    values = {row["figure"]: row["value"] for row in metric.slice_rows()}
    assert values == pytest.approx(
        {
            "dice1": 4 / 6,
            "dice2": (2 / 3 + 0 + 0) / 3,
            "dice_cyst": 2 / 3,
            "dice_hemangioma": 0.0,
            "dice_metastasis": 0.0,
            "false_positives": 1,
        }
    )


def test_a_table_holds_the_figures_of_every_slice_under_its_key() -> None:
    metric = LesionFigures(TYPES)
    for key in (4, 2):
        metric.update(*made_slice(key), key)
    names = ["dice1", "dice2", *(f"dice_{name}" for name in TYPES), "false_positives"]
    assert [(row["slice_key"], row["figure"]) for row in metric.slice_rows()] == [(k, n) for k in (2, 4) for n in names]
    assert {tuple(row) for row in metric.slice_rows()} == {("slice_key", "figure", "value")}


def test_of_a_slice_that_comes_twice_the_first_counts() -> None:
    liver, lesions = LiverDice(), LesionFigures(TYPES)
    whole, half = np.full((1, 4), 2, np.uint8), np.array([[2, 2, 0, 0]], np.uint8)
    for predicted in (whole, half):
        liver.update(predicted, whole, 0, 0)
        lesions.update(predicted, whole, 0)
    assert liver.compute() == {"liver_dice": 1.0, "liver_dice_n": 1}
    assert lesions.compute()["dice1"] == 1


def test_tables_follow_updates_and_resets() -> None:
    metric = LesionFigures(TYPES)
    metric.update(*made_slice(0), 0)
    n = len(metric.lesion_rows())
    metric.update(*made_slice(1), 1)
    assert len(metric.lesion_rows()) > n
    metric.reset()
    metric.update(*made_slice(0), 0)
    assert len(metric.lesion_rows()) == n


def test_without_lesions_the_figures_are_undefined() -> None:
    metric = LesionFigures(TYPES)
    metric.update(*made_slice(3), 3)
    figures = metric.compute()
    undefined = {name for name, value in figures.items() if math.isnan(value)}
    assert undefined == {
        "dice1",
        "dice2",
        "success_rate",
        "accuracy_all",
        "accuracy_found",
        *(f"dice_{t}" for t in TYPES),
    }
    assert (figures["lesions_n"], figures["slices_n"], figures["false_positives_per_slice"]) == (0, 1, 0)


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_without_slices_every_figure_is_undefined() -> None:
    assert math.isnan(LesionFigures(TYPES).compute()["false_positives_per_slice"])
    assert math.isnan(LiverDice().compute()["liver_dice"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_precision_settings_do_not_touch_the_counts(dtype: torch.dtype) -> None:
    metric, other = LiverDice(), LiverDice()
    for m in (metric, other):
        m.update(np.ones((300, 300), np.uint8), np.ones((300, 300), np.uint8), 2**40, 0)
        m.update(np.ones((300, 300), np.uint8), np.eye(300, dtype=np.uint8), 2**40, 1)
    metric.to(dtype).set_dtype(dtype)
    assert metric.compute() == other.compute()
    assert metric.case_rows() == [{"case_key": 2**40, "dice": 2 * 90_300 / (180_000 + 90_300)}]


def test_liver_dice_is_per_case_in_three_dimensions() -> None:
    rng = np.random.default_rng(0)
    volumes = {case: rng.integers(0, 5, (2, depth, 6, 6)).astype(np.uint8) for case, depth in ((5, 1), (9, 4))}
    volumes[7] = np.zeros((2, 2, 6, 6), np.uint8)
    metric = LiverDice()
    for case, (predicted, reference) in volumes.items():
        for index in range(len(predicted)):
            metric.update(predicted[index], reference[index], case, index)
    dice = {c: f1_score(r.ravel() > 0, p.ravel() > 0) for c, (p, r) in volumes.items() if c != 7}
    assert metric.compute() == pytest.approx({"liver_dice": np.mean(list(dice.values())), "liver_dice_n": 2}, abs=1e-12)
    rows = {row["case_key"]: row["dice"] for row in metric.case_rows()}
    assert rows == pytest.approx({5: dice[5], 7: math.nan, 9: dice[9]}, nan_ok=True)
