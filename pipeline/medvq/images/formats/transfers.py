"""Files that were transferred as text: an FTP client in ASCII mode, or a mail, changes line ends.

Each line feed of the data then follows a carriage return that is none of them, and shifts the rest.
"""

from __future__ import annotations

TRANSFERRED_AS_TEXT = (
    "damaged by a transfer as text, which puts a byte before every line feed (FTP in ASCII mode): "
    "transfer it anew, as binary"
)
"""The reason of a file that is refused because of it."""

# By which it can be told.
_FEWEST_LINE_FEEDS = 8
_START_OF_SCAN = b"\xff\xda"  # ITU-T T.81 table B.1


def ends_lines_as_text(data: bytes) -> bool:
    r"""Say whether every line feed follows a carriage return, as by chance it does not.

    >>> ends_lines_as_text(b"\r\n" * 8), ends_lines_as_text(b"\r\n" * 8 + b"\n")
    (True, False)
    """
    line_feeds = data.count(b"\n")
    return line_feeds >= _FEWEST_LINE_FEEDS and data.count(b"\r\n") == line_feeds


def coded_as_text(jpeg: bytes) -> bool:
    """Say whether so do the coded data of a JPEG: its header may hold text with such lines."""
    return ends_lines_as_text(jpeg[max(jpeg.find(_START_OF_SCAN), 0) :])
