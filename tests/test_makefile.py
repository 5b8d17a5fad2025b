"""What `make` would run: commands and folders as the variables steer them. Nothing here is run but `make` itself."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, product
from pathlib import Path

import pytest
import yaml

from lesionseg.addresses import address_towards
from lesionseg.data.store import Store
from lesionseg.machine import cores
from lesionseg.runs import RunInfo

ROOT = Path(__file__).parent.parent
ROWS = ["baseline", "no_freezing", "hierarchical_freezing", "freeze_encoder", "hierarchical_unfreezing"]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def make(*args: str, **more: str) -> subprocess.CompletedProcess:
    """Without what an outer make hands down (these tests run under `make test`)."""
    inherited = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "GNUMAKEFLAGS"}
    environment = {name: value for name, value in os.environ.items() if name not in inherited} | more
    return subprocess.run(["make", *args], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def commands(*args: str) -> list[list[str]]:
    """The words of each `lesionseg` command that make would run, from its verb on."""
    done = make("-n", *args)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.replace("\\\n", " ").splitlines()
    found = [shlex.split(line.split(".venv/bin/lesionseg ", 1)[1]) for line in lines if "bin/lesionseg " in line]
    return [words for words in found if words]


def options(words: list[str]) -> dict[str, str]:
    return {key: value for key, value in pairwise(words) if key.startswith("-") and key != "--config"}


def configs(words: list[str]) -> list[str]:
    return [value for key, value in pairwise(words) if key == "--config"]


def fits(*args: str) -> dict[str, list[str]]:
    """Every fit by its run folder."""
    return {options(words)["--trainer.default_root_dir"]: words for words in commands(*args) if words[0] == "fit"}


def test_the_default_is_the_phantom_and_the_five_rows_of_the_paper():
    found = commands("finetune")
    assert found[0] == ["phantom", "runs/phantom/data/source"]
    assert ["prepare", "lits", "runs/phantom/data/source/lits", "--output", "runs/phantom/data/lits"] in found
    table = "runs/phantom/data/source/slices/slices.csv"
    assert ["prepare", "slices", table, "--output", "runs/phantom/data/slices"] in found
    assert found[-1] == ["compare", "runs/phantom/finetune", "--output", "runs/phantom/compare"]
    runs = fits("finetune")
    cells = {f"runs/phantom/finetune/{row}/fold{fold}-seed0" for row in ROWS for fold in range(3)}
    assert set(runs) == cells | {"runs/phantom/pretrain/liver", "runs/phantom/pretrain/lesion"}
    assert all(configs(words)[-1] == "experiments/profiles/phantom.yaml" for words in runs.values())


def test_every_file_that_is_named_is_there():
    for words in fits("finetune").values():
        assert configs(words)
        assert all((ROOT / path).is_file() for path in configs(words))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["SCHEDULES=baseline basline"], "SCHEDULES: expected names of files of experiments/schedules; got basline; "
         "perhaps baseline"),
        (["EPOCHS=4"], "hierarchical_freezing.yaml: expected steps of at least one epoch; got 4 epochs, in which the "
         "shares 0.1667 and 0.3333 fall on the same one; train for at least 6 epochs"),
        (["EPOCHS=24", "FIT_OPTIONS=--data.batch_size 4 --trainer.max_epochs 5 --data.num_workers 0"], "got 5 epochs"),
        (["EPOCHS=24", "FIT_OPTIONS=--trainer.max_epochs=0"], "got 0; set max_epochs"),
        (["PROFILE=none"], "experiments/profiles/none.yaml: expected a YAML file"),
    ],
)  # fmt: skip
def test_what_would_stop_the_grid_is_told_before_the_pretraining(given, said):
    told = make("-n", "finetune", *given).stdout.replace("\\\n", " ")
    (line,) = [line for line in told.splitlines() if "experiments/planned.py" in line]
    assert told.index(line) < told.index(" fit --trainer.default_root_dir")
    planned = subprocess.run(shlex.split(line), cwd=ROOT, capture_output=True, text=True, check=False)
    assert planned.returncode == 2
    assert said in planned.stderr


@pytest.mark.parametrize(
    ("name", "blocks", "said"),
    [
        (
            "baseline",
            "{encoder: always, decoder: always, head: always}",
            "name: mine, as the file is called; got baseline",
        ),
        ("mine", "{encoder: always, decoder: always, haed: always}", "or `encoder`; got haed; rename or remove them"),
        ("mine", "{stage3: always, stage4: [0, 0.5], decoder: always}", "got none for head; add them"),
    ],
)
def test_what_is_wrong_with_a_schedule_of_her_own_is_told(name, blocks, said, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import planned as planning

    (tmp_path / "mine.yaml").write_text(f"name: {name}\nschedule: {{trains: {blocks}}}\n")
    monkeypatch.setattr(planning, "SCHEDULES", tmp_path)
    monkeypatch.setattr(sys, "argv", ["planned.py", "mine"])
    assert planning.main() == 2
    told = capsys.readouterr().err
    assert told.startswith(f"lesionseg: wrong input: {tmp_path / 'mine.yaml'}: expected ")
    assert said in told


SETTINGS = {
    "data": {"folds": 2, "batch_size": 8, "num_workers": 1},
    "model": {"init_args": {"encoder": "resnet18", "loss": "dice_ce", "lr": 1e-3, "l2_sp": 0.5}},
    "trainer": {"max_epochs": 24, "enable_progress_bar": True},
    "schedule": {"trains": {"encoder": "always", "decoder": "always", "head": "always"}},
}


@pytest.fixture
def grid_folder(tmp_path):
    """Makes run folders of finished cells: row, seeds, and what else `run.json` says."""

    def make_cells(row, seeds=(0,), **more):
        for fold, seed in product(range(2), seeds):
            facts = dict.fromkeys(RunInfo.__dataclass_fields__, "") | {
                "name": row, "state": "finished", "fold": fold, "folds": 2, "seed": seed, "epochs": 24,
                "trained_on": [],
            } | more  # fmt: skip
            folder = tmp_path / row / f"fold{fold}-seed{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "run.json").write_text(json.dumps(facts))
            (folder / "config.yaml").write_text(yaml.safe_dump(SETTINGS))

    return make_cells


@pytest.fixture
def comparison(tmp_path, monkeypatch, capsys):
    """What is said, if anything, of rows and seeds that are asked for beside the runs that lie there."""
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import planned as planning

    def comparison(seeds, *rows, epochs=24, against="baseline", options=()):
        words = [" ".join(rows), "--grid", tmp_path, "--seeds", seeds, "--against", against, "--data.folds", 2]
        monkeypatch.setattr(
            sys, "argv", ["planned.py", *map(str, words), "--trainer.max_epochs", str(epochs), *options]
        )
        status, said = planning.main(), capsys.readouterr().err
        assert status == (2 if said else 0)
        return said

    return comparison


def test_a_grid_that_could_not_be_compared_is_told_before_it_trains(tmp_path, grid_folder, comparison):
    assert comparison("0 1", "baseline") == ""
    for row, state in (("baseline", "finished"), ("no_freezing", "finished"), ("lp_ft", "running")):
        grid_folder(row, (0, 1), state=state)
    beside = (
        "beside the grid that cannot be compared with it; got lp_ft/fold0-seed0, lp_ft/fold0-seed1, lp_ft/fold1-seed"
    )
    assert beside in comparison("0 1", "baseline")
    assert comparison("0 1", "baseline", "lp_ft") == ""
    assert "got lp_ft/fold0-seed1, lp_ft/fold1-seed1 (unfinished); " in comparison("0", "baseline", "lp_ft")
    assert "fewer in no_freezing (" in comparison("0 1 2", "baseline", "lp_ft")
    assert "got no_freezing/fold0-seed0, " in comparison("0 1", "baseline", "lp_ft", epochs=30)
    told = comparison("0 1", "lp_ft") + comparison("0", "freeze_encoder")
    assert told.count("wrong input") == 1
    shutil.rmtree(tmp_path / "lp_ft")
    assert "fewer in l2_sp (seeds of all rows: 0 1)" in comparison("0", "l2_sp")
    shutil.rmtree(tmp_path / "no_freezing" / "fold1-seed1")
    shutil.rmtree(tmp_path / "baseline" / "fold1-seed1")
    assert "fewer in baseline, no_freezing (seeds of all rows: 0 1)" in comparison("0", "baseline", "no_freezing")
    grid_folder("no_freezing", (1,))
    grid_folder("baseline", (1,))
    assert comparison("0", "baseline") == ""
    assert "AGAINST: expected a row: baseline, no_freezing; got bsaeline" in comparison(
        "0 1", "baseline", against="bsaeline"
    )
    assert "SEEDS: expected whole numbers; got one" in comparison("0 one", "baseline")


def test_runs_that_lie_there_with_other_settings_are_told_before_it_trains(
    tmp_path, grid_folder, comparison, slices_store
):
    grid_folder("no_freezing")
    for others in ("--data.batch_size=4", "--model.init_args.lr 1e-4", "--model.init_args.encoder resnet50"):
        told = comparison("0", "baseline", options=others.split())
        key = re.match(r"--([\w.]+)", others)[1]
        assert f"got no_freezing/fold0-seed0, no_freezing/fold1-seed0 (other {key}); " in told
    alike = "--data.batch_size 8 --model.init_args.lr 1e-3 --data.num_workers 3 --trainer.enable_progress_bar false"
    assert comparison("0", "baseline", options=alike.split()) == ""
    # its own schedule sets this, so it is not of the options
    grid_folder("l2_sp")
    assert comparison("0", "baseline", options=["--model.init_args.l2_sp", "0.7"]).count("no_freezing") == 2
    shutil.rmtree(tmp_path / "no_freezing")
    assert comparison("0", "baseline", options=["--model.init_args.l2_sp", "0.7"]) == ""
    # a further seed of a row whose file has changed since
    told = comparison("1", "l2_sp")
    assert "got l2_sp/fold0-seed0, l2_sp/fold1-seed0 (other model.init_args.l2_sp); " in told
    shutil.rmtree(tmp_path / "l2_sp")
    grid_folder("hierarchical_unfreezing")
    assert "(other schedule.trains)" in comparison("1", "hierarchical_unfreezing")
    options = ["--data.store", str(slices_store), "--data.inner_validation", "0"]
    assert "fold1-seed0 (other data); " in comparison("0", "baseline", options=options)


def test_a_table_that_waits_for_the_liver_net_is_looked_at_before_it_is_trained(tmp_path):
    table = tmp_path / "slices.csv"
    for text, said in ((None, "No such file"), ("patient_id,image,mask\np1,none.dcm,none.png\n", "none.dcm")):
        if text is not None:
            table.write_text(text)
        told = make("-n", "planned", "LITS=/lits", f"SLICES={table}").stdout.replace("\\\n", " ")
        (line,) = [line for line in told.splitlines() if "experiments/planned.py" in line]
        done = subprocess.run(shlex.split(line), cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert said in done.stderr


def test_what_needs_the_grid_waits_for_it():
    for goals, first, then in (
        (("finetune", "dashboard"), " compare ", "dashboard.py"),
        (("compare", "dashboard"), " compare ", "dashboard.py"),
        (("finetune", "compare"), "/finetune/baseline/", " compare "),
        (("planned", "pretrain"), "planned.py", " fit "),
    ):
        told = make("-n", "-j4", *goals).stdout
        assert told.index(first) < told.index(then)


def test_slices_that_are_there_are_counted_without_their_table(tmp_path, slices_store):
    shutil.copytree(slices_store, tmp_path / "slices")
    manifest = tmp_path / "slices" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"generated": true', '"generated": false'))
    told = make("-n", "planned", f"DATA={tmp_path}").stdout
    assert f"--data.store {tmp_path}/slices" in told
    assert " prepare " not in told


def test_a_run_of_phantom_files_that_were_named_is_not_made_anew_from_another_phantom(tmp_path, lits_store):
    shutil.copytree(lits_store, tmp_path / "lits")
    for goal in ("finetune", "pretrain"):
        done = make(goal, f"DATA={tmp_path}", "-o", "setup")
        assert done.returncode == 2
        assert "lesionseg: wrong input: LITS, SLICES: expected what runs/phantom was made from" in done.stderr
    assert make("-n", "cell", "SCHEDULE=baseline", "FOLD=0", "SEED=0", f"DATA={tmp_path}").returncode == 0
    (tmp_path / "source").mkdir()  # make's own
    assert make("-n", "finetune", f"DATA={tmp_path}").returncode == 0


def planned(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "experiments/planned.py", "baseline", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_epochs_and_folds_that_are_no_numbers_are_left_to_fit(slices_store):
    assert planned("--trainer.max_epochs", "many").returncode == 0
    assert planned("--trainer.max_epochs", "[").returncode == 0
    assert planned("--data.store", slices_store, "--data.folds", "many").returncode == 0
    others = ("--data.inner_validation", "many", "--data.split_seed", "[1]")
    assert planned("--data.store", slices_store, "--data.folds", 2, *others).returncode == 0


def test_a_store_that_is_called_by_a_number_is_a_folder():
    done = planned("--data.store", "3", "--data.folds", "2")
    assert done.returncode == 2
    assert done.stderr.startswith("lesionseg: wrong input: 3")


def test_groups_of_settings_that_are_none_are_left_to_fit(tmp_path):
    (tmp_path / "mine.yaml").write_text("trainer: 3\ndata: [1, 2]\n")
    done = planned("--config", tmp_path / "mine.yaml")
    assert (done.returncode, done.stderr) == (0, "")


def test_folds_that_the_patients_are_too_few_for_are_told_before_the_pretraining(slices_store):
    patients = len({record.patient_id for record in Store.open(slices_store).records})
    store = ("--data.store", slices_store)
    assert planned(*store, f"--data.folds={patients}").returncode == 0
    done = planned(*store, "--data.folds", patients + 1)
    assert done.returncode == 2
    assert f"folds: expected 1 to {patients} folds for {patients} patients; got {patients + 1}; " in done.stderr
    assert "a share in [0, 1); got 1" in planned(*store, "--data.folds", 2, "--data.inner_validation", 1).stderr


@pytest.mark.parametrize(
    ("columns", "more", "first"),
    [("image,liver_mask", [], True), ("image", [], False), ("image,liver_mask", ["NODES=2", "MEET=a:1"], False)],
    ids=["liver masks", "liver by the net", "many machines"],
)
def test_slices_that_need_no_trained_net_are_prepared_and_counted_before_the_pretraining(
    tmp_path, columns, more, first
):
    (tmp_path / "slices.csv").write_text(f"{columns}\n")
    told = make("-n", "finetune", "LITS=/lits", f"SLICES={tmp_path / 'slices.csv'}", *more).stdout.replace("\\\n", " ")
    before = told[: told.index(" fit --trainer.default_root_dir")]
    assert (" prepare slices " in before) == first
    assert ("experiments/planned.py" in before) == (not more)
    assert ("--data.store runs/lits/data/slices" in before) == first


def test_every_schedule_there_is_fits_the_profiles():
    names = [path.stem for path in (ROOT / "experiments" / "schedules").glob("*.yaml")]
    for profile in (ROOT / "experiments" / "profiles").glob("*.yaml"):
        planned = [sys.executable, "experiments/planned.py", " ".join(names), "--config", str(profile)]
        assert subprocess.run(planned, cwd=ROOT, check=False).returncode == 0


def test_a_cell_is_base_schedule_profile_fold_seed_and_start():
    runs = fits("finetune", "SCHEDULES=no_freezing", "FOLDS=2", "SEEDS=0 7")
    words = runs["runs/phantom/finetune/no_freezing/fold1-seed7"]
    parts = ("finetune/lesion", "schedules/no_freezing", "profiles/phantom")
    assert configs(words) == [f"experiments/{part}.yaml" for part in parts]
    expected = {
        "--seed_everything": "7",
        "--data.store": "runs/phantom/data/slices",
        "--data.folds": "2",
        "--data.fold": "1",
        "--model.init_args.weights": "runs/phantom/pretrain/lesion",
    }
    assert expected.items() <= options(words).items()


def test_schedules_folds_and_seeds_span_the_grid():
    runs = fits("finetune", "SCHEDULES=baseline no_freezing", "FOLDS=2", "SEEDS=3 4")
    places = {options(words)["--cell"].partition("@")[0]: run for run, words in runs.items() if "/finetune/" in run}
    cells = [
        f"runs/phantom/finetune/{row}/fold{fold}-seed{seed}"
        for row in ("baseline", "no_freezing")
        for fold in (0, 1)
        for seed in (3, 4)
    ]
    assert places == {f"{i}/8": cell for i, cell in enumerate(cells, 1)}


def test_epochs_devices_and_profile_steer_every_training():
    """Epochs: each kind by its own, or a shorter fine-tuning would train its start anew."""
    runs = fits("finetune", "EPOCHS=7", "PRETRAIN_EPOCHS=8", "DEVICES=3", "PROFILE=paper")
    assert len(runs) == 17
    for folder, words in runs.items():
        assert options(words)["--trainer.max_epochs"] == ("8" if "/pretrain/" in folder else "7")
        assert options(words)["--trainer.devices"] == "3"
        assert configs(words)[-1] == "experiments/profiles/paper.yaml"
    for words in fits("finetune").values():
        assert not {"--trainer.max_epochs", "--trainer.devices"} & options(words).keys()


@pytest.mark.parametrize(
    ("given", "name", "profile"),
    [
        (["LITS=/data/LiTS", "SLICES=/data/mine/slices.csv"], "LiTS", "paper"),
        (["LITS=/data/LiTS/", "SLICES=/data/mine/slices.csv"], "LiTS", "paper"),
        (["LITS=.", "SLICES=slices.csv"], ROOT.name, "paper"),
        (["SLICES=/data/mine/slices.csv"], "mine", "paper"),
        (["SLICES=slices.csv"], ROOT.name, "paper"),
        (["SLICES=/data/mine/slices.csv", "NAME=given", "PROFILE=phantom"], "given", "phantom"),
        (["NAME=given"], "given", "phantom"),
        (["PROFILE=paper"], "phantom", "paper"),
    ],
)
def test_name_and_profile_follow_from_the_data_unless_given(given, name, profile):
    runs = fits("finetune", *given)
    assert runs
    assert all(run.startswith(f"runs/{name}/") for run in runs)
    assert all(configs(words)[-1] == f"experiments/profiles/{profile}.yaml" for words in runs.values())


@pytest.mark.parametrize("name", ["lits", "slices"])
@pytest.mark.parametrize("real", [True, False])
def test_a_run_that_holds_real_ct_has_the_profile_of_real_ct(tmp_path, png_store, slices_store, name, real):
    """Its cells name neither LITS nor SLICES; a phantom must not take the place of what it holds."""
    (tmp_path / name).symlink_to(png_store if real else slices_store)
    given = [f"DATA={tmp_path}", "NAME=mine"]
    for target in (("cell", "SCHEDULE=baseline", "FOLD=0", "SEED=0"), ("pretrain",)):
        runs = fits(*target, *given)
        assert {configs(words)[-1] for words in runs.values()} == {
            f"experiments/profiles/{'paper' if real else 'phantom'}.yaml"
        }
    (words,) = fits("cell", "SCHEDULE=baseline", "FOLD=0", "SEED=0", *given, "PROFILE=real_cpu").values()
    assert configs(words)[-1] == "experiments/profiles/real_cpu.yaml"
    if real:
        done = make("phantom", *given)
        assert done.returncode == 2
        assert "lesionseg: wrong input: LITS, SLICES: expected what runs/mine was made from" in done.stderr
        assert not (tmp_path / "source").exists()


def test_real_data_takes_the_place_of_the_phantom():
    found = commands("finetune", "LITS=/data/LiTS", "SLICES=/data/mine/slices.csv")
    assert not [words for words in found if words[0] == "phantom"]
    prepared = [words[:3] for words in found if words[0] == "prepare"]
    assert prepared == [["prepare", "lits", "/data/LiTS"], ["prepare", "slices", "/data/mine/slices.csv"]]


def test_a_table_without_liver_masks_takes_the_trained_liver_net(tmp_path):
    for header, liver in (("patient_id,image,mask", True), ("patient_id,image,mask,liver_mask", False)):
        (tmp_path / "slices.csv").write_text(f"{header}\n")
        found = commands("finetune", "LITS=/data/LiTS", f"SLICES={tmp_path}/slices.csv")
        (words,) = [words for words in found if words[:2] == ["prepare", "slices"]]
        assert (options(words).get("--liver") == "runs/LiTS/pretrain/liver") == liver
        order = [" ".join(words[:2]) for words in found]
        livers = [i for i, words in enumerate(found) if "experiments/pretrain/liver.yaml" in words]
        assert livers[0] < order.index("prepare slices") or not liver


def test_slices_without_lits_do_not_start_from_a_phantom():
    """Nor does LITS without SLICES end in fine-tuning on one."""
    assert not [
        words for words in commands("finetune", "SLICES=/data/mine/slices.csv") if words[:2] == ["prepare", "lits"]
    ]
    done = make("data-slices", "LITS=/data/LiTS")
    assert done.returncode == 2
    assert "lesionseg: wrong input: SLICES: expected a table" in done.stderr
    assert [words[0] for words in commands("pretrain", "LITS=/data/LiTS")] == ["prepare", "fit", "fit"]


def test_implants_take_the_place_of_slices_in_patients_whom_the_pretraining_has_not_seen():
    run = "runs/LiTS-implants"
    found = commands("finetune", "LITS=/data/LiTS", "IMPLANT=1", "IMPLANT_OPTIONS=--slices 332")
    assert [words for words in found if words[0] == "prepare"] == [
        ["prepare", "lits", "/data/LiTS", "--output", f"{run}/data/lits"]
    ]
    (words,) = [words for words in found if words[0] == "implant"]
    seen = ["--exclude-trained", f"{run}/pretrain/lesion"]
    assert words == ["implant", f"{run}/data/lits", "--slices", "332", *seen, "--output", f"{run}/data/slices"]
    trained = next(i for i, other in enumerate(found) if "experiments/pretrain/lesion.yaml" in other)
    assert trained < found.index(words)
    cells = [options(words) for words in found if words[0] == "fit" and "experiments/finetune/lesion.yaml" in words]
    assert len(cells) == 15
    assert all(cell["--data.store"] == f"{run}/data/slices" for cell in cells)


def test_cases_held_back_from_the_pretraining_are_implanted_in():
    given = ["LITS=/data/LiTS", "IMPLANT=1", "HOLD=volume-0 volume-1", "LITS_OPTIONS=--groups g.csv"]
    found = commands("finetune", *given, "PRETRAIN_OPTIONS=--data.folds 1")
    start, data = ["prepare", "lits", "/data/LiTS", "--groups", "g.csv"], "runs/LiTS-implants/data"
    assert [words for words in found if words[0] == "prepare"] == [
        [*start, "--exclude", "volume-0", "volume-1", "--output", f"{data}/lits"],
        [*start, "--output", f"{data}/whole"],
    ]
    assert next(words for words in found if words[0] == "implant")[1] == f"{data}/whole"
    fits = [options(words) for words in found if words[0] == "fit"]
    for fit in fits:
        assert fit["--data.folds"] == ("1" if "/pretrain/" in fit["--trainer.default_root_dir"] else "3")


@pytest.mark.parametrize("given", [["IMPLANT=1"], ["IMPLANT=1", "LITS=a", "SLICES=b"]])
def test_implants_need_lits_and_no_slices(given):
    done = make("data-slices", *given)
    assert done.returncode == 2
    assert "lesionseg: wrong input: IMPLANT: expected LITS" in done.stderr


@pytest.mark.parametrize("jobs", [1, 4])
def test_cells_side_by_side_share_the_cores(jobs):
    done = make("-n", f"-j{jobs}", "finetune")
    cells = [line for line in done.stdout.replace("\\\n", " ").splitlines() if "--cell" in line]
    assert len(cells) == 15
    assert all(line.endswith(f"@{jobs}") for line in cells)
    threads = {re.search(r"OMP_NUM_THREADS=(\$\(\(.*?\)\))", line)[1] for line in cells}
    (said,) = {subprocess.run(["bash", "-c", f"echo {t}"], capture_output=True, text=True).stdout for t in threads}
    assert int(said) == max(cores() // jobs, 1)


def told_cores(*args, **more):
    """What make takes for the number of CPUs."""
    return int(re.search(r"OMP_NUM_THREADS=\$\(\( (\d+) /", make("-n", *args, "finetune", **more).stdout)[1])


def test_cores_are_those_of_the_job_whatever_is_said_of_one_process():
    for threads in ("1", "99"):
        for name in ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT"):
            assert told_cores(**{name: threads}) == cores()
    done = make("-n", "finetune", OMP_NUM_THREADS="1")
    assert done.stdout.count("@2\n") == 15  # side by side


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a process may run on every CPU")
def test_a_job_with_one_cpu_counts_one():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})  # which make inherits
        assert told_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(("threads", "expected"), [("7", "7"), (None, str(cores()))])
def test_a_cell_and_ranks_of_srun_have_the_threads_that_are_exported(tmp_path, threads, expected):
    """On the CPU without: all of them."""
    fake = tmp_path / "lesionseg"
    fake.write_text('#!/bin/bash\necho "threads $OMP_NUM_THREADS"\n')
    fake.chmod(0o755)
    told = {} if threads is None else {"OMP_NUM_THREADS": threads}
    cell = ("cell", "SCHEDULE=baseline", "FOLD=0", "SEED=0")
    for words in (cell, ("pretrain-lesion", "NODES=2", "DEVICES=1")):
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("OMP_NUM_THREADS", raising=False)
            done = make(*words, f"LESIONSEG={fake}", **told)
        assert done.stdout == f"threads {expected}\n", done.stderr


def test_a_rank_of_train_sbatch_has_the_threads_of_its_task(tmp_path):
    """Not its share of all the node, where SLURM binds no job to its CPUs."""
    (tmp_path / "srun").write_text('#!/bin/bash\necho "threads $OMP_NUM_THREADS"\n')
    (tmp_path / "srun").chmod(0o755)
    slurm = {"SLURM_CPUS_PER_TASK": "5", "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_NUM_NODES": "2"}
    slurm["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    inherited = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "GNUMAKEFLAGS"}
    environment = {name: value for name, value in os.environ.items() if name not in inherited} | slurm
    for target in (["pretrain-lesion"], ["cell", "SCHEDULE=baseline", "FOLD=0", "SEED=0"]):
        words = ["bash", "experiments/slurm/train.sbatch", *target]
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.stdout == "threads 5\n", done.stderr


#: Leaves, for each training, the GPUs that it was given, from when to when; AT_ONCE of them are at work at a time.
TRAINING = """#!/bin/bash
test "$1" = fit || exit 0
start=$(date +%s%N); : > "$LOG.$$"; sleep 0.$((RANDOM % 3))
if test "$AT_ONCE"; then for ((i = 0; i < 1200; i++)); do
  set -- "$LOG".*; (($# < AT_ONCE)) || break; sleep 0.05
done; fi
echo "$CUDA_VISIBLE_DEVICES $start $(date +%s%N)" >> "$LOG"
"""


@pytest.fixture
def on_gpus(tmp_path):
    """Runs make on a machine with so many GPUs; returns the GPUs of each training, with its start and end."""

    def run(count, *makes, **more):
        gpus = "\n".join(f"GPU {i}: NVIDIA A100 (UUID: GPU-{i})\n  MIG 1g.5gb Device 0: (UUID: MIG-{i})"
                         for i in range(count))  # fmt: skip
        for name, text in (("nvidia-smi", f"#!/bin/bash\ncat <<'END'\n{gpus}\nEND\n"), ("lesionseg", TRAINING)):
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        more = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(tmp_path / "log")} | more
        here = ("-o", "setup", "-o", "planned", f"LESIONSEG={tmp_path}/lesionseg", f"GPU_LOCKS={tmp_path}/gpus")
        with ThreadPoolExecutor(len(makes)) as pool:
            for done in pool.map(lambda words: make(*here, f"RUN={tmp_path}/run", *words, **more), makes):
                assert done.returncode == 0, done.stderr
        rows = [line.rsplit(" ", 2) for line in (tmp_path / "log").read_text().splitlines()]
        return [(gpus, int(start), int(end)) for gpus, start, end in rows]

    return run


needs_flock = pytest.mark.skipif(shutil.which("flock") is None, reason="needs flock")
CELL_OF_EACH = [("cell", f"SCHEDULE={row}", f"FOLD={fold}", "SEED=0") for row in ROWS for fold in range(3)]


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("400000 100000", 4), ("max 100000", 64), ("50000 100000", 1), ("9900000 100000", 64), ((300000, 100000), 3),
     ((-1, 100000), 64), (None, 64)],
)  # fmt: skip
def test_trainings_share_the_cpu_time_of_a_container(tmp_path, quota, cores):
    """By control groups of version 2, of version 1, and without any."""
    if isinstance(quota, tuple):
        (tmp_path / "cpu").mkdir()
        for name, value in zip(("cpu.cfs_quota_us", "cpu.cfs_period_us"), quota, strict=True):
            (tmp_path / "cpu" / name).write_text(f"{value}\n")
    elif quota:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    told = make("-pn", "help", "NPROC=64", f"CPU_GROUP={tmp_path}").stdout
    assert f"\nCORES := {cores}\n" in told


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="nvidia-smi tells")
def test_gpus_of_a_container_without_nvidia_smi_are_counted(tmp_path):
    """One that has been given the last of several."""
    assert "\nMACHINE_GPUS := \n" in make("-pn", "help", f"GPU_FILES={tmp_path}/nvidia[0-9]*").stdout
    for name in ("nvidia2", "nvidia3", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    told = make("-pn", "help", f"GPU_FILES={tmp_path}/nvidia[0-9]*").stdout
    assert "\nMACHINE_GPUS := 0 1\n" in told
    assert "\nSIDE_BY_SIDE := 2\n" in told
    assert "\nSIDE_BY_SIDE := 1\n" in make("-pn", "help", f"GPU_FILES={tmp_path}/nvidia[0-9]*", "DEVICES=2").stdout


@needs_flock
@pytest.mark.parametrize(
    ("given", "visible", "groups"),
    [
        ([], None, ["0", "1", "2", "3"]),
        ([], "GPU-a,3", ["GPU-a", "3"]),
        ([], "MIG-GPU-a/1/0,3", ["MIG-GPU-a/1/0", "3"]),
        (["DEVICES=2"], None, ["0,1", "2,3"]),
        (["DEVICES=2"], "3,1,0", ["3,1"]),
        (["DEVICES=4"], None, [""]),  # all that there are
        (["DEVICES=3", "-j3"], None, ["0,1,2"]),  # asked for
        (["-j2"], None, ["0", "1"]),
        (["-j1"], None, ["0"]),
    ],
)
def test_trainings_side_by_side_have_gpus_of_their_own(on_gpus, given, visible, groups):
    """Cells and pretraining, on a machine with four GPUs."""
    rows = on_gpus(4, ("finetune", *given), **({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}))
    assert len(rows) == 17
    assert {gpu for gpu, _, _ in rows} == set(groups)
    for group in groups if given != ["DEVICES=3", "-j3"] else ():
        times = sorted((start, end) for gpu, start, end in rows if gpu == group)
        assert all(a[1] <= b[0] for a, b in pairwise(times))


@needs_flock
@pytest.mark.parametrize(
    ("makes", "groups"),
    [
        (CELL_OF_EACH[:1], ["0"]),
        (CELL_OF_EACH[:6], ["0", "1", "2", "3", "4", "5"]),
        ([(*cell, "-j1") for cell in CELL_OF_EACH[:3]], ["0", "1", "2"]),
        ([(*cell, "DEVICES=2") for cell in CELL_OF_EACH[:3]], ["0,1", "2,3", "4,5"]),
        ([("pretrain-lesion", "-j1"), ("pretrain-liver", "-j1")], ["0", "1"]),
        (CELL_OF_EACH[:8], ["0", "0", "1", "1", "2", "3", "4", "5"]),  # beyond the GPUs they share, evenly
    ],
    ids=["alone", "agents", "one job", "pairs", "pretraining", "too many"],
)
def test_trainings_of_several_makes_have_gpus_of_their_own(on_gpus, makes, groups):
    """On a machine with six, of which no rank of eight slices may take all."""
    assert sorted(gpu for gpu, _, _ in on_gpus(6, *makes, AT_ONCE=str(len(makes)))) == groups


@needs_flock
def test_jobs_that_number_the_gpus_of_a_machine_otherwise_keep_apart(tmp_path):
    """As SLURM's, each of which sees its own GPUs alone, from 0 on."""
    script, locks = ROOT / "experiments" / "on_free_gpus.sh", tmp_path / "locks"
    held = []
    try:
        for seen, expected in ((["a", "b"], "0"), (["c", "a"], "0"), (["a", "b", "c"], "1")):
            listed = "\n".join(f"GPU {i}: NVIDIA A100 (UUID: GPU-{name})" for i, name in enumerate(seen))
            (tmp_path / "nvidia-smi").write_text(f"#!/bin/bash\ncat <<'END'\n{listed}\nEND\n")
            (tmp_path / "nvidia-smi").chmod(0o755)
            gpus = " ".join(map(str, range(len(seen))))
            words = ["bash", script, locks, "1", gpus, "bash", "-c", 'echo "$CUDA_VISIBLE_DEVICES"; read']
            path = f"{tmp_path}:{os.environ['PATH']}"
            held.append(subprocess.Popen(words, stdin=-1, stdout=-1, text=True, env={**os.environ, "PATH": path}))
            assert held[-1].stdout.readline() == f"{expected}\n"
    finally:
        for process in held:
            process.communicate("\n")


@needs_flock
def test_makes_with_other_numbers_of_gpus_keep_apart(on_gpus):
    makes = [(*CELL_OF_EACH[0], "DEVICES=2"), CELL_OF_EACH[1], CELL_OF_EACH[2]]
    taken = [gpu for gpus, _, _ in on_gpus(6, *makes, AT_ONCE=str(len(makes))) for gpu in gpus.split(",")]
    assert len(taken) == len(set(taken)) == 4


@pytest.mark.parametrize(("given", "together"), [([], 4), (["MEET=gpu1:29500"], 1), (["NODES=2"], 1)])
def test_trainings_that_meet_at_one_place_follow_each_other(given, together):
    told = make("-pn", "help", "DEVICES=2", "GPUS=0 1 2 3 4 5 6 7", *given).stdout
    assert f"SIDE_BY_SIDE := {together}\n" in told


def test_a_training_on_many_machines_takes_what_is_there():
    """And no lock: srun and torchrun have its GPUs."""
    for given, devices in ((["NODES=2"], "auto"), (["NODES=2", "DEVICES=2"], "2"), (["MEET=gpu1:29500"], "auto")):
        told = make("-n", "pretrain-lesion", *given, "GPUS=0 1 2 3").stdout
        assert f"--trainer.devices {devices} " in told
        assert "on_free_gpus" not in told
    paper = yaml.safe_load((ROOT / "experiments" / "profiles" / "paper.yaml").read_text())
    assert paper["trainer"]["devices"] == 1


@pytest.mark.parametrize("given", ["LITS=/tmp/a b", "SLICES=/tmp/a b/slices.csv", "NAME=a b"])
def test_a_blank_in_a_path_is_told_at_once(given):
    done = make("-n", "finetune", given)
    name, _, value = given.partition("=")
    assert done.returncode == 2
    assert f"lesionseg: wrong input: {name}: expected no blanks; got {value}; rename it" in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("LITS=/tmp/lits (1)/a", "LITS: expected no (; got /tmp/lits (1)/a"),
        ("SLICES=/tmp/a&b/slices.csv", "SLICES: expected no &; got /tmp/a&b/slices.csv"),
        ("LITS=/tmp/her's", "LITS: expected no '; got /tmp/her's"),
        ("LITS=/tmp/set=1", "NAME: expected no =; got set=1"),
        ("NAME=a:b", "NAME: expected no :; got a:b"),
    ],
)
def test_what_shell_or_make_would_take_otherwise_is_told_at_once(given, told):
    done = make("-n", "finetune", given)
    assert done.returncode == 2
    assert f"lesionseg: wrong input: {told}; rename it" in done.stderr
    assert "bash" not in done.stderr


def test_paths_of_other_alphabets_and_from_home_are_taken():
    assert make("-n", "pretrain-lesion", "LITS=~/Leber-µ/LiTS_17.d,e+f@h/set=1", "NAME=mine").returncode == 0


@pytest.mark.parametrize(("devices", "jobs"), [([], 2), (["DEVICES=2"], 1), (["DEVICES=2", "NODES=2"], 1)])
def test_without_gpus_two_ranks_train_at_a_time(devices, jobs):
    done = make("-n", "finetune", *devices)
    cells = [line for line in done.stdout.splitlines() if "--cell" in line]
    assert len(cells) == 15
    assert all(line.endswith(f"@{jobs}") for line in cells)
    assert "CUDA_VISIBLE_DEVICES" not in done.stdout


def test_trainings_on_many_machines_prepare_nothing_and_meet():
    given = ("DEVICES=4", "NODES=2", "MEET=gpu1:29500")
    for target in ("pretrain-liver", "pretrain-lesion", "finetune"):
        assert {words[0] for words in commands(target, *given)} <= {"compare"}
    done = make("-n", "pretrain-lesion", *given)
    start = ".venv/bin/torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint gpu1:29500"
    told = " ".join(done.stdout.replace("\\\n", " ").split())
    signals = "--signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    assert f"{start} --rdzv-id=runs-phantom-pretrain-lesion {signals} -m lesionseg.cli fit " in told
    for words in fits("pretrain", *given[:2]).values():  # under SLURM
        assert options(words).items() >= {"--trainer.devices": "4", "--trainer.num_nodes": "2"}.items()


@pytest.mark.parametrize("target", ["pretrain-lesion", "finetune", "cell"])
def test_where_machines_meet_is_looked_at_before_torchrun_tries(target):
    cell = ("SCHEDULE=baseline", "FOLD=0", "SEED=0")
    told = make("-n", target, "NODES=2", "MEET=gpu1:29500", *cell).stdout
    assert told.index("experiments/meeting.py 'gpu1:29500' 2") < told.index("torchrun")
    assert "meeting.py" not in make("-n", target, "NODES=2", *cell).stdout
    anew = make("-n", "-W", "requirements.lock", target, "NODES=2", "MEET=gpu1:29500", *cell).stdout
    assert "-m venv" not in anew  # the machines share one


def test_torchrun_starts_a_rank_for_each_gpu_or_one():
    def ranks(gpus):
        told = make("-n", "pretrain-lesion", "NODES=2", "MEET=gpu1:29500", f"GPUS={gpus}").stdout
        return re.search("--nproc-per-node ([^ ]+)", told)[1]

    assert [ranks(gpus) for gpus in ("", "0 1")] == ["1", "gpu"]


@pytest.mark.parametrize("given", ["DEVICES=two", "DEVICES=0", "NODES=-1", "NODES=2.5", "DEVICES=1 2"])
def test_numbers_of_devices_and_machines_that_are_none_are_told_at_once(given):
    done = make("-n", "finetune", given)
    name, _, value = given.partition("=")
    assert done.returncode == 2
    assert (
        f"lesionseg: wrong input: {name}: expected a whole number from 1 on; got {value}; leave it out" in done.stderr
    )
    assert not done.stdout


@pytest.mark.skipif(not (ROOT / ".venv" / "bin" / "python").exists(), reason="needs what make setup makes")
def test_torchrun_is_told_that_an_address_is_its_own():
    """By itself it looks up the machine's name, which leads to 127.0.1.1 on Debian: no machine would take the lead."""
    own = address_towards("192.0.2.77")  # nobody's (RFC 5737), but the way there is known
    for meet in ("192.0.2.77", "gpu1", "127.0.0.1", *([own] if own else [])):
        printed = make("-n", "pretrain-lesion", "NODES=2", "DEVICES=1", f"MEET={meet}:29500").stdout
        assert f"--rdzv-endpoint {meet}:29500" in printed
        assert (f"--local-addr {own} " in printed) == (own is not None and meet in ("192.0.2.77", own))
        assert ("--rdzv-conf is_host=1" in printed) == (meet == own)


def test_export_takes_the_schedule_named_or_the_best():
    runs = "runs/given"
    start, end = ["export", "--liver", f"{runs}/pretrain/liver"], ["--output", f"{runs}/model"]
    assert commands("export", "NAME=given") == [[*start, "--best-of", f"{runs}/finetune", *end]]
    lesion = ["--lesion", f"{runs}/finetune/baseline/fold*-seed*"]  # the shell spreads it
    assert commands("export", "NAME=given", "SCHEDULE=baseline") == [[*start, *lesion, *end]]


def test_segment_takes_the_exported_model():
    model = ["--model", "runs/given/model", "--output"]
    assert commands("segment", "NAME=given", "INPUT=/a study") == [
        ["segment", "/a study", *model, "runs/given/segmented"]
    ]
    assert commands("segment", "NAME=given", "INPUT=a.nii", "OUT=b") == [["segment", "a.nii", *model, "b"]]
    words = commands("segment", "NAME=given", "INPUT=a.nii", "SEGMENT_OPTIONS=--tta --device cpu")
    assert words == [["segment", "a.nii", *model, "runs/given/segmented", "--tta", "--device", "cpu"]]
    done = make("segment")
    assert done.returncode == 2
    assert "lesionseg: wrong input: INPUT: expected a study" in done.stderr


def test_peers_get_the_data_the_pretraining_and_the_options_of_the_grid():
    done = make(
        "-n", "peers", "NAME=given", "EPOCHS=7", "FOLDS=2", "SEEDS=0 1", "NEIGHBOURS=nnunet", "AGAINST=baseline"
    )
    told = done.stdout.replace("\\\n", " ")
    check, line = [line for line in told.splitlines() if "peers/run.py" in line]
    assert check.split() == [*line.partition(" -- ")[0].split(), "--check"]
    (planned,) = [line for line in told.splitlines() if "experiments/planned.py" in line]
    assert all(row in shlex.split(planned)[2].split() for row in (*ROWS, "l2_sp", "crop_classifier"))
    assert max(told.index(check), told.index(planned)) < told.index(" fit --trainer.default_root_dir")
    own, _, fit_options = line.partition(" -- ")
    words = shlex.split(own)
    assert words[2] == "runs/given/peers"
    assert options(words[3:]).items() >= {
        "--pretraining": "runs/given/pretrain/lesion", "--folds": "2", "--seeds": "0", "--neighbours": "nnunet",
        "--against": "baseline", "--schedules": "baseline",
    }.items()  # fmt: skip
    assert set(ROWS) < set(words[words.index("--schedules") :])
    told = options(shlex.split(fit_options))
    assert told == {"--data.store": "runs/given/data/slices", "--trainer.max_epochs": "7"}
    assert {"runs/given/pretrain/lesion"} == set(fits("peers", "NAME=given"))


def test_help_lists_targets_that_are_there():
    done = make("help")
    assert make().stdout == done.stdout
    listed = re.findall(r"^  ([a-z-]+)  +\S", done.stdout, re.MULTILINE)
    assert {"setup", "pretrain", "finetune", "compare", "export", "segment", "test", "lint"} <= set(listed)
    assert "check-real" in listed
    for target in listed:
        assert make("-n", target).returncode == 0
    variables = "LITS SLICES PROFILE NAME SCHEDULES FOLDS SEEDS EPOCHS DEVICES SCHEDULE FOLD SEED INPUT OUT NODES MEET"
    for variable in (*variables.split(), "IMPLANT", "HOLD"):
        assert f"[{variable}=" in done.stdout


def test_an_unknown_target_is_refused():
    assert make("-n", "finetuen").returncode == 2


def test_the_environment_names_no_run(monkeypatch):
    before = list(fits("finetune"))
    monkeypatch.setenv("NAME", "the-machine")  # as some systems do
    monkeypatch.setenv("PROFILE", "work")
    assert list(fits("finetune")) == before
