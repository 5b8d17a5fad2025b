"""The model folder: what is saved is loaded, and nothing else is."""

import json
import multiprocessing
import os
import pickle
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lesionseg.errors import InputError
from lesionseg.model import MODEL_FILE, Model, Thresholds
from lesionseg.model_net import Net


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture(scope="module")
def model(make_model):
    return make_model(members=2, temperature=1.5, trained_on=("b" * 64, "a" * 64), calibration={"n": 3})


@pytest.fixture
def folder(model, tmp_path):
    model.save(tmp_path / "model")
    return tmp_path / "model"


def test_what_is_saved_is_loaded(model, folder):
    held = Model.load(folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "lesion-0.safetensors", "lesion-1.safetensors", "liver.safetensors", MODEL_FILE,
    ]  # fmt: skip
    assert held.identity == model.identity
    assert (held.thresholds, held.temperature, held.calibration) == (model.thresholds, 1.5, {"n": 3})
    assert held.trained_on == ("a" * 64, "b" * 64)
    assert held.classes == ("background", "liver", "cyst", "hemangioma", "metastasis")
    for ours, theirs in zip((model.liver, *model.lesions), (held.liver, *held.lesions), strict=True):
        assert ours.description == theirs.description
        assert ours.provenance == theirs.provenance
        a, b = ours.build().state_dict(), theirs.build().state_dict()
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_any_change_is_another_model(model):
    others = [
        replace(model, temperature=1.6),
        replace(model, thresholds=Thresholds(min_lesion_px=6)),
        replace(model, lesions=model.lesions[:1]),
        replace(model, trained_on=("a" * 64,)),
        replace(model, liver=replace(model.liver, tensors={
            name: tensor + (name == "segmentation_head.0.bias") for name, tensor in model.liver.tensors.items()
        })),
    ]  # fmt: skip
    assert len({model.identity, *(other.identity for other in others)}) == 6
    assert replace(model).identity == model.identity


def test_the_card_lists_no_training_scans(model):
    assert "trained_on" not in model.card
    assert model.card["scans_seen"] == 2
    assert model.card["use"] == "Research use only. Not a medical device."


def test_a_model_is_replaced_and_nothing_else(model, folder, tmp_path):
    replace(model, lesions=model.lesions[:1]).save(folder)
    assert len(Model.load(folder).lesions) == 1
    assert not (folder / "lesion-1.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(InputError, match="other files"):
        model.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "dear"


@pytest.mark.parametrize(
    ("name", "content"),
    [("thesis.txt", "dear"), ("lesion-0.safetensors.bak", ""), (MODEL_FILE, '{"layers": 3}'), (MODEL_FILE, "torn")],
)
def test_a_folder_with_something_else_beside_or_as_its_model_file_is_left(model, folder, name, content):
    (folder / name).write_text(content)
    before = sorted(folder.iterdir())
    with pytest.raises(InputError, match=name if name != MODEL_FILE else "something else"):
        model.save(folder)
    assert sorted(folder.iterdir()) == before
    assert (folder / name).read_text() == content


def test_a_folder_of_weights_alone_is_left(model, folder):
    (folder / MODEL_FILE).unlink()
    with pytest.raises(InputError, match="or none"):
        model.save(folder)


def test_the_folder_one_stands_in_has_a_name(model, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    model.save(Path())
    assert Model.load(tmp_path / "here").identity == model.identity


def dies_at_rename(model, folder, number):
    """`save` in a process that is killed when it is about to rename for the number-th time."""
    renames, rename = iter(range(number)), Path.rename

    def dying(path, target):
        if next(renames, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(path, target)

    Path.rename = dying
    model.save(folder)


@pytest.mark.parametrize("number", [0, 1])
def test_a_kill_leaves_a_model_and_what_it_left_is_removed(model, folder, tmp_path, number):
    other = replace(model, temperature=3.0)
    process = multiprocessing.get_context("fork").Process(target=dies_at_rename, args=(other, folder, number))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert ".model.lesionseg" in [path.name for path in tmp_path.iterdir()]
    assert Model.load(folder).identity == model.identity
    other.save(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert Model.load(folder).identity == other.identity


def test_one_process_at_a_time_makes_a_model(model, folder, monkeypatch):
    """Each would remove what the other has half-written; and a reader would put the earlier one back under its feet."""
    other, rename = replace(model, temperature=3.0), Path.rename
    seen = []

    def meanwhile(path, target):
        renamed = rename(path, target)
        if not folder.exists():  # between the two steps
            for read in (lambda: Model.load(folder), lambda: model.save(folder)):
                with pytest.raises(InputError, match="one process at a time that makes a model; got another at work"):
                    read()
                seen.append(read)
        return renamed

    monkeypatch.setattr(Path, "rename", meanwhile)
    other.save(folder)
    assert len(seen) == 2
    assert Model.load(folder).identity == other.identity
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_an_error_leaves_the_earlier_model(model, folder, tmp_path, monkeypatch):
    rename = Path.rename

    def failing(path, target):
        if target == folder and path.name == "new":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="No space"):
        replace(model, temperature=3.0).save(folder)
    assert Model.load(folder).identity == model.identity
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def edit(folder, change):
    content = json.loads((folder / MODEL_FILE).read_text())
    change(content)
    (folder / MODEL_FILE).write_text(json.dumps(content))


def named(content, **naming):
    """Say of every lesion net that it names in another way."""
    for net in content["lesions"]:
        net["naming"].update(naming)


EDITS = {
    "format": lambda c: c.update(format=99),
    "no lesion nets": lambda c: c.update(lesions=[]),
    "lesions no list": lambda c: c.update(lesions=3),
    "unknown threshold": lambda c: c["thresholds"].update(luck=1),
    "threshold out of range": lambda c: c["thresholds"].update(liver=2.0),
    "temperature": lambda c: c.update(temperature=-1),
    "temperature no number": lambda c: c.update(temperature="hot"),
    "another target": lambda c: c["liver"].update(target="kidney"),
    "classes": lambda c: c["lesions"][0].update(classes=["background", "liver", "stone"]),
    "no liver net": lambda c: c.update(liver=c["lesions"][0]),
    "encoder fetched elsewhere": lambda c: c["liver"].update(encoder="tu-hf-hub:someone/net"),
    "input size": lambda c: c["liver"]["input"].update(size_px=33),
    "input size no whole number": lambda c: c["liver"]["input"].update(size_px=64.0),
    "channels as a text": lambda c: c["liver"].update(decoder_channels="88888"),
    "input field": lambda c: c["liver"]["input"].update(exec="rm"),
    "named by the stars": lambda c: named(c, by="stars"),
    "crops of no size": lambda c: named(c, by="crops"),
    "crops of a text": lambda c: named(c, by="crops", crop_px="64"),
    "crops beyond measure": lambda c: named(c, by="crops", crop_px=3_200_000),
    "crops that name nothing": lambda c: named(c, crop_px=64),
    "a liver that is named": lambda c: c["liver"]["naming"].update(by="slice"),
    "checksum": lambda c: c["lesions"][1].update(sha256="0" * 64),
    "threshold of no number": lambda c: c["thresholds"].update(min_lesion_mm2=float("nan")),
    "threshold without end": lambda c: c["thresholds"].update(min_lesion_mm3=float("inf")),
    "threshold beyond floats": lambda c: c["thresholds"].update(min_lesion_px=10**400),
    "calibration of no number": lambda c: c.update(calibration={"before": {"ece": float("nan")}}),
    "missing key": lambda c: c.pop("thresholds"),
    "one more net": lambda c: c["lesions"].append(c["lesions"][0]),
    "nets that differ": lambda c: c["lesions"][0].update(decoder_channels=[16] * 5),
}  # fmt: skip


@pytest.mark.parametrize("change", EDITS.values(), ids=EDITS)
def test_what_does_not_fit_is_refused(folder, change):
    edit(folder, change)
    with pytest.raises(InputError) as error:
        Model.load(folder)
    assert "model folder made by `lesionseg export`" in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_none_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        Model.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="got a file"):
        Model.load(folder / MODEL_FILE)
    with pytest.raises(InputError, match=r"no model\.json"):
        Model.load(tmp_path)
    (folder / "liver.safetensors").unlink()
    with pytest.raises(InputError, match=r"liver\.safetensors.*no readable file"):
        Model.load(folder)
    (folder / MODEL_FILE).write_text("[" * 100_000)
    with pytest.raises(InputError):
        Model.load(folder)


def test_tensors_of_another_net_are_refused_when_it_is_built(model):
    wrong = Net(model.liver.description, model.lesions[0].tensors, {})
    with pytest.raises(InputError, match="tensors of another net"):
        wrong.build()


def test_a_pickle_is_not_opened(folder, tmp_path):
    import hashlib

    data = pickle.dumps({"state_dict": Bomb(tmp_path / "exploded")})
    (folder / "liver.safetensors").write_bytes(data)
    edit(folder, lambda c: c["liver"].update(sha256=hashlib.sha256(data).hexdigest()))
    with pytest.raises(InputError, match="SafetensorError"):
        Model.load(folder)
    assert not (tmp_path / "exploded").exists()


def test_a_link_out_of_the_folder_serves_only_the_same_bytes(model, folder, tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "elsewhere.safetensors")
    (folder / "liver.safetensors").unlink()
    (folder / "liver.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(InputError, match="checksum"):
        Model.load(folder)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_what_json_takes_for_a_number_and_is_none_is_refused(folder, number):
    text = (folder / MODEL_FILE).read_text()
    (folder / MODEL_FILE).write_text(text.replace('"n": 3', f'"n": {number}'))
    with pytest.raises(InputError, match=f"the number {number}"):
        Model.load(folder)


def test_thresholds_are_finite():
    for wrong in ({"min_lesion_mm2": float("nan")}, {"min_lesion_mm3": float("inf")}):
        with pytest.raises(ValueError, match="finite"):
            Thresholds(**wrong)
