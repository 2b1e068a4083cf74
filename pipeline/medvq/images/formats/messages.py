"""What the C libraries behind the decoders write to standard error.

libjpeg and libtiff decode damaged data to the end and only write a line about it. Neither Pillow
nor OpenCV passes that line on, so it is read where it is written: from file descriptor 2.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
from numpy.typing import NDArray

from medvq.images.formats.overwritten import is_overwritten
from medvq.images.formats.transfers import coded_as_text

DAMAGED = "not a readable image: its data are damaged or cut off"
"""The reason of a file that is refused because of them."""

# Of jerror.h, the warnings about entropy-coded data; libjpeg has others, which good files cause.
_DAMAGED_JPEG = (
    b"Corrupt JPEG data", b"Premature end of JPEG file", b"Inconsistent progression",
)  # fmt: skip
# Markers that entropy-coded data may stand before: restarts, the end, the next scan, its tables.
_AFTER_DATA = frozenset({*range(0xD0, 0xDB), 0xC4})
# Of libtiff, errors after which it goes on: "LZWDecode: ...", "tempfile.tif: Using code not ...".
_DAMAGED_TIFF = (b"Decode", b"code not yet in table", b"JPEGLib: ", b"Fax3", b"PackBits")
# What libjpeg says of headers that it can do with, or that it refuses, which its callers see.
_OTHER_JPEG = (b"Invalid ", b"Unknown Adobe", b"Unsupported ")
_DECODER_LINES = (*_DAMAGED_JPEG, *_DAMAGED_TIFF, *_OTHER_JPEG)
_one_at_a_time = threading.Lock()


@contextmanager
def captured_messages(*, known_only: bool = True) -> Iterator[list[bytes]]:
    """Collect the lines that decoders write inside the block; the list is filled at its end.

    It costs some microseconds.

    Parameters
    ----------
    known_only : pass on lines that are not known to be of a decoder, which other threads of the
        process may write; else all lines are collected.
    """
    messages: list[bytes] = []
    with _one_at_a_time:
        usual = os.dup(2)
        file = os.memfd_create("messages")
        os.dup2(file, 2)
        try:
            yield messages
        finally:
            os.dup2(usual, 2)
            size = os.lseek(file, 0, os.SEEK_CUR)
            lines = os.pread(file, size, 0).splitlines(keepends=True) if size else []
            os.close(file)
            for line in lines:
                if not known_only or any(known in line for known in _DECODER_LINES):
                    messages.append(line)
                else:
                    os.write(usual, line)
            os.close(usual)


def decode_jpeg(content: NDArray[np.uint8], flags: int) -> NDArray[np.uint8] | None:
    """Decode a JPEG through OpenCV; None where it cannot be, or its data are damaged.

    Parameters
    ----------
    content : the bytes of the file.
    flags : of ``cv2.imdecode``.
    """
    with captured_messages() as messages:
        picture = cv2.imdecode(content, flags)
    if picture is None or is_overwritten(content) or coded_as_text(content.tobytes()):
        return None
    if any(is_damage(line, content) for line in messages):
        return None
    return np.asarray(picture, np.uint8)


def has_damaged_data(content: NDArray[np.uint8]) -> bool:
    """Say whether the entropy-coded data of a JPEG are damaged, as libjpeg or their bytes tell.

    All data are decoded, and the picture at an eighth of its size, which is a third faster. What
    OpenCV cannot read is not called damaged: another decoder may read it.
    """
    if is_overwritten(content):
        return True
    with captured_messages() as messages:
        cv2.imdecode(content, cv2.IMREAD_REDUCED_GRAYSCALE_8)
    return any(is_damage(line, content) for line in messages)


def is_damage_of_tiff(line: bytes) -> bool:
    """Say whether a line of libtiff tells of damaged data."""
    return any(known in line for known in _DAMAGED_TIFF)


def is_damage(line: bytes, content: NDArray[np.uint8]) -> bool:
    """Say whether a line of libjpeg tells of damage to the picture.

    Bytes too many before a marker of the header are none, nor are zeros that encoders pad with.
    """
    if not line.startswith(_DAMAGED_JPEG):
        return False
    words = line.split()
    if b"extraneous" not in words:
        return True
    count, marker = int(words[3]), int(words[-1], 16)
    if marker not in _AFTER_DATA:
        return False
    return bytes(count) + bytes([0xFF, marker]) not in content.tobytes()
