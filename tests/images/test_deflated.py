"""Deflated DICOM: the same picture as without, and never more memory than its header says."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from factories.images import dicom, noise, read_grey, save_dicom
from medvq.errors import UnreadableImage
from medvq.images.formats import deflated
from medvq.images.formats.identity import identify
from medvq.images.formats.parsing import parse
from pydicom.uid import DeflatedExplicitVRLittleEndian


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """One picture, as it is and deflated."""
    header = dicom(noise(60, 70).astype(np.uint16) * 16, bits=12, PatientID="p")
    plain = save_dicom(tmp_path / "plain.dcm", header)
    header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    return plain, save_dicom(tmp_path / "deflated.dcm", header)


def longer(file: Path, by: int) -> None:
    """Let the deflated data set go on with zeros."""
    content = file.read_bytes()
    plain = deflated.inflate(file, pixels=True)
    assert plain is not None
    data_set = plain.read()
    for start in range(132, len(content)):
        try:
            found = zlib.decompress(content[start:], -zlib.MAX_WBITS)
        except zlib.error:
            continue
        if data_set.endswith(found) and len(found) > 1000:
            break
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    pieces = [deflater.compress(found)]
    pieces += [deflater.compress(bytes(2**20)) for _ in range(by >> 20)]
    file.write_bytes(content[:start] + b"".join(pieces) + deflater.flush())


def test_it_is_the_same_picture(pair: tuple[Path, Path]) -> None:
    plain, packed = pair
    np.testing.assert_array_equal(read_grey(packed), read_grey(plain))
    assert identify(packed) == identify(plain)
    assert parse(packed).file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian
    assert deflated.inflate(plain, pixels=True) is None


def test_far_more_data_than_the_header_says_are_refused(pair: tuple[Path, Path]) -> None:
    plain, packed = pair
    longer(packed, 2**26)
    assert packed.stat().st_size < 2**17
    with pytest.raises(UnreadableImage, match="far longer than the size in the header says"):
        read_grey(packed)
    # Of a header only the beginning is inflated.
    assert identify(packed) == identify(plain)
    beginning = deflated.inflate(packed, pixels=False)
    assert isinstance(beginning, io.BytesIO)
    assert len(beginning.getvalue()) < deflated._ELEMENTS + 1000


def test_damaged_data_are_refused(pair: tuple[Path, Path]) -> None:
    _, packed = pair
    packed.write_bytes(packed.read_bytes()[:-3000] + b"\xff" * 100)
    with pytest.raises(UnreadableImage):
        read_grey(packed)
