"""Benchmarks of training: that they compare like with like. Nothing is timed here."""

import json
import subprocess
import sys
from itertools import pairwise
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
    assert len(pair.epochs.whole) == 3
    assert all(whole > steps for whole, steps in zip(pair.epochs.whole, pair.epochs.seconds, strict=True))
    for each in (pair.epochs, pair.bare.epochs):
        assert all(0 < wait < whole for wait, whole in zip(each.waiting, each.seconds, strict=True))


def test_saving_is_counted_and_takes_less_where_its_share_is_small(slices_store):
    from saving import train

    seldom, often = (train(slices_store, 4, share, profile="phantom") for share in (1e-9, 1.0))
    assert seldom.saving.saves < often.saving.saves
    for each in (seldom, often):
        assert 0 < each.saving.seconds < each.seconds


@pytest.fixture
def step():
    from freeze_states import Step

    return Step("tu-test_resnet", (8, 8, 8, 8, 8), 32, 2)


def needed_flops(step, frozen):
    """Of the convolutions from their shapes: forward; gradients of weights that learn, and of inputs that need one."""
    learning = {id(p) for name, block in step.blocks.items() if name not in frozen for _, p in block.parameters}
    forward, gradients = [], []

    def count(conv, inputs, out):
        flops = 2 * out.numel() * conv.weight[0].numel()  # as many for either gradient
        forward.append(flops)
        gradients.append(flops * ((id(conv.weight) in learning) + inputs[0].requires_grad))

    hooks = [m.register_forward_hook(count) for m in step.net.modules() if isinstance(m, torch.nn.Conv2d)]
    step.forward()
    for hook in hooks:
        hook.remove()
    return sum(forward), sum(gradients)


def test_the_count_of_operations_is_that_of_torch_and_of_what_is_needed(step):
    from freeze_states import FORWARD, GRADIENTS, metered

    found = []
    for frozen in step.states().values():
        step.freeze(frozen)
        with FlopCounterMode(display=False) as reference:
            step()
        counts = metered(step).counts
        assert counts[FORWARD] + counts[GRADIENTS] == reference.get_total_flops()
        assert (counts[FORWARD], counts[GRADIENTS]) == needed_flops(step, frozen)
        found.append(counts[GRADIENTS])
    assert_falls(found)


def test_the_count_of_memory_falls_with_what_is_frozen_and_no_allocator_does_with_less(step):
    from freeze_states import needed_bytes, peak_bytes

    found = []
    for frozen in step.states().values():
        step.freeze(frozen)
        step()
        found.append(needed_bytes(step))
        assert found[-1] <= peak_bytes(step)
    assert_falls(found)


def assert_falls(figures):
    """In the order of `Step.states`: nothing, from the input on to the whole encoder, from the deep end."""
    for each in (figures[:6], [figures[0], *figures[6:]]):
        assert all(less < more for more, less in pairwise(each))


def test_what_is_kept_without_use_is_in_the_peak_and_not_in_the_count(step):
    from freeze_states import needed_bytes, peak_bytes

    step.freeze(("stem", "stage1", "stage2", "stage3", "stage4"))
    step()
    needed, peak, kept = needed_bytes(step), peak_bytes(step), []
    step.net.encoder.register_forward_hook(lambda *call: kept.extend(call[-1][1:]))
    assert needed_bytes(step) == needed
    kept.clear()
    features = peak_bytes(step) - peak
    assert 0 < features <= sum(feature.nbytes for feature in kept)


@pytest.mark.parametrize(("used_again", "most"), [(False, 2), (True, 3)])
def test_the_count_of_memory_is_that_by_hand(used_again, most):
    from freeze_states import Tape

    with Tape() as tape:
        a = torch.ones(256)
        b = a * 2
        c = b * 2  # beside b, and a if there is a use for it
        if used_again:
            a.view(16, 16).add_(1)
        del a, b, c
        others = [torch.ones(256) for _ in range(4)]  # at the addresses of those before
    assert len(others) == 4
    assert tape.peak() == most * 256 * 4


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("layer", ["convolution", "norm", "norm in training"])
def test_the_backward_reads_the_input_of_a_layer_where_the_count_of_memory_says_so(layer, learns):
    from freeze_states import Tape

    aten, mask = torch.ops.aten, [True, learns, False]
    inputs, gradient = torch.randn(2, 2, 4, 6, 6)
    weight, scale = torch.randn(4, 4, 3, 3), torch.ones(4)

    def backward(inputs, gradient):
        if layer == "convolution":
            geometry = [1, 1], [1, 1], [1, 1], False, [0, 0], 1
            return aten.convolution_backward(gradient, inputs, weight, None, *geometry, mask)[:2]
        training = layer == "norm in training"
        return aten.native_batch_norm_backward(gradient, inputs, *[scale] * 5, training, 1e-5, mask)[:2]

    read = any(g is not None and g.isnan().any() for g in backward(torch.full_like(inputs, torch.nan), gradient))
    with Tape() as tape:
        a, b = inputs.clone(), gradient.clone()
        backward(a, b)
    assert tape.peak() // b.nbytes == (3 if read else 2)  # both gradients, and the input


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


def test_on_a_cpu_the_same_code_runs(tmp_path, monkeypatch):
    from gpu import main

    words = ["--device", "cpu", "--epochs", "2", "--slices", "8", "--compiled", "no", "--output"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words, str(tmp_path / "gpu.json")])
    main()
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row["other"] for row in rows] == ["bare PyTorch loop", "floor by counts"]
    assert {row["figure"] for row in rows} == {"training, phantom net, bf16-mixed, channels-last, cpu"}
    assert all(row["ours_median"] > 0 and row["theirs_median"] > 0 for row in rows)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_every_row_is_there(tmp_path):
    done = gpu("--epochs", 3, "--slices", 48, "--compiled", "no", "--output", tmp_path / "gpu.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row["other"] for row in rows] == ["bare PyTorch loop", "floor by counts", "all seconds", "all of the GPU"]
    assert all(row["ours_median"] > 0 for row in rows)
