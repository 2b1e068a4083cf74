"""JPEG files of which a stretch was overwritten by one byte, as a hole in a file leaves it."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories.deviations import compressed
from factories.images import Bytes, dicom, noise, read_grey, rgb, save_dicom
from medvq.errors import UnreadableImage
from medvq.images.formats import read_image
from medvq.images.formats.overwritten import is_overwritten
from PIL import Image

OPTIONS = [{"quality": 95}, {"quality": 95, "optimize": True}, {"quality": 60}]


def photograph(seed: int = 0) -> Bytes:
    rows, columns = np.mgrid[:160, :208]
    picture = 128 + 90 * np.sin(columns / 17) * np.cos(rows / 23)
    return np.asarray((picture + noise(160, 208, seed=seed) / 16).clip(0, 255), np.uint8)


def jpeg(picture: Bytes, **options: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "JPEG", **options)
    return content.getvalue()


def overwritten(content: bytes, byte: int, part: float) -> bytes:
    at = int(len(content) * part)
    return content[:at] + bytes([byte]) * 300 + content[at + 300 :]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("colour", [False, True])
def test_a_jpeg_with_a_stretch_of_one_byte_is_refused(
    tmp_path: Path, options: dict[str, Any], colour: bool
) -> None:
    picture = photograph()
    whole = jpeg(rgb(picture) if colour else picture, **options)
    file = tmp_path / "x.jpg"
    file.write_bytes(whole)
    read_grey(file)
    for byte in (0, 0x55, 0x20, 0x80, 0xFE, 0xFF):
        for part in (0.35, 0.5, 0.65):
            file.write_bytes(overwritten(whole, byte, part))
            with pytest.raises(UnreadableImage, match="damaged or cut off"):
                read_grey(file)


@pytest.mark.parametrize("byte", [0, 0x55, 0x20])
def test_what_libjpeg_does_not_find_is_found(byte: int) -> None:
    content = jpeg(photograph(), quality=95)
    assert not is_overwritten(np.frombuffer(content, np.uint8))
    assert is_overwritten(np.frombuffer(overwritten(content, byte, 0.5), np.uint8))


def test_compressed_pixels_with_a_stretch_of_one_byte_are_refused(tmp_path: Path) -> None:
    picture = photograph()
    content = jpeg(picture, quality=95)
    file = save_dicom(tmp_path / "x.dcm", compressed(content, dicom(picture)))
    read_image(file)
    save_dicom(file, compressed(overwritten(content, 0, 0.6), dicom(picture)))
    with pytest.raises(UnreadableImage, match="compressed pixels are damaged"):
        read_image(file)


@pytest.mark.parametrize("period", [1, 2, 3, 5, 8, 16])
@pytest.mark.parametrize("options", OPTIONS)
def test_plain_pictures_are_not_damaged(period: int, options: dict[str, Any]) -> None:
    columns = np.arange(512)
    stripes = np.tile((columns % period * (255 // period)).astype(np.uint8), (512, 1))
    slope = np.tile((columns // 2).astype(np.uint8), (512, 1))
    half = np.where(columns < 256, photograph().max(), stripes).astype(np.uint8)
    for picture in (stripes, stripes.T.copy(), slope, half):
        for shown in (picture, rgb(picture)):
            assert not is_overwritten(np.frombuffer(jpeg(shown, **options), np.uint8))


def test_zeros_beside_the_data_are_no_damage() -> None:
    content = jpeg(photograph(), quality=95, exif=b"Exif\0\0" + bytes(500))
    for padded in (content, content + bytes(200), content[:-2] + bytes(200) + content[-2:]):
        assert not is_overwritten(np.frombuffer(padded, np.uint8))


def test_what_is_no_sequential_jpeg_is_left_to_its_decoder() -> None:
    progressive = overwritten(jpeg(photograph(), progressive=True), 0, 0.9)
    for content in (progressive, bytes(500), b"\xff\xd8\xff" + bytes(500), b"\xff\xd8"):
        assert not is_overwritten(np.frombuffer(content, np.uint8))
