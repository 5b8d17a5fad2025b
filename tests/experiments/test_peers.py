"""The neighbours on a tiny cell: what they leave is a row of our comparison; nnU-Net's files, there and back."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from lesionseg.cli import main
from lesionseg.errors import InputError
from lesionseg.grid import read_grid
from lesionseg.inputs import paste, resize
from lesionseg.model_net import Net
from lesionseg.results import REFERENCE
from lesionseg.run_weights import read_net
from lesionseg.runs import RunInfo
from lesionseg.tasks import LesionTask

PEERS = Path(__file__).parents[2] / "experiments" / "peers"
sys.path.insert(0, str(PEERS))  # as when one of its scripts is run

import backbone_finetuning  # noqa: E402
import gradual_unfreezing  # noqa: E402
import mirrored  # noqa: E402
import nnunet  # noqa: E402
import nnunet_data  # noqa: E402
import run  # noqa: E402
from cell import Cell  # noqa: E402


@pytest.fixture(scope="module")
def cell(once, finetuning, pretrained) -> Path:
    """A finished run of `no_freezing` from pretrained weights, in the place where a grid has it."""

    def fill(rows: Path) -> None:
        short = ["--trainer.limit_train_batches", "1", "--data.input.size_px", "64"]
        weights = ["--model.init_args.weights", str(pretrained)]
        assert main(finetuning(rows / "no_freezing" / "fold0-seed0", *short, *weights, schedule="no_freezing")) == 0

    return once("peers", fill) / "no_freezing" / "fold0-seed0"


@pytest.fixture
def rows(cell, tmp_path) -> Path:
    """A grid that holds the cell."""
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "no_freezing").symlink_to(cell.parent)
    return tmp_path / "rows"


def test_what_lightning_peers_leave_is_comparable_with_our_rows(cell, rows):
    for peer in (backbone_finetuning, gradual_unfreezing):
        peer.train(cell, rows / peer.ROW / "fold0-seed0")
    grid = read_grid(rows)
    assert grid.schedules == ["fastai_gradual_unfreezing", "lightning_backbone_finetuning", "no_freezing"]
    assert len({run.info.weights_sha256 for run in grid.runs}) == 1


def test_finetuning_scheduler_leaves_a_row_too(cell, rows):
    pytest.importorskip("finetuning_scheduler")
    import fts

    fts.train(cell, rows / fts.ROW / "fold0-seed0")
    assert read_grid(rows).schedules == ["finetuning_scheduler", "no_freezing"]


def test_a_neighbour_starts_from_the_weights_of_the_cell(cell, pretrained):
    task = Cell.read(cell).task(nnunet.PredictedTask)
    task.setup("fit")
    own, held = task.net.state_dict(), read_net(pretrained)[1]
    same = [name for name, tensor in held.items() if own[name].shape == tensor.shape]
    assert len(same) > 0.9 * len(held)
    assert all(torch.equal(own[name], held[name]) for name in same)


def test_gradual_unfreezing_ends_every_phase_near_zero_and_slows_down_towards_the_input(cell):
    described = Cell.read(cell)
    task = described.task(gradual_unfreezing.GradualTask)
    groups = task.configure_optimizers().param_groups
    assert [group["peak"] for group in groups[::2]] == pytest.approx([1e-3 / 2.6**i for i in (5, 4, 3, 2, 1, 0, 0)])
    assert [group["peak"] for group in groups[1::2]] == [group["peak"] for group in groups[::2]]
    assert [group["weight_decay"] for group in groups] == [0.01, 0] * 7
    assert sum(len(group["params"]) for group in groups) == len(list(task.net.parameters()))
    first = described.phases(task).steps[0].rates
    assert [name for name, rate in first.items() if rate] == ["decoder", "head"]


def test_a_row_is_tested_again_with_mirror_images(cell, rows):
    """Slice by slice against probabilities averaged by hand; and some pixel must change, or nothing was averaged."""
    described = Cell.read(cell)
    mirrored.test(cell, rows / "no_freezing_mirrored" / "fold0-seed0")
    run = next(run for run in read_grid(rows).runs if run.info.name == "no_freezing_mirrored")
    data, task, plain = described.data(), described.task(LesionTask), described.task(LesionTask)
    task.net = plain.net = Net.from_run(cell).build()

    def averaged(batch):
        both = []
        for images, flip in ((batch.images, False), (batch.images.flip(-1), True)):
            scores = task(images).flip(-1) if flip else task(images)
            both.append([resize(s, box.side).softmax(0) for s, box in zip(scores, batch.boxes, strict=True)])
        sizes = [reference.shape for reference in batch.references]
        pairs = zip(*both, batch.boxes, sizes, strict=True)
        return [paste(((a + b) / 2).argmax(0).to(torch.uint8), box, *size) for a, b, box, size in pairs]

    task.predict_slices = averaged
    tested = {}
    for name, one in (("mirrored", task), ("plain", plain)):
        described.leave(rows / f"{name}_by_hand" / "fold0-seed0", f"{name}_by_hand", one, data, neighbour="none")
        tested[name] = (rows / f"{name}_by_hand" / "fold0-seed0" / "slices.csv").read_bytes()
    assert (run.folder / "slices.csv").read_bytes() == tested["mirrored"] != tested["plain"]


def test_rows_are_tested_again_where_they_are_asked_for(tmp_path):
    rows, neighbours = ["no_freezing", "crop_classifier"], ["nnunet_adam", "nnunet", "nnunet_adam_finetuned"]
    again = ["crop_classifier_mirrored", "nnunet_adam_unmirrored", "nnunet_adam_finetuned_unmirrored"]
    plan = run.Plan(tmp_path, tmp_path / "ours", rows, [*neighbours, *again], folds=2, seeds=[0], fit_options=[])
    jobs = plan.mirrored() + plan.nnunet_unmirrored()
    assert [job.folder for job in jobs] == [tmp_path / "rows" / row / f"fold{k}-seed0" for row in again for k in (0, 1)]
    for job in jobs:
        trained = tmp_path / "rows" / job.folder.parent.name.rpartition("_")[0] / job.folder.name
        assert trained in job.command
        assert trained in job.rests_on


@pytest.mark.parametrize("neighbour", ["fastai", "l2_sp_mirrored", "nnunet_adam_unmirrored", "no_freezing_unmirrored"])
def test_a_neighbour_that_there_is_not_is_told_with_those_there_are(neighbour):
    with pytest.raises(InputError, match=f"NEIGHBOURS: expected some of .*; got {neighbour}; ") as error:
        run.check_rows(["no_freezing"], ["nnunet", neighbour], "no_freezing")
    assert "nnunet_unmirrored" in error.value.expected
    assert "no_freezing_mirrored" in error.value.expected


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--schedules", "baseline"],
            "PEER_SCHEDULES: expected no_freezing, whose cells the neighbours take",
        ),
        (["--schedules", "no_freezing", "--against", "baseline"], "AGAINST: expected a row: no_freezing, lightning_"),
        (["--schedules", "no_freezing", "--check"], ""),
    ],
)
def test_rows_are_looked_at_before_anything_is_trained(words, told, tmp_path):
    script = [sys.executable, PEERS / "run.py", tmp_path / "peers", "--pretraining", tmp_path, *words]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2 if told else 0, "")
    assert done.stderr.startswith(f"lesionseg: wrong input: {told}") if told else done.stderr == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(find_spec("SimpleITK") is None, reason="needs SimpleITK")
def test_what_nnunet_is_given_and_gives_back_fits_the_slices(cell, rows, tmp_path):
    """Its own label files as predictions: every figure is perfect, so cut, size, order and place are right."""
    import SimpleITK as sitk  # noqa: N813

    described = Cell.read(cell)
    data = described.data()
    nnunet_data.convert(data, tmp_path / "dataset")
    listed = json.loads((tmp_path / "dataset" / "dataset.json").read_text())
    assert listed["numTraining"] == len(list((tmp_path / "dataset" / "imagesTr").iterdir())) == 12
    labels = {}
    for position, ref in enumerate(data.test.slices):
        path = tmp_path / "dataset" / "labelsTr" / f"{nnunet_data.identifier(ref)}.nii.gz"
        image = sitk.ReadImage(str(path))
        assert image.GetSpacing()[:2] == pytest.approx(data.records[ref.case_id].spacing_mm[:0:-1])
        classes = torch.from_numpy(sitk.GetArrayFromImage(image)[0]).long()
        probabilities = functional.one_hot(classes, len(data.target.classes)).permute(2, 0, 1).float()
        labels[position] = nnunet_data.back_on_slice(data, ref, probabilities.numpy())
    task = described.task(nnunet.PredictedTask)
    task.predictions = labels
    described.leave(rows / "nnunet" / "fold0-seed0", "nnunet", task, data, start="nothing")
    run = next(run for run in read_grid(rows).runs if run.info.name == "nnunet")
    assert (run.lesions.kind == REFERENCE).all()
    assert (run.lesions.predicted_type == run.lesions.type).all()
    assert (run.slices[run.slices.figure == "dice1"].value.dropna() == 1).all()


@pytest.mark.skipif(find_spec("SimpleITK") is None, reason="needs SimpleITK")
def test_nnunet_gets_no_more_pixels_than_our_nets_and_the_same_hu(cell, tmp_path):
    import SimpleITK as sitk  # noqa: N813

    data = Cell.read(cell).data()
    data.input = replace(data.input, size_px=32)
    nnunet_data.convert(data, tmp_path)
    ref = data.train.slices[0]
    box = nnunet_data.box_of(data, ref)
    image = sitk.ReadImage(str(tmp_path / "imagesTr" / f"{nnunet_data.identifier(ref)}_0000.nii.gz"))
    side = min(box.side, 32)
    assert image.GetSize() == (side, side, 1)
    mean = data.store.hu(ref.case_id)[ref.slice][box.top : box.top + box.side, box.left : box.left + box.side].mean()
    assert np.mean(sitk.GetArrayFromImage(image)) == pytest.approx(mean, abs=2)
    extent_mm = side * image.GetSpacing()[0]
    assert extent_mm == pytest.approx(box.side * data.records[ref.case_id].spacing_mm[2])


def test_nnunet_is_brought_back_to_the_pixels_of_the_slice_as_ours_is(cell):
    """A disc at half of its size; its classes enlarged by the nearest pixel would overlap by less."""
    data = Cell.read(cell).data()
    ref = data.test.slices[0]
    box = nnunet_data.box_of(data, ref)
    grid = (torch.arange(box.side) - box.side / 2 + 0.5) ** 2
    disc = (grid + grid[:, None] < (box.side / 5) ** 2).float()
    half = functional.interpolate(disc[None, None], scale_factor=0.5, mode="area")[0]
    back = nnunet_data.back_on_slice(data, ref, torch.cat([1 - half, half]).numpy()) == 1
    whole = paste(disc, box, *data.records[ref.case_id].shape[1:]) == 1
    assert 2 * (back & whole).sum() / (back.sum() + whole.sum()) > 0.98


@pytest.mark.parametrize(
    ("wanted", "there", "device"),
    [("cpu", True, "cpu"), ("auto", True, "cuda"), ("auto", False, "cpu"), ("gpu", True, "cuda")],
)
def test_nnunet_trains_where_ours_does(cell, monkeypatch, wanted, there, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    described = Cell.read(cell)
    described.config["trainer"]["accelerator"] = wanted
    assert nnunet.device_of(described).type == device


def test_another_plan_is_another_pretraining(tmp_path):
    rows = ["nnunet_adam", "nnunet_adam_finetuned"]
    plan = run.Plan(tmp_path, tmp_path / "ours", ["no_freezing"], rows, folds=1, seeds=[0], fit_options=[])
    plan.nnunet_plan.parent.mkdir(parents=True)
    requests = []
    for text in ("{}", "[]"):
        plan.nnunet_plan.write_text(text)
        requests.append([job.request for job in plan.nnunet_from_scratch()])
    assert all(before != after for before, after in zip(*requests, strict=True))
    assert len(requests[0]) == 2


def test_nnunet_trains_and_validates_on_our_parts(cell):
    data = Cell.read(cell).data()
    (parts,) = nnunet_data.splits([data])
    held = json.loads((cell / "split.json").read_text())
    assert {name.rpartition("-s")[0] for name in parts["train"]} == set(held["train"])
    assert {name.rpartition("-s")[0] for name in parts["val"]} == set(held["validation"])
    assert nnunet.slices_per_epoch(Cell.read(cell), data) == 2
    whole = len(data.train_dataloader())
    assert whole > 1
    for limit, batches in ((1.0, whole), (0.5, whole // 2), (99, whole)):
        held = Cell.read(cell)
        held.config["trainer"]["limit_train_batches"] = limit
        assert nnunet.slices_per_epoch(held, data) == 2 * batches


def test_rows_of_nnunet_start_from_the_pretraining_of_their_own_trainer(tmp_path):
    rows = ["no_freezing", "nnunet_adam_finetuned", "nnunet", "nnunet_adam", "nnunet_finetuned"]
    plan = run.Plan(tmp_path, tmp_path / "ours", rows[:1], rows[1:], folds=2, seeds=[0, 1], fit_options=[])
    from_scratch, finetuned = plan.nnunet_from_scratch(), plan.nnunet_finetuned()
    pretrainings = {job.folder: "--adam" in job.command for job in from_scratch if "--pretrain" in job.command}
    assert {folder.name: adam for folder, adam in pretrainings.items()} == {
        "pretraining_of_nnunet_finetuned": False,
        "pretraining_of_nnunet_adam_finetuned": True,
    }
    for row, jobs in (("nnunet", from_scratch), ("nnunet_adam", from_scratch), ("nnunet_finetuned", finetuned),
                      ("nnunet_adam_finetuned", finetuned)):  # fmt: skip
        cells = [job for job in jobs if job.folder.parent == tmp_path / "rows" / row]
        assert len(cells) == 4
        assert {"--adam" in job.command for job in cells} == {"adam" in row}
        held = {word for job in cells for word in job.command if str(word).endswith(nnunet.CHECKPOINT)}
        assert {(path.parent, pretrainings[path.parent]) for path in held} == (
            {(tmp_path / "nnunet" / f"pretraining_of_{row}", "adam" in row)} if "finetuned" in row else set()
        )
    alone = replace(plan, neighbours=["nnunet_adam"])
    assert len(alone.nnunet_from_scratch()) == 4
    assert alone.nnunet_finetuned() == []


def test_nnunet_which_draws_cases_alike_sees_as_many_slices_with_a_lesion_as_our_nets(cell):
    data = Cell.read(cell).data()
    assert sorted(nnunet_data.names_to_draw(data)) == sorted(map(nnunet_data.identifier, data.train.slices))
    data.train.slices.foreground[::2] = False
    foreground = {nnunet_data.identifier(ref): ref.foreground for ref in data.train.slices}
    data.keep_empty = 0.25
    assert Counter(nnunet_data.names_to_draw(data)) == {name: 4 if found else 1 for name, found in foreground.items()}
    data.keep_empty = 0
    assert nnunet_data.names_to_draw(data) == [name for name, found in foreground.items() if found]


def test_a_measured_job_is_done_once_and_again_when_what_it_rests_on_changed(tmp_path):
    source, made = tmp_path / "source.yaml", tmp_path / "made"
    source.write_text("a: 1")
    script = f"import pathlib; p = pathlib.Path({str(made)!r}); p.mkdir(); (p / 'x').write_text('x' * 10)"
    job = run.Job(made, [sys.executable, "-c", script], [source])
    assert not job.done
    assert run.measure(job, tmp_path / "log", threads=1, placed=["env", "A=1"]) > 0
    assert job.done
    cost = json.loads((made / "cost.json").read_text())
    assert cost["peak_mib"] > 1
    assert 0 < cost["cpu_s"] < 60
    source.write_text("a: 2")
    assert not job.done


def test_a_source_that_is_edited_while_the_job_runs_makes_it_run_again(tmp_path):
    source, made = tmp_path / "source.yaml", tmp_path / "made"
    source.write_text("a: 1")
    script = f"import pathlib; pathlib.Path({str(made)!r}).mkdir(); pathlib.Path({str(source)!r}).write_text('a: 2')"
    job = run.Job(made, [sys.executable, "-c", script], [source])
    run.measure(job, tmp_path / "log", threads=1)
    assert not job.done


def test_a_job_that_fails_names_its_log(tmp_path):
    job = run.Job(tmp_path / "made", [sys.executable, "-c", "raise SystemExit('no such thing')"], [])
    with pytest.raises(RuntimeError, match="log"):
        run.run_all([job], tmp_path, side_by_side=1)
    assert "no such thing" in next((tmp_path / "logs").iterdir()).read_text()
    assert not job.done


def test_the_table_joins_figures_and_costs(cell, rows, capsys):
    import table

    described = Cell.read(cell)
    for row in ("no_freezing", "nnunet"):
        folder = rows / row / "fold0-seed0"
        if row == "nnunet":
            data, task = described.data(), described.task(nnunet.PredictedTask)
            task.predictions = {i: torch.zeros(data.records[ref.case_id].shape[1:], dtype=torch.uint8)
                                for i, ref in enumerate(data.test.slices)}  # fmt: skip
            described.leave(folder, row, task, data, neighbour="nnunetv2 2", start="nothing")
            assert RunInfo.read(folder).weights_sha256 is None
        (folder / "cost.json").write_text(json.dumps({"wall_s": 60.4, "cpu_s": 30.0, "peak_mib": 1000.0}))
    (rows / "nnunet" / "fold0-seed1").mkdir()  # asked for at another time, and not finished
    for name in ("datasets", "pretraining_of_nnunet"):
        (rows.parent / "nnunet" / name).mkdir(parents=True)
        (rows.parent / "nnunet" / name / "cost.json").write_text('{"wall_s": 7, "cpu_s": 6, "peak_mib": 5}')
    table.write(rows.parent, "no_freezing", ["no_freezing", "nnunet"], folds=4, seeds=[0])
    with pytest.raises(InputError, match="2 unfinished or missing: nnunet/fold0-seed1, no_freezing/fold0-seed1"):
        table.write(rows.parent, "no_freezing", ["no_freezing", "nnunet"], folds=4, seeds=[0, 1])
    with pytest.raises(InputError, match="got none of fts"):
        table.write(rows.parent, "no_freezing", ["no_freezing", "nnunet", "fts"], folds=4, seeds=[0])
    text = (rows.parent / "table.md").read_text()
    assert text.startswith("# Against the neighbours (phantom, generated CT)")
    nnunet_row = next(line for line in text.splitlines() if line.startswith("| nnunet | nothing | 0.000"))
    assert nnunet_row.endswith("| 60 | 30 | 1000 |")
    assert "- nnunet: nnunetv2 2." in text
    assert "- nnU-Net's planning and preprocessing: 7 s, 6 s of CPU, 5 MiB." in text
    assert "- nnU-Net's pretraining of nnunet: 7 s, 6 s of CPU, 5 MiB." in text
