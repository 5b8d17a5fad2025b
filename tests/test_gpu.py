"""On a GPU that is none (`pretended_gpu.py`): it runs, what comes out is that of a CPU, and no step waits for a number.

Kernels, speed and several GPUs are for a machine that has them.
"""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from lesionseg.cli import main
from lesionseg.tasks import CropClassifierTask

PROGRAM = Path(__file__).parent / "pretended_gpu.py"
ROWS = ("hierarchical_unfreezing", "crop_classifier")
#: Further rows with code of their own, for an epoch: they must end.
MORE = ("y_net", "deep_supervision", "l2_sp", "no_freezing_implants")
STEPS = 3


@pytest.fixture(scope="module", autouse=True)
def optimizer_of_a_gpu():
    """Or the trainings of the CPU round otherwise: AdamW is fused there alone."""
    adamw = partial(torch.optim.AdamW, foreach=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", lambda groups, fused: adamw(groups))
        yield


@pytest.fixture(scope="module")
def trainings(finetuning, pretraining, pretrained):
    """By name, for a folder: the command lines of two rows and of a liver net."""

    def trainings(root):
        weights = ("--model.init_args.weights", str(pretrained))
        rows = {row: finetuning(root / row, *weights, schedule=row) for row in ROWS}
        return {**rows, "liver": pretraining(root / "liver", net="liver")}

    return trainings


@pytest.fixture(scope="module")
def segment(phantom_root, make_model, tmp_path_factory):
    """The command line that segments a study into a folder."""
    model = tmp_path_factory.mktemp("model") / "model"
    make_model(members=2).save(model)
    scan = phantom_root / "lits" / "volume-0.nii.gz"
    options = ("--model", str(model), "--tta", "--probabilities", "--format", "nifti")
    return lambda folder: ["segment", str(scan), *options, "--output", str(folder)]


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory, trainings, segment):
    """Where trainings have run, and a study was segmented, on the CPU."""
    root = tmp_path_factory.mktemp("cpu")
    for command in (*trainings(root).values(), segment(root / "study")):
        assert main(command) == 0
    return root


@pytest.fixture(scope="module")
def on_gpu(tmp_path_factory, trainings, finetuning, pretrained, segment, slices_store):
    """Where all has run on the pretended GPU, and by name what each command has read from it.

    One training began on the CPU and was interrupted within an epoch.
    """
    root = tmp_path_factory.mktemp("gpu")

    def stop(self, *_):
        if self.trainer.global_step == 2 * STEPS + 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CropClassifierTask, "on_train_batch_start", stop, raising=False)
        assert main(trainings(root)["crop_classifier"]) == 130
    nets, model = ["--liver", str(root / "liver"), "--lesion", str(root / "crop_classifier")], str(root / "model")
    one_epoch = ["--trainer.max_epochs", "1", "--data.inner_validation", "0"]
    short = ["--model.init_args.weights", str(pretrained), *one_epoch]
    commands = {
        **trainings(root),
        **{row: finetuning(root / row, *short, schedule=row) for row in MORE},
        "segment": segment(root / "study"),
        "export": ["export", *nets, "--output", model],
        "evaluate": ["evaluate", str(slices_store), "--model", model, *f"--exclude-trained -o {root}/out".split()],
        "test": ["test", *trainings(root)["crop_classifier"][1:]],
    }
    program = [sys.executable, str(PROGRAM), str(root / "report.json"), *map(json.dumps, commands.values())]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = dict(zip(commands, json.loads((root / "report.json").read_text()), strict=True))
    assert {name: each["status"] for name, each in told.items()} == dict.fromkeys(commands, 0), done.stderr
    return root, {name: each["reads"] for name, each in told.items()}


@pytest.mark.parametrize("name", [*ROWS, "liver"])
def test_a_training_ends_with_the_weights_of_a_cpu(on_cpu, on_gpu, name):
    """Bit for bit; the one that was interrupted, too."""
    paths = [root / name / "checkpoints" / "last.ckpt" for root in (on_cpu, on_gpu[0])]
    one, other = (torch.load(path, weights_only=True) for path in paths)
    assert one["global_step"] == other["global_step"]
    assert one["state_dict"].keys() == other["state_dict"].keys()
    assert all(torch.equal(tensor, other["state_dict"][key]) for key, tensor in one["state_dict"].items())


@pytest.mark.parametrize("row", ROWS)
def test_its_tables_are_those_of_a_cpu(on_cpu, on_gpu, row):
    for table in ("slices.csv", "lesions.csv"):
        assert (on_gpu[0] / row / table).read_bytes() == (on_cpu / row / table).read_bytes()


def test_a_study_is_segmented_as_on_a_cpu(on_cpu, on_gpu):
    for name, difference in (("segmentation", 0), ("probability_cyst", 1e-3)):  # kept in half precision
        paths = [root / "study" / "volume-0" / f"{name}.nii.gz" for root in (on_gpu[0], on_cpu)]
        found, expected = (np.asarray(nib.load(path).dataobj, dtype=np.float64) for path in paths)
        np.testing.assert_allclose(found, expected, rtol=0, atol=difference)
        assert len(np.unique(found)) > 3


@pytest.mark.parametrize("row", ROWS)
def test_no_step_reads_a_number(on_gpu, row):
    """But for the loss of the step before, and for the gradients of the last step of an epoch."""
    steps = [read for read in on_gpu[1][row] if ["training_epoch_loop.py", "advance"] in read]
    known = (["guards.py", "_refuse_last"], ["block_figures.py", "on_before_optimizer_step"])
    assert all(any(function in read for read in steps) for function in known)
    assert [read for read in steps if not any(function in read for function in known)] == []


def test_what_a_gpu_does_not_do_is_not_done_there():
    """Tensors of two devices meet, NumPy reads one, NCCL takes one of the CPU, a resize takes more memory than a block
    of CUDA's has; a number that is read is noted."""
    code = f"""
import sys; sys.path.insert(0, {str(PROGRAM.parent)!r})
import torch
import pretended_gpu as pretended
with pretended.Pretence():
    here, there = torch.ones(2), torch.ones(2, device=pretended.GPU)
    large = torch.ones(1, 1, 320, 320, device=pretended.GPU)
    by_far = lambda: torch.nn.functional.interpolate(large, (3, 3), mode="bilinear", antialias=True)
    for wrong in (lambda: here + there, lambda: there.numpy(), by_far):
        try:
            wrong()
        except (RuntimeError, TypeError):
            continue
        sys.exit("done")
    try:
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        torch.distributed.all_reduce(there)
        torch.distributed.all_reduce(here)
        sys.exit("exchanged")
    except RuntimeError as error:
        assert "No backend type" in str(error), error
    assert not pretended.reads
    assert (there + 1).cpu().tolist() == [2, 2]
    assert bool(there.sum() == 2) and there.tolist() == [1, 1] and len(there[there > 0]) == 2
assert len(pretended.reads) == 4, pretended.reads
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("side", [3, 4, 400])
def test_scores_come_back_to_the_smallest_box(side):
    """That of a liver of one pixel, for which CUDA's own resize has no room; values those of a CPU."""
    code = f"""
import sys; sys.path.insert(0, {str(PROGRAM.parent)!r})
import torch
import pretended_gpu as pretended
from lesionseg.inputs import resize
scores = torch.randn(3, 320, 320)
with pretended.Pretence():
    found = resize(scores.to(pretended.GPU), {side})
    assert found.device == pretended.GPU
    assert torch.equal(found.cpu(), resize(scores, {side}))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
