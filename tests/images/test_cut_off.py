"""Pictures that end before their last row, or before their first."""

import struct
from pathlib import Path
from zlib import compress, crc32

import numpy as np
import pytest
from factories.images import Bytes, noise, read_grey
from factories.tiffs import tiff
from medvq.errors import UnreadableImage
from medvq.images.formats.picture_data import lacks_pixels
from PIL import Image

PICTURE = noise(60, 81)
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(name: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def png(stored: Bytes, rows: int, *, interlaced: bool = False) -> bytes:
    """A PNG of ``rows`` rows whose data hold those of ``stored``, each checksum of which fits."""
    head = struct.pack(">IIBBBBB", stored.shape[1], rows, 8, 0, 0, 0, interlaced)
    passes = [stored]
    if interlaced:  # PNG 8.2: where each pass begins, and its steps
        places = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2)]
        places += [(0, 1, 2, 2), (1, 0, 2, 1)]
        passes = [stored[y::down, x::across] for y, x, down, across in places]
    rows_of = [row.tobytes() for one in passes for row in one if row.size]
    data = compress(b"".join(b"\0" + row for row in rows_of))
    chunks = [(b"IHDR", head), (b"IDAT", data[:100]), (b"IDAT", data[100:]), (b"IEND", b"")]
    return SIGNATURE + b"".join(chunk(*one) for one in chunks)


@pytest.mark.parametrize("interlaced", [False, True])
def test_a_png_without_its_last_rows_is_refused(tmp_path: Path, interlaced: bool) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(PICTURE, 60, interlaced=interlaced))
    np.testing.assert_allclose(read_grey(path), PICTURE / 255, atol=1e-6)
    path.write_bytes(png(PICTURE[:-2], 60, interlaced=interlaced))
    with pytest.raises(UnreadableImage, match="damaged or cut off"):
        read_grey(path)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8), (5, 3), (60, 81)])
def test_a_png_that_is_whole_lacks_nothing(size: tuple[int, int], interlaced: bool) -> None:
    height = size[0]
    black = np.zeros(size, np.uint8)
    assert not lacks_pixels(memoryview(png(black, height, interlaced=interlaced)))
    assert lacks_pixels(memoryview(png(black, height + 1, interlaced=interlaced)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_png_whose_last_row_is_black_is_read(tmp_path: Path, mode: str) -> None:
    picture = PICTURE.copy()
    picture[-1] = 0
    kind = np.uint16 if mode == "I;16" else np.uint8
    image = Image.fromarray(picture.astype(kind))
    (image if mode == "I;16" else image.convert(mode)).save(tmp_path / "x.png")
    assert not read_grey(tmp_path / "x.png")[-1].any()


@pytest.mark.parametrize("size", [4, 6, 8, 33, 60])
def test_a_picture_of_which_only_the_beginning_is_there_is_cut_off(
    tmp_path: Path, size: int
) -> None:
    for name in ("x.png", "x.jpg", "x.webp"):
        Image.fromarray(PICTURE).save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:size])
        with pytest.raises(UnreadableImage, match="damaged or cut off"):
            read_grey(tmp_path / name)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_without_its_last_rows_is_refused(tmp_path: Path, order: str) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(PICTURE[:-1], order, {257: 60}))
    with pytest.raises(UnreadableImage, match="damaged or cut off"):
        read_grey(path)
    # The number of bytes is wrong, and they are there.
    path.write_bytes(tiff(PICTURE, order, {279: 80}))
    np.testing.assert_allclose(read_grey(path), PICTURE / 255, atol=1e-6)


def test_the_preview_of_another_picture_in_a_tiff_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(PICTURE, more={254: 1, 330: 8}))
    with pytest.raises(UnreadableImage, match="preview of another in it"):
        read_grey(path)
    for tags in ({254: 1}, {330: 8}):
        path.write_bytes(tiff(PICTURE, more=tags))
        np.testing.assert_allclose(read_grey(path), PICTURE / 255, atol=1e-6)
