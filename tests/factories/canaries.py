"""Canaries: values planted where patients are named, and a search that finds them if wrapped."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset, FileDataset
from pydicom.tag import Tag

MARK = "KANARI"
DATE, TIME, UID_ROOT, AGE = "19431217", "112347.918273", "1.2.826.0.1.3680043.9.77431", "087Y"
NUMBER = "713.204618"
_COMMAND, _FILE_META = 0x0000, 0x0002

IDENTIFYING = Path(__file__).parent / "identifying_attributes.txt"
"""Keywords of the attributes that DICOM PS3.15 Annex E, Table E.1-1 (2026c) has de-identifiers
remove or replace."""


def plant(header: FileDataset, subject: int) -> None:
    """Fill every identifying attribute of ``header`` with a canary that its type allows."""
    for number, keyword in enumerate(IDENTIFYING.read_text().split()):
        value = _canary(dictionary_VR(keyword), f"{subject:02d}{number:03d}")
        group = Tag(keyword).group
        if group == _FILE_META:
            setattr(header.file_meta, keyword, value)
        elif group != _COMMAND:  # which no file holds
            setattr(header, keyword, value)
    header.PatientID = f"{MARK}-{subject:03d}"
    header.StudyInstanceUID = f"{UID_ROOT}.{subject}.1"
    header.SeriesInstanceUID = f"{UID_ROOT}.{subject}.2"
    private = header.private_block(0x1109, f"{MARK} private", create=True)
    private.add_new(0x01, "LO", f"{MARK} private {subject}")


def _canary(kind: str, serial: str) -> object:
    if kind == "SQ":
        inside = Dataset()
        inside.PatientName, inside.StudyDate = f"{MARK}^Inside", DATE
        return [inside]
    values: dict[str, object] = {
        "DA": DATE,
        "TM": TIME,
        "DT": DATE + TIME,
        "UI": f"{UID_ROOT}.9.{int(serial)}",
        "AS": AGE,
        "DS": NUMBER,
        "IS": "71320461",
        "US": 61321,
        "PN": f"{MARK}^Ann{serial}",
    }
    text = f"{MARK} {serial}"
    return values.get(kind, text.encode() if kind in {"OB", "UN"} else text)


def needles() -> dict[str, bytes]:
    """What is searched for, by how it would be written."""
    plain = [MARK, MARK.title(), MARK.lower(), DATE, UID_ROOT, TIME, NUMBER]
    plain += ["1943-12-17", "17.12.1943", "12/17/1943", "11:23:47"]
    forms: dict[str, bytes] = {}
    for text in plain:
        forms |= {
            text: text.encode(),
            f"{text} in UTF-16, little-endian": text.encode("utf-16-le"),
            f"{text} in UTF-16, big-endian": text.encode("utf-16-be"),
            f"{text} reversed": text[::-1].encode(),
            f"{text} in hex": text.encode().hex().encode(),
            f"{text} in HEX": text.encode().hex().upper().encode(),
        }
    return forms


def leaks(content: bytes, origin: str = "") -> list[str]:
    """Every canary in ``content``, also in what is packed inside it; ``origin: canary``."""
    found = [
        f"{name or 'itself'}: {form}"
        for name, part in _unpacked(content, origin)
        for form, needle in needles().items()
        if needle in part
    ]
    return sorted(set(found))


def leaks_below(folder: Path) -> list[str]:
    """Every canary in the names and the bytes of what lies below ``folder``."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        found += leaks(name.encode(), "a name")
        if path.is_symlink():
            found += leaks(str(path.readlink()).encode(), "a link")
        elif path.is_file():
            found += leaks(path.read_bytes(), name)
    return found


def _unpacked(content: bytes, name: str) -> Iterator[tuple[str, bytes]]:
    yield name, content
    if content[:2] == b"\x1f\x8b":
        yield from _unpacked(gzip.decompress(content), f"{name} > gzip")
    elif content[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in archive.namelist():
                yield from _unpacked(archive.read(member), f"{name} > {member}")
    elif content[:4] == b"PAR1":
        table = pq.read_table(pa.BufferReader(content))
        yield f"{name} > schema", str((table.schema.metadata, table.schema)).encode()
        for column in table.column_names:
            if not pa.types.is_nested(table[column].type):  # features and codes
                yield f"{name} > {column}", "\n".join(map(str, table[column].to_pylist())).encode()
    elif content[:6] == b"\x93NUMPY":
        array = np.load(io.BytesIO(content), allow_pickle=True)
        if array.dtype.kind in "OUS":
            yield f"{name} > array", "\n".join(map(str, array.ravel().tolist())).encode()


def save(header: Dataset, path: Path) -> None:
    """Write a header with whatever values were planted in it."""
    before = pydicom.config.settings.writing_validation_mode
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        header.save_as(path)
    finally:
        pydicom.config.settings.writing_validation_mode = before
