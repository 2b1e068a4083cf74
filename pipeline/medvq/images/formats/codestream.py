"""What compressed pixels themselves state: size, samples and depth.

Decoders trust the DICOM header instead: where the two differ, they hand over cropped or sheared
pixels, or GDCM ends the process.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

# JPEG: what the second application marker of Adobe begins with, and where its transform stands.
_ADOBE, _ADOBE_TRANSFORM = b"\xff\xee\x00\x0eAdobe", 15
_JFIF = re.compile(rb"\xff\xe0..JFIF\0", re.DOTALL)
_RGB_NAMES = (b"RGB", b"rgb")
# ITU-T T.81 table B.1 and T.87: the markers that begin a frame.
_START_OF_FRAME = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_CODING_STYLE = 0x52  # T.800 A.6.1: COD
_J2K_START = b"\xff\x4f\xff\x51"  # T.800 A.4.1, A.5.1: SOC, then SIZ


class CodedImage(NamedTuple):
    """What a stream says of itself: its size, its samples per pixel, the bits and sign of one."""

    rows: int
    columns: int
    samples: int
    bits: int
    signed: bool = False


def coded_image(stream: bytes) -> CodedImage | None:
    """Read the header of a JPEG, JPEG-LS or JPEG 2000 stream, None of any other."""
    start = stream.find(_J2K_START, 0, 2**16)  # a JP2 file has boxes before it
    try:
        if start >= 0:
            right, lower, left, upper = struct.unpack_from(">4I", stream, start + 8)
            samples, bits = struct.unpack_from(">HB", stream, start + 40)
            depth, signed = (bits & 0x7F) + 1, bits >= 0x80
            return CodedImage(lower - upper, right - left, samples, depth, signed)
        if at := _start_of_frame(stream):
            bits, rows, columns, samples = struct.unpack_from(">BHHB", stream, at + 4)
            return CodedImage(rows, columns, samples, bits)
    except struct.error:
        pass  # it ends within its header
    return None


def jpeg_colours(stream: bytes) -> str:
    """Return "RGB" or "YBR_FULL" where a lossy JPEG stream of colour tells which, else nothing.

    Its components tell by their names, the markers of JFIF and Adobe by what they stand for, and
    fewer samples of some components by that no encoder keeps fewer of red, green or blue.
    """
    at = _start_of_frame(stream)
    names, factors = stream[at + 10 : at + 19 : 3], stream[at + 11 : at + 19 : 3]
    if not at or len(factors) < 3:
        return ""
    if names in _RGB_NAMES:
        return "RGB"
    if _JFIF.search(stream, 0, at):
        return "YBR_FULL"
    adobe = stream.find(_ADOBE, 0, at)
    if adobe >= 0:
        transform = adobe + _ADOBE_TRANSFORM
        return "YBR_FULL" if stream[transform : transform + 1] == b"\1" else "RGB"
    return "YBR_FULL" if len(set(factors)) > 1 else ""


def _start_of_frame(stream: bytes) -> int:
    """Return where the frame header of a JPEG or JPEG-LS stream begins, 0 where there is none."""
    at = 2 if stream[:2] == b"\xff\xd8" else len(stream)
    while at + 10 <= len(stream) and stream[at] == 0xFF:
        if stream[at + 1] in _START_OF_FRAME:
            return at
        (length,) = struct.unpack_from(">H", stream, at + 2)
        at += 1 if stream[at + 1] == 0xFF else 2 + length  # markers may have 0xFF before them
    return 0


def has_component_transform(stream: bytes) -> bool:
    """Say whether a JPEG 2000 stream holds its colours transformed (T.800 A.6.1, annex G)."""
    at = stream.find(_J2K_START, 0, 2**16) + len(_J2K_START) - 2
    while at >= 0 and at + 9 <= len(stream) and stream[at] == 0xFF:
        if stream[at + 1] == _CODING_STYLE:
            return stream[at + 8] == 1  # after the style, the progression and the layers
        at += 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
    return False


def run_length_pixels(frame: bytes) -> int:
    """Count the pixels that the first segment of an RLE frame holds (PS3.5 annex G)."""
    count, start, second = struct.unpack_from("<3I", frame)
    at, end = start, second if count > 1 else len(frame)
    pixels = 0
    while at < end:
        code = frame[at]
        if code < 128:
            pixels += min(code + 1, end - at - 1)
            at += code + 2
        elif code > 128:
            pixels += 257 - code
            at += 2
        else:
            at += 1
    return pixels
