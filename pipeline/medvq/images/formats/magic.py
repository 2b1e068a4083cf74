"""What a file is, by its first bytes."""

from __future__ import annotations

import re

# The first element of a data set without the file header: file meta information, or group 8.
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00")
_FIRST_BIG_ENDIAN = frozenset({b"\x00\x08\x00" + bytes([element]) for element in range(0x20)})
# The value representations of PS3.5 that the first elements of those groups have.
_FIRST_REPRESENTATIONS = frozenset({b"UL", b"OB", b"UI", b"CS", b"DA", b"SH", b"LO"})
DICM = b"DICM"
"""What PS3.10 puts before the file header, after 128 bytes that some programs leave out."""
# Bytes; the first elements are dates, identifiers and codes.
_LONGEST_FIRST_VALUE = 256
_PICTURES = (
    b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM"
)  # fmt: skip

_HEIF = "an image of a phone or the web (HEIC, AVIF); save it as PNG or JPEG"
_FILM = "a film; save the frames that are images as files of their own"
_PAGE = "a page of a server, as it answers where a download fails; fetch the file anew"
HEAD = 348
"""Bytes by which :func:`foreign` tells what a file is: those of a NIfTI-1 header."""
# What people find under the name of an image: where a mark stands, the mark, what it tells.
_FOREIGN = (
    (0, (b"PK\3\4",), "a zip archive or a document of an office program; unpack it"),
    (0, (b"Rar!\x1a\7", b"7z\xbc\xaf\x27\x1c"), "an archive (RAR, 7z); unpack it"),
    (0, (b"GIF8",), "a GIF; save it as PNG"),
    (0, (b"8BPS",), "a file of Photoshop (PSD); save it as PNG"),
    (0, (b"\x89HDF\r\n\x1a\n",), "HDF5; save its images as PNG or NIfTI"),
    (
        0,
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",),
        "a document of an office program; export its images",
    ),
    (4, (b"ftyphei", b"ftyphev", b"ftypmif", b"ftypmsf", b"ftypavi"), _HEIF),
    (4, (b"ftypisom", b"ftypmp4", b"ftypqt", b"ftypM4V", b"ftypavc", b"ftyp3gp"), _FILM),
    (8, (b"AVI LIST",), _FILM),
    (0, (b"\0\0\0\x0cJXL \r\n\x87\n",), "a JPEG XL; save it as PNG"),
    (0, (b"%PDF",), "a PDF; export its images"),
    (0, (b"version https://git-lfs",), "a pointer of Git LFS; fetch the file (git lfs pull)"),
    (0, (b"/annex/objects/",), "a pointer of git-annex; fetch the file (datalad get)"),
    (0, (bytes(HEAD),), "zeros, as where a copy or a download was not finished; fetch it anew"),
)
_SVG = "a drawing (SVG); save it as PNG"
_XML = "XML, as a drawing (SVG), to be saved as PNG, or an answer of a server; fetch the file anew"
_JSON = re.compile(rb'[\[{]\s*["{]')
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_GZIP, _NIFTI = b"\x1f\x8b", (b"n+1\0", b"ni1\0", b"n+2\0")


def foreign(head: bytes, suffix: str) -> str:
    """Say what a file is that cannot be read under its name, with the way out; empty if unknown.

    Parameters
    ----------
    head : its first :data:`HEAD` bytes, or all of a shorter file.
    suffix : "dicom", "nifti", "picture" or "table": what its name says.
    """
    plain = head.lstrip()
    for start, marks, kind in _FOREIGN:
        if (head[start:] if start else plain).startswith(marks):
            return kind
    if markup := _markup(plain.removeprefix(_BYTE_ORDER_MARK).lower()):
        return markup
    if _JSON.match(plain):
        answer = "JSON, as a server answers; fetch the file anew"
        return "JSON; save it as CSV" if suffix == "table" else answer
    if plain.startswith(b"--") and b"content-type:" in plain.lower():
        return "an answer of a DICOMweb server in several parts; save each part as a file"
    if head.startswith(_GZIP) and suffix != "nifti":
        return "compressed by gzip; unpack it (gunzip)"
    # A table may begin with BM, as a bitmap does.
    is_named = suffix in {"picture", "table"}
    if begins_as_picture(head) and not is_named and head[128:132] != DICM:
        return "a picture; give its name the suffix of one"
    if head[344:348] in _NIFTI and suffix != "nifti":
        return "a NIfTI volume; give its name the suffix .nii"
    if head[128:132] == DICM and suffix == "nifti":
        return "a DICOM file; give its name the suffix .dcm"
    return ""


def _markup(lower: bytes) -> str:
    """Say what markup a text is, by its beginning in lower-case letters; empty if it is none."""
    if not lower.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg", b"<!--")):
        return ""
    if b"<svg" in lower or b"<!doctype svg" in lower:
        return _SVG
    return _PAGE if any(tag in lower for tag in (b"html", b"<error")) else _XML


def begins_as_dicom(head: bytes) -> bool:
    """Say whether a file begins as DICOM, with the preamble and file header of PS3.10 or without.

    Parameters
    ----------
    head : the first 132 bytes, or all of a shorter file.
    """
    return DICM in (head[128:132], head[:4]) or begins_as_data_set(head)


def begins_as_data_set(head: bytes) -> bool:
    r"""Say whether a file begins with a DICOM element, as old archives export them.

    >>> begins_as_data_set(b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100")
    True
    """
    if head[:4] in _FIRST_BIG_ENDIAN:
        return head[4:6] in _FIRST_REPRESENTATIONS
    if len(head) < 12 or head[:2] not in _FIRST_GROUPS or head[2:4] > b"\x80\x00":
        return False
    if head[4:6] in _FIRST_REPRESENTATIONS:
        return True
    return int.from_bytes(head[4:8], "little") <= _LONGEST_FIRST_VALUE


def begins_as_picture(head: bytes) -> bool:
    """Say whether a file begins as PNG, JPEG, TIFF, BMP or WebP."""
    return head.startswith(_PICTURES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
