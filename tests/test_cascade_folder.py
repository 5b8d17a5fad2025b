"""Which GPU each of several processes has. How many processes there are: `test_machine.py`."""

import pytest
import torch

from lesionseg import cascade_folder, device
from lesionseg.cascade_folder import CascadeFolder
from lesionseg.parallel import processes


@pytest.mark.parametrize(("name", "asked"), [("auto", [2]), ("cuda", [2]), ("cuda:1", []), ("cpu", [])])
def test_a_process_has_the_gpu_of_its_number(make_model, tmp_path, monkeypatch, name, asked):
    """There is none here, so that the nets go to the CPU."""
    make_model().save(tmp_path)
    seen = []
    monkeypatch.setattr(cascade_folder, "_BUILT", {})
    monkeypatch.setattr(cascade_folder, "on_own_gpu", lambda number, make: seen.append(number) or make())
    monkeypatch.setattr(processes, "_number", 2)
    monkeypatch.setattr(device, "_device", lambda _: torch.device("cpu"))
    assert CascadeFolder(tmp_path, make_model().identity, name).cascade.lesion_nets
    assert seen == asked
