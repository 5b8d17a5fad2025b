"""LightningModules of the two nets of the cascade."""

from lesionseg.tasks.lesion import LesionTask
from lesionseg.tasks.liver import LiverTask

__all__ = ["LesionTask", "LiverTask"]
