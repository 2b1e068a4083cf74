"""PNG, JPEG, TIFF, BMP and WebP, through Pillow.

Memory is bounded: at most :data:`~medvq.images.formats.display.MAX_SAMPLES` are decoded, what has
more than ``MAX_PIXELS`` pixels is shrunk by area averaging while it is still bytes, and pixels are
converted in strips. A larger JPEG is decoded at a half, a quarter or an eighth of its size
(libjpeg's scaled decoding), but not a progressive one, of which libjpeg holds all coefficients.

The range shown is all bits; of a picture of up to 16 bits per pixel the range that its header
declares, or where the picture fills a small part of that, as with 12-bit values in 16 bits,
:func:`~medvq.images.formats.display.used_range`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError

from medvq.errors import UnreadableImage
from medvq.images.formats.codestream import coded_image
from medvq.images.formats.display import (
    MAX_SAMPLES,
    SMALL_RANGE,
    Image,
    check_size,
    stretch,
    to_channels,
    used_range,
)
from medvq.images.formats.messages import (
    DAMAGED,
    captured_messages,
    has_damaged_data,
    is_damage_of_tiff,
)
from medvq.images.formats.notes import applied, notice
from medvq.images.formats.packed_tiff import check_compression, read_packed_tiff
from medvq.images.formats.picture_data import (
    has_damaged_chunks,
    has_damaged_strips,
    is_cut_off,
    is_read_text,
    is_unread_text,
    lacks_pixels,
)
from medvq.images.formats.transfers import TRANSFERRED_AS_TEXT

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})
MAX_PIXELS = 2**26
"""A larger picture is handed over shrunk to no more than this, by one factor in both axes."""

# Pillow counts pixels, warns from here on and refuses at twice as many; check_size comes first.
Pillow.MAX_IMAGE_PIXELS = 64 * MAX_SAMPLES

# Pillow knows far more, among them formats that start other programs.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
_JPEG = frozenset({"JPEG", "MPO"})
Pixels = NDArray[np.uint8] | NDArray[np.uint16]

_SIXTEEN_BIT = frozenset({"I;16", "I;16L", "I;16B"})
_SIXTEEN_BIT_SUFFIXES = (";16B", ";16L", ";16N")
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_LARGEST = 258, 262, 281
_TIFF_DESCRIPTION, _TIFF_PALETTE = 270, 320
_TIFF_LENGTHS = 279
_TIFF_KIND, _TIFF_OTHERS = 254, 330
_IMAGEJ_STACK = re.compile(r"ImageJ=.*^images=([2-9]|[1-9]\d{1,6})$", re.DOTALL | re.MULTILINE)
_TIFF_PLANES, _TIFF_SAMPLE_FORMAT = 284, 339
# PNG: of 2 and 4 bits, the distance of two greys in 8.
_STEPS_OF_GREY = {"L;2": 85, "L;4": 17}
_NO_DISPLAY_RANGE = frozenset({"I", "F"})
_PALETTE = frozenset({"P", "PA"})
# Pixels that are converted at a time; more would only need more memory.
_STRIP_PIXELS = 2**24
# PNG: bytes of the signature, and the most chunks that are looked through for sBIT.
_PNG_SIGNATURE, _PNG_CHUNKS = 8, 64
# A colour picture of which Pillow has dropped the lower 8 bits is refused where it has fewer greys.
_FEWEST_GREYS = 64
# JPEG: bytes within which its size stands.
_JPEG_HEADER = 2**20
_OTHER_JPEG = (
    "a JPEG of a kind that is not read (of 12 bits, JPEG-LS, JPEG 2000): save it as PNG, with 16 "
    "bits if it has more than 8"
)
_SEVERAL_PAGES = "a picture file of several pages or frames; save each as a file of its own"
_NOTHING_SEEN = "nothing of the picture is to be seen on black: save it without transparency"


def read_picture(path: Path, channels: int) -> Image:
    """Read (channels, height, width) in [0, 1], turned as the EXIF orientation says.

    What is transparent is black. A TIFF whose zero is white is inverted.

    Raises
    ------
    UnreadableImage
        Several pages, too many samples, damaged data, pixels without a range of display.
    """
    try:
        return _read_picture(path, channels)
    except Exception as error:  # of dozens of types
        if is_unread_text(path.read_bytes()):
            raise UnreadableImage(TRANSFERRED_AS_TEXT) from error
        raise


def _read_picture(path: Path, channels: int) -> Image:
    with path.open("rb") as stream:
        try:
            # Not by its path: Pillow maps some files then, and shears turned TIFF files.
            opened = Pillow.open(stream, formats=_FORMATS)
        except UnidentifiedImageError:
            if (packed := read_packed_tiff(path)) is None:
                stream.seek(0)
                head = stream.read(_JPEG_HEADER)
                if coded_image(head):
                    raise UnreadableImage(_OTHER_JPEG) from None
                if is_cut_off(head):
                    raise UnreadableImage(DAMAGED) from None
                raise
            values, bits, white_is_zero = packed
            shown = _shown(_shrunk(values), 2**bits - 1, white_is_zero)
            return to_channels(shown, channels, colour=False)
        # A camera's JPEG may carry a second picture (MPO), which no viewer shows.
        if getattr(opened, "is_animated", False) and opened.format != "MPO":
            raise UnreadableImage(_SEVERAL_PAGES)
        _bound(opened, channels)
        _check_tiff(path, opened)
        reduced = _is_reduced_from_16_bits(opened)
        transparent = _transparent_grey(opened, reduced=reduced)
        declared = _declared_maximum(path, opened)
        white_is_zero = getattr(opened, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == 0
        _load(path, opened)
        _turn_upright(opened)
        if opened.mode in _SIXTEEN_BIT:
            pixels = _shrunk(_in_strips(opened, lambda strip: np.asarray(strip, np.uint16)))
            shown = _shown(pixels, declared, white_is_zero, transparent)
            return to_channels(shown, channels, colour=False)
        if reduced:
            _check_uses_its_range(opened)
        grey = opened.mode in {"1", "L"}
        colour = channels == 3 and not grey
        pixels = _shrunk(_in_strips(opened, lambda strip: _to_bytes(strip, colour=colour)))
        if not pixels.any() and opened.has_transparency_data and _is_transparent(opened):
            raise UnreadableImage(_NOTHING_SEEN)
    depth = "the upper 8 of 16 bits" if reduced else "all 8 bits"
    applied(depth if grey or colour else f"{depth}, colour to luminance")
    return to_channels(stretch(pixels, 0, 255), channels, colour=colour)


def _bound(opened: Pillow.Image, channels: int) -> None:
    """Refuse what memory does not hold, and have a large JPEG decoded at a smaller scale."""
    bands = channels if opened.mode in _PALETTE else len(opened.getbands())
    if opened.format in _JPEG and not opened.info.get("progressive"):
        samples = opened.width * opened.height * bands
        scale = next((s for s in (1, 2, 4) if samples <= MAX_SAMPLES * s**2), 8)
        opened.draft(None, (opened.width // scale, opened.height // scale))
    check_size(opened.height, opened.width, bands)


def _load(path: Path, opened: Pillow.Image) -> None:
    """Decode; refuse data that a decoder finds damaged and decodes all the same."""
    tags = dict(getattr(opened, "tag_v2", {}))
    with captured_messages() as messages:
        opened.load()
    damaged = any(map(is_damage_of_tiff, messages))
    stored = path.read_bytes()
    if is_read_text(stored, tags):
        raise UnreadableImage(TRANSFERRED_AS_TEXT)
    if not damaged and opened.format in {*_JPEG, "PNG", "TIFF"}:
        content = np.frombuffer(stored, np.uint8)
        if opened.format == "TIFF":
            damaged = has_damaged_strips(content.data, tags)
        else:
            check = has_damaged_data if opened.format in _JPEG else has_damaged_chunks
            damaged = check(content)
    if opened.format == "PNG" and (opened.info.get("interlace") or not _has_last_row(opened)):
        damaged = damaged or lacks_pixels(memoryview(stored))
    if damaged:
        raise UnreadableImage(DAMAGED)
    entries = np.array(tags.get(_TIFF_PALETTE, ()))
    if opened.mode == "P" and entries.any() and entries.max() < 256:
        # They should have 16 bits, of which Pillow takes the upper 8; libtiff reads these so, too.
        notice("a palette whose entries have 8 bits and should have 16: read as 8")
        opened.putpalette(entries.reshape(3, -1).T.astype(np.uint8).tobytes())
    _check_palette(opened)


def _has_last_row(opened: Pillow.Image) -> bool:
    """Say whether the last row holds anything but zeros, which stand for what is not there, too."""
    last = opened.crop((0, opened.height - 1, opened.width, opened.height))
    return bool(np.asarray(last).any())


def _check_palette(opened: Pillow.Image) -> None:
    """Refuse pixels that have no colour, which Pillow shows black."""
    if opened.mode != "P" or opened.palette is None:
        return
    colours = len(opened.palette.palette) // len(opened.palette.mode)
    _, largest = cast("tuple[int, int]", opened.getextrema())
    if largest >= colours:
        raise UnreadableImage(
            "a palette of fewer colours than the pixels use; save the picture anew, without one"
        )


def _check_tiff(path: Path, opened: Pillow.Image) -> None:
    """Refuse pixels that Pillow takes for others, and slices that it does not see."""
    tags = getattr(opened, "tag_v2", {})
    check_compression(tags)
    if opened.format == "TIFF" and _TIFF_PHOTOMETRIC not in tags:
        raise UnreadableImage(
            "a TIFF that does not say whether zero is black (PhotometricInterpretation); save it "
            "anew by a program that does"
        )
    if tags.get(_TIFF_KIND, 0) & 1 and _TIFF_OTHERS in tags:
        raise UnreadableImage(
            "a TIFF whose first picture is a small preview of another in it, as in DNG: save that "
            "one as a file of its own"
        )
    # ImageJ and its like may write all slices one after the other, under one directory.
    stack = _IMAGEJ_STACK.match(str(tags.get(_TIFF_DESCRIPTION, "")))
    if stack and int(stack[1]) * sum(tags.get(_TIFF_LENGTHS, (0,))) <= path.stat().st_size:
        raise UnreadableImage(_SEVERAL_PAGES)
    bits, formats = tags.get(_TIFF_BITS, (1,)), tags.get(_TIFF_SAMPLE_FORMAT, (1,))
    if max(bits) in {8, 16} and set(formats) - {1, 4}:  # unsigned, or undefined
        raise UnreadableImage(
            f"{max(bits)}-bit pixels that are signed have no stated range of display; save them "
            "unsigned"
        )
    if tags.get(_TIFF_PLANES) == 2 and len(bits) == 2:
        raise UnreadableImage(
            "grey with transparency that is stored plane by plane; save it without transparency"
        )
    if max(bits) > 8 and len(bits) > 1 and tags.get(_TIFF_PLANES) == 2:
        raise UnreadableImage(
            "16-bit colour that is stored plane by plane; save it pixel by pixel, or with 8 bits"
        )


def _transparent_grey(opened: Pillow.Image, *, reduced: bool) -> int | None:
    """Return the one grey of 16 bits that a PNG says is transparent; of 2 and 4 bits set it right.

    Pillow compares the number in the file, of so few bits, with greys that it has brought to 8.
    """
    stated = opened.info.get("transparency")
    if opened.format != "PNG" or stated is None:
        return None
    if reduced:
        raise UnreadableImage(
            "16-bit colour of which one is transparent: only 8 of the 16 bits are read; save it "
            "with 8 bits, or without transparency"
        )
    tiles = getattr(opened, "tile", [])
    step = _STEPS_OF_GREY.get(str(tiles[0].args)) if tiles else None
    opened.info["transparency"] = stated * step if step else stated
    return int(stated) if opened.mode in _SIXTEEN_BIT else None


def _turn_upright(opened: Pillow.Image) -> None:
    size = opened.size
    orientation = opened.getexif().get(0x0112, 1)
    ImageOps.exif_transpose(opened, in_place=True)
    if orientation in range(2, 9) or opened.size != size:
        applied("turned as the EXIF orientation says")


def _in_strips(picture: Pillow.Image, convert: Callable[[Pillow.Image], Pixels]) -> Pixels:
    """Convert a picture strip by strip, since each conversion makes copies."""
    width, height = picture.size
    rows = max(1, _STRIP_PIXELS // width)
    if height <= rows:
        return convert(picture)
    first = convert(picture.crop((0, 0, width, rows)))
    pixels = np.empty((height, *first.shape[1:]), first.dtype)
    pixels[:rows] = first
    for top in range(rows, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = convert(picture.crop((0, top, width, bottom)))
    return cast("Pixels", pixels)


def _to_bytes(picture: Pillow.Image, *, colour: bool) -> NDArray[np.uint8]:
    picture = _opaque(picture)
    if picture.mode not in {"1", "L"}:
        picture = picture.convert("RGB")
    return np.asarray(picture.convert("RGB" if colour else "L"))


def _opaque(picture: Pillow.Image) -> Pillow.Image:
    if picture.mode in _NO_DISPLAY_RANGE:
        raise UnreadableImage(
            f"32-bit pixels (mode {picture.mode}) have no stated range of display; "
            "save the image with 8 or 16 bits"
        )
    if picture.mode == "La":  # grey that is multiplied by its opacity
        picture = picture.convert("LA")
    if picture.mode in {"P", "PA", "LA", "RGBa"} or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        applied("palette or transparency: on black")
    if picture.mode == "RGBA":
        # What is transparent is no part of the picture: shown on black, as outside the beam.
        picture = Pillow.alpha_composite(Pillow.new("RGBA", picture.size, "black"), picture)
    if picture.mode not in {"1", "L", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"}:
        raise UnreadableImage(f"pixels of an unknown kind (mode {picture.mode})")
    return picture


def _is_transparent(opened: Pillow.Image) -> bool:
    """Say whether any pixel is transparent."""
    return bool((np.asarray(opened.convert("RGBA").getchannel("A")) < 255).any())


def _shrunk(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    if height * width <= MAX_PIXELS:
        return pixels
    factor = math.sqrt(MAX_PIXELS / (height * width))
    size = (max(1, int(width * factor)), max(1, int(height * factor)))
    applied("shrunk to what memory holds")
    return cast("Pixels", cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))


def _shown(
    pixels: Pixels, declared: int, white_is_zero: bool, transparent: int | None = None
) -> Image:
    """Show (height, width) of 16 bits over the range that they use; a transparent grey is black."""
    if transparent is not None:
        inside = pixels != transparent
        if not inside.any():
            raise UnreadableImage(_NOTHING_SEEN)
        applied("palette or transparency: on black")
        low, high = _range(pixels[inside], declared)
        return np.where(inside, stretch(pixels, low, high), np.float32(0))
    low, high = _range(pixels, declared)
    # Pillow inverts a TIFF whose zero is white where it has 8 bits, and not where it has 16.
    if white_is_zero:
        applied("inverted: zero is white")
        return stretch(-pixels.astype(np.float32), -high, -low)
    return stretch(pixels, low, high)


def _range(pixels: Pixels, declared: int) -> tuple[float, float]:
    full = declared if pixels.max() <= declared else 65535
    if used := used_range(pixels, full.bit_length()):
        notice(SMALL_RANGE)
        applied(f"range {used[0]:g} to {used[1]:g}: the part that is used")
        return used
    if full < 65535:
        notice("a picture of less than 16 bits: shown over the range that its header declares")
    applied(f"range 0 to {full}: {'as declared' if full < 65535 else 'all 16 bits'}")
    return 0.0, float(full)


def _declared_maximum(path: Path, opened: Pillow.Image) -> int:
    """Return the largest value that the header of a picture of 16 bits declares, else 65535.

    TIFF: BitsPerSample, MaxSampleValue. PNG: sBIT, the bits that its source had.
    """
    if opened.mode not in _SIXTEEN_BIT:
        return 65535
    tags = getattr(opened, "tag_v2", None)
    if tags is None:
        return 2 ** _png_significant_bits(path) - 1 if opened.format == "PNG" else 65535
    (bits, *_), largest = tags.get(_TIFF_BITS, (16,)), tags.get(_TIFF_LARGEST, 0)
    largest = int(largest[0] if isinstance(largest, tuple) and largest else largest or 0)
    full = 2 ** min(int(bits), 16) - 1
    return int(min(full, largest) if largest > 0 else full)


def _png_significant_bits(path: Path) -> int:
    with path.open("rb") as stream:
        stream.seek(_PNG_SIGNATURE)
        for _ in range(_PNG_CHUNKS):
            head = stream.read(8)
            length, kind = int.from_bytes(head[:4]), head[4:]
            if kind == b"sBIT" and length:
                return min(max(stream.read(1)[0], 1), 16)
            if kind in {b"IDAT", b""}:
                break
            stream.seek(length + 4, 1)
    return 16


def _is_reduced_from_16_bits(opened: Pillow.Image) -> bool:
    """Say whether Pillow will keep the upper 8 of 16 bits, as it does of more than one channel."""
    tiles = getattr(opened, "tile", [])
    modes = (args[0] if isinstance(args, tuple) else args for *_, args in tiles)
    return opened.mode not in _SIXTEEN_BIT and any(
        str(mode).endswith(_SIXTEEN_BIT_SUFFIXES) for mode in modes
    )


def _check_uses_its_range(opened: Pillow.Image) -> None:
    bands: Iterable[tuple[str, Any]] = zip(opened.getbands(), opened.getextrema(), strict=True)
    if max(high for band, (_, high) in bands if band != "A") < _FEWEST_GREYS:
        raise UnreadableImage(
            "16-bit colour of which only a small part of the range is used; "
            "save the image as grey, or with 8 bits over the range that it uses"
        )
