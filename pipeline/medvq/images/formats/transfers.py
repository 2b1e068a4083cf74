"""Files that were transferred as text: an FTP client in ASCII mode, or a mail, changes line ends.

Each line feed of the data then follows a carriage return that is none of them, and shifts the rest.
"""

from __future__ import annotations

TRANSFERRED_AS_TEXT = (
    "damaged by a transfer as text, which puts a byte before every line feed (FTP in ASCII mode): "
    "transfer it anew, as binary"
)
"""The reason of a file that is refused because of it."""

MAY_HAVE_LOST_RETURNS = (
    "no byte of the pixels is a carriage return, and line feeds are twice as many as should be: "
    "where it was transferred as text from an old system, transfer it anew, as binary"
)
"""The notice of a file that :func:`lacks_returns`."""

# By which it can be told.
_FEWEST_LINE_FEEDS = 8
_BEGINNING = 2**14  # bytes
SAMPLE = 2**22
"""Bytes that suffice for :func:`lacks_returns`."""
_FEWEST_NEIGHBOURS, _TWICE = 64, 1.5
_NEIGHBOURS = (9, 11, 12, 14, 15)
_START_OF_SCAN = b"\xff\xda"  # ITU-T T.81 table B.1


def ends_lines_as_text(data: bytes) -> bool:
    r"""Say whether every line feed follows a carriage return, as by chance it does not.

    >>> lines = b"\r\n" * 10_000
    >>> ends_lines_as_text(lines), ends_lines_as_text(lines + b"\n")
    (True, False)
    """
    # Counting takes as long as decoding does; the beginning of other data mostly suffices.
    if not _all_follow_returns(data[:_BEGINNING]):
        return False
    return data.count(b"\n") >= _FEWEST_LINE_FEEDS and _all_follow_returns(data)


def lacks_returns(data: bytes) -> bool:
    r"""Say whether carriage returns seem to have become line feeds, by how often bytes occur.

    >>> noise = bytes(range(256)) * 100
    >>> lacks_returns(noise), lacks_returns(noise.replace(b"\r", b"\n"))
    (False, True)
    """
    sample = data[:SAMPLE]
    if b"\r" in sample:
        return False
    others = [sample.count(bytes([byte])) for byte in _NEIGHBOURS]
    expected = sum(others) / len(others)
    return min(others) >= _FEWEST_NEIGHBOURS and sample.count(b"\n") > _TWICE * expected


def _all_follow_returns(data: bytes) -> bool:
    return data.count(b"\n") == data.count(b"\r\n")


def coded_as_text(jpeg: bytes) -> bool:
    """Say whether so do the coded data of a JPEG: its header may hold text with such lines."""
    return ends_lines_as_text(jpeg[max(jpeg.find(_START_OF_SCAN), 0) :])
