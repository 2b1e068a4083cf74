"""DICOM as people have it: read right and told, or refused with a reason in words.

Each file is built here from an array, and the expected picture from the formulas of PS3.3. Where
dcmtk reads a file as the standard says, its picture is a second opinion.
"""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
import pytest
from factories.dcmtk import shown_by_dcmtk
from factories.deviations import (
    BYTES,
    STORED,
    compressed,
    jpeg,
    smooth,
    twelve,
    with_bytes,
    with_text,
    without,
)
from factories.formats import by_gdcm
from factories.images import Array, dicom, ramp, read_grey, save_dicom
from medvq.errors import UnreadableImage
from medvq.images.formats import read_image
from medvq.images.formats.identity import identify
from medvq.images.formats.notes import recorded
from numpy.typing import ArrayLike
from PIL import Image
from pydicom.dataset import FileDataset
from pydicom.tag import Tag
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
    VLEndoscopicImageStorage,
)

ALL_BITS = STORED / 4095
WINDOW = {"WindowCenter": 2000, "WindowWidth": 1000}
FIRST_WINDOW = ("+Wi", "1")


def linear(values: ArrayLike, center: float, width: float) -> Array:
    """Show values through a window, PS3.3 C.11.2.1.2.1."""
    return np.clip((np.asarray(values) - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


WINDOWED = linear(STORED, 2000, 1000)


class Deviation(NamedTuple):
    """A header, the picture that is right, what is told, and how dcmtk is asked, if it is."""

    header: FileDataset
    expected: Array
    notice: str = ""
    dcmtk: tuple[str, ...] | None = None


NO_RESCALE = {"RescaleSlope": 1, "RescaleIntercept": 0, **WINDOW}
BAD_WINDOW = "WindowCenter or WindowWidth is no usable number: that window is passed over"
SAMPLES = "SamplesPerPixel is missing: taken from the photometric interpretation"
ABOVE = "pixels use more bits than BitsStored: those above are ignored"
EXCESS = "bytes after the pixels: ignored"
DEPTH = "the JPEG stream has another depth than BitsAllocated: its own is used"
SHIFTED = "HighBit is not BitsStored - 1: pixels shifted"
SIGNED = STORED.astype(np.int16) - 2048
GREY_JPEG = np.asarray(Image.open(io.BytesIO(jpeg(smooth()))))
DEVIATIONS = {
    "RescaleSlope of 0": Deviation(
        twelve(RescaleSlope=0, RescaleIntercept=0, **WINDOW),
        WINDOWED,
        "RescaleSlope is 0: ignored",
        FIRST_WINDOW,
    ),
    "RescaleSlope empty": Deviation(
        twelve(RescaleSlope=None, RescaleIntercept=-5, **WINDOW),
        WINDOWED,
        "RescaleSlope is empty: ignored",
        FIRST_WINDOW,
    ),
    "RescaleIntercept empty": Deviation(
        twelve(RescaleSlope=2, RescaleIntercept=None, **WINDOW),
        WINDOWED,
        "RescaleIntercept is empty: ignored",
        FIRST_WINDOW,
    ),
    "rescale empty": Deviation(
        twelve(RescaleSlope=None, RescaleIntercept=None, **WINDOW),
        WINDOWED,
        "RescaleSlope is empty and RescaleIntercept is empty: ignored",
        FIRST_WINDOW,
    ),
    "RescaleIntercept missing": Deviation(
        twelve(RescaleSlope=2, **WINDOW),
        WINDOWED,
        "RescaleIntercept is missing: ignored",
        FIRST_WINDOW,
    ),
    "RescaleSlope negative": Deviation(
        twelve(RescaleSlope=-1, RescaleIntercept=4095, **WINDOW),
        linear(4095 - STORED.astype(int), 2000, 1000),
        "",
        FIRST_WINDOW,
    ),
    "WindowCenter with a decimal comma": Deviation(
        with_text(twelve(WindowWidth=1000), WindowCenter="2047,5"), ALL_BITS, BAD_WINDOW
    ),
    "WindowWidth of letters": Deviation(
        with_text(twelve(WindowCenter=2000), WindowWidth="wide"), ALL_BITS, BAD_WINDOW
    ),
    "WindowWidth missing": Deviation(twelve(WindowCenter=2000), ALL_BITS, BAD_WINDOW),
    "the second of two windows is good": Deviation(
        with_text(twelve(), WindowCenter="x\\2000", WindowWidth="5\\1000"), WINDOWED, BAD_WINDOW
    ),
    "window between spaces": Deviation(
        with_text(twelve(), WindowCenter=" 2000 ", WindowWidth=" 1000 "),
        WINDOWED,
        "",
        FIRST_WINDOW,
    ),
    "WindowWidth of 0": Deviation(
        twelve(WindowCenter=2000, WindowWidth=0),
        ALL_BITS,
        "WindowWidth or VOILUTFunction is not valid: that window is passed over",
        (),
    ),
    "HighBit 15 of 12 bits": Deviation(
        with_bytes((STORED << 4).tobytes(), twelve(HighBit=15)), ALL_BITS, SHIFTED, ()
    ),
    "HighBit 13 of 12 bits, the lower ones not empty": Deviation(
        with_bytes(((STORED << 2) + 3).astype(np.uint16).tobytes(), twelve(HighBit=13)),
        ALL_BITS,
        SHIFTED,
        (),
    ),
    "HighBit missing": Deviation(without("HighBit", twelve()), ALL_BITS, "", ()),
    "values above BitsStored": Deviation(
        with_bytes((STORED + (STORED % 2 << 13)).tobytes(), twelve()), ALL_BITS, ABOVE, ()
    ),
    "negative values without the bits of their sign": Deviation(
        with_bytes((SIGNED.astype(np.uint16) & 4095).tobytes(), dicom(SIGNED, bits=12, **WINDOW)),
        linear(SIGNED, 2000, 1000),
        "",
        FIRST_WINDOW,
    ),
    "two bytes after the pixels": Deviation(
        with_bytes(STORED.tobytes() + b"\1\2", twelve()), ALL_BITS, EXCESS, ()
    ),
    "bytes after the pixels, an odd number of rows and columns": Deviation(
        with_bytes(STORED[:, :79].tobytes() + bytes(range(50)), dicom(STORED[:, :79], bits=12)),
        ALL_BITS[:, :79],
        EXCESS,
        (),
    ),
    "a row of zeros after the pixels": Deviation(
        with_bytes(STORED.tobytes() + bytes(160), twelve()), ALL_BITS, EXCESS, ()
    ),
    "photometric interpretation in lower case": Deviation(
        twelve(PhotometricInterpretation="monochrome2"), ALL_BITS, "", ()
    ),
    "photometric interpretation with a space": Deviation(
        twelve(PhotometricInterpretation="MONOCHROME 1"), 1 - ALL_BITS, "", ()
    ),
    "SamplesPerPixel missing": Deviation(
        without("SamplesPerPixel", twelve()), ALL_BITS, SAMPLES, ()
    ),
    "SamplesPerPixel missing in colour": Deviation(
        without("SamplesPerPixel", dicom(np.stack([BYTES] * 3, -1), "RGB")), BYTES / 255, SAMPLES
    ),
    "PixelRepresentation missing": Deviation(
        without("PixelRepresentation", twelve()),
        ALL_BITS,
        "PixelRepresentation is missing, or neither 0 nor 1: unsigned pixels",
    ),
    "JPEG of 8 bits under 16 allocated": Deviation(
        compressed(jpeg(smooth()), dicom(smooth().astype(np.uint16), bits=8)),
        GREY_JPEG / 255,
        DEPTH,
        (),
    ),
    "JPEG of 8 bits under 12 stored": Deviation(
        compressed(jpeg(smooth()), dicom(smooth().astype(np.uint16), bits=12)),
        GREY_JPEG / 255,
        DEPTH,
        (),
    ),
    "NumberOfFrames of 0": Deviation(
        with_text(twelve(), NumberOfFrames="0"), ALL_BITS, "", ()
    ),
}  # fmt: skip
for _absurd in ("1E155", "inf", "-inf", "NaN", "9" * 400):
    DEVIATIONS |= {
        f"WindowCenter of {_absurd:.6}": Deviation(
            with_text(twelve(WindowWidth=1000), WindowCenter=_absurd), ALL_BITS, BAD_WINDOW
        ),
        f"RescaleSlope of {_absurd:.6}": Deviation(
            with_text(twelve(**NO_RESCALE), RescaleSlope=_absurd),
            WINDOWED,
            "RescaleSlope is no usable number: ignored",
        ),
        f"RescaleIntercept of {_absurd:.6}": Deviation(
            with_text(twelve(**NO_RESCALE), RescaleIntercept=_absurd),
            WINDOWED,
            "RescaleIntercept is no usable number: ignored",
        ),
    }


@pytest.mark.parametrize("kind", DEVIATIONS)
def test_a_deviation_is_read_right_and_told(tmp_path: Path, kind: str) -> None:
    header, expected, notice, _ = DEVIATIONS[kind]
    path = save_dicom(tmp_path / "x.dcm", header)
    with recorded() as notes:
        (shown,) = read_image(path)
    np.testing.assert_allclose(shown, expected, atol=1e-5)
    assert notes.notices == ((notice,) if notice else ())


@pytest.mark.usefixtures("dcmtk")
@pytest.mark.parametrize(
    "kind", [kind for kind, one in DEVIATIONS.items() if one.dcmtk is not None]
)
def test_dcmtk_shows_the_same_deviation(tmp_path: Path, kind: str) -> None:
    deviation = DEVIATIONS[kind]
    path = save_dicom(tmp_path / "x.dcm", deviation.header)
    shown = shown_by_dcmtk(path, deviation.dcmtk or ())
    assert shown is not None
    np.testing.assert_allclose(read_image(path, 3), shown, atol=1 / 255)


def test_pixels_whose_end_is_not_marked_are_read(tmp_path: Path) -> None:
    path = save_dicom(tmp_path / "x.dcm", compressed(jpeg(smooth()), dicom(smooth())))
    whole = read_image(path)
    content = path.read_bytes()
    assert content.endswith(b"\xfe\xff\xdd\xe0\0\0\0\0")
    path.write_bytes(content[:-8])
    with recorded() as notes:
        np.testing.assert_array_equal(read_image(path), whole)
    assert [text for text in notes.notices if "not marked" in text]
    path.write_bytes(content[:-200])
    with pytest.raises(UnreadableImage):
        read_image(path)


@pytest.mark.parametrize("small", [np.uint16(16), np.uint16(4)])
@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_a_small_part_of_the_range_is_shown_over_the_part_that_is_used(
    tmp_path: Path, small: np.uint16, photometric: str
) -> None:
    values = STORED // small  # of 14 bits; the highest has 8 or 10
    header = dicom(values, photometric, 14)
    path = save_dicom(tmp_path / "x.dcm", header)
    bits = int(values.max()).bit_length()
    expected = values / (2**bits - 1)
    expected = expected if photometric == "MONOCHROME2" else 1 - expected
    with recorded() as notes:
        np.testing.assert_allclose(read_image(path)[0], expected, atol=1e-6)
    assert len(notes.notices) == 1
    header.BitsStored, header.HighBit = bits, bits - 1
    with recorded() as notes:
        shown = read_image(save_dicom(path, header))
    np.testing.assert_allclose(shown[0], expected, atol=1e-6)
    assert notes.notices == ()


def test_a_declared_range_goes_before_percentiles(tmp_path: Path) -> None:
    values = (8000 + STORED // 5).astype(np.uint16)  # of 16 bits, from 8000 to 8819
    header = dicom(values)
    low, high = np.percentile(values, [0.5, 99.5])
    expected = np.clip((values - low) / (high - low), 0, 1)
    path = save_dicom(tmp_path / "x.dcm", header)
    np.testing.assert_allclose(read_image(path)[0], expected, atol=1e-5)
    header.SmallestImagePixelValue, header.LargestImagePixelValue = 7900, 9000
    shown = read_image(save_dicom(path, header))
    np.testing.assert_allclose(shown[0], (values - 7900) / 1100, atol=1e-5)


def test_a_dark_picture_of_8_bits_and_a_blank_one_stay_as_they_are(tmp_path: Path) -> None:
    dark = save_dicom(tmp_path / "dark.dcm", dicom(BYTES // 16))
    np.testing.assert_allclose(read_image(dark)[0], (BYTES // 16) / 255, atol=1e-6)
    blank = save_dicom(tmp_path / "blank.dcm", dicom(np.full((9, 9), 1000, np.uint16)))
    np.testing.assert_allclose(read_image(blank)[0], 1000 / 65535, atol=1e-6)


@pytest.mark.parametrize("value", ["1E155", "inf", "NaN", "9" * 400, "1,5", ""])
def test_no_number_of_a_header_ends_reading(tmp_path: Path, value: str) -> None:
    names = ("WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept", "PixelSpacing")
    header = with_text(twelve(Modality="CT"), **dict.fromkeys(names, value))
    with_text(header, ImagePositionPatient=value, ImageOrientationPatient=value, KVP=value)
    path = save_dicom(tmp_path / "x.dcm", header)
    assert identify(path) is not None
    with recorded() as notes:
        assert np.isfinite(read_image(path)).all()
    assert value not in " ".join(notes.notices + notes.applied) or not value


def test_a_header_without_a_value_that_pydicom_can_convert(tmp_path: Path) -> None:
    header = twelve()
    header.PixelPaddingValue = 7
    path = save_dicom(tmp_path / "x.dcm", header)
    content = path.read_bytes()
    tag = Tag("PixelPaddingValue")
    start = tag.group.to_bytes(2, "little") + tag.elem.to_bytes(2, "little")
    path.write_bytes(content.replace(start + b"US\2\0\7\0", start + b"DS\2\0x "))
    np.testing.assert_allclose(read_image(path)[0], ALL_BITS, atol=1e-6)


def test_digits_that_are_grouped_are_no_number(tmp_path: Path) -> None:
    header = twelve(RescaleSlope=1, RescaleIntercept=0)
    file = save_dicom(tmp_path / "x.dcm", with_text(header, RescaleSlope="1_0"))
    with recorded() as notes:
        np.testing.assert_allclose(read_image(file)[0], STORED / 4095, atol=1e-6)
    assert "RescaleSlope is no usable number: ignored" in notes.notices


@pytest.mark.parametrize("bits", [12, 16])
def test_signed_jpeg_2000_under_a_header_that_says_unsigned(tmp_path: Path, bits: int) -> None:
    stored = (8 * ramp(16, 20).astype(np.int32) - 1000).astype(np.int16)
    header = dicom(stored, bits=bits, Modality="CT", WindowCenter=0, WindowWidth=2000)
    expected = read_grey(save_dicom(tmp_path / "raw.dcm", header))
    by_gdcm("JPEG2000Lossless", header, tmp_path / "signed.dcm")
    changed = pydicom.dcmread(tmp_path / "signed.dcm")
    changed.PixelRepresentation = 0
    changed.save_as(tmp_path / "unsigned.dcm")
    for name, notices in (("signed.dcm", 0), ("unsigned.dcm", 1)):
        with recorded() as notes:
            np.testing.assert_allclose(read_grey(tmp_path / name), expected, atol=1e-6)
        assert sum("JPEG 2000 pixels are signed" in line for line in notes.notices) == notices


@pytest.mark.parametrize(
    ("name", "sides", "told"),
    [
        ("PixelSpacing", [0.4, 0.2], True),
        ("PixelAspectRatio", [12, 10], True),
        ("ImagerPixelSpacing", [0.2, 0.2001], False),
        ("PixelSpacing", [0, 0], False),
    ],
)
def test_pixels_that_are_not_square_are_told(
    tmp_path: Path, name: str, sides: list[float], told: bool
) -> None:
    with recorded() as notes:
        shown = read_grey(save_dicom(tmp_path / "x.dcm", dicom(ramp(), **{name: sides})))
    np.testing.assert_allclose(shown, ramp() / 255, atol=1e-6)
    assert any("not square" in line for line in notes.notices) == told


@pytest.mark.parametrize(
    ("storage", "states", "told"),
    [
        (DigitalXRayImageStorageForPresentation, "YES", "BurnedInAnnotation is YES"),
        (DigitalXRayImageStorageForPresentation, "NO", ""),
        (DigitalXRayImageStorageForPresentation, None, ""),
        (SecondaryCaptureImageStorage, "YES ", "BurnedInAnnotation is YES"),
        (SecondaryCaptureImageStorage, None, "a secondary capture"),
        (MultiFrameGrayscaleByteSecondaryCaptureImageStorage, "", "a secondary capture"),
        (SecondaryCaptureImageStorage, "NO", ""),
        (VLEndoscopicImageStorage, None, ""),
    ],
)
def test_text_that_may_name_the_patient_is_told(
    tmp_path: Path, storage: str, states: str | None, told: str
) -> None:
    elements = {} if states is None else {"BurnedInAnnotation": states}
    path = save_dicom(tmp_path / "x.dcm", dicom(ramp(), SOPClassUID=storage, **elements))
    with recorded() as notes:
        read_image(path)
    notices = [line for line in notes.notices if "may name the patient" in line]
    assert [line.startswith(told) for line in notices] == ([True] if told else [])


@pytest.mark.parametrize(
    ("modality", "states", "told"), [("US", None, True), ("US", "NO", False), ("DX", None, False)]
)
def test_ultrasound_that_may_name_the_patient_is_told(
    tmp_path: Path, modality: str, states: str | None, told: bool
) -> None:
    header = twelve(Modality=modality, **({"BurnedInAnnotation": states} if states else {}))
    with recorded() as notes:
        read_grey(save_dicom(tmp_path / "x.dcm", header))
    assert any(text.startswith("ultrasound whose Burned") for text in notes.notices) == told
