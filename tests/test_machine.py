"""CPUs and memory of a job or a container, in the place of those of the machine."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lesionseg import cascade_folder, machine
from lesionseg.machine import cores, free_memory
from lesionseg.parallel import worker_count

GB = 10**9
STATISTICS = {2: "anon 5\ninactive_file 1000000000\n", 1: "cache 5\ntotal_inactive_file 1000000000\n"}


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="a process may run on every CPU")
def test_cores_are_those_of_the_job(tmp_path):
    script = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); from lesionseg.machine import cores; "
    script += "from lesionseg.parallel import worker_count; print(cores(), worker_count(None, 100))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]
    assert cores(tmp_path, tmp_path / "none") == len(os.sched_getaffinity(0))


def test_cores_where_no_process_can_be_bound(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    for told, expected in ((6, 6), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda told=told: told)
        assert cores(tmp_path, tmp_path / "none") == expected
        assert worker_count(None, 100) == min(expected, cores())


def group(folder, version, limit, used, path=""):
    """Files of a control group."""
    folder, names = (folder, ("max", "current")) if version == 2 else (
        folder / "memory", ("limit_in_bytes", "usage_in_bytes"))  # fmt: skip
    folder /= path
    folder.mkdir(exist_ok=True, parents=True)
    for name, value in zip(names, (limit, used), strict=True):
        (folder / f"memory.{name}").write_text(f"{value}\n")
    (folder / "memory.stat").write_text(STATISTICS[version])


@pytest.fixture
def host(monkeypatch):
    """A large machine."""
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: SimpleNamespace(available=500 * GB))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("limit", "free"), [(16 * GB, 10 * GB), (3 * GB, 0), (2**63 - 4096, 500 * GB)])
def test_memory_is_that_of_the_container(tmp_path, host, version, limit, free):
    """Of 7 GB in use, 1 GB is cache that gives way."""
    group(tmp_path, version, limit, 7 * GB)
    assert free_memory(tmp_path) == free


@pytest.mark.parametrize("version", [1, 2])
def test_memory_is_that_of_a_job_within_a_job(tmp_path, host, version):
    """As SLURM's: each step is a group in that of its job, and the limits of both hold."""
    told = tmp_path / "told"
    controller = {1: "4:hugetlb,memory", 2: "0:"}[version]
    told.write_text(f"9:cpuset:/other\n{controller}:/slurm/job_7/step_0\n")
    group(tmp_path, version, 2**63 - 4096, 90 * GB)
    group(tmp_path, version, 16 * GB, 7 * GB, "slurm/job_7")
    group(tmp_path, version, 2**63 - 4096, 3 * GB, "slurm/job_7/step_0")
    assert free_memory(tmp_path, told) == 10 * GB
    group(tmp_path, version, 4 * GB, 3 * GB, "slurm/job_7/step_0")
    group(tmp_path, version, GB, GB, "slurm/job_8")
    assert free_memory(tmp_path, told) == 2 * GB
    assert free_memory(tmp_path, tmp_path / "none") == 500 * GB
    told.write_text("no control group")
    assert free_memory(tmp_path, told) == 500 * GB


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "9900000 100000"}, 8),
        ({"cpu.max": "?"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000"}, 8),
        ({"cpu.max": "max 100000", "pod/cpu.max": "400000 100000", "pod/one/cpu.max": "600000 100000"}, 4),
    ],
)
def test_cores_are_as_many_as_the_time_of_the_container_is_worth(tmp_path, monkeypatch, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    (tmp_path / "told").write_text("0::/pod/one\n")
    assert cores(tmp_path, tmp_path / "told") == expected


def test_memory_without_a_limit_is_that_of_the_machine(tmp_path, host):
    assert free_memory(tmp_path / "none") == 500 * GB
    group(tmp_path, 2, "max", 7 * GB)
    assert free_memory(tmp_path) == 500 * GB


def test_a_container_starts_as_many_cascades_as_it_has_memory_for(monkeypatch):
    monkeypatch.setattr(cascade_folder, "free_memory", lambda: 16 * GB)
    monkeypatch.setattr("lesionseg.parallel.cores", lambda: 64)
    small = SimpleNamespace(tensors={"weight": SimpleNamespace(nbytes=GB // 10)})

    def on_cpu(nets):
        model = SimpleNamespace(liver=small, lesions=(small,) * (nets - 1))
        return SimpleNamespace(how=SimpleNamespace(device=SimpleNamespace(type="cpu")), model=model)

    assert cascade_folder.process_count(None, 100, on_cpu(2)) == 5
    assert cascade_folder.process_count(None, 100, on_cpu(10)) == 3
