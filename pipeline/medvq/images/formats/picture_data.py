"""Damage to the data of pictures that decoders pass over, by the checksums of PNG and TIFF."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvq.images.formats.messages import has_damaged_data

_PNG_SIGNATURE = 8
_TIFF_COMPRESSION, _TIFF_JPEG, _TIFF_DEFLATE = 259, 7, (8, 32946)
_TIFF_TABLES = 347
# Where the data begin and how many bytes they have, of strips and of tiles.
_TIFF_PLACES = ((273, 279), (324, 325))
# Bytes that are inflated at a time, and what no strip has.
_BLOCK, _MOST = 2**20, 2**31


def has_damaged_chunks(picture: NDArray[np.uint8]) -> bool:
    """Say whether the checksum of a chunk of a PNG that holds pixels does not fit."""
    content, at = picture.data, _PNG_SIGNATURE
    while at + 8 <= len(content):
        length, kind = int.from_bytes(content[at : at + 4], "big"), bytes(content[at + 4 : at + 8])
        end = at + 8 + length
        stated = int.from_bytes(content[end : end + 4], "big")
        is_whole = end + 4 <= len(content)
        if kind == b"IDAT" and is_whole and zlib.crc32(content[at + 4 : end]) != stated:
            return True
        at = end + 4
    return False


def has_damaged_strips(content: memoryview, tags: Mapping[int, Any]) -> bool:
    """Say whether the data of a strip or tile of a TIFF are damaged, where one can tell.

    Parameters
    ----------
    tags : of the TIFF, by their numbers.
    """
    compression = tags.get(_TIFF_COMPRESSION, 1)
    strips = _strips(content, tags)
    if compression in _TIFF_DEFLATE:
        return not all(map(_is_inflated, strips))
    if compression == _TIFF_JPEG:
        # An abbreviated stream: its tables stand apart, and both have markers at their ends.
        tables = bytes(tags.get(_TIFF_TABLES, b"\xff\xd8\xff\xd9"))[:-2]
        streams = (np.frombuffer(tables + bytes(strip[2:]), np.uint8) for strip in strips)
        return any(map(has_damaged_data, streams))
    return False


def _strips(content: memoryview, tags: Mapping[int, Any]) -> Iterator[memoryview]:
    for starts, lengths in _TIFF_PLACES:
        for start, length in zip(tags.get(starts, ()), tags.get(lengths, ()), strict=False):
            yield content[start : start + length]


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
