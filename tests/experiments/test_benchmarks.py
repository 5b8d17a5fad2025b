"""Benchmarks of training: that they compare like with like. Nothing is timed here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

BENCHMARKS = Path(__file__).parents[2] / "experiments" / "benchmarks"
SMALL = ["--data.input.size_px", "32", "--data.batch_size", "2"]


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def gpu(*words):
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_run_with_all_its_callbacks_trains_as_the_bare_loop_does(slices_store):
    from training_step import beside

    pair = beside(slices_store, 3, *SMALL)
    assert pair.same
    assert pair.epochs.steps == 6
    assert len(pair.epochs.seconds) == len(pair.bare.epochs.seconds) == 3
    for each in (pair.epochs, pair.bare.epochs):
        assert all(0 < wait < whole for wait, whole in zip(each.waiting, each.seconds, strict=True))


def test_the_count_of_operations_is_that_of_torch_and_falls_with_what_is_frozen():
    from freeze_states import FORWARD, GRADIENTS, Step, held_bytes, metered, peak_bytes

    step = Step("tu-test_resnet", (8, 8, 8, 8, 8), 32, 2)
    found = []
    for frozen in step.states().values():
        step.freeze(frozen)
        with FlopCounterMode(display=False) as reference:
            step()
        counts = metered(step).counts
        assert counts[FORWARD] + counts[GRADIENTS] == reference.get_total_flops()
        held = held_bytes(step)
        assert held <= peak_bytes(step)  # the allocator's own figure, in which there is scratch space too
        found.append((counts[GRADIENTS], held))
    operations, held = zip(*found[:6], strict=True)  # nothing, then from the input on to the whole encoder
    assert sorted(operations, reverse=True) == list(operations)
    assert sorted(held, reverse=True) == list(held)
    assert len(set(operations)) == len(set(held)) == 6


def test_a_prefix_is_as_long_as_the_schedule_says():
    from frozen_prefix import EPOCHS, prefixes

    names = ["stem", "stage1", "stage2", "stage3", "stage4", "decoder", "head"]
    assert prefixes("freeze_encoder", names) == [5] * EPOCHS
    assert prefixes("hierarchical_unfreezing", names) == [n for n in (5, 4, 3, 2, 1, 0) for _ in range(EPOCHS // 6)]
    assert prefixes("hierarchical_freezing", names) == [n for n in (0, 1, 2, 3, 4, 5) for _ in range(EPOCHS // 6)]


def test_time_that_two_kernels_share_counts_once():
    from gpu import covered_us

    assert covered_us([(5, 7), (0, 2), (1, 4), (6, 6.5)]) == 6


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(tmp_path):
    done = gpu("--output", tmp_path / "gpu.json")
    assert done.returncode == 0
    assert done.stdout.splitlines() == ["gpu: left out, as torch finds no CUDA device"]
    assert not (tmp_path / "gpu.json").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_every_row_is_there(tmp_path):
    done = gpu("--epochs", 3, "--slices", 48, "--compiled", "no", "--output", tmp_path / "gpu.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row["other"] for row in rows] == ["bare PyTorch loop", "floor by counts", "all seconds"]
    assert all(row["ours_median"] > 0 for row in rows)
