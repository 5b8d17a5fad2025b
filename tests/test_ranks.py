"""Training on 1, 2 and 3 ranks (gloo, CPU): the same run, whatever started the ranks, and when one of them is killed.

`plain_task.PlainTask` has no batch norm and a loss that is a mean over pixels: but for rounding, in double
precision, all must be equal.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import LambdaCallback
from pytorch_lightning.demos.boring_classes import BoringModel
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from pytorch_lightning.utilities import rank_zero_only
from torch import nn

from lesionseg import ranks
from lesionseg.cli import main
from lesionseg.errors import InputError
from lesionseg.inputs import InputSpec
from lesionseg.ranks import OnAnyRank, listen_for, many_ranks, refuse_unfit, with_cluster
from lesionseg.results import FALSE_POSITIVE, REFERENCE, read_run
from lesionseg.runs import RunInfo
from lesionseg.tasks import LesionTask
from lesionseg.tasks.crop_classifier import CropClassifierTask

ROOT = Path(__file__).parent.parent
EPOCHS, STEPS = 6, 3
#: One block freezes and thaws again, another thaws late.
TRAINS = {"stage1": [{"start": 0, "stop": 0.3334}, {"start": 0.6667, "stop": 1}], "stage2": [0.5, 1],
          "encoder": "always", "decoder": "always", "head": "always"}  # fmt: skip
#: What torchrun says to a rank, and SLURM to a batch script that does not call srun.
TORCHRUN = {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
BATCH_SCRIPT = {"SLURM_JOB_NAME": "a", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
                "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}  # fmt: skip
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
LESIONSEG = f"{sys.executable} -m lesionseg.cli"
#: What srun does with `train.sbatch`, as far as a rank can tell, one rank a machine; `.venv` is that of the tests.
SRUN = f"""#!/bin/bash
test "$1 $2" = "--kill-on-bad-exit=1 .venv/bin/lesionseg" || exit 3
for ((rank = 0; rank < SLURM_NTASKS; rank++)); do
  SLURM_PROCID=$rank SLURM_NODEID=$rank SLURM_STEP_NUM_TASKS=$SLURM_NTASKS {LESIONSEG} "${{@:3}}" & ranks+=($!)
done
for rank in "${{ranks[@]}}"; do wait "$rank" || exit; done
"""
#: What a machine may take to end after a rank of another one is lost: 5 s of grace, 30 s that torchrun leaves a rank to
#: end; the rest is for a machine with much else to do. A run that hangs ends at the limit of an exchange, 10 minutes.
LOSS_IS_KNOWN_WITHIN_S = 90
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.mark.parametrize(
    ("devices", "nodes", "many"),
    [(1, 1, False), (2, 1, True), ("1", 1, False), ("2", 1, True), ([3], 1, False), ([0, 1], 1, True),
     ("0,1", 1, True), ("3,", 1, False), (1, 2, True), ("auto", 2, True), ("x", 1, False)],
)  # fmt: skip
def test_more_than_one_rank_is_known_beforehand(devices, nodes, many):
    assert many_ranks(devices, nodes, "auto") == many


@pytest.mark.parametrize(("gpus", "many"), [(0, False), (1, False), (2, True)])
@pytest.mark.parametrize("devices", ["auto", -1, "-1"])
def test_all_devices_are_as_many_as_there_are(monkeypatch, devices, gpus, many):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert many_ranks(devices, 1, "gpu") == many_ranks(devices, 1, "auto") == many
    assert not many_ranks(devices, 1, "cpu")  # which is one device, whatever GPUs lie beside it


#: Names as on Debian, on the first and on the second of two machines.
FIRST = {"one": "127.0.1.1", "two": "10.0.0.2"}
SECOND = {"one": "10.0.0.1", "two": "127.0.1.1"}
WIRE = {"lo": "127.0.0.1", "eth0": "10.0.0.2"}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is set")
@pytest.mark.parametrize(
    ("own", "names", "interfaces", "first", "expected"),
    [
        ("two", SECOND, WIRE, "one", "eth0"),
        ("two", SECOND, WIRE | {"docker0": "172.17.0.1"}, "one", "eth0"),
        ("one", FIRST, WIRE, "one", "eth0"),
        ("one", FIRST, WIRE | {"docker0": "172.17.0.1"}, "one", None),
        ("one", FIRST, {"lo": "127.0.0.1"}, "one", None),
        ("two", FIRST, WIRE, "one", None),  # its name leads out: gloo takes that
        ("nameless", SECOND, WIRE, "one", "eth0"),
    ],
)
def test_gloo_listens_where_other_machines_reach_it(monkeypatch, caplog, own, names, interfaces, first, expected):
    def resolved(name):
        if name[0].isdigit():
            return name
        if name not in names:
            raise socket.gaierror
        return names[name]

    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")
    monkeypatch.setattr(socket, "gethostname", lambda: own)
    monkeypatch.setattr(socket, "gethostbyname", resolved)
    found = {name: [SimpleNamespace(family=socket.AF_INET, address=address)] for name, address in interfaces.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)
    way = {"10.0.0.1": "10.0.0.2", "127.0.1.1": "127.0.0.1"}
    monkeypatch.setattr(ranks, "address_towards", lambda other: way[resolved(other)])
    with caplog.at_level("INFO"):
        listen_for(first)
    assert os.environ["GLOO_SOCKET_IFNAME"] == (expected or "")
    several = own == "one" and len(interfaces) > 2
    assert ("GLOO_SOCKET_IFNAME=eth0 or docker0 says how" in caplog.text) == several


@pytest.fixture
def in_slurm(monkeypatch):
    """What a process is told that srun has started."""
    for name in ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.setenv(name, "1")
    for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("SLURM_JOB_NAME", "lesionseg")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("plugins", "taken"), [(with_cluster, False), (lambda given: given, True)])
def test_under_slurm_lightning_neither_saves_nor_queues_by_itself(in_slurm, tmp_path, plugins, taken):
    handlers = []
    trainer = pl.Trainer(
        plugins=plugins(None),
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=1, limit_train_batches=1, limit_val_batches=0, default_root_dir=tmp_path,
        callbacks=[LambdaCallback(on_train_start=lambda *_: handlers.append(signal.getsignal(signal.SIGUSR1)))],
    )  # fmt: skip
    trainer.fit(BoringModel())
    assert [handler != signal.SIG_DFL for handler in handlers] == [taken]


def kinds(plugins):
    return [type(plugin) for plugin in plugins]


@pytest.mark.filterwarnings("ignore")
def test_a_plugin_of_the_users_stays_under_slurm(in_slurm, monkeypatch):
    assert kinds(with_cluster(None)) == [SLURMEnvironment]
    assert kinds(with_cluster(TorchCheckpointIO())) == [TorchCheckpointIO, SLURMEnvironment]
    assert kinds(with_cluster([LightningEnvironment()])) == [LightningEnvironment]
    for name, value in {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert with_cluster(None) == []  # torchrun in a job: its ranks count


def test_elsewhere_plugins_are_the_users():
    assert with_cluster(None) == []
    assert kinds(with_cluster([TorchCheckpointIO()])) == [TorchCheckpointIO]


@pytest.mark.parametrize(
    ("environment", "more", "said"),
    [
        ({}, "--trainer.devices 4 --data.batch_size 6", "data.batch_size: expected a multiple of 4, as 4 ranks share "
         "each batch; got 6; set it to 4 or 8, or change the devices"),
        ({}, "--trainer.devices 8 --data.batch_size 6", "set it to 8, or"),
        ({}, "--trainer.devices 2 --data.batch_size 1000",
         "or less, the slices of an epoch, as 2 ranks share each batch; got 1000; train on one device, or lower it"),
        ({}, "--trainer.num_nodes 2", "trainer.num_nodes: expected ranks that torchrun or srun has started"),
        (TORCHRUN, "--trainer.devices 1",
         "trainer.devices, trainer.num_nodes: expected 2 ranks, as many as torchrun or srun has started; got 1 x 1"),
        (TORCHRUN, "--trainer.devices 2 --trainer.num_nodes 3", "expected 2 ranks, as many as torchrun or srun has "
         "started; got 2 x 3; set them to ranks a machine and machines, alike on all of these"),
        ({**BATCH_SCRIPT, "SLURM_STEP_NUM_TASKS": "1"}, "--trainer.devices 2",
         "expected 1 ranks, as many as torchrun or srun has started; got 2 x 1"),
        ({}, "--trainer.devices 2 --trainer.strategy ddp_spawn", "trainer.strategy: expected auto or ddp"),
        ({}, "--trainer.devices 2 --trainer.sync_batchnorm true", "trainer.sync_batchnorm: expected GPUs"),
    ],
)  # fmt: skip
def test_ranks_that_would_wait_in_vain_are_refused(pretraining, tmp_path, monkeypatch, capsys, environment, more, said):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(pretraining(tmp_path / "run", *more.split())) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lesionseg: wrong input: ")]
    assert said in line
    assert not (tmp_path / "run").exists()


def assert_alone(run, pretraining, environment, monkeypatch):
    """A training that nobody started as one of several is the first rank, whatever its surroundings say."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # as it would have been read when Lightning was imported
    assert main(pretraining(run, "--trainer.max_epochs", "1")) == 0
    assert RunInfo.read(run).state == "finished"
    assert (run / "config.yaml").exists()


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "1"},
        {"RANK": "1", "WORLD_SIZE": "2"},
        {"SLURM_JOB_NAME": "interactive", "SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"},
        {"SLURM_JOB_NAME": "a", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # sbatch --ntasks=4, and no srun
    ],
)
def test_a_training_alone_is_the_first_rank(pretraining, tmp_path, monkeypatch, environment):
    assert_alone(tmp_path / "run", pretraining, environment, monkeypatch)


def test_a_local_rank_around_a_training_alone_is_refused(pretraining, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert main(pretraining(tmp_path / "run")) == 2
    assert "LOCAL_RANK: expected none around a training of one rank; got 1; unset it" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def on(device, ranks=2, kind=DDPStrategy):
    """What is asked of a trainer, on a device that may not be there."""
    devices = [torch.device(device)]
    strategy = kind(parallel_devices=devices) if kind is DDPStrategy else kind(devices[0])
    return SimpleNamespace(world_size=ranks, num_devices=ranks, num_nodes=1, strategy=strategy)


def task_of(kind=LesionTask, encoder="resnet18"):
    return kind(encoder, InputSpec(64, "liver"), "typed", encoder_weights=None)


def test_batch_norms_that_torch_cannot_synchronise_are_refused():
    refuse_unfit(on("cuda"), task_of(), True)
    refuse_unfit(on("cuda"), task_of(encoder="tu-efficientnet_b0"), False)
    refuse_unfit(on("cuda", 1, SingleDeviceStrategy), task_of(encoder="tu-efficientnet_b0"), True)
    with pytest.raises(InputError, match="torch's own batch norms"):  # Lightning would convert them all the same
        refuse_unfit(on("cuda", 1), task_of(encoder="tu-efficientnet_b0"), True)
    with pytest.raises(InputError, match="torch's own batch norms; got BatchNormAct2d"):
        refuse_unfit(on("cuda"), task_of(encoder="tu-efficientnet_b0"), True)
    with pytest.raises(InputError, match="whole in each step; got CropClassifierTask"):
        refuse_unfit(on("cuda"), task_of(CropClassifierTask), True)


def test_what_is_synchronised_computes_the_same():
    """Of the nets that pass: a net whose activations were lost would give other scores."""
    task = task_of().eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = task(images)
        after = nn.SyncBatchNorm.convert_sync_batchnorm(task)(images)
    torch.testing.assert_close(after, before)


def test_ddp_moves_no_tensor_of_a_batch(monkeypatch, tmp_path):
    """On GPUs Lightning's would: a batch keeps references and targets on the CPU."""
    strategy = ranks.joined()
    strategy.parallel_devices, strategy.cluster_environment = [torch.device("cuda", 0)], LightningEnvironment()
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="device_ids"):  # the net of this test lies on the CPU
            DDPStrategy._setup_model(strategy, nn.Linear(1, 1))
        wrapped = strategy._setup_model(nn.Linear(1, 1))
        assert wrapped.device_ids is None
        assert wrapped.find_unused_parameters
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
@pytest.mark.parametrize("happened", [True, False])
def test_what_happened_on_the_only_rank_is_answered(device, happened):
    alone = SimpleNamespace(world_size=1)
    assert bool(OnAnyRank(alone, happened)) is happened
    assert bool(OnAnyRank(alone, torch.tensor(happened, device=device))) is happened


@pytest.mark.parametrize(("device", "mode", "refused"), [("cuda", True, True), ("cuda", "warn", False),
                                                         ("cpu", True, False)])  # fmt: skip
def test_strict_determinism_is_refused_on_a_gpu_alone(device, mode, refused):
    torch.use_deterministic_algorithms(True, warn_only=mode == "warn")
    try:
        with pytest.raises(InputError, match=r"trainer\.deterministic: expected warn") if refused else nullcontext():
            refuse_unfit(on(device), task_of(), False)
    finally:
        torch.use_deterministic_algorithms(False)


# ---- the same run ----


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    """Options of a short pretraining, the same on any number of ranks: six epochs of three steps of six slices."""
    path = tmp_path_factory.mktemp("schedule") / "again.yaml"
    path.write_text(yaml.safe_dump({"schedule": {"trains": TRAINS}}))
    return (
        f"--config {path} --data.input.size_px 32 --data.folds 3 --data.batch_size 6 --data.keep_empty 0.3 "
        f"--model.class_path plain_task.PlainTask --trainer.max_epochs {EPOCHS} --trainer.check_val_every_n_epoch 2"
    )


@pytest.fixture(scope="module")
def command(lits_store, more):
    """What `make pretrain-lesion` runs with these options."""
    configs = ("experiments/pretrain/lesion.yaml", "experiments/profiles/phantom.yaml")
    named = [word for path in configs for word in ("--config", path)]
    place = ["--data.store", str(lits_store), "--trainer.default_root_dir"]
    return lambda run: ["fit", *named, *place, str(run), *more.split()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, command):
    """The run of one rank that all others must equal."""
    run = tmp_path_factory.mktemp("alone") / "run"
    assert main(command(run)) == 0
    return run


@pytest.fixture
def in_make(tmp_path, lits_store, more):
    """The words by which `make` trains the same, in a folder of this test."""
    place = [f"RUN={tmp_path}", f"DATA={lits_store.parent}", "CORES=1"]
    return ["pretrain-lesion", *place, f"PRETRAIN_OPTIONS={more}"]


def environment(**more):
    """For a process of its own: the package, the task beside this file, and nothing of an outer make or torchrun."""
    outer = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "GNUMAKEFLAGS"}
    inherited = {name: value for name, value in os.environ.items() if name not in outer}
    return {**inherited, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), **more}


def started(*words, **more):
    return subprocess.Popen(words, cwd=ROOT, env=environment(**more), text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)  # fmt: skip


def ended(process, within_s=300):
    """Exit status and stderr, which is complete when the last of its processes is gone: orphans would be waited for.

    None outlives this: what has not ended in time has hung, and is killed.
    """
    try:
        _, text = process.communicate(timeout=within_s)
    except subprocess.TimeoutExpired:
        family = [*psutil.Process(process.pid).children(recursive=True), process]
        for each in family:
            each.kill()
        _, text = process.communicate()
        pytest.fail(f"not ended within {within_s} s:\n{text}")
    return process.returncode, text


def fitted(command, run, devices, **more):
    return ended(started(*LESIONSEG.split(), *command(run), "--trainer.devices", str(devices), **more))


def load(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def assert_same_run(run, alone, ranks):
    """Split, thaw epochs and phases to the letter; weights and losses to 1e-9, tables to the last slice and lesion."""
    for name in ("split.json", "schedule.json"):
        assert (run / name).read_bytes() == (alone / name).read_bytes()
    ours, theirs = load(run), load(alone)
    assert ours["global_step"] == theirs["global_step"] == EPOCHS * STEPS
    for name, tensor in theirs["state_dict"].items():
        torch.testing.assert_close(ours["state_dict"][name], tensor, rtol=0, atol=1e-9)
    logs = [pd.read_csv(folder / "metrics.csv") for folder in (run, alone)]
    for figure in ("phase", "trains/stage1", "trains/stage2", "lr/stage1"):
        assert logs[0][figure].dropna().tolist() == logs[1][figure].dropna().tolist()
    for figure in ("train/loss", "val/dice1"):
        ours, theirs = (log[figure].dropna().tolist() for log in logs)
        assert ours == pytest.approx(theirs, rel=0, abs=1e-9)
    assert_same_tables(read_run(run), read_run(alone))
    assert (RunInfo.read(run).state, RunInfo.read(run).ranks) == ("finished", ranks)


def assert_same_tables(one, other):
    """Tables of all that there is to tell: those of nets that find nothing would be the same whatever is wrong."""
    outcomes = set(zip(other.lesions.kind, other.lesions.found, strict=True))
    assert outcomes == {(REFERENCE, 1), (REFERENCE, 0), (FALSE_POSITIVE, 0)}
    options = {"rtol": 0, "atol": 1e-12}
    pd.testing.assert_frame_equal(one.slices, other.slices, **options)
    pd.testing.assert_frame_equal(one.lesions, other.lesions, **options)


def said(text):
    """What is told of a failure: one line, and nothing else that looks like one."""
    assert "Traceback" not in text
    return [line for line in text.splitlines() if line.startswith("lesionseg: ")]


def listing(store):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [store, *store.rglob("*")]}


def test_ranks_that_were_told_different_things_are_refused(tmp_path, command):
    """They would train together, each towards its own end: the same line is typed on every machine, but for a slip."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meet = {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    words = [*LESIONSEG.split(), *command(tmp_path / "run"), "--trainer.num_nodes", "2"]
    ranks = [started(*words, "--model.init_args.lr", f"1e-{3 + rank}", **meet, RANK=str(rank), LOCAL_RANK="0",
                     GROUP_RANK=str(rank)) for rank in (0, 1)]  # fmt: skip
    for status, text in map(ended, ranks):
        assert status == 2, text
        assert "ranks: expected the same command" in text
        assert "got others on rank 1 than on rank 0; give the same line on every machine" in text


def test_the_run_of_one_rank_freezes_and_thaws(alone):
    steps = json.loads((alone / "schedule.json").read_text())["steps"]
    assert [step["rates"]["stage1"] for step in steps] == [1, 0, 0, 1]
    assert all(a["stop"] == b["start"] for a, b in pairwise(steps))
    assert RunInfo.read(alone).ranks == 1


@needs_make
def test_three_ranks_one_of_which_is_killed_and_slurm_goes_on(tmp_path, command, in_make, alone, lits_store):
    """By `train.sbatch`, whose srun is played by a script. All ranks read one store, and leave no trace in it."""
    run, before = tmp_path / "pretrain" / "lesion", listing(lits_store)
    status, text = fitted(command, run, 3, KILL="2:5")
    assert (status, said(text)) == (1, ["lesionseg: failed: rank 2 of 3 was killed (SIGKILL); the same command "
                                        "continues from the last checkpoint"])  # fmt: skip
    assert load(run)["global_step"] == STEPS
    assert RunInfo.read(run).state == "running"
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    slurm = {**BATCH_SCRIPT, "SLURM_JOB_ID": "40404", "SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NUM_NODES": "3",
             "SLURM_NNODES": "3", "SLURM_NTASKS": "3", "SLURM_NTASKS_PER_NODE": "1",
             "PATH": f"{tmp_path}:{os.environ['PATH']}"}  # fmt: skip
    status, text = ended(started("bash", "experiments/slurm/train.sbatch", *in_make, **slurm))
    assert (status, said(text)) == (0, []), text
    assert "6 slices a step = 3 ranks x 2; 3 steps an epoch; learning rate 0.001 for any number of ranks" in text
    assert_same_run(run, alone, ranks=3)
    assert listing(lits_store) == before
    shared = read_run(run)
    assert main(["test", *command(run)[1:]]) == 0  # the same weights, by one rank
    assert_same_tables(read_run(run), shared)


def test_the_first_rank_is_killed_and_another_number_of_ranks_goes_on(tmp_path, command, alone):
    """It had started the other rank, which must not stay behind."""
    run = tmp_path / "run"
    status, text = fitted(command, run, 2, KILL="0:5")
    assert (status, len(said(text))) == (-9, 1)
    assert "what had started rank 1 of 2 is gone" in said(text)[0]
    assert "find_unused_parameters" not in text
    assert load(run)["global_step"] == STEPS
    assert main(command(run)) == 0
    assert_same_run(run, alone, ranks=1)


def test_on_two_gpus_that_are_pretended_a_run_of_a_cpu_goes_on(tmp_path, command, alone, monkeypatch):
    """Nothing that lies on the CPU is exchanged, which NCCL would refuse; it had been stopped within an epoch."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setenv("INTERRUPT", "0:1")
        assert main(command(run)) == 130
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    both = []
    for rank in map(str, range(2)):
        words = [sys.executable, "tests/pretended_gpu.py", str(tmp_path / rank), json.dumps(command(run))]
        both.append(started(*words, **TORCHRUN | meet | {"RANK": rank, "LOCAL_RANK": rank}))
    for rank, process in enumerate(both):
        status, text = ended(process)
        assert (status, json.loads((tmp_path / str(rank)).read_text())[0]["status"]) == (0, 0), text
    assert_same_run(run, alone, ranks=2)


@needs_make
def test_two_machines_joined_by_torchrun_are_stopped_lose_a_rank_each_and_the_same_commands_go_on(
    tmp_path, in_make, alone
):
    """Both machines are this one, each with an address of its own; they meet at the first, which has rank 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = f"MEET=127.0.0.1:{free.getsockname()[1]}"
    run = tmp_path / "pretrain" / "lesion"

    def machines(**more):
        """torchrun ranks machines by address. Without `is_host` whichever comes first would be the one to meet at."""
        torchrun = f"TORCHRUN={sys.executable} -m torch.distributed.run --local-addr 127.0.0"
        words = ["make", "DEVICES=1", "NODES=2", meet, *in_make]
        return [started(*words, f"{torchrun}.{number + 1} --rdzv-conf is_host={1 - number}", **more)
                for number in range(2)]  # fmt: skip

    # Ctrl-C on one machine: both ranks have saved, and neither machine takes the training for done.
    for status, text in [ended(machine) for machine in machines(INTERRUPT="1:1")]:
        assert status == 2, text  # of make
        assert text.count("lesionseg: interrupted; the same command continues") == 1, text
    assert load(run)["global_step"] == 2
    # The machine of rank 1 goes, then that of rank 0: then torchrun ends the rank of the other one in the midst of it.
    for lost, steps in ((1, STEPS), (0, 2 * STEPS)):
        both = machines(KILL=f"{lost}:{steps + 2}")
        status, text = ended(both[lost])
        assert status == 2, text  # of make
        assert re.search(rf"rank +: {lost} \(local_rank: 0\)\n +exitcode +: -9 .*\(SIGKILL\)", text), text
        status, text = ended(both[1 - lost], LOSS_IS_KNOWN_WITHIN_S)
        assert status == 2, text
        lines = [line for line in text.splitlines() if "lesionseg: " in line]
        assert len(lines) == 1, text
        told = rf"lesionseg: failed: rank {1 - lost} of 2 has lost another one \(.*gloo.*\)"
        assert re.fullmatch(rf"{told}; the same command continues from the last checkpoint", lines[0])
        assert load(run)["global_step"] == steps
        assert RunInfo.read(run).state == "running"
    for status, text in [ended(machine) for machine in machines()]:
        assert status == 0, text
    assert_same_run(run, alone, ranks=2)
