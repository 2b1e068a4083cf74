"""Grey TIFF of 10, 12 or 14 bits per pixel, as cameras of microscopes and X-ray detectors write it.

Pillow reads one of its variants; OpenCV reads all, and shifts the values to the upper bits of 16.
So are those of 16 bits that Pillow does not know: big-endian, and with a white zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from medvq.errors import UnreadableImage
from medvq.images.formats.display import check_size
from medvq.images.formats.messages import DAMAGED, captured_messages, is_damage_of_tiff

_MAGIC = (b"II*\0", b"MM\0*")
_BIG_TIFF = (b"II+\0", b"MM\0+")
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES = 256, 257, 258, 262, 274, 277
_COMPRESSION, _FORMAT = 259, 339
# None, CCITT, LZW, JPEG, deflate, PackBits, LZMA, Zstandard.
_READ_COMPRESSIONS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 32771, 32773, 32809, 32946, 34925, 50000})
_UNUSUAL = "a TIFF of unusual pixels; save it with 8 or 16 bits per channel, as grey or RGB"


def check_compression(tags: Mapping[int, Any]) -> None:
    """Refuse a TIFF that is compressed in a way that no decoder here reads, such as a slide's."""
    if (compression := tags.get(_COMPRESSION, 1)) not in _READ_COMPRESSIONS:
        raise UnreadableImage(
            f"a TIFF that is compressed in a way that is not read (number {compression}: JPEG "
            "2000, WebP or the like); save it without compression"
        )


def read_packed_tiff(path: Path) -> tuple[NDArray[np.uint16], int, bool] | None:
    """Return the values (height, width), their number of bits, and whether zero is white.

    None of any other file.

    Raises
    ------
    UnreadableImage
        Another number of bits or channels, several pages, too many pixels, damaged data.
    """
    with path.open("rb") as stream:
        head = stream.read(8)
        if head[:4] in _BIG_TIFF:
            raise UnreadableImage("a BigTIFF of unusual pixels, or big-endian; save it as TIFF")
        if head[:4] not in _MAGIC:
            return None
        tags = ImageFileDirectory_v2(head)
        stream.seek(tags.next)
        tags.load(stream)
    check_compression(tags)
    if _HEIGHT not in tags or _WIDTH not in tags:
        raise UnreadableImage(DAMAGED)
    bits, samples = tags.get(_BITS, (1,)), int(tags.get(_SAMPLES, 1))
    if samples not in {1, 3}:
        raise UnreadableImage(
            f"a TIFF of {samples} channels, such as grey and transparency, of {max(bits)} bits is "
            "not read: save it as grey or RGB, without transparency"
        )
    is_grey = samples == 1 and tags.get(_PHOTOMETRIC) in {None, 0, 1}  # and no palette
    is_whole = tags.get(_FORMAT, (1,)) == (1,)
    if bits not in {(10,), (12,), (14,), (16,)} or not (is_grey and is_whole):
        raise UnreadableImage(_UNUSUAL)
    if tags.next or tags.get(_ORIENTATION, 1) != 1:
        raise UnreadableImage("a packed TIFF of several pages, or one that is turned")
    height, width = int(tags[_HEIGHT]), int(tags[_WIDTH])
    check_size(height, width)
    with captured_messages() as messages:
        values = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None or any(map(is_damage_of_tiff, messages)):
        raise UnreadableImage(DAMAGED)
    if values.dtype != np.uint16 or values.shape != (height, width):
        raise UnreadableImage(_UNUSUAL)
    return np.asarray(values >> (16 - bits[0]), np.uint16), bits[0], tags.get(_PHOTOMETRIC) == 0
