"""LightningModules of the nets of the cascade, and of the nets that its lesion net is compared with."""

from lesionseg.tasks.crop_classifier import CropClassifierTask
from lesionseg.tasks.lesion import LesionTask
from lesionseg.tasks.liver import LiverTask
from lesionseg.tasks.y_net import YNetTask

__all__ = ["CropClassifierTask", "LesionTask", "LiverTask", "YNetTask"]
