"""PNG, JPEG, TIFF, BMP and WebP, through Pillow.

Memory is bounded: at most :data:`~medvq.images.formats.display.MAX_SAMPLES` are decoded, and what
has more than ``MAX_PIXELS`` pixels is shrunk by area averaging while it is still bytes. A larger
JPEG is decoded at a half, a quarter or an eighth of its size (libjpeg's scaled decoding).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps

from medvq.errors import UnreadableImage
from medvq.images.formats.display import MAX_SAMPLES, Image, check_size, stretch, to_channels

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})
MAX_PIXELS = 2**26
"""A larger picture is handed over shrunk to no more than this, by one factor in both axes."""

# Pillow counts pixels, warns from here on and refuses at twice as many; check_size comes first.
Pillow.MAX_IMAGE_PIXELS = 64 * MAX_SAMPLES

# Pillow knows far more, among them formats that start other programs.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
Pixels = NDArray[np.uint8] | NDArray[np.uint16]

_SIXTEEN_BIT = frozenset({"I;16", "I;16L", "I;16B"})
_TIFF_PHOTOMETRIC = 262
_NO_DISPLAY_RANGE = frozenset({"I", "F"})


def read_picture(path: Path, channels: int) -> Image:
    """Read (channels, height, width) in [0, 1], turned as the EXIF orientation says.

    What is transparent is black. A TIFF whose zero is white is inverted.
    """
    with Pillow.open(path, formats=_FORMATS) as opened:
        # A camera's JPEG may carry a second picture (MPO), which no viewer shows.
        if getattr(opened, "n_frames", 1) > 1 and opened.format != "MPO":
            raise UnreadableImage("a picture file of several pages or frames")
        _bound(opened)
        opened.load()
        picture = ImageOps.exif_transpose(opened)
        white_is_zero = getattr(opened, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == 0
    if picture.mode in _SIXTEEN_BIT:
        pixels = _shrunk(np.asarray(picture, np.uint16))
        # Pillow inverts such a TIFF where it has 8 bits, and not where it has 16.
        pixels = 65535 - pixels if white_is_zero else pixels
        return to_channels(stretch(pixels, 0, 65535), channels, colour=False)
    picture = _opaque(picture)
    colour = channels == 3 and picture.mode not in {"1", "L"}
    if picture.mode not in {"1", "L"}:
        picture = picture.convert("RGB")
    pixels = _shrunk(np.asarray(picture.convert("RGB" if colour else "L")))
    return to_channels(stretch(pixels, 0, 255), channels, colour=colour)


def _bound(opened: Pillow.Image) -> None:
    bands = len(opened.getbands())
    if opened.format in {"JPEG", "MPO"}:
        samples = opened.width * opened.height * bands
        scale = next((s for s in (1, 2, 4) if samples <= MAX_SAMPLES * s**2), 8)
        opened.draft(None, (opened.width // scale, opened.height // scale))
    check_size(opened.height, opened.width, bands)


def _opaque(picture: Pillow.Image) -> Pillow.Image:
    if picture.mode in _NO_DISPLAY_RANGE:
        raise UnreadableImage(
            f"32-bit pixels (mode {picture.mode}) have no stated range of display; "
            "save the image with 8 or 16 bits"
        )
    if picture.mode in {"P", "PA", "LA", "RGBa", "La"} or "transparency" in picture.info:
        picture = picture.convert("RGBA")
    if picture.mode == "RGBA":
        # What is transparent is no part of the picture: shown on black, as outside the beam.
        picture = Pillow.alpha_composite(Pillow.new("RGBA", picture.size, "black"), picture)
    if picture.mode not in {"1", "L", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"}:
        raise UnreadableImage(f"pixels of an unknown kind (mode {picture.mode})")
    return picture


def _shrunk(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    if height * width <= MAX_PIXELS:
        return pixels
    factor = math.sqrt(MAX_PIXELS / (height * width))
    size = (max(1, int(width * factor)), max(1, int(height * factor)))
    return cast("Pixels", cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
