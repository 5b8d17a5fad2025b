"""Lesions implanted in real CT: arrays in, arrays out."""

from lesionseg.implant.draw import Implanted, implant

__all__ = ["Implanted", "implant"]
