"""A folder like LiTS: phantoms on the grid of a clinical scan, with its noise."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from lesionseg.phantom.write import write_phantom

#: Noise of a portal-venous scan, which decides how far its file can be packed.
NOISE_HU = 12.0
_PHANTOMS, _SIDE = 2, 128


def write_lits(folder: Path, volumes: int, slices: int, side_px: int = 512) -> Path:
    """Make `volume-N.nii.gz` and `segmentation-N.nii.gz` of (side, side, slices), int16, as nibabel packs them."""
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as name:
        write_phantom(Path(name), volumes=_PHANTOMS, slices=0, size=_SIDE, seed=0)
        for i in range(volumes):
            for kind in ("volume", "segmentation"):
                small = nib.load(next(Path(name).rglob(f"{kind}-{i % _PHANTOMS}.nii.gz")))
                factors = np.array([side_px, side_px, slices]) / small.shape
                values = ndimage.zoom(np.asarray(small.dataobj), factors, order=1 if kind == "volume" else 0)
                if kind == "volume":
                    noise = np.random.default_rng(i).normal(0, NOISE_HU, values.shape)
                    values = np.rint(values + noise).astype(np.int16)
                image = nib.Nifti1Image(values, small.affine @ np.diag([*1 / factors, 1]))
                image.header["descrip"] = small.header["descrip"]
                nib.save(image, folder / f"{kind}-{i}.nii.gz")
    return folder


def size_mb(*paths: Path) -> float:
    """Megabytes of files, and of folders with all that is in them."""
    files = (file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]))
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6
