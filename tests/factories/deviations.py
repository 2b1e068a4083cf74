"""DICOM files as people have them, beside the standard: headers that pydicom would not write."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from factories.images import Array, dicom
from PIL import Image
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import JPEGBaseline8Bit

STORED = (np.arange(48 * 80) % 4096).reshape(48, 80).astype(np.uint16)
"""A ramp of 12 bits, (48, 80)."""
BYTES = (STORED >> 4).astype(np.uint8)


def twelve(**elements: Any) -> FileDataset:
    return dicom(STORED, bits=12, **elements)


def without(name: str, header: FileDataset) -> FileDataset:
    delattr(header, name)
    return header


def with_text(header: FileDataset, **elements: str) -> FileDataset:
    """Set decimal or integer text that pydicom itself would not write."""
    for name, value in elements.items():
        tag = Tag(name)
        kind = "IS" if name == "NumberOfFrames" else "DS"
        content = value.encode() + b" " * (len(value) % 2)
        header[tag] = RawDataElement(tag, kind, len(content), content, 0, False, True)
    return header


def with_bytes(data: bytes, header: FileDataset) -> FileDataset:
    header.PixelData = data
    return header


def jpeg(picture: Array, **options: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "JPEG", quality=100, **options)
    return content.getvalue()


def compressed(stream: bytes, header: FileDataset, syntax: str = JPEGBaseline8Bit) -> FileDataset:
    header.PixelData = encapsulate([stream])
    header["PixelData"].VR = "OB"
    header.file_meta.TransferSyntaxUID = syntax
    return header


def smooth(height: int = 48, width: int = 80) -> Array:
    rows, columns = np.mgrid[:height, :width]
    return (100 + 60 * np.sin(rows / 9) + 60 * np.cos(columns / 13)).astype(np.uint8)
