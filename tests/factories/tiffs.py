"""TIFF files that Pillow does not write: any tags, the directory after the data."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from types import MappingProxyType

from factories.images import Array

_SHORT, _LONG, _TEXT = 3, 4, 2
_LONGS = (273, 279, 324, 325)


def tiff(
    stored: Array,
    order: str = "<",
    more: Mapping[int, int | bytes | None] = MappingProxyType({}),
    after: bytes = b"",
) -> bytes:
    """Return a TIFF of one strip (height, width[, channels]), uncompressed.

    Parameters
    ----------
    stored : 8 or 16 bits.
    order : "<" or ">", of the file.
    more : tags in place of the usual ones; None for one that is left out.
    after : what stands between the pixels and the directory.
    """
    height, width, channels = (*stored.shape, 1)[:3]
    bits = 8 * stored.dtype.itemsize
    data = stored.astype(stored.dtype.newbyteorder(order)).tobytes()
    tags: dict[int, int | bytes | None] = {
        256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 277: channels, 278: height,
        279: len(data), **more,
    }  # fmt: skip
    tags = {tag: value for tag, value in tags.items() if value is not None}
    body = data + after + bytes((len(data) + len(after)) % 2)
    directory = 8 + len(body)
    beyond, fields = directory + 2 + 12 * len(tags) + 4, b""
    texts = b""
    for tag, value in sorted(tags.items()):
        if isinstance(value, bytes):
            fields += struct.pack(f"{order}HHII", tag, _TEXT, len(value), beyond + len(texts))
            texts += value + bytes(len(value) % 2)
        elif tag in _LONGS:
            fields += struct.pack(f"{order}HHII", tag, _LONG, 1, value)
        elif tag == 258 and channels == 2:
            fields += struct.pack(f"{order}HHIHH", tag, _SHORT, 2, value, value)
        else:
            fields += struct.pack(f"{order}HHIHxx", tag, _SHORT, 1, value)
    magic = b"II" if order == "<" else b"MM"
    head = struct.pack(f"{order}2sHI", magic, 42, directory)
    return head + body + struct.pack(f"{order}H", len(tags)) + fields + bytes(4) + texts
