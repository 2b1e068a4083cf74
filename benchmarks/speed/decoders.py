"""A decoder alone, for worker processes, which import this module: it imports little."""

from __future__ import annotations

from pathlib import Path


def decode_by_gdcm(path: Path) -> int:
    """Decode a DICOM file by GDCM and do nothing with the pixels; return how many there are."""
    import gdcm  # type: ignore[import-untyped]  # a C++ library without stubs

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    if not reader.Read():
        raise ValueError("GDCM cannot read the file")
    return len(reader.GetImage().GetBuffer())
