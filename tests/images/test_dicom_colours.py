"""DICOM in colour, and inverted, whose header and pixels say different things."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from factories.dcmtk import shown_by_dcmtk
from factories.deviations import STORED, compressed, smooth, twelve
from factories.formats import jpeg_lossless, jpeg_ls
from factories.images import Array, dicom, save_dicom
from medvq.errors import UnreadableImage
from medvq.images.formats import read_image
from medvq.images.formats.notes import recorded
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEG2000, JPEG2000Lossless, RLELossless

COLOUR = np.stack([smooth(), smooth()[::-1], smooth()[:, ::-1]], axis=-1)
SHOWN = np.moveaxis(COLOUR, -1, 0) / 255
THEIRS = "PhotometricInterpretation contradicts the compressed pixels: theirs is used"
SHAPE = "PresentationLUTShape contradicts PhotometricInterpretation: the shape is used"
SMALL = "the values fill a small part of their range: shown over the part that they fill"


def stream(kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    Image.fromarray(COLOUR).save(content, kind, **options)
    return content.getvalue()


def jpeg_in_colour(photometric: str, planar: int = 0) -> tuple[FileDataset, Array]:
    content = stream("JPEG", quality=100)
    header = compressed(content, dicom(COLOUR, "RGB"))
    header.PhotometricInterpretation, header.PlanarConfiguration = photometric, planar
    return header, np.moveaxis(np.asarray(Image.open(io.BytesIO(content))), -1, 0) / 255


def read(path: Path, header: FileDataset, channels: int = 3) -> tuple[Array, tuple[str, ...]]:
    with recorded() as notes:
        shown = read_image(save_dicom(path, header), channels)
    return shown, notes.notices


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("photometric", ["YBR_FULL", "YBR_FULL_422"])
def test_a_jpeg_is_colour_by_pixel_whatever_the_header_says(
    tmp_path: Path, photometric: str, planar: int
) -> None:
    header, expected = jpeg_in_colour(photometric, planar)
    shown, notices = read(tmp_path / "x.dcm", header)
    np.testing.assert_allclose(shown, expected, atol=1.01 / 255)
    assert notices == ()


@pytest.mark.parametrize("name", ["YBR_PARTIAL_420", "YBR_PARTIAL_422", "YBR_ICT", "YBR_RCT"])
def test_a_jpeg_is_no_transform_of_jpeg_2000_and_no_film(tmp_path: Path, name: str) -> None:
    header, expected = jpeg_in_colour(name)
    shown, notices = read(tmp_path / "x.dcm", header)
    np.testing.assert_allclose(shown, expected, atol=1.01 / 255)
    assert notices == (THEIRS,)


def adobe(transform: int) -> bytes:
    return b"\xff\xee\0\x0eAdobe\0\x64" + bytes(4) + bytes([transform])


def marked(content: bytes, marker: bytes) -> bytes:
    """Put another marker in the place of the first, which is JFIF's or Adobe's."""
    length = int.from_bytes(content[4:6], "big")
    return content[:2] + marker + content[4 + length :]


def unnamed(content: bytes) -> bytes:
    """Call the components of a JPEG of red, green and blue 1, 2 and 3, as most encoders do."""
    frame, scan = content.find(b"\xff\xc0") + 10, content.find(b"\xff\xda") + 5
    named = bytearray(content)
    named[frame : frame + 9 : 3] = named[scan : scan + 6 : 2] = b"\1\2\3"
    return bytes(named)


@pytest.mark.parametrize(
    ("theirs", "marker", "subsampling", "stated"),
    [
        ("YBR_FULL", adobe(1), 0, "RGB"),
        ("YBR_FULL", b"", 1, "RGB"),
        ("YBR_FULL", b"", 2, "RGB"),  # as GDCM writes them
        ("RGB", adobe(0), 0, "YBR_FULL"),
        ("RGB", adobe(0), 0, "YBR_FULL_422"),
    ],
)
def test_a_jpeg_that_tells_its_colours_is_shown_in_them(
    tmp_path: Path, theirs: str, marker: bytes, subsampling: int, stated: str
) -> None:
    is_rgb = theirs == "RGB"
    content = stream("JPEG", quality=100, subsampling=subsampling, keep_rgb=is_rgb)
    expected = np.moveaxis(np.asarray(Image.open(io.BytesIO(content))), -1, 0) / 255
    content = marked(unnamed(content) if is_rgb else content, marker)
    header = compressed(content, dicom(COLOUR, "RGB"))
    header.PhotometricInterpretation = stated
    shown, notices = read(tmp_path / "x.dcm", header)
    np.testing.assert_allclose(shown, expected, atol=2.01 / 255)
    assert notices == (THEIRS,)


@pytest.mark.parametrize("stated", ["RGB", "YBR_FULL"])
def test_a_jpeg_that_tells_nothing_of_its_colours_holds_what_the_header_says(
    tmp_path: Path, stated: str
) -> None:
    options = {"quality": 100, "subsampling": 0, "keep_rgb": stated == "RGB"}
    content = stream("JPEG", **options)
    expected = np.moveaxis(np.asarray(Image.open(io.BytesIO(content))), -1, 0) / 255
    content = marked(unnamed(content) if stated == "RGB" else content, b"")
    header = compressed(content, dicom(COLOUR, "RGB"))
    header.PhotometricInterpretation = stated
    shown, notices = read(tmp_path / "x.dcm", header)
    np.testing.assert_allclose(shown, expected, atol=1.01 / 255)
    assert notices == ()


@pytest.mark.usefixtures("dcmtk")
@pytest.mark.parametrize("save", [jpeg_lossless, jpeg_ls])
def test_a_marker_of_jfif_says_nothing_of_a_lossless_stream(
    tmp_path: Path, save: Callable[[FileDataset, Path], None]
) -> None:
    path = tmp_path / "x.dcm"
    save(dicom(COLOUR, "RGB"), path)
    header = dcmread(path)
    (content,) = generate_frames(header.PixelData, number_of_frames=1)
    jfif = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
    header.PixelData = encapsulate([content[:2] + jfif + content[2:]])
    shown, notices = read(path, header)
    np.testing.assert_allclose(shown, SHOWN, atol=1e-6)
    assert notices == ()
    by_dcmtk = shown_by_dcmtk(path)
    assert by_dcmtk is not None
    np.testing.assert_allclose(shown, by_dcmtk, atol=1e-6)


@pytest.mark.usefixtures("dcmtk")
@pytest.mark.parametrize(("name", "planar"), [("YBR_PARTIAL_422", 0), ("YBR_FULL_422", 1)])
def test_dcmtk_shows_the_same_colours(tmp_path: Path, name: str, planar: int) -> None:
    path = save_dicom(tmp_path / "x.dcm", jpeg_in_colour(name, planar)[0])
    shown = shown_by_dcmtk(path)
    assert shown is not None
    np.testing.assert_allclose(read_image(path, 3), shown, atol=1.01 / 255)


@pytest.mark.parametrize("name", ["YBR_PARTIAL_420", "YBR_PARTIAL_422", "YBR_ICT", "YBR_RCT"])
@pytest.mark.parametrize("run_lengths", [False, True])
def test_other_pixels_in_colours_that_they_cannot_have_are_refused(
    tmp_path: Path, name: str, run_lengths: bool
) -> None:
    header = dicom(COLOUR, "RGB")
    if run_lengths:
        header.compress(RLELossless)
    header.PhotometricInterpretation = name
    with pytest.raises(UnreadableImage, match="that pixels of this transfer syntax cannot have"):
        read(tmp_path / "x.dcm", header)


@pytest.mark.parametrize("name", ["RGB", "YBR_RCT", "YBR_ICT", "YBR_FULL", "YBR_PARTIAL_420"])
@pytest.mark.parametrize("lossless", [False, True])
def test_the_transform_of_jpeg_2000_is_undone_once(
    tmp_path: Path, name: str, lossless: bool
) -> None:
    content = stream("JPEG2000", irreversible=not lossless, mct=1, no_jp2=True)
    header = dicom(COLOUR, "RGB")
    header = compressed(content, header, JPEG2000Lossless if lossless else JPEG2000)
    header.PhotometricInterpretation = name
    shown, notices = read(tmp_path / "x.dcm", header)
    np.testing.assert_allclose(shown, SHOWN, atol=(0.1 if lossless else 6) / 255)
    assert notices == ((THEIRS,) if name not in {"RGB", "YBR_RCT", "YBR_ICT"} else ())


def test_jpeg_2000_without_a_transform_holds_what_the_header_says(tmp_path: Path) -> None:
    header = dicom(COLOUR, "RGB")
    header = compressed(stream("JPEG2000", mct=0, no_jp2=True), header, JPEG2000Lossless)
    np.testing.assert_allclose(read(tmp_path / "x.dcm", header)[0], SHOWN, atol=1e-6)
    raw = dicom(COLOUR, "RGB", PhotometricInterpretation="YBR_FULL")
    expected, _ = read(tmp_path / "raw.dcm", raw)
    header.PhotometricInterpretation = "YBR_FULL"
    shown, notices = read(tmp_path / "x.dcm", header)
    np.testing.assert_allclose(shown, expected, atol=1e-6)
    assert notices == ()


def test_signed_colour_is_refused(tmp_path: Path) -> None:
    header = dicom(COLOUR, "RGB", PixelRepresentation=1)
    with pytest.raises(UnreadableImage, match="PixelRepresentation says that it is signed"):
        read(tmp_path / "x.dcm", header)


def test_colour_of_8_bits_in_16_is_shown_over_the_part_that_is_used(tmp_path: Path) -> None:
    header = dicom(COLOUR.astype(np.uint16), "RGB", 16)
    shown, notices = read(tmp_path / "x.dcm", header)
    np.testing.assert_allclose(shown, SHOWN, atol=1e-6)
    assert notices == (SMALL,)


@pytest.mark.usefixtures("dcmtk")
@pytest.mark.parametrize("shape", ["", "IDENTITY", "INVERSE"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_the_presentation_lut_shape_says_what_is_inverted(
    tmp_path: Path, photometric: str, shape: str
) -> None:
    header = dicom(STORED, photometric, 12)
    if shape:
        header.PresentationLUTShape = shape
    inverted = shape == "INVERSE" if shape else photometric == "MONOCHROME1"
    path = tmp_path / "x.dcm"
    shown, notices = read(path, header, 1)
    np.testing.assert_allclose(shown[0], 1 - STORED / 4095 if inverted else STORED / 4095)
    assert notices == ((SHAPE,) if inverted != (photometric == "MONOCHROME1") else ())
    by_dcmtk = shown_by_dcmtk(path)
    assert by_dcmtk is not None
    np.testing.assert_allclose(shown[0], by_dcmtk[0], atol=1 / 255)


@pytest.mark.parametrize("bits", [12, 24])
def test_bits_allocated_of_no_whole_bytes_are_refused_in_words(tmp_path: Path, bits: int) -> None:
    with pytest.raises(UnreadableImage, match="BitsAllocated is none of 1, 8, 16"):
        read(tmp_path / "x.dcm", twelve(BitsAllocated=bits), 1)


def test_a_negative_number_of_frames_and_pixels_of_no_bytes(tmp_path: Path) -> None:
    shown, _ = read(tmp_path / "x.dcm", twelve(NumberOfFrames=-1), 1)
    np.testing.assert_allclose(shown[0], STORED / 4095, atol=1e-6)
    with pytest.raises(UnreadableImage, match="PixelData is empty"):
        read(tmp_path / "x.dcm", twelve(PixelData=b""), 1)


@pytest.mark.parametrize(("highest", "top"), [(30000, 65535), (16383, 16383), (4095, 4095)])
def test_a_table_that_is_dim_is_not_brightened_unless_it_is_black(
    tmp_path: Path, highest: int, top: int
) -> None:
    entries = np.linspace(0, highest, 4096).astype(np.uint16)
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4096, 0, 16])
    item.add_new("LUTData", "OW", entries.tobytes())
    shown, notices = read(tmp_path / "x.dcm", twelve(VOILUTSequence=[item]), 1)
    np.testing.assert_allclose(shown[0], entries[STORED] / top, atol=1e-6)
    assert len(notices) == (top < 65535)


def test_an_empty_functional_group_takes_nothing_back(tmp_path: Path) -> None:
    group = Dataset()
    group.FrameVOILUTSequence = [Dataset()]
    header = twelve(WindowCenter=2000, WindowWidth=1000, SharedFunctionalGroupsSequence=[group])
    shown, _ = read(tmp_path / "x.dcm", header, 1)
    expected = np.clip((STORED - 1999.5) / 999 + 0.5, 0, 1)
    np.testing.assert_allclose(shown[0], expected, atol=1e-5)


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("contradicts", [False, True])
def test_colour_lies_by_pixel_or_by_plane_as_its_pixels_show(
    tmp_path: Path, planar: int, grey: bool, contradicts: bool
) -> None:
    picture = np.repeat(COLOUR[..., :1], 3, axis=-1) if grey else COLOUR
    header = dicom(picture, "RGB")
    header.PixelData = (picture.transpose(2, 0, 1) if planar else picture).tobytes()
    header.PlanarConfiguration = 1 - planar if contradicts else planar
    shown, notices = read(tmp_path / "x.dcm", header)
    np.testing.assert_array_equal(shown, np.moveaxis(picture, -1, 0) / np.float32(255))
    told = "colour that lies {}, other than PlanarConfiguration says: read as it lies"
    lies = "plane by plane" if planar else "pixel by pixel"
    assert notices == ((told.format(lies),) if contradicts else ())
