"""A quick "done" must never be wrong: whatever could change a run changes the hash of its request."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lesionseg.request import done_in, request_sha256


@pytest.fixture
def args(tmp_path) -> list[str]:
    for name, text in {
        "base.yaml": f"data:\n  batch_size: 2\nmodel:\n  init_args:\n    encoder_weights: {tmp_path / 'encoder.pt'}\n",
        "encoder.pt": "ImageNet",
        "store/manifest.json": "{}",
        "store/cases/a/hu.npy": "voxels",
        "pretrained/checkpoints/last.ckpt": "weights",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return [
        "fit", "--config", str(tmp_path / "base.yaml"), "--data.store", str(tmp_path / "store"),
        "--model.init_args.weights", str(tmp_path / "pretrained"), "--cell", "1/15@2",
        "--trainer.default_root_dir", str(tmp_path / "run"), "--data.num_workers", "0",
        "--trainer.devices", "1", "--trainer.num_nodes", "1",
    ]  # fmt: skip


def joined(args: list[str]) -> list[str]:
    """`--key value` as `--key=value`."""
    return [args[0], *(f"{key}={value}" for key, value in zip(args[1::2], args[2::2], strict=True))]


@pytest.mark.parametrize("form", [list, joined])
@pytest.mark.parametrize("file", ["base.yaml", "encoder.pt", "store/manifest.json", "pretrained/checkpoints/last.ckpt"])
def test_what_the_command_line_names_is_part_of_the_request(tmp_path, args, file, form):
    before = request_sha256(form(args))
    assert request_sha256(form(args)) == before
    path = tmp_path / file
    original = path.read_text()
    path.write_text(original + " ")
    assert request_sha256(form(args)) != before
    path.write_text(original)
    assert request_sha256(form(args)) == before
    path.unlink()
    assert request_sha256(form(args)) != before


@pytest.mark.parametrize("form", ["json", "inline", "nested", "unusual"])
def test_what_settings_of_any_form_name_is_part_of_the_request(tmp_path, args, form):
    inner = json.dumps({"data": {"store": str(tmp_path / "store")}})
    (tmp_path / "inner.json").write_text(inner)
    (tmp_path / "outer.yml").write_text(f"data: {tmp_path / 'inner.json'}\n")
    (tmp_path / "settings").write_text(inner)
    word = {"json": str(tmp_path / "inner.json"), "inline": inner, "nested": str(tmp_path / "outer.yml"),
            "unusual": str(tmp_path / "settings")}[form]  # fmt: skip
    before = request_sha256(["fit", "--config", word])
    (tmp_path / "store" / "manifest.json").write_text('{"other": 1}')
    assert request_sha256(["fit", "--config", word]) != before


def test_settings_full_of_aliases_take_no_longer(tmp_path):
    laughs = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]\n" for i in range(12))
    (tmp_path / "laughs.yaml").write_text(laughs)
    (tmp_path / "circle.yaml").write_text("a: &a [*a]\n")
    for name in ("laughs.yaml", "circle.yaml"):
        assert request_sha256(["fit", "--config", str(tmp_path / name)])


def test_a_store_named_only_in_a_config_is_part_of_the_request(tmp_path, args):
    (tmp_path / "base.yaml").write_text(f"data: {{store: {tmp_path / 'store'}, lists: [[{tmp_path / 'encoder.pt'}]]}}")
    short = args[:3]
    hashes = {request_sha256(short)}
    (tmp_path / "store" / "manifest.json").write_text('{"other": 1}')
    hashes.add(request_sha256(short))
    (tmp_path / "encoder.pt").write_text("other")
    hashes.add(request_sha256(short))
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("option", "other"),
    [
        ("--cell", "2/30@4"),
        ("--trainer.default_root_dir", "elsewhere"),
        ("--data.num_workers", "7"),
        ("--trainer.devices", "4"),
        ("--trainer.num_nodes", "2"),
    ],
)
@pytest.mark.parametrize("form", [list, joined])
def test_place_and_speed_are_no_part_of_the_request(args, option, other, form):
    changed = args.copy()
    changed[args.index(option) + 1] = other
    assert request_sha256(form(changed)) == request_sha256(form(args))


@pytest.mark.parametrize("more", [["--seed_everything", "1"], ["--config", "none.yaml"], ["--data.fold=1"]])
def test_any_other_option_is(args, more):
    assert request_sha256([*args, *more]) != request_sha256(args)


@pytest.mark.parametrize("value", ["{" + "x" * 5000, "a: [", ""])
def test_strange_values_are_hashed_as_they_are(tmp_path, value):
    (tmp_path / "broken.yaml").write_text(value)
    args = ["fit", "--config", str(tmp_path / "broken.yaml"), "--data.input", value]
    assert request_sha256(args) == request_sha256(args) != request_sha256(args[:-1])


def finished(run: Path, args: list[str], **changes) -> None:
    run.mkdir(exist_ok=True)
    content = {"state": "finished", "request_sha256": request_sha256(args), **changes}
    (run / "run.json").write_text(json.dumps(content))


@pytest.mark.parametrize("form", [list, joined])
def test_done_is_a_finished_run_of_the_same_request(tmp_path, args, form):
    assert not done_in(form(args))
    finished(tmp_path / "run", form(args))
    assert done_in(form(args)) == str(tmp_path / "run")
    assert not done_in([*form(args), "--data.fold", "1"])
    finished(tmp_path / "run", form(args), state="running")
    assert not done_in(form(args))
    finished(tmp_path / "run", form(args))
    (tmp_path / "store" / "manifest.json").write_text("changed")
    assert not done_in(form(args))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"state": "finished"}'])
def test_a_damaged_run_is_not_done(tmp_path, args, text):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(text)
    assert not done_in(args)


@pytest.mark.parametrize("args", [["fit"], ["fit", "--trainer.default_root_dir"]])
def test_without_a_run_folder_nothing_is_done(args):
    assert not done_in(args)


def test_it_is_told_before_anything_heavy_is_loaded(tmp_path, args):
    finished(tmp_path / "run", args)
    code = (
        "import sys; from lesionseg.cli import main; status = main(sys.argv[1:]);"
        "print(status, sorted({'torch', 'monai', 'pytorch_lightning', 'pandas', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{tmp_path / 'run'} is done already", "0 []"]


def test_a_path_that_is_not_utf_8_has_a_hash(args):
    foreign = [*args, "--data.groups", os.fsdecode(b"M\xfcller.csv")]
    assert request_sha256(foreign) != request_sha256(args)
