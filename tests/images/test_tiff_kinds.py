"""TIFF files that other programs write and Pillow takes for something else."""

from pathlib import Path

import numpy as np
import pytest
from factories.images import noise, read_grey, wide
from factories.tiffs import tiff
from medvq.errors import UnreadableImage
from PIL import Image

PICTURE = noise(12, 14)
STACK = b"ImageJ=1.53t\nimages=3\nslices=3\nloop=false\n\0"


@pytest.mark.parametrize("order", ["<", ">"])
def test_slices_under_one_directory_are_not_dropped(tmp_path: Path, order: str) -> None:
    path = tmp_path / "x.tif"
    pixels = wide(PICTURE)
    others = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes() * 2
    path.write_bytes(tiff(pixels, order, {270: STACK}, after=others))
    with pytest.raises(UnreadableImage, match=r"several pages or frames; save each"):
        read_grey(path)


@pytest.mark.parametrize("text", [STACK, STACK.replace(b"=3", b"=1"), b"images=3\n\0"])
def test_one_slice_with_the_description_of_a_stack_is_read(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(wide(PICTURE), more={270: text}))
    np.testing.assert_allclose(read_grey(path), PICTURE / 255, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_that_does_not_say_which_end_is_black_is_refused(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(PICTURE if bits == 8 else wide(PICTURE), more={262: None}))
    with pytest.raises(UnreadableImage, match="whether zero is black"):
        read_grey(path)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", [None, 2])
def test_grey_with_a_second_channel_is_read_or_refused_with_advice_that_fits(
    tmp_path: Path, bits: int, kind: int | None
) -> None:
    path = tmp_path / "x.tif"
    pair = np.stack([PICTURE, np.full_like(PICTURE, 255)], axis=-1)
    path.write_bytes(tiff(pair if bits == 8 else wide(pair), more={338: kind}))
    if bits == 8 and kind == 2:
        np.testing.assert_allclose(read_grey(path), PICTURE / 255, atol=1e-6)
        return
    with pytest.raises(UnreadableImage, match=rf"2 channels, .* {bits} bits .* without transp"):
        read_grey(path)
    path.write_bytes(tiff(pair, more={338: kind, 284: 2}))
    with pytest.raises(UnreadableImage, match="without transparency"):
        read_grey(path)


@pytest.mark.parametrize("tags", [{278: 6}, {278: 1}, {273: 0}, {322: 7, 323: 12, 324: 8, 325: 84}])
def test_a_tiff_that_lacks_strips_or_tiles_is_damaged(
    tmp_path: Path, tags: dict[int, int | bytes | None]
) -> None:
    path = tmp_path / "x.tif"
    is_tiled = 324 in tags
    path.write_bytes(
        tiff(PICTURE, more=tags | (dict.fromkeys((273, 278, 279)) if is_tiled else {}))
    )
    with pytest.raises(UnreadableImage, match="damaged or cut off"):
        read_grey(path)


def test_strips_and_tiles_that_are_all_there_are_read(tmp_path: Path) -> None:
    large = noise(70, 90)
    for rows in (7, 33, 70):
        Image.fromarray(large).save(
            tmp_path / "x.tif", tiffinfo={278: rows}, compression="tiff_lzw"
        )
        np.testing.assert_allclose(read_grey(tmp_path / "x.tif"), large / 255, atol=1e-6)


@pytest.mark.parametrize("number", [33003, 34712, 34887, 50001, 50002])
def test_a_tiff_that_is_compressed_in_another_way_is_refused_as_that(
    tmp_path: Path, number: int
) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(PICTURE, more={259: number}))
    with pytest.raises(UnreadableImage, match=rf"number {number}.*save it without compression"):
        read_grey(path)


def test_a_palette_of_16_bits_is_not_taken_for_greys(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(PICTURE.astype(np.uint16), more={262: 3, 320: bytes(6)}))
    with pytest.raises(UnreadableImage, match="unusual pixels; save it with 8 or 16 bits"):
        read_grey(path)
