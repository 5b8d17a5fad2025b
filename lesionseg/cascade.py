"""The trained nets put to use: `Cascade.segment(scan)`, one path for a volume and for a single slice."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lesionseg.boxes import Box, liver_box
from lesionseg.calibration import vote
from lesionseg.device import inference_on, keep_freed_memory, moved
from lesionseg.errors import InputError
from lesionseg.findings import measure_findings
from lesionseg.inference import Lesions, clean_liver, lesions_in_liver, predict_lesions, predict_liver
from lesionseg.labels import LESION_IDS, LIVER, UNTYPED_LESION
from lesionseg.model import Model
from lesionseg.scan import Scan, array_checksum, canonical, canonical_axes, from_canonical
from lesionseg.segmentation import UNDETERMINED, Segmentation

#: No liver is lower than this, from its top to its lowest tip; a first look may step over less.
LEAST_LIVER_MM = 20.0


class Cascade:
    """Liver net, cleaning, liver box, lesion nets, lesions outlined, typed and measured.

    The steps are those of the reference code of arXiv 1907.13409; what is left after lesion pixels outside the liver
    have been removed must still have the least size, so that nothing smaller is ever reported.

    Args:
        model: see `lesionseg.model`.
        device: `cpu`, `cuda`, `cuda:1` …, or `auto`: a GPU where there is one.
        batch_size: slices that go through a net at once; None: `CPU_BATCH` or `GPU_BATCH` of `lesionseg.device`.
        tta: average with the left-right mirror image of every slice in the lesion nets (test-time augmentation).

    Raises:
        InputError: no such device, or weights that do not fit the net they are said to be of.
    """

    def __init__(self, model: Model, *, device: str = "auto", batch_size: int | None = None, tta: bool = False) -> None:
        self.model, self.how = model, inference_on(device, batch_size, tta)
        where = self.how.device
        if where.type == "cpu":
            keep_freed_memory()
        layout = torch.channels_last  # an eighth faster on a CPU
        self.liver_net = moved(model.liver.build(), where).to(memory_format=layout)
        self.lesion_nets = [moved(net.build(), where).to(memory_format=layout) for net in model.lesions]
        self.spec, self.naming = model.lesions[0].spec, model.lesions[0].naming

    @classmethod
    def load(
        cls, folder: str | Path, *, device: str = "auto", batch_size: int | None = None, tta: bool = False
    ) -> Cascade:
        """The cascade of a model folder, see `Model.load`."""
        return cls(Model.load(Path(folder)), device=device, batch_size=batch_size, tta=tta)

    def segment(self, scan: Scan, *, liver: np.ndarray | None = None, probabilities: bool = False) -> Segmentation:
        """Find, outline, type and measure the lesions of a scan.

        Args:
            scan: a volume or a single slice, in any orientation.
            liver: boolean (D, H, W) on the grid of the scan, in the place of the liver net; used as it is, so the
                lesions must lie in it.
            probabilities: keep the probability of every class.

        Raises:
            InputError: the model was trained on generated CT and the scan is none; a slice that is not axial; the liver
                is on another grid.
        """
        self._refuse(scan, liver)
        clock = _Clock()
        hu = canonical(scan.hu, scan.affine)
        thickness_mm = None if scan.spacing_mm is None else scan.spacing_mm[canonical_axes(scan.affine)[0][0]]
        found = self.find_liver(hu, thickness_mm) if liver is None else canonical(liver, scan.affine)
        found = np.ascontiguousarray(found, dtype=bool)
        clock.lap("liver net")
        box = liver_box(found)
        lesions = None if box is None else self.find_lesions(hu, np.flatnonzero(found.any((1, 2))), box, probabilities)
        clock.lap("lesion nets")
        ids, types = np.zeros(hu.shape, np.uint8), []
        if lesions is not None:
            ids = lesions_in_liver(lesions.classes > LIVER, found, self.model.thresholds.least_voxels(scan))
            types = self._types(lesions, ids)
        result = self._assemble(scan, found, ids, types, given=liver is not None)
        if probabilities:
            result["classes"] = self.model.classes
            result["probabilities"] = self._maps(lesions, scan)
        clock.lap("measures")
        return Segmentation(**result, seconds=clock.seconds)

    def find_liver(self, hu: np.ndarray, thickness_mm: float | None = None) -> np.ndarray:
        """Boolean liver (D, H, W) of a canonical volume, cleaned; slices far from any liver are not all looked at."""
        spec, threshold = self.model.liver.spec, self.model.thresholds.liver
        stride = max(1, int(LEAST_LIVER_MM / thickness_mm)) if thickness_mm and math.isfinite(thickness_mm) else 1
        return clean_liver(predict_liver(self.liver_net, spec, hu, threshold, stride=stride, how=self.how))

    def find_lesions(self, hu: np.ndarray, slices: np.ndarray, box: Box, probabilities: bool = False) -> Lesions:
        """What the lesion nets say of some slices of a canonical volume in a liver box, before any cleaning."""
        return predict_lesions(
            self.lesion_nets,
            self.spec,
            hu,
            slices.tolist(),
            box,
            naming=self.naming,
            temperature=self.model.temperature,
            how=self.how,
            probabilities=probabilities,
        )

    def _types(self, lesions: Lesions, ids: np.ndarray) -> list[tuple[str, dict[str, float]]]:
        """Type and type probabilities of each lesion: the mean over its pixels."""
        names, n = self.model.lesion_types, int(ids.max())
        if len(names) == 1:
            return [(names[0], {})] * n
        if not n:
            return []
        votes = vote(lesions.types, ids.reshape(-1)[lesions.places], n)
        shares = [dict(zip(names, row, strict=True)) for row in votes.tolist()]
        return [(self._named(share), share) for share in shares]

    def _named(self, shares: dict[str, float]) -> str:
        best = max(shares, key=lambda name: shares[name])
        return best if shares[best] >= self.model.thresholds.undetermined else UNDETERMINED

    def _assemble(
        self, scan: Scan, liver: np.ndarray, ids: np.ndarray, types: list[tuple[str, dict[str, float]]], *, given: bool
    ) -> dict[str, Any]:
        """The fields of the `Segmentation`, on the grid of the scan."""
        if len(types) > np.iinfo(np.uint16).max:
            raise InputError(scan.scan_id, expected="a scan that the model fits", got=f"{len(types)} lesions",
                             remedy="check that it is a CT of the abdomen in Hounsfield units")  # fmt: skip
        label = np.array([0, *(LESION_IDS.get(name, UNTYPED_LESION) for name, _ in types)], dtype=np.uint8)
        labels, places = liver.astype(np.uint8) * LIVER, np.nonzero(ids)
        labels[places] = label[ids[places]]  # not through a reshape, which is a copy where the array is not in C order
        numbered = np.ascontiguousarray(from_canonical(ids.astype(np.uint16), scan.affine))
        return {
            "scan": scan,
            "labels": np.ascontiguousarray(from_canonical(labels, scan.affine)),
            "lesion_ids": numbered,
            "findings": measure_findings(scan, numbered, [name for name, _ in types], [vote for _, vote in types]),
            "liver_ml": _volume_ml(int(np.count_nonzero(labels)), scan),
            "slice_axis": canonical_axes(scan.affine)[0][0],
            "model": self.model.card,
            "settings": {
                "tta": self.how.mirror,
                "liver": "given" if given else "predicted",
                "thresholds": asdict(self.model.thresholds),
                "least_lesion_voxels": self.model.thresholds.least_voxels(scan),
            },
            "warnings": tuple(_warnings(scan, bool(liver.any()), given, self._has_seen(scan))),
        }

    def _has_seen(self, scan: Scan) -> bool:
        return array_checksum(canonical(scan.hu, scan.affine)) in self.model.trained_on

    def _maps(self, lesions: Lesions | None, scan: Scan) -> np.ndarray:
        if lesions is None or lesions.probabilities is None:
            return np.zeros((len(self.model.classes), *scan.hu.shape), dtype=np.float16)
        return np.stack([from_canonical(plane, scan.affine) for plane in lesions.probabilities])

    def _refuse(self, scan: Scan, liver: np.ndarray | None) -> None:
        if self.model.generated and not scan.generated:
            raise InputError("model", expected="one trained on real CT", got="a real scan and a model of the phantom",
                             remedy="export a model from runs on LiTS and your own slices")  # fmt: skip
        if 1 in canonical(scan.hu, scan.affine).shape[1:]:  # to the nets, a volume whose slices are a line
            raise InputError(scan.scan_id, expected="a volume, or an axial slice", got="a slice in another plane",
                             remedy="give the series that it was cut from")  # fmt: skip
        if liver is not None and liver.shape != scan.hu.shape:
            raise InputError("liver mask", expected=f"the shape of the scan, {scan.hu.shape} (D, H, W)",
                             got=str(liver.shape), remedy="give the mask that was drawn on this scan")  # fmt: skip


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Give the time since the last lap to a step."""
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now


def _volume_ml(voxels: int, scan: Scan) -> float | None:
    depth = scan.hu.shape[canonical_axes(scan.affine)[0][0]]
    if scan.spacing_mm is None or depth == 1:
        return None
    return voxels * float(np.prod(scan.spacing_mm)) / 1000


def _warnings(scan: Scan, liver: bool, given: bool, seen: bool) -> list[str]:
    out = []
    if seen:
        out.append("The model has seen this very scan in training or calibration: this says nothing about other scans.")
    if scan.spacing_mm is None:
        out.append("The spacing is unknown: all sizes are in pixels.")
    if scan.affine is None:
        out.append("The orientation is unknown: rows were taken to run to the back and columns to the patient's left.")
    if not liver:
        out.append("The given liver mask is empty." if given else "No liver was found, so no lesion was looked for.")
    return out
