"""Which GPU each of several processes has, and how many processes there are. By memory: `test_machine.py`."""

from types import SimpleNamespace

import pytest
import torch

from lesionseg import cascade_folder, device
from lesionseg.cascade_folder import CascadeFolder, process_count
from lesionseg.parallel import processes


@pytest.mark.parametrize(
    ("device", "wanted", "studies", "count"),
    [("cuda", None, 100, 2), ("cuda", None, 1, 1), ("cuda:1", None, 100, 1), ("cuda", 3, 100, 3)],
)
def test_every_gpu_has_a_process(monkeypatch, device, wanted, studies, count):
    monkeypatch.setattr("lesionseg.parallel.cores", lambda: 64)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    on_gpu = SimpleNamespace(how=SimpleNamespace(device=torch.device(device)))
    assert process_count(wanted, studies, on_gpu) == count


@pytest.mark.parametrize(("name", "taken"), [("auto", [2]), ("cuda", [2]), ("cuda:1", []), ("cpu", [])])
def test_a_process_has_the_gpu_of_its_number(make_model, tmp_path, monkeypatch, name, taken):
    """There is none here, so that the nets go to the CPU."""
    make_model().save(tmp_path)
    seen = []
    monkeypatch.setattr(cascade_folder, "_BUILT", {})
    monkeypatch.setattr(cascade_folder, "take_gpu", seen.append)
    monkeypatch.setattr(processes, "_number", 2)
    monkeypatch.setattr(device, "_device", lambda _: torch.device("cpu"))
    assert CascadeFolder(tmp_path, make_model().identity, name).cascade.lesion_nets
    assert seen == taken
