"""Run folders → model folder: which runs make one, what it says of them, and that its temperature is the cascade's."""

import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from scipy import ndimage
from sklearn.metrics import brier_score_loss, log_loss
from test_compare import INFO, make_grid

from lesionseg.cascade import Cascade
from lesionseg.cli import main
from lesionseg.compare import compare
from lesionseg.data import slices
from lesionseg.data.datamodule import LesionDataModule
from lesionseg.data.prepare import prepare
from lesionseg.data.store import Store
from lesionseg.device import Inference
from lesionseg.errors import InputError
from lesionseg.export import OPTIMISTIC, best_runs, export
from lesionseg.held_out import ENSEMBLE
from lesionseg.inference import Lesions
from lesionseg.inputs import InputSpec, paste, resize
from lesionseg.labels import LESION_TYPES, is_liver
from lesionseg.model import MODEL_FILE, Model
from lesionseg.model_net import Net
from lesionseg.run_weights import LAST_CHECKPOINT
from lesionseg.runs import RunInfo
from lesionseg.scan import Scan

FOLDS, LEAST_PX = 3, 50
SPEC = InputSpec(64, "liver")
BRIGHTNESS = (90, 150, 210)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """48 slices of 24 patients, two lesions each, PNG of unknown spacing: nothing says that they are generated.

    Types differ in brightness; one lesion in four is named otherwise than it looks.
    """
    folder, rng = tmp_path_factory.mktemp("png"), np.random.default_rng(0)
    places = [(slice(top, top + 14), slice(10, 54)) for top in (10, 40)]
    lines = ["patient_id,image,mask,liver_mask,window_low_hu,window_high_hu"]
    for i in range(48):
        liver, lesion = np.zeros((2, 64, 64), np.uint8)
        liver[6:58, 6:58] = 1
        image = rng.integers(20, 60, (16, 16)).repeat(4, 0).repeat(4, 1)
        for place, looks in zip(places, rng.integers(0, 3, 2), strict=True):
            image[place] = BRIGHTNESS[looks]
            lesion[place] = 1 + (looks if rng.random() < 0.75 else rng.integers(3))
        for name, array in (("image", image), ("liver", liver), ("mask", lesion)):
            Image.fromarray(array.astype(np.uint8)).save(folder / f"{name}{i}.png")
        lines.append(f"patient{i // 2},image{i}.png,mask{i}.png,liver{i}.png,-100,350")
    (folder / "slices.csv").write_text("\n".join(lines) + "\n")
    return prepare(slices.cases(folder / "slices.csv"), folder / "store", kind="slices", workers=1)


def data_of(store: Store, fold: int, inner_validation: float = 0.5) -> LesionDataModule:
    """The data module of a fold as training builds it."""
    data = LesionDataModule(store.path, "typed", SPEC, folds=FOLDS, fold=fold, inner_validation=inner_validation)
    data.setup("fit")
    return data


def taught(net: Net, store: Store) -> Net:
    """A random net whose last layer is told liver and lesions as they look, by least squares, far too sure of it."""
    built = net.build()
    images = [SPEC.encode(np.repeat(np.asarray(store.hu(r.case_id)), 3, 0), r.liver_box) for r in store.records]
    shown = np.stack([image[1].numpy() for image in images])
    lesion = np.stack([SPEC.encode_labels(store.labels(r.case_id)[0], r.liver_box) > 1 for r in store.records])
    looks = np.abs(shown[..., None] - SPEC.normalize(np.array(BRIGHTNESS) / 255 * 450 - 100)).argmin(-1)
    classes = torch.from_numpy(np.where(lesion, 1 + looks, 0))
    with torch.no_grad():
        features = built.decoder(built.encoder(torch.stack(images))).movedim(1, -1).flatten(0, 2)
        ones = torch.cat([features, torch.ones(len(features), 1)], 1)
        even = (torch.bincount(classes.ravel()).float() ** -0.5)[classes.ravel(), None]  # classes count alike
        weights = torch.linalg.lstsq(ones * even, torch.eye(4)[classes.ravel()] * even).solution * 40
        head = built.segmentation_head[0]
        head.weight[:] = 0
        head.weight[1:, :, 1, 1], head.bias[1:] = weights[:-1].T, weights[-1]
        head.bias[0] = -99
    return replace(net, tensors={name: tensor.contiguous() for name, tensor in built.state_dict().items()})


def write_run(folder: Path, net, info: RunInfo, store: Store, parts: dict[str, list[str]]) -> Path:
    """What a fit leaves of a net, as far as export reads it."""
    info.write(folder)
    (folder / "checkpoints").mkdir(exist_ok=True)
    state = {f"net.{name}": tensor for name, tensor in net.tensors.items()}
    torch.save(
        {"state_dict": state, "lesionseg": {"task": "", **net.description}, "fingerprint": info.fingerprint},
        folder / LAST_CHECKPOINT,
    )
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": {"store": str(store.path)}}))
    (folder / "split.json").write_text(json.dumps(parts))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory, store, make_model) -> Path:
    """A liver run and three folds of nets that tell types apart, if not as well as they say. Not to be changed."""
    root, model = tmp_path_factory.mktemp("made"), make_model(members=FOLDS)
    info = replace(INFO, generated=False, store_sha256=store.manifest_sha256, folds=FOLDS, trained_on=("l" * 64,))
    write_run(root / "liver", model.liver, replace(info, name="liver", target="liver", fingerprint="liver"), store, {})
    for fold, net in enumerate(taught(net, store) for net in model.lesions):
        split = data_of(store, fold).split
        parts = {"train": split.train, "validation": split.validation, "test": split.test}
        seen = tuple(store.record(case).voxel_checksum for case in (*split.train, *split.validation))
        held = replace(info, name="freeze", fold=fold, trained_on=seen, fingerprint=f"fold {fold}")
        write_run(root / f"fold{fold}", net, held, store, {name: list(cases) for name, cases in parts.items()})
    return root


@pytest.fixture
def root(made, tmp_path) -> Path:
    """A copy of the runs that a test may spoil."""
    return Path(shutil.copytree(made, tmp_path / "made"))


def folds(root: Path) -> list[Path]:
    return [root / f"fold{fold}" for fold in range(FOLDS)]


def changed(run: Path, **fields) -> None:
    replace(RunInfo.read(run), **fields).write(run)


@pytest.fixture(scope="module")
def model(made, tmp_path_factory) -> Model:
    folder = tmp_path_factory.mktemp("model") / "model"
    export(made / "liver", folds(made), folder)
    return Model.load(folder)


# ---- what a model holds ----


def test_a_net_that_other_code_has_described_is_refused(root):
    path = root / "fold1" / LAST_CHECKPOINT
    held = torch.load(path, weights_only=True)
    del held["lesionseg"]["naming"]
    torch.save(held, path)
    with pytest.raises(InputError, match="fold1: expected a net as this version describes it; got one without naming"):
        export(root / "liver", folds(root), root / "model")


def test_a_model_of_implanted_lesions_says_so(root, model, tmp_path):
    assert not model.implanted
    for run in folds(root):
        changed(run, implanted=True)
    export(root / "liver", folds(root), tmp_path / "model")
    assert Model.load(tmp_path / "model").card["implanted"] is True


def test_a_model_holds_the_nets_of_its_runs(model, made, store):
    assert [net.provenance["fold"] for net in model.lesions] == [0, 1, 2]
    assert {net.provenance["name"] for net in model.lesions} == {"freeze"}
    assert (model.generated, model.selected, model.target) == (False, None, "typed")
    for net, run in zip((model.liver, *model.lesions), (made / "liver", *folds(made)), strict=True):
        held = torch.load(run / LAST_CHECKPOINT, weights_only=True)["state_dict"]
        assert held.keys() == {f"net.{name}" for name in net.tensors}
        assert all(torch.equal(held[f"net.{name}"], tensor) for name, tensor in net.tensors.items())


def test_trained_on_is_all_that_nets_and_temperature_have_seen(model, made, store):
    assert set(model.trained_on) == {"l" * 64, *(record.voxel_checksum for record in store.records)}
    validation = {case for run in folds(made) for case in json.loads((run / "split.json").read_text())["validation"]}
    assert {store.record(case).voxel_checksum for case in validation} <= set(model.trained_on)


def test_no_place_of_this_machine_is_in_a_model(made, tmp_path):
    export(made / "liver", folds(made)[:1], tmp_path / "model")
    text = (tmp_path / "model" / MODEL_FILE).read_text()
    assert str(made) not in text
    assert str(made.parent) not in text
    assert "store" not in text.replace("store_sha256", "")


def test_the_same_runs_are_done_already_in_any_order_and_others_take_their_place(made, tmp_path, capsys):
    folder, (one, other) = tmp_path / "model", folds(made)[:2]
    export(made / "liver", [other, one], folder)
    before = (folder / MODEL_FILE).stat().st_mtime_ns
    capsys.readouterr()
    export(made / "liver", [one, other], folder)
    assert capsys.readouterr().out == f"{folder} is done already\n"
    assert (folder / MODEL_FILE).stat().st_mtime_ns == before
    (folder / "liver.safetensors").write_text("torn")
    export(made / "liver", [one], folder)
    assert len(Model.load(folder).lesions) == 1
    assert not (folder / "lesion-1.safetensors").exists()


# ---- calibration ----


def votes_by_hand(store: Store, run: Path, fold: int) -> tuple[list[np.ndarray], list[int], list[str], list, int]:
    """Votes of the lesions that a net predicts on its inner validation, by the data module and the decoder of training.

    Also their true types, their patients, the reference lesions they cover, and the number of predicted lesions without
    a true type.
    """
    data, votes, types, patients, covered, untyped = data_of(store, fold), [], [], [], [], 0
    net = Net.from_run(run).build()
    for sample in (data.validation[i] for i in range(len(data.validation))):
        with torch.inference_mode():
            (scores,) = net(sample.image[None])
        height, width = sample.reference.shape
        predicted = data.input.decode(scores, sample.box, height, width).numpy()
        logits = paste(resize(scores, sample.box.side), sample.box, height, width)[2:].numpy()
        record = store.records[sample.place.case]
        liver = is_liver(store.labels(record.case_id)[0])
        lesion = _without_small(_without_small(predicted >= 2) & liver)
        labelled, n = ndimage.label(lesion, np.ones((3, 3)))
        for i in range(1, n + 1):
            under = Counter(int(c) for c in sample.reference.numpy()[labelled == i] if c >= 2)
            if not under:
                untyped += 1
                continue
            pixels = np.exp(logits[:, labelled == i].astype(np.float64))
            votes.append((pixels / pixels.sum(0)).mean(1))
            types.append(min(under, key=lambda c: (-under[c], c)) - 2)
            patients.append(record.patient_id)
            numbers = ndimage.label(sample.reference.numpy() >= 2, np.ones((3, 3)))[0][labelled == i]
            covered.append((record.case_id, Counter(numbers[numbers > 0].tolist()).most_common(1)[0][0], types[-1]))
    return votes, types, patients, covered, untyped


def _without_small(mask: np.ndarray) -> np.ndarray:
    labelled, n = ndimage.label(mask, np.ones((3, 3)))
    return np.isin(labelled, [i for i in range(1, n + 1) if (labelled == i).sum() >= LEAST_PX])


def test_the_votes_are_those_of_training_s_own_path(model, made, store):
    votes, types, patients, covered, untyped = [], [], [], [], 0
    for fold, run in enumerate(folds(made)):
        *found, n = votes_by_hand(store, run, fold)
        votes, types, patients, covered = votes + found[0], types + found[1], patients + found[2], covered + found[3]
        untyped += n
    record = model.calibration
    assert (record["votes"], record["patients"]) == (len(votes), len(set(patients)))
    assert record["lesions"] == len(set(covered)) < len(votes)  # in the inner validation of two folds
    kinds = [kind for _, _, kind in set(covered)]
    assert record["types"] == {name: kinds.count(i) for i, name in enumerate(LESION_TYPES)}
    assert record["without_true_type"] == untyped
    assert record["before"]["nll"] == pytest.approx(log_loss(types, votes, labels=[0, 1, 2]), abs=2e-4)
    assert record["before"]["brier"] == pytest.approx(brier_score_loss(types, votes, labels=[0, 1, 2]), abs=2e-4)
    assert [part["part"] for part in record["parts"]] == ["fold 0", "fold 1", "fold 2"]
    assert record["note"] == ENSEMBLE


def test_the_votes_are_collected_on_a_gpu_where_there_is_one(made, tmp_path, monkeypatch):
    seen, how = set(), Inference(torch.device("meta"), 8)

    def predicted(nets, spec, hu, slices, box, naming, how):
        seen.add((how, *(parameter.device.type for net in nets for parameter in net.parameters())))
        return Lesions(np.zeros(hu.shape, np.uint8), np.zeros(0, np.int64), np.zeros((0, 3), np.float32), None)

    monkeypatch.setattr("lesionseg.held_out.inference_on", lambda: how)
    monkeypatch.setattr("lesionseg.held_out.predict_lesions", predicted)
    export(made / "liver", [made / "fold0"], tmp_path / "model")
    assert [set(each) for each in seen] == [{how, "meta"}]


def test_no_other_temperature_is_better_in_the_cascade_itself(made, store, tmp_path):
    """What `segment` states for the inner validation is likeliest to be true at the model's temperature."""
    model = export(made / "liver", folds(made)[:1], tmp_path / "model")
    data = data_of(store, 0)
    losses = {}
    for factor in (0.7, 1.0, 1.4):
        cascade, loss = Cascade(replace(model, temperature=model.temperature * factor), device="cpu"), []
        for case in data.split.validation:
            labels = np.asarray(store.labels(case))
            result = cascade.segment(Scan(np.asarray(store.hu(case)), case), liver=is_liver(labels))
            for finding in result.findings:
                under = Counter(labels[(result.lesion_ids == finding.id) & (labels >= 2)].tolist())
                if under:
                    true = min(under, key=lambda c: (-under[c], c)) - 2
                    loss.append(-math.log(list(finding.probabilities.values())[true]))
        losses[factor] = np.mean(loss)
        assert len(loss) == model.calibration["votes"]
    assert min(losses, key=losses.get) == 1.0
    assert "note" not in model.calibration


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda parts: parts | {"validation": []}, "set no inner validation aside"),
        (lambda parts: parts | {"validation": parts["validation"][:2]}, "20, 2 and 2 are needed"),
    ],
)
def test_what_cannot_be_calibrated_is_told(root, tmp_path, capsys, spoil, reason):
    path = root / "fold0" / "split.json"
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    model = export(root / "liver", [root / "fold0"], tmp_path / "model")
    assert model.temperature == 1.0
    assert reason in model.calibration["reason"]
    assert f"type votes not calibrated: {model.calibration['reason']}" in capsys.readouterr().out


def test_what_the_start_of_a_run_has_learned_from_calibrates_nothing(root, tmp_path):
    """The same temperature as without these cases."""
    path = root / "fold0" / "split.json"
    parts = json.loads(path.read_text())
    changed(root / "fold0", known_before=tuple(parts["validation"][:2]))
    told = export(root / "liver", folds(root), tmp_path / "told")
    changed(root / "fold0", known_before=())
    every = export(root / "liver", folds(root), tmp_path / "every")
    path.write_text(json.dumps(parts | {"validation": parts["validation"][2:]}))
    fewer = export(root / "liver", folds(root), tmp_path / "fewer")
    assert (told.temperature, told.calibration) == (fewer.temperature, fewer.calibration)
    assert every.calibration["votes"] > told.calibration["votes"] >= 20


def test_nets_without_types_are_not_calibrated(root, store, make_model, tmp_path):
    net = make_model("lesion").lesions[0]
    info = replace(RunInfo.read(root / "fold0"), target="lesion")
    model = export(root / "liver", [write_run(root / "lesion", net, info, store, {})], tmp_path / "model")
    assert (model.temperature, model.calibration) == (1.0, {"reason": "the nets name no types"})


# ---- what is refused ----


@pytest.mark.parametrize(
    ("run", "fields", "message"),
    [
        ("liver", {"state": "running"}, "expected a finished run"),
        ("fold1", {"state": "running"}, "expected a finished run"),
        ("liver", {"target": "typed"}, "expected a run of the liver net; got target typed"),
        ("fold1", {"target": "liver"}, "expected a run of a lesion net; got target liver"),
        ("fold1", {"target": "lesion"}, "expected the target of .*typed.*; got lesion"),
        ("fold1", {"name": "baseline"}, "expected the schedule of .*freeze.*; got baseline"),
        ("fold1", {"epochs": 9}, "expected the budget in epochs"),
        ("fold1", {"store_sha256": "0" * 64}, "expected the prepared data"),
        ("fold1", {"encoder": "resnet50"}, "expected the encoder"),
        ("fold1", {"folds": 5}, "expected the number of folds"),
        ("fold1", {"config_sha256": "0" * 64}, "expected the configuration"),
        ("fold1", {"weights_sha256": "0" * 64}, "expected the pretrained weights"),
        ("fold1", {"row_sha256": "0" * 64}, "expected the settings, fold and seed apart, of .*fold0"),
        ("fold1", {"fingerprint": "fold 0"}, "expected each run once; got the same as .*fold0"),
        ("liver", {"generated": True}, "both nets trained on real CT.*got liver generated, lesions real"),
    ],
)
def test_runs_that_make_no_model_are_refused(root, tmp_path, run, fields, message):
    changed(root / run, **fields)
    with pytest.raises(InputError, match=message):
        export(root / "liver", folds(root), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_more_runs_than_a_model_may_hold_are_refused(made, tmp_path):
    with pytest.raises(InputError, match="expected 1 to 100 runs; got 101"):
        export(made / "liver", [made / "fold0"] * 101, tmp_path / "model")


def test_checkpoints_of_another_net_are_refused(root, tmp_path):
    path = root / "fold2" / LAST_CHECKPOINT
    held = torch.load(path, weights_only=True)
    held["lesionseg"]["input"]["low_hu"] = -100.0
    torch.save(held, path)
    with pytest.raises(InputError, match="the same net and input"):
        export(root / "liver", folds(root), tmp_path / "model")


def test_a_checkpoint_of_another_run_is_refused(root, tmp_path):
    """Figures of one run would stand for the net of another."""
    shutil.copy(root / "fold1" / LAST_CHECKPOINT, root / "fold2" / LAST_CHECKPOINT)
    remedy = "got that of another run; remove the run folder, and train it again"
    with pytest.raises(InputError, match=rf"fold2.*last\.ckpt: expected the last checkpoint of this run; {remedy}"):
        export(root / "liver", folds(root), tmp_path / "model")


def test_a_store_that_is_gone_or_another_is_refused(root, store, tmp_path):
    config = root / "fold0" / "config.yaml"
    other = Path(shutil.copytree(store.path, tmp_path / "other"))
    config.write_text(yaml.safe_dump({"data": {"store": str(other)}}))
    manifest = other / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    with pytest.raises(InputError, match=r"expected the store that .* was trained on"):
        export(root / "liver", folds(root), tmp_path / "model")
    shutil.rmtree(other)
    with pytest.raises(InputError, match=r"other: expected the store .* was trained on, .*; got no folder; call from"):
        export(root / "liver", folds(root), tmp_path / "model")
    config.unlink()
    with pytest.raises(InputError, match=r"config.yaml: expected as its fit left it; got FileNotFound.*remove the run"):
        export(root / "liver", folds(root), tmp_path / "model")


@pytest.mark.parametrize("text", ["{", "[]", '{"validation": ["p0000000000-000000"]}', '{"validation": 3}'])
def test_a_split_that_cannot_be_read_is_refused(root, tmp_path, text):
    (root / "fold1" / "split.json").write_text(text)
    with pytest.raises(InputError, match=r"fold1/split.json: expected as its fit left it; got"):
        export(root / "liver", [root / "fold1"], tmp_path / "model")


def test_a_folder_that_is_not_a_model_s_is_left_alone(made, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(InputError, match="other files"):
        export(made / "liver", folds(made)[:1], tmp_path / "mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.txt"]


@pytest.mark.parametrize("place", ["fold0", "fold0/model", "liver/checkpoints/../model"])
def test_a_run_holds_no_model(root, place):
    with pytest.raises(InputError, match="a folder of its own"):
        export(root / "liver", folds(root), root / place)


# ---- the best of a comparison ----


def test_the_best_is_that_of_the_comparison_s_table(tmp_path):
    skills = {"baseline": 0.35, "hierarchical_freezing": 0.8, "other": 0.6}
    root = make_grid(tmp_path / "finetune", skills, seeds=2)
    table = compare(root, tmp_path / "out")
    stated = table[table.figure == "accuracy_all"].set_index("schedule").estimate
    runs, selected = best_runs(root)
    assert selected["schedule"] == stated.idxmax() == "hierarchical_freezing"
    assert selected["figure"] == "accuracy_all"
    assert selected["value"] == pytest.approx(stated.max(), abs=1e-6)
    assert selected["among"] == pytest.approx(stated.to_dict(), abs=1e-6)
    assert list(selected["among"]) == list(stated.index)
    assert selected["note"] == OPTIMISTIC
    cells = [f"fold{fold}-seed{seed}" for fold in range(2) for seed in range(2)]
    assert runs == [root / "hierarchical_freezing" / cell for cell in cells]


def test_equal_figures_give_the_first_row(tmp_path):
    root = make_grid(tmp_path, {"no_freezing": 0.5}, folds=1)
    for name in ("a_copy", "baseline"):
        folder = Path(shutil.copytree(root / "no_freezing", root / name))
        changed(folder / "fold0-seed0", name=name)
    _, selected = best_runs(root)
    assert list(selected["among"]) == ["baseline", "no_freezing", "a_copy"]
    assert len(set(selected["among"].values())) == 1
    assert selected["schedule"] == "baseline"


def test_without_a_lesion_none_is_the_best(tmp_path):
    root = make_grid(tmp_path, {"no_freezing": 0.5}, folds=1)
    table = root / "no_freezing" / "fold0-seed0" / "lesions.csv"
    rows = pd.read_csv(table, keep_default_na=False)
    rows[rows.kind != "reference"].to_csv(table, index=False)
    with pytest.raises(InputError, match="got no lesion in any test part"):
        best_runs(root)


# ---- the command line ----


def test_real_runs_by_the_command_line(pretraining, finetuning, tmp_path, capsys):
    """Fit a liver net and a fold of one schedule, then export them."""
    assert main(pretraining(tmp_path / "liver", net="liver")) == 0
    run = tmp_path / "finetune" / "baseline" / "fold1-seed0"
    assert main(finetuning(run, "--data.fold", "1", "--trainer.max_epochs", "1", schedule="baseline")) == 0
    capsys.readouterr()
    command = ["export", "--liver", str(tmp_path / "liver"), "-o", str(tmp_path / "model")]
    assert main([*command, "--best-of", str(tmp_path / "finetune")]) == 0
    model, out = Model.load(tmp_path / "model"), capsys.readouterr().out
    assert (model.generated, model.selected["note"], len(model.lesions)) == (True, OPTIMISTIC, 1)
    assert "liver net and 1 lesion net (baseline, fold 1 of 4, seed 0)" in out
    assert f"selected by accuracy_all {model.selected['value']:.3f} among 1 schedule;" in out
    assert main([*command, "--lesion", str(run)]) == 0
    assert Model.load(tmp_path / "model").selected is None
    assert main([*command, "--lesion", str(run), str(run)]) == 2
    assert capsys.readouterr().err.startswith("lesionseg: wrong input: ")


@pytest.mark.parametrize("more", [(), ("--lesion", "a", "--best-of", "b")])
def test_lesion_runs_or_a_comparison_are_named(more):
    with pytest.raises(SystemExit) as left:
        main(["export", "--liver", "run", "-o", "model", *more])
    assert left.value.code == 2
