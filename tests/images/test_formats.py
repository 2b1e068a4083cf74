"""Reading: the same picture from every format, upright, or one reason why not."""

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from factories.formats import FORMATS, nifti, save_encapsulated
from factories.images import (
    Array,
    dicom,
    noise,
    ramp,
    read_grey,
    save_dicom,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from medvq.errors import UnreadableImage
from medvq.images.formats import read_image
from PIL import Image
from pydicom.dataset import FileDataset
from pydicom.uid import (
    MPEG2MPML,
    BasicTextSRStorage,
    EncapsulatedPDFStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    JPEGBaseline8Bit,
    RTStructureSetStorage,
    SegmentationStorage,
)

RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize("kind", FORMATS)
@settings(
    max_examples=8,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(height=st.integers(2, 40), width=st.integers(2, 40), seed=st.integers(0, 2**16))
def test_the_same_picture_from_every_format(
    tmp_path: Path, kind: str, height: int, width: int, seed: int
) -> None:
    if "JPEG" in kind:
        # GDCM's encoders, which only this test uses, fail on tiny sizes and on odd lengths.
        height, width = height + 4, 2 * width + 4
    picture = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    name, write = FORMATS[kind]
    write(picture, tmp_path / name)
    grey = read_grey(tmp_path / name)
    assert grey.dtype == np.float32
    np.testing.assert_allclose(grey, picture / 255, atol=1e-6)
    in_colour = read_image(tmp_path / name, channels=3)
    np.testing.assert_allclose(in_colour, np.stack([picture / 255] * 3), atol=1e-6)


def test_colour_is_kept_or_weighed(tmp_path: Path) -> None:
    picture = noise(9, 13, 3)
    save_dicom(tmp_path / "x.dcm", dicom(picture, "RGB"))
    Image.fromarray(picture).save(tmp_path / "x.png")
    nifti(np.ascontiguousarray(picture).view(RGB)[..., 0], tmp_path / "x.nii")
    for name in ("x.dcm", "x.png", "x.nii"):
        colour = read_image(tmp_path / name, channels=3)
        np.testing.assert_allclose(colour, picture.transpose(2, 0, 1) / 255, atol=1e-6)
        grey = picture @ [0.299, 0.587, 0.114] / 255  # ITU-R BT.601
        np.testing.assert_allclose(read_image(tmp_path / name)[0], grey, atol=0.51 / 255)


def saved(header: FileDataset) -> Callable[[Path], object]:
    return lambda path: save_dicom(path, header)


def changed(**elements: Any) -> Callable[[Path], object]:
    return saved(dicom(noise(64, 64), **elements))


def cut(write: Callable[[Path], object]) -> Callable[[Path], object]:
    def write_two_thirds(path: Path) -> None:
        write(path)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) * 2 // 3])

    return write_two_thirds


def picture(stored: Array, **how: Any) -> Callable[[Path], object]:
    return lambda path: Image.fromarray(stored).save(path, **how)


def text(path: Path) -> None:
    path.write_text("Dear radiologist, here is the picture.")


def postscript(path: Path) -> None:
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")


def large(path: Path) -> None:
    """A header that says 60,000 by 60,000, and next to nothing after it."""
    start = struct.pack(">4sIIBBBBB", b"IHDR", 60000, 60000, 8, 0, 0, 0, 0)
    check = struct.pack(">I", zlib.crc32(start))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + start + check)
    with path.open("ab") as stream:
        for kind in (b"IDAT", b"IEND"):
            stream.write(struct.pack(">I4sI", 0, kind, zlib.crc32(kind)))


def twelve_bits(path: Path) -> None:
    Image.fromarray(noise(64, 64)).save(path)
    content = path.read_bytes()
    # T.81 B.2.2: the start of a frame, its length and the bits of a sample.
    assert content.count(b"\xff\xc0\0\x0b\x08") == 1
    path.write_bytes(content.replace(b"\xff\xc0\0\x0b\x08", b"\xff\xc1\0\x0b\x0c"))


def without_pixels(path: Path) -> None:
    header = dicom(noise(64, 64))
    del header.PixelData
    save_dicom(path, header)


def unknown_syntax(path: Path) -> None:
    header = dicom(noise(64, 64))
    header.file_meta.TransferSyntaxUID = "1.2.3.4.5"
    pydicom.dcmwrite(path, header, implicit_vr=False, little_endian=True)


def encapsulated(stream: bytes, syntax: str) -> Callable[[Path], object]:
    return lambda path: save_encapsulated(path, dicom(noise(64, 64)), stream, syntax)


MPEG = encapsulated(b"\0\0\1\xb3" + bytes(60), MPEG2MPML)
BROKEN_JPEG = encapsulated(b"\xff\xd8\xff\xe0" + bytes(60), JPEGBaseline8Bit)
NOISE = noise(64, 64)
PAGES = picture(ramp(), save_all=True, append_images=[Image.fromarray(ramp())])
DECODER = "not a readable image"
SHORTER = "shorter than the size in the header"
LONGER = "longer than the size in the header"
NO_RANGE = "no stated range of display"
TOO_LARGE = "more than the 268 million samples"
NO_IMAGE = "a DICOM object that is no image: "
REFUSED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "empty picture": ("Ann.png", Path.touch, "the file is empty"),
    "empty DICOM file": ("Ann.dcm", Path.touch, "the file is empty"),
    "text named as a picture": ("Ann.png", text, DECODER),
    "text named as DICOM": ("Ann.dcm", text, "not a DICOM file"),
    "text without a suffix": ("Ann", text, DECODER),
    "PNG cut off": ("Ann.png", cut(picture(NOISE)), DECODER),
    "JPEG cut off": ("Ann.jpg", cut(picture(NOISE)), DECODER),
    "JPEG of 12 bits": ("Ann.jpg", twelve_bits, "a JPEG of a kind that is not read"),
    "JPEG 2000 named as JPEG": (
        "Ann.jpg",
        picture(NOISE, format="JPEG2000"),
        "a JPEG of a kind that is not read",
    ),
    "PostScript named as a picture": ("Ann.png", postscript, DECODER),
    "TIFF of several pages": ("Ann.tif", PAGES, "several pages or frames; save each"),
    "PNG of 60,000 x 60,000": ("Ann.png", large, TOO_LARGE),
    "TIFF of 32-bit whole numbers": ("Ann.tif", picture(NOISE.astype(np.int32) * 70000), NO_RANGE),
    "TIFF of real numbers": ("Ann.tif", picture(NOISE.astype(np.float32)), NO_RANGE),
    "picture of one row": ("Ann.png", picture(NOISE[:1]), "the image is only 64x1 pixels"),
    "DICOM cut off": ("Ann.dcm", cut(changed()), SHORTER),
    "DICOM with other rows": ("Ann.dcm", changed(Rows=63), LONGER),
    "DICOM without pixels": ("Ann.dcm", without_pixels, "without pixel data"),
    "DICOM of no rows": ("Ann.dcm", changed(Rows=0), "the image has no pixels"),
    "DICOM of 8,193 x 8,192": (
        "Ann.dcm",
        changed(Rows=8193, Columns=8192),
        "more than the 67 million pixels",
    ),
    "DICOM of 65,535 x 65,535": ("Ann.dcm", changed(Rows=65535, Columns=65535), TOO_LARGE),
    "DICOM, frames in time": (
        "Ann.dcm",
        saved(dicom(np.stack([NOISE] * 3))),
        "state no place in space; save each frame",
    ),
    "DICOM, unknown transfer syntax": ("Ann.dcm", unknown_syntax, "an unknown transfer syntax"),
    "DICOM, film (MPEG)": ("Ann.dcm", MPEG, "no decoder reads"),
    "DICOM, broken JPEG": ("Ann.dcm", BROKEN_JPEG, "no decoder reads"),
    "DICOM, unknown colours": (
        "Ann.dcm",
        changed(PhotometricInterpretation="HSV"),
        "unknown photometric interpretation",
    ),
    "DICOM, RGB of one sample": (
        "Ann.dcm",
        changed(PhotometricInterpretation="RGB"),
        "contradicts the photometric interpretation",
    ),
}
REFUSED |= {
    f"DICOM, {kind}": ("Ann.dcm", changed(SOPClassUID=uid), NO_IMAGE + what)
    for kind, uid, what in (
        ("structured report", BasicTextSRStorage, "a structured report"),
        ("presentation state", GrayscaleSoftcopyPresentationStateStorage, "a presentation state"),
        ("segmentation", SegmentationStorage, "a segmentation"),
        ("RTSTRUCT", RTStructureSetStorage, "a set of structures"),
        ("encapsulated PDF", EncapsulatedPDFStorage, "an encapsulated document"),
    )
}


@pytest.mark.parametrize(("name", "write", "reason"), REFUSED.values(), ids=REFUSED)
def test_the_reason_names_no_file(
    tmp_path: Path, name: str, write: Callable[[Path], object], reason: str
) -> None:
    path = tmp_path / name
    write(path)
    with pytest.raises(UnreadableImage, match=reason) as caught:
        read_grey(path)
    assert "Ann" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def tables() -> str:
    """The formats and the refusals above, as ``docs/formats.md`` shows them."""
    read = "".join(f"| {kind} |\n" for kind in FORMATS)
    refused = "".join(f"| {kind} | {reason} |\n" for kind, (_, _, reason) in REFUSED.items())
    return (
        "## One picture, one array\n\nThe same picture in each of these gives the same array:\n\n"
        f"| format |\n|---|\n{read}\n"
        f"## Refused\n\n| file | reason, in part |\n|---|---|\n{refused}"
    )


def test_the_documentation_lists_what_is_tested_here() -> None:
    document = Path(__file__).parents[2] / "docs" / "formats.md"
    assert document.read_text(encoding="utf-8").endswith(tables())


READ_HEADERS = """
import logging, pathlib, sys
logging.basicConfig()  # as MLflow does
from {first} import {names}
from medvq.audit.acquisition import describe
from medvq.images.formats import read_image
from medvq.images.formats.identity import identify
path = pathlib.Path(sys.argv[1])
print(identify(path) is None, len(describe([path])), read_image(path).shape)
"""


@pytest.mark.parametrize(
    ("first", "names"),
    [("medvq.audit.acquisition", "describe"), ("medvq.images.formats", "is_dicom")],
)
def test_no_header_value_reaches_a_warning_or_a_log(tmp_path: Path, first: str, names: str) -> None:
    # pydicom warns of these as it reads them, and repeats them.
    named = {
        "SpecificCharacterSet": "CANARY",
        "StudyInstanceUID": "canary.1",
        "StudyDate": "canary",
    }
    path = save_dicom(tmp_path / "x.dcm", dicom(NOISE, **named))
    command = [sys.executable, "-c", READ_HEADERS.format(first=first, names=names), str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == "False 1 (1, 64, 64)\n"
    assert "canary" not in done.stderr.lower()
