"""Pictures whose palettes have fewer colours than their pixels use."""

import io
import struct
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from factories.images import Bytes, read_grey
from medvq.errors import UnreadableImage
from PIL import Image

GREYS = np.arange(240, dtype=np.uint8).reshape(12, 20)


def png(colours: int) -> bytes:
    """A PNG whose index is the grey, with a palette of so many greys."""
    image = Image.fromarray(GREYS).convert("P")
    image.putpalette(np.repeat(np.arange(256), 3).astype(np.uint8).tobytes())
    stored = io.BytesIO()
    image.save(stored, "PNG", bits=8)
    before, after = stored.getvalue().split(b"PLTE")
    chunk = b"PLTE" + after[: 3 * colours]
    rest = after[int.from_bytes(before[-4:], "big") + 4 :]
    length, checksum = struct.pack(">I", 3 * colours), struct.pack(">I", crc32(chunk))
    return before[:-4] + length + chunk + checksum + rest


def bmp(colours: int) -> bytes:
    stored = io.BytesIO()
    image = Image.fromarray(GREYS).convert("P")
    image.putpalette(np.repeat(np.arange(256)[::-1], 3).astype(np.uint8).tobytes())
    image.save(stored, "BMP")
    content = bytearray(stored.getvalue())
    start = struct.unpack_from("<I", content, 10)[0]
    struct.pack_into("<I", content, 46, colours)  # and the pixels follow
    struct.pack_into("<I", content, 10, start - 4 * (256 - colours))
    return bytes(content[: 54 + 4 * colours] + content[start:])


@pytest.mark.parametrize(
    ("name", "make", "expected"), [("x.png", png, GREYS), ("x.bmp", bmp, 255 - GREYS)]
)
def test_pixels_without_a_colour_are_refused(
    tmp_path: Path, name: str, make: Callable[[int], bytes], expected: Bytes
) -> None:
    (tmp_path / name).write_bytes(make(240))
    np.testing.assert_allclose(read_grey(tmp_path / name), expected / 255, atol=1e-6)
    (tmp_path / name).write_bytes(make(239))
    with pytest.raises(UnreadableImage, match="fewer colours than the pixels use; save"):
        read_grey(tmp_path / name)
