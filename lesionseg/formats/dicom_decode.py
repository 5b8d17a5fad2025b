"""Compressed DICOM pixels → uncompressed. A malformed stream raises; it never takes the process with it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from lesionseg.formats.dicom_checks import Slice

#: Decoders that raise on a malformed stream. pydicom's first choice, gdcm, ends the process on some.
DECODERS = {
    RLELossless: "pydicom",
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
    JPEG2000Lossless: "pylibjpeg",
    JPEG2000: "pylibjpeg",
    HTJ2KLossless: "pylibjpeg",
    HTJ2KLosslessRPCL: "pylibjpeg",
    HTJ2K: "pylibjpeg",
    JPEGBaseline8Bit: "pillow",
    JPEGExtended12Bit: "pillow",
}
#: Only gdcm decodes these.
APART = (JPEGLossless, JPEGLosslessSV1)
#: What the process apart runs: names of files in, their pixels one after the other out.
_APART = """
import json, sys, warnings, pydicom
warnings.simplefilter("ignore")
for path in json.load(sys.stdin):
    dataset = pydicom.dcmread(path, force=True)
    dataset.decompress(generate_instance_uid=False)
    sys.stdout.buffer.write(dataset.PixelData[: int(sys.argv[1])])
"""
#: More than any series takes, so that a decoder that hangs becomes an error.
_TIMEOUT_S = 600


def decompress(slices: Sequence[Slice]) -> None:
    """Decompress the pixels of the data sets in place; uncompressed ones stay as they are.

    JPEG lossless, which only gdcm decodes, is decoded in a process apart.

    Raises:
        Exception: of any kind, from the decoders; RuntimeError where the process apart fails.
    """
    apart = []
    for item in slices:
        syntax = item.dataset.file_meta.TransferSyntaxUID
        if syntax in DECODERS:
            item.dataset.decompress(decoding_plugin=DECODERS[syntax], generate_instance_uid=False)
        elif syntax in APART:
            apart.append(item)
        elif syntax.is_encapsulated:
            raise NotImplementedError(f"no decoder for {syntax.name}")
    if apart:
        _decompress_apart(apart)


def _decompress_apart(slices: Sequence[Slice]) -> None:
    """All slices have one size (checked before), so the process apart gives equal parts.

    `-P`: without it Python would import modules from the folder that the user stands in, which may be a stranger's.
    """
    first = slices[0].dataset
    pixels = int(first.Rows) * int(first.Columns) * int(first.get("NumberOfFrames") or 1)
    size = pixels * int(first.SamplesPerPixel) * (int(first.BitsAllocated) // 8)
    result = subprocess.run(
        [sys.executable, "-P", "-c", _APART, str(size)],
        input=json.dumps([str(item.path.resolve()) for item in slices]).encode(),
        capture_output=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if result.returncode or len(result.stdout) != size * len(slices):
        raise RuntimeError("a malformed JPEG lossless stream")
    for n, item in enumerate(slices):
        item.dataset.PixelData = result.stdout[n * size : (n + 1) * size]
        item.dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        item.dataset["PixelData"].is_undefined_length = False
