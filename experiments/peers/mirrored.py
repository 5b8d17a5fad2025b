"""The nets of one of our rows tested again, with mirror images averaged, as `lesionseg segment --tta` has it.

Usage: mirrored.py CELL FOLDER    leaves the run of the row `<row>_mirrored`; nothing is trained
"""

from __future__ import annotations

from pathlib import Path

import torch
from cell import Cell, PredictedTask, places

from lesionseg.device import inference_on
from lesionseg.inference import predict_lesions
from lesionseg.model_net import Net
from lesionseg.paper import title


def test(run: Path, folder: Path) -> None:
    """Test the net of a run on each slice and its left-right mirror image, in the liver box of the reference."""
    cell, held = Cell.read(run), Net.from_run(run)
    data, net, how = cell.data(), held.build(), inference_on(mirror=True)
    assert data.store is not None
    net.to(how.device)
    task = cell.task(PredictedTask)
    task.predictions = {}
    for position, ref in enumerate(data.test.slices):
        hu, box = data.store.hu(ref.case_id), data.records[ref.case_id].liver_box
        found = predict_lesions([net], held.spec, hu, [ref.slice], box, naming=held.naming, how=how)
        task.predictions[position] = torch.from_numpy(found.classes[ref.slice])
    cell.leave(folder, f"{cell.info.name}_mirrored", task, data, neighbour=f"the nets of {title(cell.info.name)}")


if __name__ == "__main__":
    test(*places(__doc__))
