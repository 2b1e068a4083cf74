"""DICOM that cannot be read right: refused with a reason in words."""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories.deviations import (
    BYTES,
    compressed,
    jpeg,
    smooth,
    twelve,
    with_bytes,
    with_text,
    without,
)
from factories.images import dicom, noise, save_dicom
from medvq.errors import UnreadableImage
from medvq.images.formats import read_image
from medvq.images.formats.identity import identify
from PIL import Image
from pydicom.dataset import FileDataset
from pydicom.uid import HTJ2K, JPEG2000Lossless, VLWholeSlideMicroscopyImageStorage


def label_map(header: FileDataset, uid: str, **elements: Any) -> FileDataset:
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = uid
    for name, value in elements.items():
        setattr(header, name, value)
    return header


def real_numbers(name: str, kind: type[np.floating[Any]]) -> FileDataset:
    header = dicom(Rows=48, Columns=80, BitsAllocated=8 * kind().itemsize)
    setattr(header, name, smooth().astype(kind).tobytes())
    return header


def tiny_jpeg_2000(rows: int, columns: int) -> bytes:
    """The header of a stream that declares a size, and next to nothing after it."""
    content = io.BytesIO()
    Image.fromarray(noise(16, 16)).save(content, "JPEG2000", no_jp2=True)
    stream = bytearray(content.getvalue())
    size = columns.to_bytes(4, "big") + rows.to_bytes(4, "big")
    stream[8:16] = size
    stream[24:32] = size  # the one tile is as large
    return bytes(stream)


def huge(rows: int, columns: int) -> FileDataset:
    header = compressed(tiny_jpeg_2000(rows, columns), dicom(BYTES), JPEG2000Lossless)
    header.Rows, header.Columns = rows, columns
    return header


def damaged(stream: bytes) -> bytes:
    """A JPEG with 60 bytes in its middle overwritten."""
    middle = len(stream) // 2
    return stream[:middle] + noise(60).tobytes().replace(b"\xff", b"\0") + stream[middle + 60 :]


ROOT = "1.2.840.10008.5.1.4."
REFUSED: dict[str, tuple[Callable[[], FileDataset], str]] = {
    "label map segmentation": (
        lambda: label_map(dicom(BYTES), f"{ROOT}1.1.66.7", Modality="SEG"),
        "no image: a segmentation",
    ),
    "height map segmentation": (
        lambda: label_map(dicom(BYTES), f"{ROOT}1.1.66.8"), "no image: a segmentation",
    ),
    "segmentation of a vendor's class": (
        lambda: label_map(dicom(BYTES), "1.2.3.4", SegmentationType="BINARY"),
        "no image: a segmentation",
    ),
    "dose of a vendor's class": (
        lambda: label_map(dicom(BYTES), "1.2.3.4", Modality="RTDOSE"),
        "no image: a dose distribution",
    ),
    "structured report without a name": (
        lambda: label_map(dicom(BYTES), f"{ROOT}1.1.88.999"), "no image: a structured report",
    ),
    "object of radiotherapy without a name": (
        lambda: label_map(dicom(BYTES), f"{ROOT}1.1.481.999"), "no image: an object of radioth",
    ),
    "tractography": (
        lambda: label_map(dicom(BYTES), f"{ROOT}1.1.66.6"), "no image",
    ),
    "colour palette": (
        lambda: label_map(dicom(BYTES), f"{ROOT}39.1"), "no image: Color Palette Storage",
    ),
    "Rows of the header and of the stream": (
        lambda: compressed(jpeg(smooth(40, 80)), dicom(smooth())),
        "of another size than the header says",
    ),
    "samples of the header and of the stream": (
        lambda: compressed(jpeg(np.stack([smooth()] * 3, -1)), dicom(smooth())),
        "another number of samples",
    ),
    "16,384 x 16,384 in a few hundred bytes": (
        lambda: huge(8192, 8192), "too few bytes of compressed pixels",
    ),
    "4,096 x 4,096 in a few hundred bytes": (
        lambda: huge(4096, 4096), "too few bytes of compressed pixels",
    ),
    "JPEG damaged in the middle": (
        lambda: compressed(damaged(jpeg(smooth())), dicom(smooth())), "pixels are damaged",
    ),
    "JPEG cut off": (
        lambda: compressed(jpeg(smooth())[:-300], dicom(smooth())), "no decoder reads",
    ),
    "JPEG cut off with the marker of an end": (
        lambda: compressed(jpeg(smooth())[:-300] + b"\xff\xd9", dicom(smooth())), "are damaged",
    ),
    "HTJ2K": (
        lambda: compressed(tiny_jpeg_2000(48, 80), dicom(smooth()), HTJ2K),
        "no decoder reads .High-Throughput JPEG 2000 .*: fetch the file anew, or save them uncomp",
    ),
    "rows wider than the header says": (
        lambda: with_bytes(smooth().tobytes(), dicom(smooth()[:, :79])), "longer than the size",
    ),
    "black rows wider than the header says": (
        lambda: with_bytes(
            np.where(np.arange(48)[:, None] < 46, smooth(), 0).astype(np.uint8).tobytes(),
            dicom(smooth()[:, :79]),
        ),
        "longer than the size",
    ),
    "BitsStored above BitsAllocated": (
        lambda: twelve(BitsStored=20), "BitsStored is more than BitsAllocated",
    ),
    "HighBit below BitsStored": (lambda: twelve(HighBit=5), "HighBit contradicts BitsStored"),
    "HighBit above BitsAllocated": (lambda: twelve(HighBit=99), "HighBit contradicts BitsStored"),
    "pixels of real numbers": (
        lambda: real_numbers("FloatPixelData", np.float32), "real numbers .FloatPixelData.",
    ),
    "pixels of real numbers of 64 bits": (
        lambda: real_numbers("DoubleFloatPixelData", np.float64), "DoubleFloatPixelData",
    ),
    "pixels that lie elsewhere": (
        lambda: label_map(dicom(Rows=48, Columns=80), "1.2.3.4", PixelDataProviderURL="http://a/b"),
        "lie on a server, which PixelDataProviderURL names",
    ),
    "BitsAllocated missing": (
        lambda: without("BitsAllocated", twelve()), "BitsAllocated is missing",
    ),
    "BitsStored missing": (lambda: without("BitsStored", twelve()), "BitsStored is missing"),
    "photometric interpretation missing": (
        lambda: without("PhotometricInterpretation", twelve()),
        "PhotometricInterpretation is missing",
    ),
    **{
        f"NumberOfFrames of {value:.6}": (
            partial(lambda frames: with_text(twelve(), NumberOfFrames=frames), value),
            "NumberOfFrames is no whole number",
        )
        for value in ("1E155", "9" * 400, "two", "1.5")
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_a_deviation_that_cannot_be_read_right_is_refused(tmp_path: Path, kind: str) -> None:
    make, reason = REFUSED[kind]
    path = save_dicom(tmp_path / "x.dcm", make())
    with pytest.raises(UnreadableImage, match=reason):
        read_image(path)
    identity = identify(path)
    assert identity is not None
    assert bool(identity.no_image) == reason.startswith("no image")


def test_jpeg_xl_is_refused_by_its_transfer_syntax(tmp_path: Path) -> None:
    header = compressed(b"\xff\x0a" + bytes(60), dicom(smooth()), HTJ2K)
    path = save_dicom(tmp_path / "x.dcm", header)
    lossless = "1.2.840.10008.1.2.4.110"  # which pydicom does not know, nor writes
    path.write_bytes(path.read_bytes().replace(HTJ2K.encode(), lossless.encode()))
    with pytest.raises(UnreadableImage, match=f"is not read .{lossless}.: save them uncompressed"):
        read_image(path)


def test_the_label_of_a_slide_is_no_image(tmp_path: Path) -> None:
    kind = ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]
    header = dicom(BYTES, ImageType=kind, SOPClassUID=VLWholeSlideMicroscopyImageStorage)
    path = save_dicom(tmp_path / "x.dcm", header)
    with pytest.raises(UnreadableImage, match="the label of a slide, which may name the patient"):
        read_image(path)
    found = identify(path)
    assert found
    assert "the label of a slide" in found.no_image
    header.ImageType = [*kind[:2], "OVERVIEW", "NONE"]
    assert read_image(save_dicom(tmp_path / "x.dcm", header)).shape == (1, *BYTES.shape)
