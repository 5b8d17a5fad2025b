"""`LiverPredictor`: the liver net of a run put to use on scans of any orientation, for slices without a liver mask."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from torch import nn

from lesionseg.device import Inference, inference_on, moved, on_own_gpu
from lesionseg.errors import InputError
from lesionseg.inference import clean_liver, predict_liver
from lesionseg.inputs import InputSpec
from lesionseg.model import Thresholds
from lesionseg.model_net import Net
from lesionseg.parallel import worker_number
from lesionseg.run_weights import weights_sha256
from lesionseg.runs import liver_run
from lesionseg.scan import Scan, canonical, from_canonical


@dataclass
class LiverPredictor:
    """Finds the liver of a scan with the liver net of a run, on a GPU where there is one.

    Picklable: each process loads the net once.

    Raises:
        InputError: the run is not a finished one of a liver net, or is of generated CT while the scan is not.
    """

    run: Path

    def __post_init__(self) -> None:
        self.generated = liver_run(self.run).generated

    @cached_property
    def identity(self) -> str:
        """Hash of the weights."""
        return weights_sha256(self.run)

    def __call__(self, scan: Scan) -> np.ndarray:
        """Boolean liver mask (D, H, W) on the grid of the scan."""
        if self.generated and not scan.generated:
            raise InputError(self.run, expected="a liver net trained on real CT", got="one trained on the phantom",
                             remedy="make pretrain LITS=/path/to/LiTS")  # fmt: skip
        net, spec, how = _liver_net(self.run, self.identity)
        liver = predict_liver(net, spec, canonical(scan.hu, scan.affine), Thresholds().liver, how=how)
        return np.ascontiguousarray(from_canonical(clean_liver(liver), scan.affine))


@lru_cache(maxsize=1)
def _liver_net(run: Path, identity: str) -> tuple[nn.Module, InputSpec, Inference]:
    """That of a run whose weights have the hash `identity`, and how slices go through it."""
    net, how = Net.from_run(run), inference_on()
    return on_own_gpu(worker_number(), lambda: moved(net.build(), how.device)), net.spec, how
