"""What made a result: commit, version and kind of machine."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

from lesionseg import __version__


def provenance() -> dict[str, str | None]:
    """Commit, version and kind of machine; nothing that names the machine or its user."""
    return {"commit": _commit(), "version": __version__, "machine": _machine()}


def _commit() -> str | None:
    """None outside a checkout of this package: it may lie, installed, in one of something else."""
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        changed = _git("status", "--porcelain", "--untracked-files=no") + _git("status", "--porcelain", "--", ".")
        return _git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*words: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _machine() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"CPU only, {os.cpu_count()} cores ({platform.machine()})"
