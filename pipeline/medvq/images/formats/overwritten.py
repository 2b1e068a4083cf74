"""JPEG data of which a stretch was overwritten by one byte, as by a hole in a file.

libjpeg reads such a stretch as pixels, and finds nothing wrong where the number of blocks happens
to fit. A picture gives one byte over and over only where its blocks are blank or nearly so, each of
a few bits; read as blocks, other bytes make blocks of hundreds of bits.
"""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

# Bytes that must be one for a stretch to be looked at.
_LONG = 32
# Bits of a block, on average, that a picture may repeat.
_PLAIN = 32
# T.81 table B.1: sequential Huffman frames, tables, the start of a scan.
_SEQUENTIAL, _TABLES, _SCAN = (0xC0, 0xC1), 0xC4, 0xDA
_END = b"\xff\xd9"

_Table = dict[tuple[int, int], int]
"""Symbols by the length of a Huffman code and the code."""


def is_overwritten(content: NDArray[np.uint8]) -> bool:
    """Say whether a stretch of the data of a sequential JPEG is one byte, and no plain blocks.

    Zeros right before the end are none: encoders pad with them.
    """
    windows = content[: len(content) // _LONG * _LONG].reshape(-1, _LONG)
    # Few windows pass the first comparison, which is what all files cost.
    suspects = windows[windows[:, 0] == windows[:, _LONG // 2]]
    fillers = {int(one[0]) for one in suspects if (one == one[0]).all()} - {0xFF}
    if not fillers:
        return False
    stream = content.tobytes()
    try:
        blocks, start = _blocks(stream)
    except (KeyError, IndexError, struct.error):
        return False  # no sequential JPEG in one scan
    data = stream[start : stream.find(_END, start)].rstrip(b"\0")
    return any(bytes([byte]) * _LONG in data and not _is_plain(byte, blocks) for byte in fillers)


def _blocks(stream: bytes) -> tuple[list[tuple[_Table, _Table]], int]:
    """Return the tables of each block of a unit (DC, AC), and where the data begin."""
    tables: dict[int, _Table] = {}
    factors: dict[int, int] = {}
    at = 2
    while stream[at] == 0xFF:
        marker, (length,) = stream[at + 1], struct.unpack_from(">H", stream, at + 2)
        segment = stream[at + 4 : at + 2 + length]
        at += 2 + length
        if marker in _SEQUENTIAL:
            sizes = zip(segment[6::3], segment[7::3], strict=False)
            factors = {name: (size >> 4) * (size & 15) for name, size in sizes}
        elif marker == _TABLES:
            tables |= _huffman(segment)
        elif marker == _SCAN:
            chosen = dict(zip(segment[1:-3:2], segment[2:-3:2], strict=True))
            if chosen.keys() != factors.keys():
                break
            # A single component is not interleaved: its unit is one block (T.81 A.2.2).
            times = factors if len(factors) > 1 else dict.fromkeys(factors, 1)
            pairs = [(tables[n >> 4], tables[0x10 | (n & 15)]) for n in chosen.values()]
            names = zip(chosen, pairs, strict=True)
            return [pair for name, pair in names for _ in range(times[name])], at
    raise KeyError("no scan of all components")


def _huffman(segment: bytes) -> dict[int, _Table]:
    """Read the tables of a segment, by class and number (T.81 B.2.4.2, C.2)."""
    tables: dict[int, _Table] = {}
    while len(segment) > 16:
        name, lengths = segment[0], segment[1:17]
        symbols = iter(segment[17 : 17 + sum(lengths)])
        table, code = {}, 0
        for length, number in enumerate(lengths, 1):
            for _ in range(number):
                table[length, code] = next(symbols)
                code += 1
            code <<= 1
        tables[name] = table
        segment = segment[17 + sum(lengths) :]
    return tables


def _is_plain(byte: int, blocks: list[tuple[_Table, _Table]]) -> bool:
    """Say whether a byte over and over can be read, from one of its bits on, as plain blocks."""
    units = [*blocks, *blocks]
    return any(_is_short(byte, phase, units) for phase in range(8))


def _is_short(byte: int, phase: int, blocks: list[tuple[_Table, _Table]]) -> bool:
    most = phase + _PLAIN * len(blocks)
    at = phase
    try:
        for dc, ac in blocks:
            symbol, at = _next(byte, at, dc)
            at += symbol
            index = 1
            while index < 64 and at <= most:
                symbol, at = _next(byte, at, ac)
                at += symbol & 15
                index += (symbol >> 4) + 1 if symbol else 64
    except KeyError:  # no code begins so
        return False
    return at <= most


def _next(byte: int, at: int, table: _Table) -> tuple[int, int]:
    """Return the symbol whose code begins at a bit, and the bit after it."""
    code = 0
    for length in range(1, 17):
        code = code << 1 | byte >> (7 - at % 8) & 1
        at += 1
        if (length, code) in table:
            return table[length, code], at
    raise KeyError(code)
