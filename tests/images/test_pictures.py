"""Pictures as editors, cameras and other programs write them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from factories.images import Bytes, palette, ramp, read_grey, rgb, wide
from medvq.errors import UnreadableImage
from PIL import ExifTags, Image


@pytest.mark.parametrize("colour", [False, True])
def test_jpeg_to_within_its_error(tmp_path: Path, colour: bool) -> None:
    y, x = np.mgrid[:48, :80]
    picture = np.rint(120 + 60 * np.sin(x / 11) + 50 * np.cos(y / 9 + x / 30)).astype(np.uint8)
    Image.fromarray(rgb(picture) if colour else picture).save(tmp_path / "x.jpg", quality=95)
    np.testing.assert_allclose(read_grey(tmp_path / "x.jpg"), picture / 255, atol=4 / 255)


def test_one_bit(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).random((5, 9)) < 0.5
    for name in ("x.png", "x.tif"):
        Image.fromarray(bits).save(tmp_path / name)
        np.testing.assert_array_equal(read_grey(tmp_path / name), bits.astype(np.float32))


@pytest.mark.parametrize("colour", [False, True])
def test_what_is_transparent_is_black(tmp_path: Path, colour: bool) -> None:
    picture = ramp()
    opacity = np.full_like(picture, 255)
    opacity[:, 4:], opacity[:, 8:] = 128, 0
    grey = Image.fromarray(picture)
    image = grey.convert("RGBA" if colour else "LA")
    image.putalpha(Image.fromarray(opacity))
    image.save(tmp_path / "x.png")
    expected = picture / 255 * (opacity / 255)
    np.testing.assert_allclose(read_grey(tmp_path / "x.png"), expected, atol=1 / 255)


def test_a_transparent_palette_entry_is_black(tmp_path: Path) -> None:
    picture = ramp()
    gone = picture[2, 3]
    palette(picture).save(tmp_path / "x.png", transparency=int(gone) + 100)
    expected = np.where(picture == gone, 0, picture) / 255
    np.testing.assert_allclose(read_grey(tmp_path / "x.png"), expected, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_whose_zero_is_white(tmp_path: Path, bits: int) -> None:
    picture = ramp()
    stored = 255 - picture if bits == 8 else 65535 - wide(picture)
    # Pillow inverts 8 bits as it writes such a file, and not 16.
    Image.fromarray(picture if bits == 8 else stored).save(tmp_path / "x.tif", tiffinfo={262: 0})
    assert stored.tobytes() in (tmp_path / "x.tif").read_bytes()
    np.testing.assert_allclose(read_grey(tmp_path / "x.tif"), picture / 255, atol=1e-6)


TURNS: dict[int, Callable[[Bytes], Bytes]] = {
    1: lambda p: p,
    2: np.fliplr,
    3: lambda p: np.rot90(p, 2),
    4: np.flipud,
    5: np.transpose,
    6: np.rot90,
    7: lambda p: np.rot90(p, 2).T,
    8: lambda p: np.rot90(p, -1),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("bits", [8, 16])
def test_exif_rotation_is_undone(tmp_path: Path, orientation: int, bits: int) -> None:
    turned = np.ascontiguousarray(TURNS[orientation](ramp()))
    image = Image.fromarray(turned if bits == 8 else wide(turned))
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(tmp_path / "x.png", exif=exif)
    np.testing.assert_allclose(read_grey(tmp_path / "x.png"), ramp() / 255, atol=1e-6)


def test_a_panorama_is_shrunk_to_what_memory_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = np.repeat(np.arange(0, 240, 8, dtype=np.uint8), 20)[None].repeat(40, axis=0)
    wanted = picture.reshape(10, 4, 150, 4).mean((1, 3)) / 255
    Image.fromarray(picture).save(tmp_path / "x.jpg", quality=100)
    for name, stored in (("x.png", picture), ("x.tif", wide(picture))):
        Image.fromarray(stored).save(tmp_path / name)
    monkeypatch.setattr("medvq.images.formats.picture.MAX_PIXELS", 10 * 150)
    for name in ("x.png", "x.tif", "x.jpg"):
        np.testing.assert_allclose(read_grey(tmp_path / name), wanted, atol=1.5 / 255)
    for module in ("picture", "display"):
        monkeypatch.setattr(f"medvq.images.formats.{module}.MAX_SAMPLES", 20 * 300)
    np.testing.assert_allclose(read_grey(tmp_path / "x.jpg"), wanted, atol=1.5 / 255)
    with pytest.raises(UnreadableImage, match="samples that are read"):
        read_grey(tmp_path / "x.png")
