"""Plans of nnU-Net v2 for a folder like LiTS, and its cases as nnU-Net's own preprocessing writes them."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

NAME = "Dataset001_Benchmark"
#: Ways to resample that nnU-Net ships beside its default, as its planners of these names set them.
_TORCH = {"force_separate_z": False, "memefficient_seg_resampling": False}
RESAMPLING = {
    "torch resampling": ("resample_torch_fornnunet", _TORCH),
    "no resampling": ("no_resampling_hack", None),
}


def plan(folder: Path, lits: Path) -> list[str]:
    """Tell nnU-Net of the cases and let it plan; their names, by number. `ImportError`: it is not installed."""
    raw = folder / "raw" / NAME
    names = [path.name.removesuffix(".nii.gz") for path in lits.glob("volume-*.nii.gz")]
    cases = sorted((name.removeprefix("volume-") for name in names), key=int)
    for part, kind, ending in (("imagesTr", "volume", "_0000"), ("labelsTr", "segmentation", "")):
        (raw / part).mkdir(parents=True)
        for case in cases:
            (raw / part / f"case{case}{ending}.nii.gz").symlink_to((lits / f"{kind}-{case}.nii.gz").resolve())
    labels = {"background": 0, "liver": 1, "lesion": 2}
    content = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": len(cases), "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(content))
    _point_to(folder)
    with contextlib.redirect_stdout(None):
        from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments

        extract_fingerprints([1], num_processes=2, verbose=False, show_progress_bar=False)
        plan_experiments([1])
    return [f"case{case}" for case in cases]


def preprocess(folder: Path, cases: list[str], resampling: str | None = None) -> Path:
    """Read cases and write them as nnU-Net does, in this process; the folder they are in then.

    Args:
        folder: of `plan`.
        cases: from `plan`.
        resampling: key of `RESAMPLING`; None: as planned, by splines of the third order.
    """
    _point_to(folder)
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    raw, made = folder / "raw" / NAME, folder / "preprocessed" / NAME
    plans = PlansManager(str(made / "nnUNetPlans.json"))
    configuration = plans.get_configuration("2d")
    if resampling is not None:
        function, options = RESAMPLING[resampling]
        for part in ("data", "seg"):
            given = {} if options is None else {**options, "is_seg": part == "seg"}
            configuration.configuration |= {f"resampling_fn_{part}": function, f"resampling_fn_{part}_kwargs": given}
    output = made / configuration.data_identifier
    output.mkdir(exist_ok=True)
    preprocessor = configuration.preprocessor_class(verbose=False)
    for case in cases:
        for ending in (".b2nd", "_seg.b2nd", ".pkl"):  # blosc2 does not write over a file
            (output / f"{case}{ending}").unlink(missing_ok=True)
        image, mask = raw / "imagesTr" / f"{case}_0000.nii.gz", raw / "labelsTr" / f"{case}.nii.gz"
        preprocessor.run_case_save(
            str(output / case), [str(image)], str(mask), plans, configuration, str(raw / "dataset.json")
        )
    return output


def _point_to(folder: Path) -> None:
    """nnU-Net finds its folders by the environment, and looks when it is imported."""
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(folder / name)
    os.environ.setdefault("nnUNet_compile", "f")
