"""DICOM files as a transfer or a program leaves them: as text, without a preamble."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from factories.deviations import STORED, compressed, jpeg, twelve
from factories.images import dicom, noise, read_grey, save_dicom
from medvq.errors import UnreadableImage
from medvq.images.formats import is_dicom, read_image
from medvq.images.formats.identity import identify
from medvq.images.formats.notes import recorded
from pydicom.dataset import FileDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian


@pytest.mark.parametrize(
    "header",
    [
        twelve(),
        dicom(noise(64, 64)),
        dicom(noise(50, 70, 3), "RGB"),
        compressed(jpeg(noise(64, 64)), dicom(noise(64, 64))),  # which ended the process
    ],
)
def test_a_transfer_as_text_is_refused(tmp_path: Path, header: FileDataset) -> None:
    path = save_dicom(tmp_path / "x.dcm", header)
    content = path.read_bytes()
    read_image(path)
    path.write_bytes(content.replace(b"\n", b"\r\n"))
    with pytest.raises(UnreadableImage, match=r"transfer as text.*FTP.*: transfer it anew"):
        read_image(path)


@pytest.mark.parametrize("implicit", [True, False])
def test_a_header_that_was_transferred_as_text_is_refused(tmp_path: Path, implicit: bool) -> None:
    # Texts of ten letters: their length is a line feed.
    header = twelve(
        SpecificCharacterSet="ISO_IR 100", PatientName="Ann^Canary", StationName="B" * 10
    )
    path = tmp_path / "x.dcm"
    header.file_meta.TransferSyntaxUID = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)[implicit]
    pydicom.dcmwrite(path, header, implicit_vr=implicit, little_endian=True)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    with pytest.raises(UnreadableImage, match="transfer as text"):
        read_image(path)


def test_pixels_that_look_like_line_ends_are_read(tmp_path: Path) -> None:
    stored = np.full((48, 80), 0x0A0D, np.uint16)  # little-endian: a carriage return, a line feed
    stored[::2] = 4095
    header = dicom(stored, bits=12, DataSetTrailingPadding=bytes(64))
    np.testing.assert_allclose(
        read_grey(save_dicom(tmp_path / "x.dcm", header)), stored / 4095, atol=1e-6
    )


def test_a_file_without_a_preamble_is_read(tmp_path: Path) -> None:
    path = save_dicom(tmp_path / "x.dcm", twelve(PatientID="7"))
    bare = tmp_path / "bare"
    bare.write_bytes(path.read_bytes()[128:])
    assert is_dicom(bare)
    np.testing.assert_allclose(read_grey(bare), STORED / 4095, atol=1e-6)
    identity = identify(bare)
    assert identity is not None
    assert identity.subject == "7"


def test_pixels_whose_returns_became_line_feeds_are_told(tmp_path: Path) -> None:
    stored = noise(200, 200)
    for pixels, told in ((stored, 0), (np.where(stored == 13, 10, stored), 1)):
        with recorded() as notes:
            read_image(save_dicom(tmp_path / "x.dcm", dicom(pixels.astype(np.uint8))))
        assert sum("carriage return" in text for text in notes.notices) == told
