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
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")


def _machine() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"CPU only, {os.cpu_count()} cores ({platform.machine()})"
