"""Pictures as editors, cameras and other programs write them."""

import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from zlib import compress, crc32

import cv2
import numpy as np
import pytest
from factories.images import Array, Bytes, noise, palette, ramp, read_grey, rgb, wide
from medvq.errors import UnreadableImage
from medvq.images.formats import read_image
from medvq.images.formats.display import SMALL_RANGE
from medvq.images.formats.messages import DAMAGED, captured_messages
from medvq.images.formats.notes import Notes, recorded
from medvq.images.reading import ImageFiles, Reader
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


def png(bits: int, rows: Bytes, *, colour: int, transparent: bytes) -> bytes:
    """A PNG (height, width[, 3]) of numbers of ``bits`` bits, one of which is transparent."""
    height, width = rows.shape[:2]
    spread = np.unpackbits(rows.astype(">u2")[..., None].view(np.uint8), axis=-1)[..., -bits:]
    packed = np.packbits(spread.reshape(height, -1), axis=1)
    data = compress(b"".join(b"\0" + row.tobytes() for row in packed))
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = {b"IHDR": header, b"tRNS": transparent, b"IDAT": data, b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc32(name + content))
        for name, content in chunks.items()
    )


@pytest.mark.parametrize(("bits", "gone"), [(1, 1), (2, 2), (4, 13), (8, 30), (16, 7711)])
def test_a_transparent_grey_is_black_at_any_depth(tmp_path: Path, bits: int, gone: int) -> None:
    top = 2**bits - 1
    stored = np.linspace(0, top, 96).astype(np.uint16).reshape(8, 12)
    stored[2, 3] = gone
    stored[5] = 0
    transparent = struct.pack(">H", gone if bits > 1 else 0)
    (tmp_path / "x.png").write_bytes(png(bits, stored, colour=0, transparent=transparent))
    expected = np.where(stored == gone, 0, stored) / top if bits > 1 else stored
    np.testing.assert_allclose(read_grey(tmp_path / "x.png"), expected, atol=1e-6)


def test_transparency_of_16_bits_that_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    stored = np.full((8, 12), 300, np.uint16)
    (tmp_path / "x.png").write_bytes(png(16, stored, colour=0, transparent=b"\x01\x2c"))
    with pytest.raises(UnreadableImage, match="nothing of the picture is to be seen on black"):
        read_grey(tmp_path / "x.png")
    colour = np.repeat(noise(8, 12)[..., None].astype(np.uint16) * 257, 3, axis=2)
    (tmp_path / "x.png").write_bytes(png(16, colour, colour=2, transparent=b"\1\1\1\1\1\1"))
    with pytest.raises(UnreadableImage, match="16-bit colour of which one is transparent"):
        read_grey(tmp_path / "x.png")


def test_grey_that_is_multiplied_by_its_opacity(tmp_path: Path) -> None:
    stored = np.stack([ramp() // 2, np.full_like(ramp(), 128)], axis=-1).reshape(7, 22)
    content = packed_tiff(stored, 8, more={256: 11, 277: 2, 338: 1})
    (tmp_path / "x.tif").write_bytes(content)
    np.testing.assert_allclose(read_grey(tmp_path / "x.tif"), ramp() // 2 / 255, atol=1.5 / 255)


def test_a_tiff_whose_palette_has_entries_of_8_bits(tmp_path: Path) -> None:
    palette(ramp()).save(tmp_path / "x.tif")
    entries = np.tile((np.arange(256) - 100) % 256, 3).astype("<u2")
    content = (tmp_path / "x.tif").read_bytes()
    assert (entries * 256).tobytes() in content
    content = content.replace((entries * 256).tobytes(), entries.tobytes())
    (tmp_path / "x.tif").write_bytes(content)
    with recorded() as notes:
        np.testing.assert_allclose(read_grey(tmp_path / "x.tif"), ramp() / 255, atol=1e-6)
    assert [line for line in notes.notices if "entries have 8 bits" in line]


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


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_turned_tiff(tmp_path: Path, orientation: int, compression: str | None) -> None:
    for picture in (ramp(), wide(ramp())):
        turned = Image.fromarray(np.ascontiguousarray(TURNS[orientation](picture)))
        turned.save(tmp_path / "x.tif", tiffinfo={274: orientation}, compression=compression)
        np.testing.assert_allclose(read_grey(tmp_path / "x.tif"), ramp() / 255, atol=1e-6)


@pytest.mark.parametrize("colour", [False, True])
def test_a_picture_of_which_nothing_is_to_be_seen_on_black_is_refused(
    tmp_path: Path, colour: bool
) -> None:
    channels = [Image.fromarray(p) for p in (ramp(), ramp() * 0, ramp() * 0 + 255)]
    picture, empty, full = channels
    mode, bands = ("RGBA", 3) if colour else ("LA", 1)
    file = tmp_path / "x.png"
    for shade, alpha in ((picture, empty), (empty, picture)):
        Image.merge(mode, [shade] * bands + [alpha]).save(file)
        with pytest.raises(UnreadableImage, match="save it without transparency"):
            read_grey(file)
    Image.merge(mode, [empty] * bands + [full]).save(file)
    assert not read_grey(file).any()  # a black picture


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


def notes_on(path: Path) -> tuple[Array, Notes]:
    with recorded() as notes:
        return read_grey(path), notes


def photograph(bits: int = 8) -> Array:
    """A smooth picture that uses all of its bits."""
    y, x = np.mgrid[:96, :128]
    shades = np.sin(x / 11 + y / 40) * np.cos(y / 9) + 0.1 * noise(96, 128) / 255
    shades = (shades - shades.min()) / np.ptp(shades)
    return np.rint(shades * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)


def with_significant_bits(content: bytes, bits: int) -> bytes:
    """Insert the chunk sBIT, as of a PNG whose source had so many bits, after the header."""
    body = b"sBIT" + bytes([bits])
    return (
        content[:33] + struct.pack(">I", 1) + body + struct.pack(">I", crc32(body)) + content[33:]
    )


def packed_tiff(
    stored: Array,
    bits: int,
    order: str = "<",
    photometric: int = 1,
    more: Mapping[int, int] = MappingProxyType({}),
) -> bytes:
    """Values of any number of bits without a gap, and any tags, which Pillow does not write."""
    height, width = stored.shape
    single = (stored[..., None].astype(int) >> np.arange(bits - 1, -1, -1)) & 1
    data = np.packbits(single.reshape(height, -1).astype(np.uint8), axis=1).tobytes()
    numbers = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1}
    entries = sorted({**numbers, 278: height, 279: len(data), **more}.items())
    fields = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in entries)
    table = struct.pack(f"{order}H", len(entries)) + fields + bytes(4)
    magic = b"II" if order == "<" else b"MM"
    return struct.pack(f"{order}2sHI", magic, 42, 8 + len(data)) + data + table


def planar_tiff(stored: Array) -> bytes:
    """Three planes of the same 16 bits, for red, green and blue."""
    height, width = stored.shape
    data = stored.tobytes() * 3
    size, begin = stored.nbytes, 8 + 32
    lists = struct.pack(
        "<6I4H", begin, begin + size, begin + 2 * size, size, size, size, 16, 16, 16, 0
    )
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, 32), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 3, 8), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 3, 20), (284, 3, 1, 2),
    ]  # fmt: skip
    fields = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    table = struct.pack("<H", len(entries)) + fields + bytes(4)
    return struct.pack("<2sHI", b"II", 42, begin + len(data)) + lists + data + table


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_tiff_of_packed_bits(tmp_path: Path, bits: int, order: str, photometric: int) -> None:
    stored = photograph(bits)
    (tmp_path / "x.tif").write_bytes(packed_tiff(stored, bits, order, photometric))
    shown = stored / (2**bits - 1)
    expected = shown if photometric else 1 - shown
    np.testing.assert_allclose(read_grey(tmp_path / "x.tif"), expected, atol=1e-6)


def test_a_tiff_of_unusual_bits_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tif").write_bytes(packed_tiff(photograph(10), 6))
    with pytest.raises(UnreadableImage, match="save it with 8 or 16 bits"):
        read_grey(tmp_path / "x.tif")


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_16_bits_of_which_fewer_are_used_are_shown_over_those(tmp_path: Path, bits: int) -> None:
    stored = photograph(bits)
    for name in ("x.png", "x.tif"):
        Image.fromarray(stored).save(tmp_path / name)
        grey, notes = notes_on(tmp_path / name)
        np.testing.assert_allclose(grey, stored / (2**bits - 1), atol=1e-6)
        assert notes.notices == (SMALL_RANGE,)


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_letters_that_are_burnt_in_do_not_hide_that_few_bits_are_used(
    tmp_path: Path, kind: str
) -> None:
    stored = photograph(12)
    stored[:4] = 65535  # of 96 rows
    Image.fromarray(stored).save(tmp_path / f"x.{kind}")
    grey, notes = notes_on(tmp_path / f"x.{kind}")
    np.testing.assert_allclose(grey, np.minimum(stored / 4095, 1), atol=1e-6)
    assert notes.notices == (SMALL_RANGE,)
    stored[:20] = 65535  # a background
    Image.fromarray(stored).save(tmp_path / f"x.{kind}")
    np.testing.assert_allclose(read_grey(tmp_path / f"x.{kind}"), stored / 65535, atol=1e-6)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1])
def test_a_tiff_of_16_bits_of_any_order(tmp_path: Path, order: str, photometric: int) -> None:
    stored = photograph(16)
    words = stored if photometric else 65535 - stored
    content = packed_tiff(words.astype(np.uint16), 16, order, photometric)
    if order == "<":  # of the words themselves
        data = content[8 : 8 + stored.nbytes]
        content = content.replace(data, np.frombuffer(data, ">u2").astype("<u2").tobytes())
    (tmp_path / "x.tif").write_bytes(content)
    np.testing.assert_allclose(read_grey(tmp_path / "x.tif"), stored / 65535, atol=1e-6)


@pytest.mark.parametrize(
    ("bits", "more", "reason"),
    [
        (8, {339: 2}, "signed have no stated range"),
        (16, {339: 2}, "16-bit pixels that are signed have no stated range"),
        (16, {284: 2, 277: 3, 262: 2}, "stored plane by plane"),
    ],
)
def test_a_tiff_that_pillow_takes_for_another_is_refused(
    tmp_path: Path, bits: int, more: dict[int, int], reason: str
) -> None:
    file = tmp_path / "x.tif"
    if 284 in more:
        file.write_bytes(planar_tiff(photograph(16)))
    else:
        file.write_bytes(packed_tiff(photograph(bits), bits, more=more))
    with pytest.raises(UnreadableImage, match=reason):
        read_grey(file)


def test_a_big_tiff_that_is_not_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.tif").write_bytes(b"MM\0+\0\10\0\0" + bytes(64))
    with pytest.raises(UnreadableImage, match="a BigTIFF of unusual pixels"):
        read_grey(tmp_path / "x.tif")


def test_a_true_picture_of_16_bits_stays_as_it_is(tmp_path: Path) -> None:
    stored = photograph(16)
    for factor in (1, 0.5):  # also where its brightest half is missing
        part = (stored * factor).astype(np.uint16)
        Image.fromarray(part).save(tmp_path / "x.png")
        grey, notes = notes_on(tmp_path / "x.png")
        np.testing.assert_allclose(grey, part / 65535, atol=1e-6)
        assert notes.notices == ()


def test_a_hot_pixel_does_not_hide_that_few_bits_are_used(tmp_path: Path) -> None:
    stored = photograph(12)
    stored[3, 4] = 60000
    Image.fromarray(stored).save(tmp_path / "x.png")
    low, high = np.percentile(stored, [0.5, 99.5])
    expected = np.clip((stored - low) / (high - low), 0, 1)
    np.testing.assert_allclose(read_grey(tmp_path / "x.png"), expected, atol=1e-6)


def test_the_range_that_the_header_declares_is_shown(tmp_path: Path) -> None:
    stored = np.minimum(photograph(12), 3000)  # no value near the end of the range
    file = tmp_path / "x.tif"
    Image.fromarray(stored).save(file, tiffinfo={281: 4095})
    np.testing.assert_allclose(read_grey(file), stored / 4095, atol=1e-6)
    file.write_bytes(packed_tiff(stored, 12))
    grey, notes = notes_on(file)
    np.testing.assert_allclose(grey, stored / 4095, atol=1e-6)
    assert "range that its header declares" in notes.notices[0]
    file = tmp_path / "x.png"
    Image.fromarray(stored).save(file)
    file.write_bytes(with_significant_bits(file.read_bytes(), 12))
    np.testing.assert_allclose(read_grey(file), stored / 4095, atol=1e-6)
    # As PNG asks for, values of 12 bits are scaled to 16.
    Image.fromarray(photograph(16)).save(file)
    file.write_bytes(with_significant_bits(file.read_bytes(), 12))
    np.testing.assert_allclose(read_grey(file), photograph(16) / 65535, atol=1e-6)


def test_a_white_zero_of_fewer_bits_is_inverted_in_their_range(tmp_path: Path) -> None:
    stored = photograph(12)
    Image.fromarray(stored).save(tmp_path / "x.tif", tiffinfo={262: 0})
    np.testing.assert_allclose(read_grey(tmp_path / "x.tif"), 1 - stored / 4095, atol=1e-6)


def test_colour_of_which_only_the_lower_bits_are_used_is_refused(tmp_path: Path) -> None:
    for bits, refused in ((16, False), (12, True)):
        deep = np.repeat(photograph(bits)[..., None], 3, axis=2)
        cv2.imwrite(str(tmp_path / "x.png"), deep)
        if refused:
            with pytest.raises(UnreadableImage, match="small part of the range is used; save"):
                read_grey(tmp_path / "x.png")
        else:
            expected = (photograph(16) >> 8) / 255
            np.testing.assert_allclose(read_grey(tmp_path / "x.png"), expected, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 2}])
@pytest.mark.parametrize("colour", [False, True])
def test_a_jpeg_with_damaged_data_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], options: dict[str, Any], colour: bool
) -> None:
    picture = photograph().repeat(4, axis=0).repeat(4, axis=1)
    file = tmp_path / "x.jpg"
    Image.fromarray(rgb(picture) if colour else picture).save(file, quality=95, **options)
    whole = file.read_bytes()
    read_grey(file)
    rng = np.random.default_rng(0)
    for at in rng.integers(len(whole) // 4, len(whole) * 3 // 4, 5):
        file.write_bytes(whole[:at] + rng.bytes(400) + whole[at + 400 :])
        with pytest.raises(UnreadableImage, match="damaged or cut off"):
            read_grey(file)
        assert Reader((32, 32))(ImageFiles((file,))).reason == DAMAGED
    assert capfd.readouterr().err == ""


def test_bytes_too_many_outside_of_the_data_of_a_jpeg_are_no_damage(tmp_path: Path) -> None:
    file = tmp_path / "x.jpg"
    Image.fromarray(photograph()).save(file)
    whole, before = file.read_bytes(), read_grey(file)
    tables = whole.index(b"\xff\xdb")
    for content in (
        whole[:-2] + bytes(7) + whole[-2:],
        whole + b"what a camera appends",
        whole[:tables] + b"abc" + whole[tables:],
    ):
        file.write_bytes(content)
        np.testing.assert_array_equal(read_grey(file), before)


def test_a_tiff_with_damaged_data_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.tif"
    Image.fromarray(photograph()).save(file, compression="tiff_adobe_deflate")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)
    with pytest.raises(UnreadableImage, match="damaged or cut off"):
        read_grey(file)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("compression", ["tiff_adobe_deflate", "jpeg"])
def test_damage_that_libtiff_passes_over_is_found(tmp_path: Path, compression: str) -> None:
    file = tmp_path / "x.tif"
    picture = Image.fromarray(np.stack([photograph()] * 3, axis=-1))
    picture.save(file, compression=compression)
    content = file.read_bytes()
    assert read_image(file).shape == (1, 96, 128)
    for start in range(len(content) // 3, 2 * len(content) // 3, len(content) // 20):
        damaged = content[:start] + bytes(b ^ 90 for b in content[start : start + 40])
        file.write_bytes(damaged + content[start + 40 :])
        with pytest.raises(UnreadableImage, match="damaged or cut off"):
            read_grey(file)


def test_a_png_whose_checksum_does_not_fit_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    Image.fromarray(photograph(16)).save(file, compress_level=0)  # no code that could be wrong
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UnreadableImage, match="damaged or cut off"):
        read_grey(file)


def test_lines_that_are_no_decoders_are_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    with captured_messages() as messages:
        os.write(2, b"Corrupt JPEG data: bad Huffman code\nsomething else\n")
    assert messages == [b"Corrupt JPEG data: bad Huffman code\n"]
    assert capfd.readouterr().err == "something else\n"


def test_a_tiff_of_which_a_part_is_missing_is_called_damaged(tmp_path: Path) -> None:
    file = tmp_path / "x.tif"
    Image.fromarray(photograph()).save(file, compression="tiff_lzw")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] + whole[len(whole) // 2 + 100 :])
    with pytest.raises(UnreadableImage, match="damaged or cut off"):
        read_grey(file)
