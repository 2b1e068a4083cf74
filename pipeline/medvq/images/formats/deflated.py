"""Deflated DICOM (PS3.5 annex A.5) in bounded memory: a few bytes can stand for gigabytes."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from medvq.errors import UnreadableImage
from medvq.images.formats.display import check_frame, check_size

# Where the file header ends at the latest, in bytes; it names the transfer syntax.
_FILE_HEADER = 4096
# Bytes that all elements before the pixels have at most, and all after them.
_ELEMENTS, _AFTER_PIXELS = 2**24, 2**20
_SYNTAX = DeflatedExplicitVRLittleEndian.encode()


def inflate(path: Path, *, pixels: bool) -> BinaryIO | None:
    """Return a deflated file as one that is not; None of any other file.

    Parameters
    ----------
    pixels : also all that follows the header, as much as its size says; else its beginning alone.

    Raises
    ------
    UnreadableImage
        The data are damaged, or far more than the size in the header says.
    """
    with path.open("rb") as stream:
        if _SYNTAX not in stream.read(_FILE_HEADER):
            return None
        stream.seek(0)
        read_preamble(stream, force=False)
        if _read_file_meta_info(stream).get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return None
        start = stream.tell()
        content = stream.read()
        stream.seek(0)
        head = stream.read(start).replace(_SYNTAX, ExplicitVRLittleEndian.encode().ljust(22, b"\0"))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflater.decompress(content, _ELEMENTS)
        if pixels and inflater.unconsumed_tail:
            most = _pixel_bytes(io.BytesIO(head + data)) + _AFTER_PIXELS
            data += inflater.decompress(inflater.unconsumed_tail, most)
            if inflater.unconsumed_tail:
                raise UnreadableImage("deflated data far longer than the size in the header says")
    except zlib.error as error:
        raise UnreadableImage("not a readable image: its data are damaged or cut off") from error
    return io.BytesIO(head + data)


def _pixel_bytes(stream: BinaryIO) -> int:
    header = pydicom.dcmread(stream, stop_before_pixels=True)
    frames, samples = int(header.get("NumberOfFrames") or 1), int(header.get("SamplesPerPixel", 1))
    rows, columns = int(header.get("Rows", 0)), int(header.get("Columns", 0))
    check_size(rows, columns, frames, samples)
    check_frame(rows, columns)
    return rows * columns * frames * samples * (int(header.get("BitsAllocated", 16)) + 7) // 8
