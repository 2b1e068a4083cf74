"""Pictures and volumes that a transfer as text has damaged."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories.images import noise, read_grey, save_nifti
from factories.tiffs import tiff
from medvq.errors import UnreadableImage
from medvq.images.formats import read_image
from medvq.images.formats.notes import recorded
from medvq.images.reading import ImageFiles, Reader
from PIL import Image

# A byte, and in words of 16 bits a pixel, that is a carriage return or a line feed.
LINES = np.tile(np.array([13, 10, 200, 250], np.uint8), (24, 12))
PICTURES: list[tuple[str, dict[str, Any]]] = [
    ("x.png", {}),
    ("x.jpg", {"quality": 95}),
    ("progressive.jpg", {"quality": 80, "progressive": True}),
    ("x.bmp", {}),
    ("x.webp", {"lossless": True}),
    ("x.tif", {}),
    ("lzw.tif", {"compression": "tiff_lzw"}),
    ("deflated.tif", {"compression": "tiff_deflate"}),
    ("packed.tif", {"compression": "packbits"}),
]


def as_text(content: bytes) -> bytes:
    return content.replace(b"\n", b"\r\n")


@pytest.mark.parametrize(("name", "how"), PICTURES)
def test_a_picture_that_was_transferred_as_text_is_refused(
    tmp_path: Path, name: str, how: dict[str, Any]
) -> None:
    path = tmp_path / name
    Image.fromarray(noise(80, 90)).save(path, **how)
    read_image(path)
    path.write_bytes(as_text(path.read_bytes()))
    with pytest.raises(UnreadableImage, match=r"transfer as text.*: transfer it anew"):
        read_image(path)
    result = Reader((40, 40))(ImageFiles((path,)))  # which reads grey JPEG by a shorter way
    assert "transfer as text" in result.reason


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("seed", range(3))
def test_a_tiff_whose_directory_stands_at_its_end(tmp_path: Path, order: str, seed: int) -> None:
    picture = noise(64, 64, seed=seed)
    path = tmp_path / "x.tif"
    path.write_bytes(tiff(picture, order))
    np.testing.assert_allclose(read_grey(path), picture / 255, atol=1e-6)
    path.write_bytes(as_text(path.read_bytes()))
    with pytest.raises(UnreadableImage, match="transfer as text"):
        read_image(path)


@pytest.mark.parametrize("name", ["x.tif", "x.bmp", "x.png", "last.tif"])
def test_a_picture_whose_pixels_look_like_line_ends_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "last.tif":
        path.write_bytes(tiff(LINES))
    else:
        Image.fromarray(LINES).save(path)
    np.testing.assert_allclose(read_grey(path), LINES / 255, atol=1e-6)


def test_text_with_such_line_ends_before_the_data_of_a_jpeg_is_no_damage(tmp_path: Path) -> None:
    plain = np.full((24, 32), 90, np.uint8)
    Image.fromarray(plain).save(tmp_path / "x.jpg", xmp=b"<x>" + b"\r\n" * 50 + b"</x>")
    np.testing.assert_allclose(read_grey(tmp_path / "x.jpg"), plain / 255, atol=2 / 255)


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
@pytest.mark.parametrize("columns", [10, 20])  # 10 is a line feed of the header
def test_a_volume_that_was_transferred_as_text_is_refused(
    tmp_path: Path, name: str, columns: int
) -> None:
    path = save_nifti(tmp_path / name, noise(columns, 20, 20).astype(np.int16))
    read_image(path)
    path.write_bytes(as_text(path.read_bytes()))
    with pytest.raises(UnreadableImage, match=r"transfer as text.*: transfer it anew"):
        read_image(path)


@pytest.mark.parametrize("kind", [np.uint8, np.int16])
def test_a_volume_whose_returns_became_line_feeds_is_told(
    tmp_path: Path, kind: type[np.generic]
) -> None:
    path = save_nifti(tmp_path / "x.nii", noise(40, 40, 40).astype(kind))
    for told in (0, 1):
        with recorded() as notes:
            read_image(path)
        assert sum("carriage return" in text for text in notes.notices) == told
        path.write_bytes(path.read_bytes().replace(b"\r", b"\n"))


def test_even_values_and_smooth_ones_have_no_returns_and_are_not_told(tmp_path: Path) -> None:
    even = noise(40, 40, 40) & 0xFE
    for voxels in (even, np.full((40, 40, 40), 10, np.uint8)):
        with recorded() as notes:
            read_image(save_nifti(tmp_path / "x.nii", voxels))
        assert not [text for text in notes.notices if "carriage return" in text]


def test_a_volume_whose_voxels_look_like_line_ends_is_read(tmp_path: Path) -> None:
    stored = np.repeat(LINES[:, :, None], 3, axis=2)
    path = save_nifti(tmp_path / "x.nii", stored, cal_max=255)
    (image,) = read_image(path)
    np.testing.assert_allclose(image, stored.transpose(2, 1, 0) / 255, atol=1e-6)
