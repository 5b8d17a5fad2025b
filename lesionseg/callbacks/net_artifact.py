"""`NetArtifact`: the trained net as a W&B artifact, and which net it came from."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import wandb
from pytorch_lightning.utilities import rank_zero_info
from safetensors.torch import save_file

from lesionseg.callbacks.loggers import wandb_run
from lesionseg.errors import first_sentence
from lesionseg.ranks import TIMEOUT
from lesionseg.run_weights import tensors_sha256

#: The longest that a run waits for W&B to take the net, in seconds: the other ranks wait for the first meanwhile.
TIMEOUT_S = int(TIMEOUT.total_seconds() / 2)


class NetArtifact(pl.Callback):
    """Logs the net after training, named by its content, and the net that training started from as its input.

    Online, both are artifacts, so that W&B draws the line from a LiTS run to its fine-tuning runs. Offline, W&B cannot
    use an artifact, and would note the full path of its file: there the hashes stand for it. The `net_sha256` in the
    summary of a LiTS run is the `weights_sha256` in the config of those that started from it.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Name the net that training starts from."""
        with wandb_run(trainer) as run:
            if run is None or run.offline or not run.config.get("weights_sha256"):
                return
            name = f"{artifact_name(run.config['weights_sha256'])}:latest"
            try:
                run.use_artifact(name)
            except Exception as error:
                # whatever W&B raises: the LiTS run may have been logged offline, or elsewhere; training goes on without
                rank_zero_info(f"no line to {name} in W&B: {first_sentence(error)}")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the net as training leaves it; a run that goes on after its last epoch comes to no `on_train_end`."""
        with wandb_run(trainer) as run:
            if run is None:
                return
            tensors = pl_module.get_submodule("net").state_dict()
            sha256 = tensors_sha256({name: tensor.cpu() for name, tensor in tensors.items()})
            run.summary["net_sha256"] = sha256
            if run.offline:
                return
            with tempfile.TemporaryDirectory() as folder:  # its path is neutral, and W&B keeps it
                artifact = net_artifact(Path(folder), tensors, pl_module.description, sha256)  # type: ignore[arg-type]
                try:
                    run.log_artifact(artifact).wait(timeout=TIMEOUT_S)
                except Exception as error:
                    # whatever W&B raises where its process, or the way to its server, is gone, or takes too long: the
                    # run is whole without
                    rank_zero_info(f"the net is not in W&B: {first_sentence(error)}")


def artifact_name(sha256: str) -> str:
    """Of the net with this hash."""
    return f"net-{sha256[:12]}"


def net_artifact(folder: Path, tensors: dict[str, Any], description: dict[str, Any], sha256: str) -> Any:
    """An artifact with the net as safetensors: no optimizer, and none of the paths that a checkpoint holds.

    Args:
        folder: for the file, until the artifact is logged.
        tensors: of the net.
        description: how it is built and fed, see `SegmentationTask.description`.
        sha256: of the tensors.
    """
    path = folder / "net.safetensors"
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path)
    artifact = wandb.Artifact(artifact_name(sha256), type="model", metadata={**description, "net_sha256": sha256})
    artifact.add_file(str(path), policy="immutable")
    return artifact
