"""Damage to the data of pictures that decoders pass over: by checksums, and by ends of lines."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvq.images.formats.magic import begins_as_picture
from medvq.images.formats.messages import has_damaged_data
from medvq.images.formats.transfers import coded_as_text, ends_lines_as_text

_PNG_SIGNATURE, _PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\x89PNG", b"\xff\xd8"
# What no other files begin with, and WebP.
_MARKS, _RIFF, _WEBP = (_PNG, b"\xff\xd8\xff"), b"RIFF", b"WEBP"
# PNG: channels by the kind of colour; of Adam7, where each pass begins and its steps (y, x).
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PASSES = (
    (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)
)  # fmt: skip
_TIFF_COMPRESSION, _TIFF_JPEG, _TIFF_DEFLATE = 259, 7, (8, 32946)
_TIFF_TABLES = 347
_TIFF_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
# The tags that a directory may begin with: they rise, and one of them is the width.
_TIFF_FIRST = (254, 255, 256)
# Where the data begin and how many bytes they have, of strips and of tiles.
_TIFF_PLACES = ((273, 279), (324, 325))
_TIFF_SIZE, _TIFF_TILE, _TIFF_ROWS = (256, 257), (322, 323), 278
_TIFF_SAMPLES, _TIFF_PLANES, _TIFF_BITS = 277, 284, 258
# Bytes that are inflated at a time, and what no strip has.
_BLOCK, _MOST = 2**20, 2**31


def has_damaged_chunks(picture: NDArray[np.uint8]) -> bool:
    """Say whether the checksum of a chunk of a PNG that holds pixels does not fit."""
    content = picture.data
    for at, end in _pixel_chunks(content):
        stated = int.from_bytes(content[end : end + 4], "big")
        if end + 4 <= len(content) and zlib.crc32(content[at - 4 : end]) != stated:
            return True
    return False


def lacks_pixels(content: memoryview) -> bool:
    """Say whether a PNG ends before its last row, which decoders leave black without a word."""
    width, height, bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", content, 16)
    depth = bits * _PNG_CHANNELS.get(colour, 1)
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    sizes = ((-(-(height - y) // down), -(-(width - x) // across)) for y, x, down, across in passes)
    expected = sum(rows * (1 + -(-columns * depth // 8)) for rows, columns in sizes if columns > 0)
    inflater, size = zlib.decompressobj(), 0
    for at, end in _pixel_chunks(content):
        rest = bytes(content[at:end])
        while rest and size < expected and not inflater.eof:
            size += len(inflater.decompress(rest, _BLOCK))
            rest = inflater.unconsumed_tail
    return bool(size + len(inflater.flush()) < expected)


def _pixel_chunks(content: memoryview) -> Iterator[tuple[int, int]]:
    """Yield where the chunks of a PNG that hold pixels begin and end, without their heads."""
    at = len(_PNG_SIGNATURE)
    while at + 8 <= len(content):
        length, kind = int.from_bytes(content[at : at + 4], "big"), bytes(content[at + 4 : at + 8])
        if kind == b"IDAT":
            yield at + 8, at + 8 + length
        at += 12 + length


def is_cut_off(head: bytes) -> bool:
    """Say whether a file that no decoder knows begins as a PNG, JPEG or WebP all the same."""
    return head.startswith(_MARKS) or (head.startswith(_RIFF) and _WEBP.startswith(head[8:12]))


def is_unread_text(content: bytes) -> bool:
    """Say whether a picture that cannot be read was transferred as text, by its ends of lines.

    What follows the first four bytes of a PNG is there to show that.
    """
    if content.startswith(_PNG):
        return not _PNG_SIGNATURE.startswith(content[: len(_PNG_SIGNATURE)])
    return begins_as_picture(content) and ends_lines_as_text(content)


def is_read_text(content: bytes, tags: Mapping[int, Any]) -> bool:
    """Say whether a picture that can be read was transferred as text.

    Where pixels are not compressed, which may hold little else than ends of lines, there are bytes
    too many after them, too, or the directory of a TIFF is not where it should be.

    Parameters
    ----------
    tags : of a TIFF, by their numbers.
    """
    if not ends_lines_as_text(content):
        return False
    if content.startswith(_JPEG):
        return coded_as_text(content)
    end = 0
    if order := _TIFF_ORDERS.get(content[:4]):
        (directory,) = struct.unpack_from(f"{order}I", content, 4)
        (first,) = struct.unpack_from(f"{order}H", content, directory + 2)
        if first not in _TIFF_FIRST:
            return True
        if b"\n" in content[:directory]:  # it would have been moved
            return False
        end = max((start + length for start, length in _places(tags)), default=0)
    elif content.startswith(b"BM"):
        (end,) = struct.unpack_from("<I", content, 2)
    return len(content) - end >= content.count(b"\n")


def has_damaged_strips(content: memoryview, tags: Mapping[int, Any]) -> bool:
    """Say whether the data of a strip or tile of a TIFF are damaged, where one can tell.

    Parameters
    ----------
    tags : of the TIFF, by their numbers.
    """
    if _lacks_strips(tags):
        return True
    compression = tags.get(_TIFF_COMPRESSION, 1)
    if compression == 1:
        return _lacks_rows(content, tags)
    strips = (content[start : start + length] for start, length in _places(tags))
    if compression in _TIFF_DEFLATE:
        return not all(map(_is_inflated, strips))
    if compression == _TIFF_JPEG:
        # An abbreviated stream: its tables stand apart, and both have markers at their ends.
        tables = bytes(tags.get(_TIFF_TABLES, b"\xff\xd8\xff\xd9"))[:-2]
        streams = (np.frombuffer(tables + bytes(strip[2:]), np.uint8) for strip in strips)
        return any(map(has_damaged_data, streams))
    return False


def _lacks_strips(tags: Mapping[int, Any]) -> bool:
    """Say whether there are too few strips or tiles for the size, or some have no place.

    Decoders leave such parts black, or show the header of the file there.
    """
    width, height = (int(tags.get(tag, 0)) for tag in _TIFF_SIZE)
    planes = int(tags.get(_TIFF_SAMPLES, 1)) if tags.get(_TIFF_PLANES) == 2 else 1
    (strips, _), (tiles, _) = _TIFF_PLACES
    if starts := tags.get(tiles):
        across, down = (int(tags.get(tag, 0)) or 1 for tag in _TIFF_TILE)
        expected = -(-width // across) * -(-height // down) * planes
    else:
        starts = tags.get(strips, ())
        expected = -(-height // (int(tags.get(_TIFF_ROWS, 0)) or max(height, 1))) * planes
    return len(starts) < expected or 0 in starts


def _lacks_rows(content: memoryview, tags: Mapping[int, Any]) -> bool:
    """Say whether a single strip without compression ends where its last rows should be.

    Decoders show there what follows, which is the directory or nothing. Where other data follow,
    the number of bytes stated is wrong, as some programs write it.
    """
    places = list(_places(tags))
    if len(places) != 1 or tags.get(_TIFF_TILE[0]):
        return False
    ((start, length),) = places
    width, height = (int(tags.get(tag, 0)) for tag in _TIFF_SIZE)
    samples = int(tags.get(_TIFF_SAMPLES, 1))
    bits = int(max(tags.get(_TIFF_BITS, (1,)))) * samples
    end = start + height * -(-width * bits // 8)
    head = bytes(content[:4])
    order = "<" if head.startswith(b"II") else ">"
    is_big = b"+" in head
    (directory,) = struct.unpack_from(order + "IQ"[is_big], content, 8 if is_big else 4)
    return start + length < end and (end > len(content) or start <= directory < end)


def _places(tags: Mapping[int, Any]) -> Iterator[tuple[int, int]]:
    """Yield where the strips and tiles of a TIFF begin, and how many bytes each has."""
    for starts, lengths in _TIFF_PLACES:
        yield from zip(tags.get(starts, ()), tags.get(lengths, ()), strict=False)


def _is_inflated(strip: memoryview) -> bool:
    """Say whether deflated data are whole, up to their checksum."""
    inflater, size, rest = zlib.decompressobj(), 0, bytes(strip)
    try:
        while not inflater.eof and rest and size < _MOST:
            size += len(inflater.decompress(rest, _BLOCK))
            rest = inflater.unconsumed_tail
    except zlib.error:
        return False
    return inflater.eof
