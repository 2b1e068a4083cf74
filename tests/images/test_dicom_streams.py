"""Compressed DICOM pixels whose streams say other than the header, or are in no known syntax."""

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from factories.dcmtk import shown_by_dcmtk
from factories.deviations import STORED, compressed, jpeg, smooth
from factories.formats import by_gdcm
from factories.images import Array, dicom, ramp, read_grey, save_dicom
from medvq.errors import UnreadableImage
from medvq.images.formats import read_image
from medvq.images.formats.notes import recorded
from PIL import Image
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

MORE_BITS = "the compressed pixels use more bits than BitsStored: theirs are used"
# GDCM writes streams of 16 bits. Where each states its depth, and that of 12 bits.
DEPTHS = {
    "JPEG2000Lossless": (b"\xff\x51", 40, 11),
    "JPEGLosslessProcess14_1": (b"\xff\xc3", 4, 12),
}


def of_12_bits(stored: Array, bits: int, syntax: str, path: Path) -> Path:
    """A stream of 12 bits, which holds values above half its range, beneath ``bits`` stored."""
    # Both count from the middle of the range: 2048 instead of 32768.
    by_gdcm(syntax, dicom((stored + (2**15 - 2**11)).astype(np.uint16)), path)
    header = pydicom.dcmread(path)
    marker, after, depth = DEPTHS[syntax]
    stream = bytearray(header.PixelData)
    at = stream.index(marker) + after
    assert stream[at] == depth + 4
    stream[at] = depth
    header.PixelData = bytes(stream)
    header.BitsStored, header.HighBit = bits, bits - 1
    return save_dicom(path, header)


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("syntax", DEPTHS)
def test_a_stream_of_more_bits_than_the_header_says(tmp_path: Path, syntax: str, bits: int) -> None:
    path = of_12_bits(STORED, bits, syntax, tmp_path / "x.dcm")
    with recorded() as notes:
        np.testing.assert_allclose(read_grey(path), STORED / 4095, atol=1e-6)
    assert notes.notices == (MORE_BITS,)


@pytest.mark.parametrize("syntax", DEPTHS)
def test_values_of_the_bits_stored_are_shown_over_those(tmp_path: Path, syntax: str) -> None:
    path = of_12_bits(STORED >> 2, 10, syntax, tmp_path / "x.dcm")
    with recorded() as notes:
        np.testing.assert_allclose(read_grey(path), (STORED >> 2) / 1023, atol=1e-6)
    assert notes.notices == ()


@pytest.mark.usefixtures("dcmtk")
@pytest.mark.parametrize("syntax", [*DEPTHS, "JPEGLSLossless"])
def test_bits_above_those_stored_in_a_stream_of_all_are_dropped_and_told(
    tmp_path: Path, syntax: str
) -> None:
    by_gdcm(syntax, dicom(STORED), tmp_path / "x.dcm")
    header = pydicom.dcmread(tmp_path / "x.dcm")
    header.BitsStored, header.HighBit = 8, 7
    path = save_dicom(tmp_path / "x.dcm", header)
    with recorded() as notes:
        shown = read_grey(path)
    np.testing.assert_allclose(shown, (STORED & 255) / 255, atol=1e-6)
    assert notes.notices == ("pixels use more bits than BitsStored: those above are ignored",)
    beside = shown_by_dcmtk(path)
    if beside is not None:  # dcmtk has no JPEG 2000
        np.testing.assert_allclose(shown, beside[0], atol=1 / 255)


def test_an_unsigned_jpeg_2000_under_a_header_that_says_signed_is_told(tmp_path: Path) -> None:
    """As in pydicom's J2K_pixelrep_mismatch.dcm: signed values in an unsigned stream."""
    stored = 16 * ramp(16, 20).astype(np.int16) - 2048
    by_gdcm("JPEG2000Lossless", dicom((stored & 4095).astype(np.uint16), bits=12), tmp_path / "x")
    header = pydicom.dcmread(tmp_path / "x")
    header.PixelRepresentation, header.WindowCenter, header.WindowWidth = 1, 0, 4096
    with recorded() as notes:
        shown = read_grey(save_dicom(tmp_path / "x.dcm", header))
    np.testing.assert_allclose(shown, (stored + 2048) / 4095, atol=1e-6)
    told = "JPEG 2000 pixels are unsigned, and PixelRepresentation says signed: signed"
    assert notes.notices == (told,)


@pytest.mark.parametrize("number", [52, 53, 55, 59, 66])
def test_a_transfer_syntax_that_is_retired_is_named(tmp_path: Path, number: int) -> None:
    syntax = f"1.2.840.10008.1.2.4.{number}"
    path = save_dicom(tmp_path / "x.dcm", compressed(jpeg(smooth()), dicom(smooth()), syntax))
    with pytest.raises(UnreadableImage, match=r"not read \(JPEG .*\): save them uncompressed"):
        read_image(path)


@pytest.mark.parametrize("kind", ["JPEG", "JPEG 2000", "run-length"])
@pytest.mark.parametrize("table", [False, True])
def test_frames_that_the_header_does_not_count_are_not_dropped(
    tmp_path: Path, kind: str, table: bool
) -> None:
    picture = smooth()
    header, syntax = dicom(picture), JPEGBaseline8Bit
    stream = jpeg(picture)
    if kind == "JPEG 2000":
        coded, syntax = io.BytesIO(), JPEG2000Lossless
        Image.fromarray(picture).save(coded, "JPEG2000", no_jp2=True, irreversible=False)
        stream = coded.getvalue()
    elif kind == "run-length":
        header.compress(RLELossless, encoding_plugin="pydicom")
        (stream,), syntax = generate_frames(header.PixelData, number_of_frames=1), RLELossless
    path = tmp_path / "x.dcm"
    # In two fragments, where that is allowed, they are one frame.
    parts = 1 if kind == "run-length" else 2
    header.PixelData = encapsulate([stream], fragments_per_frame=parts, has_bot=table)
    header["PixelData"].VR = "OB"
    header.file_meta.TransferSyntaxUID = syntax
    np.testing.assert_allclose(read_grey(save_dicom(path, header)), picture / 255, atol=3 / 255)
    header.PixelData = encapsulate([stream, stream], fragments_per_frame=parts, has_bot=table)
    with pytest.raises(UnreadableImage, match="another number of frames than the header says"):
        read_image(save_dicom(path, header))
