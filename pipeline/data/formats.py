"""One image file, one upright grey picture, whatever the format.

Readers hand pictures over as an array of shape (height, width), float32 in [0, 1], 0 black: what a
viewer would show. MONAI's own readers swap the axes, do not invert MONOCHROME1 and apply no VOI
LUT, so MONAI's transforms start from here (:class:`pipeline.data.transforms.ReadImage`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.errors import UnreadableImage

Grey = NDArray[np.float32]

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})
DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})
IMAGE_SUFFIXES = PICTURE_SUFFIXES | DICOM_SUFFIXES

_SIXTEEN_BIT = frozenset({"I;16", "I;16L", "I;16B"})
_TIFF_PHOTOMETRIC = 262
_NO_DISPLAY_RANGE = frozenset({"I", "F"})


def is_dicom(path: Path) -> bool:
    """Whether ``path`` is named as a DICOM file or begins as one (PS3.10: ``DICM`` at 128)."""
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False  # who reads it says why


def read_grey(path: Path) -> Grey:
    """Read a picture or a DICOM image.

    Returns
    -------
    Array of shape (height, width), float32 in [0, 1].

    Raises
    ------
    UnreadableImage
        The file is empty, broken, of an unknown format, or has no stated range of display. The
        message never holds a path or a header value.
    """
    if path.stat().st_size == 0:
        raise UnreadableImage("the file is empty")
    grey = _guarded(_read_dicom if is_dicom(path) else _read_picture, path)
    if min(grey.shape) < 2:
        raise UnreadableImage(f"the image is only {grey.shape[1]}x{grey.shape[0]} pixels")
    if not np.isfinite(grey).all():
        raise UnreadableImage("the image has pixels that are not numbers")
    return grey


def resize(grey: Grey, side: int) -> Grey:
    """Resize to (side, side) by area averaging; the aspect is not kept (alignment restores it)."""
    return np.asarray(cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA), np.float32)


def _guarded(reader: Callable[[Path], Grey], path: Path) -> Grey:
    # Decoders raise dozens of types on broken files; each of them is a fact about the file.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return reader(path)
    except UnreadableImage:
        raise
    except (MemoryError, KeyboardInterrupt):
        raise
    except FileNotFoundError as error:
        raise UnreadableImage("the file has vanished") from error
    except Exception as error:
        raise UnreadableImage(f"not a readable image ({type(error).__name__})") from error


def _read_picture(path: Path) -> Grey:
    with Image.open(path) as opened:
        opened.load()
        picture = ImageOps.exif_transpose(opened)
        white_is_zero = getattr(opened, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == 0
    if picture.mode in _SIXTEEN_BIT:
        grey = np.asarray(picture, np.float32) / np.float32(65535)
        # Pillow inverts such a TIFF where it has 8 bits, and not where it has 16.
        return 1 - grey if white_is_zero else grey
    if picture.mode in _NO_DISPLAY_RANGE:
        raise UnreadableImage(
            f"32-bit pixels (mode {picture.mode}) have no stated range of display; "
            "save the image with 8 or 16 bits"
        )
    if picture.mode in {"P", "PA", "LA", "RGBa", "La"} or "transparency" in picture.info:
        picture = picture.convert("RGBA")
    if picture.mode == "RGBA":
        # What is transparent is no part of the picture: shown on black, as outside the beam.
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "black"), picture)
    if picture.mode not in {"1", "L", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"}:
        raise UnreadableImage(f"pixels of an unknown kind (mode {picture.mode})")
    if picture.mode not in {"1", "L"}:
        picture = picture.convert("RGB")
    return np.asarray(picture.convert("L"), np.float32) / np.float32(255)


def _read_dicom(path: Path) -> Grey:
    # pydicom takes a third of a second to import, which folders of pictures need not pay.
    import pydicom
    from pydicom.pixels import apply_modality_lut, apply_voi_lut, convert_color_space

    header = pydicom.dcmread(path, force=False)
    if "PixelData" not in header:
        raise UnreadableImage("a DICOM object without pixel data")
    stored = header.pixel_array
    photometric = str(header.get("PhotometricInterpretation", "MONOCHROME2"))
    if int(header.get("NumberOfFrames", 1) or 1) > 1:
        raise UnreadableImage("a DICOM object of several frames")
    if int(header.get("SamplesPerPixel", 1)) == 3:
        if photometric.startswith("YBR"):
            stored = convert_color_space(stored, photometric, "RGB")
        return np.asarray(Image.fromarray(stored).convert("L"), np.float32) / np.float32(255)
    if not photometric.startswith("MONOCHROME"):
        raise UnreadableImage(f"pixels of an unknown kind ({photometric})")
    rescaled = apply_modality_lut(stored, header)
    has_window = "WindowCenter" in header or "VOILUTSequence" in header
    shown = np.asarray(apply_voi_lut(rescaled, header) if has_window else rescaled, np.float64)
    low, high = _display_range(header, shown, windowed=has_window)
    grey = np.clip((shown - low) / max(high - low, np.finfo(np.float64).tiny), 0.0, 1.0)
    if photometric == "MONOCHROME1":
        grey = 1.0 - grey
    return grey.astype(np.float32)


def _display_range(header: Any, shown: NDArray[np.float64], windowed: bool) -> tuple[float, float]:
    """The values shown black and white.

    A window or a VOI LUT maps to the range of the stored bits (PS3.3 C.11.2). Without one, unsigned
    pixels without a rescale are shown over all their bits, as a PNG of the same pixels would be;
    any others over the range that they have.
    """
    bits = int(getattr(header, "BitsStored", 8))
    if windowed and "VOILUTSequence" in header:
        described = header.VOILUTSequence[0].LUTDescriptor
        return 0.0, float(2 ** int(described[2]) - 1)
    signed = int(getattr(header, "PixelRepresentation", 0)) == 1
    rescaled = (
        float(getattr(header, "RescaleSlope", 1) or 1) != 1.0
        or float(getattr(header, "RescaleIntercept", 0) or 0) != 0.0
    )
    if not windowed and (signed or rescaled):
        return float(shown.min()), float(shown.max())
    if windowed and signed:
        return -float(2 ** (bits - 1)), float(2 ** (bits - 1) - 1)
    if windowed and rescaled:
        low, high = (
            float(getattr(header, "RescaleIntercept", 0) or 0)
            + v * float(getattr(header, "RescaleSlope", 1) or 1)
            for v in (0, 2**bits - 1)
        )
        return low, high
    return 0.0, float(2**bits - 1)
