"""Joint liver-lesion segmentation and classification in CT under staged freezing of a pretrained encoder.

One shape alphabet serves the whole package: N batch, C channel or class, D slice, H row, W column.
"""

__version__ = "0.1.0"
