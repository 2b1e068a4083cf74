"""DICOM data sets, with the file header of PS3.10 or without."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medvq.images.formats.deflated import inflate
from medvq.images.formats.magic import DICM, begins_as_data_set
from medvq.images.formats.notes import applied


def parse(path: Path, **options: Any) -> Dataset:
    """Read a file as :func:`pydicom.dcmread`, also where it lacks preamble or file header.

    A file without a stated transfer syntax has that in which its data set is written.

    Raises
    ------
    InvalidDicomError
        The file does not begin as DICOM.
    UnreadableImage
        Deflated data are damaged, or far longer than the header says.
    """
    if inflated := inflate(path, pixels=not options.get("stop_before_pixels")):
        header = pydicom.dcmread(inflated, **options)
        header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        return header
    try:
        header = pydicom.dcmread(path, **options)
    except InvalidDicomError:
        with path.open("rb") as stream:
            head = stream.read(132)
        if head.startswith(DICM):
            header = pydicom.dcmread(io.BytesIO(bytes(128) + path.read_bytes()), **options)
            applied("read without a preamble")
        elif begins_as_data_set(head):
            header = pydicom.dcmread(path, force=True, **options)
            applied("read without a file header")
        else:
            raise
    if "TransferSyntaxUID" not in header.file_meta:
        is_implicit, is_little = header.original_encoding
        explicit = ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
        header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else explicit
    return header
