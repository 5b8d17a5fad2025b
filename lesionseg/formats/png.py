"""PNG files → label maps and, with a window, Hounsfield units; label maps → PNG. All as slices (1, H, W)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from lesionseg.errors import InputError
from lesionseg.writing import whole


def read_png_labels(path: Path) -> np.ndarray:
    """Read a label map.

    Grey values, and indices of a palette of colours, are the labels as they stand; a palette of greys stands for its
    greys; a 1-bit file gives 0 and 1; colour counts only where its three channels are equal.

    Returns:
        uint8 or uint16, (1, H, W).

    Raises:
        InputError: unreadable, coloured, see-through, or turned by its EXIF data.
    """
    return _read(path, palette_is_label=True)[0]


def read_png_image(path: Path, window_low_hu: float, window_high_hu: float) -> np.ndarray:
    """Read a CT slice that was saved through a window: black is `window_low_hu`, white `window_high_hu`.

    Returns:
        Hounsfield units rounded to int16, (1, H, W); clipped to the window, as the file is.

    Raises:
        InputError: unreadable, coloured, see-through, turned by its EXIF data, or a window that is empty or beyond
            int16.
    """
    if not -32768 <= window_low_hu < window_high_hu <= 32767:
        raise InputError(
            path,
            expected="window_low_hu below window_high_hu, both within int16",
            got=f"{window_low_hu:g} and {window_high_hu:g}",
            remedy="give the window with which the image was saved",
            code="window",
        )
    grey, white = _read(path, palette_is_label=False)
    return np.rint(window_low_hu + grey * ((window_high_hu - window_low_hu) / white)).astype(np.int16)


def write_png(path: Path, labels: np.ndarray) -> None:
    """Write a label map, uint8 (H, W) or (1, H, W), as an 8-bit grey PNG; whole or not at all."""
    image = Image.fromarray(np.ascontiguousarray(labels.reshape(labels.shape[-2:]), dtype=np.uint8))
    with whole(path) as part:
        image.save(part, format="PNG")


def _read(path: Path, *, palette_is_label: bool) -> tuple[np.ndarray, int]:
    """Grey values (1, H, W) and the value of white."""
    try:
        with Image.open(path, formats=["PNG"]) as file:
            file.verify()  # checksums and end of the file, which reading the pixels leaves unchecked
        with Image.open(path, formats=["PNG"]) as file:
            is_palette = file.mode == "P"
            seen_through = "transparency" in file.info and not (palette_is_label and is_palette)
            image: Image.Image = file
            if is_palette:  # of greys alone: the file of a grey image, made smaller; its indices mean nothing
                colours = file.convert("RGB")
                image = file if palette_is_label and np.ptp(np.asarray(colours), axis=2).any() else colours
            mode, pixels = image.mode, np.asarray(image)
            turned = file.getexif().get(ExifTags.Base.Orientation, 1) != 1
        depth = path.read_bytes()[24]  # bits of a sample, in the header chunk that comes first
    except Exception as error:  # Pillow answers malformed bytes with OSError, SyntaxError, ValueError, zlib.error, …
        raise InputError(
            path,
            expected="a readable PNG file",
            got="another format" if isinstance(error, UnidentifiedImageError) else type(error).__name__,
            remedy="copy or export the file again",
            code="unreadable",
        ) from error
    if turned:  # some viewers show it turned, some as it is stored, and a mask is drawn on what is seen
        raise InputError(
            path,
            expected="pixels stored as they are shown",
            got="an EXIF orientation that turns them",
            remedy="save the image without it",
            code="png-turned",
        )
    white = 65535 if depth == 16 else 255
    got = ""
    if pixels.ndim == 3:  # (H, W, C): grey + alpha, colour, colour + alpha
        if depth == 16:
            got = "16-bit colour"
        elif mode in ("LA", "RGBA") and np.any(pixels[..., -1] != 255):
            got = "see-through pixels"
        elif mode in ("RGB", "RGBA") and np.any(pixels[..., :3] != pixels[..., :1]):
            got = "colour"
        pixels = pixels[..., 0]
    elif mode == "1":
        pixels, white = pixels.astype(np.uint8), 1
    if got or seen_through:
        raise InputError(
            path,
            expected="a grey image without transparency",
            got=got or "see-through pixels",
            remedy="save it as 8- or 16-bit grey (label maps: the label is the grey value)",
            code="png-colour",
        )
    return pixels.astype(np.uint16 if white == 65535 else np.uint8)[None], white
