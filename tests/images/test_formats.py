"""Reading: the same picture from every format, upright, or one reason why not."""

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import gdcm
import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from medvq.errors import UnreadableImage
from medvq.images.formats import Image as GreyImage
from medvq.images.formats import Window, read_image
from numpy.typing import NDArray
from PIL import ExifTags, Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_voi_lut
from pydicom.uid import (
    MPEG2MPML,
    BasicTextSRStorage,
    DigitalXRayImageStorageForPresentation,
    EncapsulatedPDFStorage,
    ExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
    RTStructureSetStorage,
    SegmentationStorage,
    generate_uid,
)

RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
Array = NDArray[np.generic]
Bytes = NDArray[np.uint8]


def read_grey(path: Path) -> GreyImage:
    (grey,) = read_image(path)
    return grey


def ramp(height: int = 7, width: int = 11) -> Bytes:
    """Symmetric in no axis and under no rotation; no grey twice."""
    return (3 * np.arange(height * width).reshape(height, width)).astype(np.uint8)


def dicom(stored: Array, photometric: str = "MONOCHROME2", bits: int = 0) -> FileDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid()
    header = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID = meta.MediaStorageSOPClassUID
    header.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    header.set_pixel_data(stored, photometric, bits or 8 * stored.dtype.itemsize)
    return header


def wide(picture: Bytes) -> NDArray[np.uint16]:
    return picture.astype(np.uint16) * np.uint16(257)


def rgb(picture: Bytes) -> Bytes:
    return np.repeat(picture[..., None], 3, axis=2)


def palette(picture: Bytes) -> Image.Image:
    """Every grey v under the index v + 100."""
    image = Image.fromarray(picture + np.uint8(100)).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(np.repeat((np.arange(256) - 100) % 256, 3).astype(np.uint8).tobytes())
    return image


def by_gdcm(syntax: int, header: FileDataset, path: Path) -> None:
    header.save_as(path, enforce_file_format=True)
    reader, change, writer = (
        gdcm.ImageReader(),
        gdcm.ImageChangeTransferSyntax(),
        gdcm.ImageWriter(),
    )
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def jpeg_lossless(header: FileDataset, path: Path) -> None:
    by_gdcm(gdcm.TransferSyntax.JPEGLosslessProcess14_1, header, path)


def jpeg_ls(header: FileDataset, path: Path) -> None:
    by_gdcm(gdcm.TransferSyntax.JPEGLSLossless, header, path)


def jpeg_2000(header: FileDataset, path: Path) -> None:
    coded = io.BytesIO()
    Image.fromarray(header.pixel_array).save(coded, "JPEG2000", no_jp2=True, irreversible=False)
    header.PixelData = encapsulate([coded.getvalue()])
    header.file_meta.TransferSyntaxUID = JPEG2000Lossless
    header.save_as(path, enforce_file_format=True)


def run_length(header: FileDataset, path: Path) -> None:
    header.compress(RLELossless, encoding_plugin="pydicom")
    header.save_as(path, enforce_file_format=True)


def nifti(stored: Array, path: Path) -> None:
    """One axial slice as a scanner stores it: columns to the left, rows to the back."""
    stored = stored.T[:, :, None] if stored.ndim == 2 else stored.swapaxes(0, 1)[:, :, None]
    image = nibabel.Nifti1Image(stored, np.diag([-1.0, -1.0, 1.0, 1.0]))
    image.header["cal_max"] = 65535 if stored.dtype == np.uint16 else 0
    nibabel.save(image, path)


def to_file(name: str, make: Callable[[Bytes], Image.Image], **how: object) -> tuple[str, Callable]:
    return name, lambda picture, path: make(picture).save(path, **how)


def to_dicom(make: Callable[[Bytes], FileDataset]) -> tuple[str, Callable]:
    return "x.dcm", lambda p, path: make(p).save_as(path, enforce_file_format=True)


def windowed(picture: Bytes) -> FileDataset:
    """Signed values in other units, and the window that undoes both."""
    header = dicom(picture.astype(np.int16) * 8 - 1024, bits=12)
    header.RescaleSlope, header.RescaleIntercept = 2, 100
    header.WindowCenter, header.WindowWidth = -1948 + 8 * 255, 16 * 255
    header.VOILUTFunction = "LINEAR_EXACT"
    return header


def indexed(picture: Bytes) -> FileDataset:
    """Every grey v under the index v + 100."""
    header = dicom(picture + np.uint8(100), "PALETTE COLOR")
    table = ((np.arange(256) - 100) % 256).astype(np.uint16) * 257
    for colour in ("Red", "Green", "Blue"):
        setattr(header, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(header, f"{colour}PaletteColorLookupTableData", table.tobytes())
    return header


def ybr(picture: Bytes) -> FileDataset:
    """Grey as luminance without a difference of colours."""
    grey = np.full_like(picture, 128)
    return dicom(np.stack([picture, grey, grey], axis=-1), "YBR_FULL")


FORMATS = {
    "PNG, 8 bits": to_file("x.png", Image.fromarray),
    "PNG, 16 bits": to_file("x.png", lambda p: Image.fromarray(wide(p))),
    "PNG, three equal channels": to_file("x.png", lambda p: Image.fromarray(rgb(p))),
    "PNG, opaque": to_file("x.png", lambda p: Image.fromarray(p).convert("RGBA")),
    "PNG, palette": to_file("x.png", palette),
    "TIFF, 8 bits": to_file("x.tif", Image.fromarray),
    "TIFF, 16 bits": to_file("x.tiff", lambda p: Image.fromarray(wide(p))),
    "TIFF, CMYK": to_file("x.tif", lambda p: Image.fromarray(rgb(p)).convert("CMYK")),
    "BMP": to_file("x.bmp", Image.fromarray),
    "WebP, lossless": to_file("x.webp", lambda p: Image.fromarray(rgb(p)), lossless=True),
    "NIfTI, a slice of 8 bits": ("x.nii", nifti),
    "NIfTI, a slice of 16 bits with cal_max": ("x.nii.gz", lambda p, path: nifti(wide(p), path)),
    "DICOM, 8 bits": to_dicom(dicom),
    "DICOM, 16 bits": to_dicom(lambda p: dicom(wide(p))),
    "DICOM, 12 of 16 bits, signed, rescaled, windowed": to_dicom(windowed),
    "DICOM, MONOCHROME1, 8 bits": to_dicom(lambda p: dicom(255 - p, "MONOCHROME1")),
    "DICOM, MONOCHROME1, 16 bits": to_dicom(lambda p: dicom(65535 - wide(p), "MONOCHROME1")),
    "DICOM, RGB": to_dicom(lambda p: dicom(rgb(p), "RGB")),
    "DICOM, YBR_FULL": to_dicom(ybr),
    "DICOM, PALETTE COLOR": to_dicom(indexed),
    "DICOM, JPEG lossless, 8 bits": ("x.dcm", lambda p, path: jpeg_lossless(dicom(p), path)),
    "DICOM, JPEG lossless, 16 bits": (
        "x.dcm",
        lambda p, path: jpeg_lossless(dicom(wide(p)), path),
    ),
    "DICOM, JPEG-LS, 8 bits": ("x.dcm", lambda p, path: jpeg_ls(dicom(p), path)),
    "DICOM, JPEG-LS, 16 bits": ("x.dcm", lambda p, path: jpeg_ls(dicom(wide(p)), path)),
    "DICOM, JPEG 2000, 8 bits": ("x.dcm", lambda p, path: jpeg_2000(dicom(p), path)),
    "DICOM, JPEG 2000, 16 bits": ("x.dcm", lambda p, path: jpeg_2000(dicom(wide(p)), path)),
    "DICOM, RLE, 8 bits": ("x.dcm", lambda p, path: run_length(dicom(p), path)),
    "DICOM, RLE, 16 bits": ("x.dcm", lambda p, path: run_length(dicom(wide(p)), path)),
}


@pytest.mark.parametrize("kind", FORMATS)
@settings(
    max_examples=8,
    deadline=None,
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


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    height=st.integers(2, 12),
    width=st.integers(2, 12),
    bits=st.integers(8, 16),
    signed=st.booleans(),
    negative=st.booleans(),
    windowed=st.booleans(),
    slope=st.sampled_from([1.0, 2.0, -1.0, 0.25]),
    seed=st.integers(0, 2**16),
)
def test_any_depth_sign_and_scale(
    tmp_path: Path, height: int, width: int, bits: int, signed: bool, negative: bool,
    windowed: bool, slope: float, seed: int,
) -> None:  # fmt: skip
    share = np.random.default_rng(seed).integers(0, 2**bits, (height, width))
    low = -(2 ** (bits - 1)) if signed else 0
    kind = f"{'' if signed else 'u'}int{8 if bits == 8 else 16}"
    header = dicom((share + low).astype(kind), f"MONOCHROME{1 if negative else 2}", bits)
    if windowed:
        header.RescaleSlope, header.RescaleIntercept = slope, -1000
        middle = slope * (low + (2**bits - 1) / 2) - 1000
        header.WindowCenter, header.WindowWidth = middle, abs(slope) * (2**bits - 1)
        header.VOILUTFunction = "LINEAR_EXACT"
        shown = share / (2**bits - 1)
        shown = 1 - shown if slope < 0 else shown
    elif signed:
        ends = np.percentile(share, [0.5, 99.5])
        shown = np.clip((share - ends[0]) / max(ends[1] - ends[0], 1e-9), 0, 1)
    else:
        shown = share / (2**bits - 1)
    header.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    expected = 1 - shown if negative else shown
    np.testing.assert_allclose(read_grey(tmp_path / "x.dcm"), expected, atol=1e-4)


def test_twelve_bits_are_shown_over_twelve_bits(tmp_path: Path) -> None:
    stored = np.array([[0, 1, 2048], [4095, 7, 100]], np.uint16)
    dicom(stored, bits=12).save_as(tmp_path / "x.dcm", enforce_file_format=True)
    np.testing.assert_allclose(read_grey(tmp_path / "x.dcm"), stored / 4095, atol=1e-6)


@pytest.mark.parametrize("colour", [False, True])
def test_jpeg_to_within_its_error(tmp_path: Path, colour: bool) -> None:
    y, x = np.mgrid[:48, :80]
    picture = np.rint(120 + 60 * np.sin(x / 11) + 50 * np.cos(y / 9 + x / 30)).astype(np.uint8)
    Image.fromarray(rgb(picture) if colour else picture).save(tmp_path / "x.jpg", quality=95)
    np.testing.assert_allclose(read_grey(tmp_path / "x.jpg"), picture / 255, atol=4 / 255)


def test_one_bit(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).random((5, 9)) < 0.5
    for name in ("x.png", "x.tif"):
        Image.fromarray(bits).save(tmp_path / name)
        np.testing.assert_array_equal(read_grey(tmp_path / name), bits.astype(np.float32))


@pytest.mark.parametrize("colour", [False, True])
def test_what_is_transparent_is_black(tmp_path: Path, colour: bool) -> None:
    picture = ramp()
    opacity = np.full_like(picture, 255)
    opacity[:, 4:], opacity[:, 8:] = 128, 0
    grey = Image.fromarray(picture)
    image = grey.convert("RGBA" if colour else "LA")
    image.putalpha(Image.fromarray(opacity))
    image.save(tmp_path / "x.png")
    expected = picture / 255 * (opacity / 255)
    np.testing.assert_allclose(read_grey(tmp_path / "x.png"), expected, atol=1 / 255)


def test_a_transparent_palette_entry_is_black(tmp_path: Path) -> None:
    picture = ramp()
    gone = picture[2, 3]
    palette(picture).save(tmp_path / "x.png", transparency=int(gone) + 100)
    expected = np.where(picture == gone, 0, picture) / 255
    np.testing.assert_allclose(read_grey(tmp_path / "x.png"), expected, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_tiff_whose_zero_is_white(tmp_path: Path, bits: int) -> None:
    picture = ramp()
    stored = 255 - picture if bits == 8 else 65535 - wide(picture)
    # Pillow inverts 8 bits as it writes such a file, and not 16.
    Image.fromarray(picture if bits == 8 else stored).save(tmp_path / "x.tif", tiffinfo={262: 0})
    assert stored.tobytes() in (tmp_path / "x.tif").read_bytes()
    np.testing.assert_allclose(read_grey(tmp_path / "x.tif"), picture / 255, atol=1e-6)


TURNS: dict[int, Callable[[Bytes], Bytes]] = {
    1: lambda p: p,
    2: np.fliplr,
    3: lambda p: np.rot90(p, 2),
    4: np.flipud,
    5: np.transpose,
    6: np.rot90,
    7: lambda p: np.rot90(p, 2).T,
    8: lambda p: np.rot90(p, -1),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("bits", [8, 16])
def test_exif_rotation_is_undone(tmp_path: Path, orientation: int, bits: int) -> None:
    turned = np.ascontiguousarray(TURNS[orientation](ramp()))
    image = Image.fromarray(turned if bits == 8 else wide(turned))
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(tmp_path / "x.png", exif=exif)
    np.testing.assert_allclose(read_grey(tmp_path / "x.png"), ramp() / 255, atol=1e-6)


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize(
    ("kind", "slope", "intercept"), [("uint16", None, None), ("uint16", 2, -1024), ("int16", 1, 0)]
)
def test_a_window_as_the_standard_has_it(
    tmp_path: Path, kind: str, slope: float | None, intercept: float | None, photometric: str
) -> None:
    low, high = (0, 4096) if kind == "uint16" else (-2048, 2048)
    stored = np.random.default_rng(1).integers(low, high, (9, 14)).astype(kind)
    header = dicom(stored, photometric, bits=12)
    header.WindowCenter, header.WindowWidth = 700, 900
    if slope is not None:
        header.RescaleSlope, header.RescaleIntercept = slope, intercept
    header.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    value = stored * float(slope or 1) + float(intercept or 0)
    shown = np.clip((value - 699.5) / 899 + 0.5, 0, 1)  # PS3.3 C.11.2.1.2.1
    theirs = apply_voi_lut(value, header).astype(float)
    theirs = (theirs - theirs.min()) / (theirs.max() - theirs.min())
    np.testing.assert_allclose(shown, theirs, atol=1e-9)
    expected = 1 - shown if photometric == "MONOCHROME1" else shown
    np.testing.assert_allclose(read_grey(tmp_path / "x.dcm"), expected, atol=1e-6)


@pytest.mark.parametrize("window_too", [False, True])
def test_a_table_of_greys_goes_before_a_window(tmp_path: Path, window_too: bool) -> None:
    table = np.random.default_rng(2).permutation(256).astype(np.uint16)
    stored = np.random.default_rng(3).integers(0, 256, (6, 10)).astype(np.uint16)
    header = dicom(stored, bits=12)
    entry = Dataset()
    entry.LUTDescriptor, entry.LUTData = [256, 0, 8], table.tolist()
    entry["LUTDescriptor"].VR, entry["LUTData"].VR = "US", "US"
    header.VOILUTSequence = [entry]
    if window_too:
        header.WindowCenter, header.WindowWidth = 700, 900
    header.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    np.testing.assert_allclose(read_grey(tmp_path / "x.dcm"), table[stored] / 255, atol=1e-6)


def read_back(header: FileDataset, path: Path) -> NDArray[np.float32]:
    header.save_as(path / "x.dcm", enforce_file_format=True)
    return read_grey(path / "x.dcm")


def test_of_several_windows_the_first_is_shown(tmp_path: Path) -> None:
    stored = np.arange(0, 200, dtype=np.uint16).reshape(10, 20)
    header = dicom(stored, bits=12)
    header.WindowCenter, header.WindowWidth = [100, 40], [101, 400]
    shown = np.clip((stored - 99.5) / 100 + 0.5, 0, 1)
    np.testing.assert_allclose(read_back(header, tmp_path), shown, atol=1e-6)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_the_three_shapes_of_a_window(tmp_path: Path, function: str) -> None:
    stored = np.arange(0, 600, dtype=np.uint16).reshape(20, 30)
    header = dicom(stored, bits=12)
    header.WindowCenter, header.WindowWidth, header.VOILUTFunction = 300, 200, function
    theirs = apply_voi_lut(stored, header) / 4095  # pydicom's own tests are by the standard
    np.testing.assert_allclose(read_back(header, tmp_path), theirs, atol=1e-6)


@pytest.mark.parametrize(("center", "width"), [(300, 0), (300, -5), (float("nan"), 9), (None, 9)])
def test_a_window_that_cannot_be_applied_is_passed_over(
    tmp_path: Path, center: float | None, width: float
) -> None:
    stored = np.arange(0, 600, dtype=np.uint16).reshape(20, 30)
    header = dicom(stored, bits=12)
    header.WindowCenter, header.WindowWidth = center, width
    np.testing.assert_allclose(read_back(header, tmp_path), stored / 4095, atol=1e-6)


def test_a_window_of_one_is_a_step(tmp_path: Path) -> None:
    stored = np.arange(0, 600, dtype=np.uint16).reshape(20, 30)
    header = dicom(stored, bits=12)
    header.WindowCenter, header.WindowWidth = 300, 1
    np.testing.assert_array_equal(read_back(header, tmp_path), stored >= 300)


def test_a_table_of_the_modality(tmp_path: Path) -> None:
    table = np.random.default_rng(2).permutation(256).astype(np.uint16)
    stored = np.random.default_rng(3).integers(0, 256, (6, 10)).astype(np.uint16)
    header = dicom(stored, bits=12)
    entry = Dataset()
    entry.LUTDescriptor, entry.LUTData, entry.ModalityLUTType = [256, 0, 8], table.tolist(), "US"
    entry["LUTDescriptor"].VR, entry["LUTData"].VR = "US", "US"
    header.ModalityLUTSequence = [entry]
    np.testing.assert_allclose(read_back(header, tmp_path), table[stored] / 255, atol=1e-6)


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("limit", [None, -1990, -2010])
def test_padding_is_black_and_no_part_of_the_image(
    tmp_path: Path, photometric: str, limit: int | None
) -> None:
    stored = np.arange(0, 600, dtype=np.int16).reshape(20, 30)
    padding = np.zeros(stored.shape, bool)
    padding[:, :5] = True
    stored[padding] = -2000
    if limit is not None:
        stored[:3, 1], padding[:3, 1] = (-2000 + limit) // 2, True
    header = dicom(stored, photometric)
    header.PixelPaddingValue = -2000
    if limit is not None:
        header.PixelPaddingRangeLimit = limit
    low, high = np.percentile(stored[~padding], [0.5, 99.5])
    shown = np.clip((stored - low) / (high - low), 0, 1)
    expected = np.where(padding, 0, 1 - shown if photometric == "MONOCHROME1" else shown)
    np.testing.assert_allclose(read_back(header, tmp_path), expected, atol=1e-6)


def test_padding_that_a_scanner_wrote_unsigned(tmp_path: Path) -> None:
    stored = np.arange(0, 600, dtype=np.int16).reshape(20, 30)
    stored[:, :5] = -2000
    header = dicom(stored)
    header.add_new("PixelPaddingValue", "US", 65536 - 2000)
    header.WindowCenter, header.WindowWidth, header.VOILUTFunction = -2000, 9, "LINEAR_EXACT"
    shown = np.where(stored == -2000, 0, 1)
    np.testing.assert_array_equal(read_back(header, tmp_path), shown)


def test_colour_of_twelve_bits(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 4096, (9, 13, 3)).astype(np.uint16)
    dicom(picture, "RGB", bits=12).save_as(tmp_path / "x.dcm", enforce_file_format=True)
    colour = read_image(tmp_path / "x.dcm", channels=3)
    np.testing.assert_allclose(colour, picture.transpose(2, 0, 1) / 4095, atol=1e-6)


def test_hounsfield_units_without_a_window_are_shown_as_soft_tissue(tmp_path: Path) -> None:
    stored = np.arange(800, 1400, dtype=np.uint16).reshape(20, 30)
    header = dicom(stored, bits=12)
    header.Modality, header.RescaleSlope, header.RescaleIntercept = "CT", 1, -1024
    shown = np.clip((stored - 1024.0 - 39.5) / 399 + 0.5, 0, 1)
    np.testing.assert_allclose(read_back(header, tmp_path), shown, atol=1e-6)
    window = Window(0, 100, "LINEAR_EXACT")
    lung = np.clip((stored - 1024.0) / 100 + 0.5, 0, 1)
    np.testing.assert_allclose(read_image(tmp_path / "x.dcm", 1, window)[0], lung, atol=1e-6)


def test_bits_that_are_not_stored_are_not_shown(tmp_path: Path) -> None:
    stored = np.arange(0, 4000, 50, dtype=np.uint16).reshape(8, 10)
    header = dicom(stored, bits=12)
    overlay = np.random.default_rng(0).integers(0, 16, stored.shape).astype(np.uint16)
    header.PixelData = (stored | overlay << 12).tobytes()
    np.testing.assert_allclose(read_back(header, tmp_path), stored / 4095, atol=1e-6)


def test_colour_is_kept_or_weighed(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (9, 13, 3)).astype(np.uint8)
    dicom(picture, "RGB").save_as(tmp_path / "x.dcm", enforce_file_format=True)
    Image.fromarray(picture).save(tmp_path / "x.png")
    nifti(np.ascontiguousarray(picture).view(RGB)[..., 0], tmp_path / "x.nii")
    for name in ("x.dcm", "x.png", "x.nii"):
        colour = read_image(tmp_path / name, channels=3)
        np.testing.assert_allclose(colour, picture.transpose(2, 0, 1) / 255, atol=1e-6)
        grey = picture @ [0.299, 0.587, 0.114] / 255  # ITU-R BT.601
        np.testing.assert_allclose(read_image(tmp_path / name)[0], grey, atol=0.51 / 255)


def test_real_radiographs_stand_upright(real_data: Path, tmp_path: Path) -> None:
    files = sorted((real_data / "dicom").glob("*.dcm"))
    assert len(files) >= 4
    for file in files:
        header = pydicom.dcmread(file)
        grey = read_grey(file)
        assert grey.shape == (header.Rows, header.Columns)
        np.testing.assert_allclose(grey, header.pixel_array / 255, atol=1e-6)
        if header.file_meta.TransferSyntaxUID.is_compressed:
            header.decompress()
        header.PhotometricInterpretation = "MONOCHROME1"
        header.save_as(tmp_path / "negative.dcm")
        np.testing.assert_allclose(read_grey(tmp_path / "negative.dcm"), 1 - grey, atol=1e-6)


def test_the_original_files_of_kermany(real_data: Path) -> None:
    for label in ("NORMAL", "PNEUMONIA"):
        file = sorted((real_data / "kermany-fullres" / label).iterdir())[0]
        expected = np.asarray(Image.open(file).convert("L"), np.float32) / 255
        np.testing.assert_allclose(read_grey(file), expected, atol=1e-6)


def truncated(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])


def noise() -> Bytes:
    return np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)


def empty(path: Path) -> None:
    path.touch()


def text(path: Path) -> None:
    path.write_text("Dear radiologist, here is the picture.")


def cut_png(path: Path) -> None:
    Image.fromarray(noise()).save(path)
    truncated(path)


def cut_jpeg(path: Path) -> None:
    Image.fromarray(noise()).save(path)
    truncated(path)


def cut_dicom(path: Path) -> None:
    dicom(noise()).save_as(path, enforce_file_format=True)
    truncated(path)


def dicom_without_pixels(path: Path) -> None:
    header = dicom(noise())
    del header.PixelData
    header.save_as(path, enforce_file_format=True)


def dicom_of_frames(path: Path) -> None:
    dicom(np.stack([noise()] * 3)).save_as(path, enforce_file_format=True)


def whole_numbers(path: Path) -> None:
    Image.fromarray(noise().astype(np.int32) * 70000).save(path)


def real_numbers(path: Path) -> None:
    Image.fromarray(noise().astype(np.float32)).save(path)


def one_row(path: Path) -> None:
    Image.fromarray(noise()[:1]).save(path)


def pages(path: Path) -> None:
    Image.fromarray(ramp()).save(path, save_all=True, append_images=[Image.fromarray(ramp())])


def large(path: Path) -> None:
    """A header that says 60,000 by 60,000, and next to nothing after it."""
    start = struct.pack(">4sIIBBBBB", b"IHDR", 60000, 60000, 8, 0, 0, 0, 0)
    check = struct.pack(">I", zlib.crc32(start))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + start + check)
    with path.open("ab") as stream:
        for kind in (b"IDAT", b"IEND"):
            stream.write(struct.pack(">I4sI", 0, kind, zlib.crc32(kind)))


def postscript(path: Path) -> None:
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")


def changed_dicom(**values: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        header = dicom(noise())
        for name, value in values.items():
            setattr(header, name, value)
        header.save_as(path, enforce_file_format=True)

    return write


def unknown_syntax(path: Path) -> None:
    header = dicom(noise())
    header.file_meta.TransferSyntaxUID = "1.2.3.4.5"
    pydicom.dcmwrite(path, header, implicit_vr=False, little_endian=True)


def no_decoder(path: Path) -> None:
    header = dicom(noise())
    header.PixelData = encapsulate([b"\0\0\1\xb3" + bytes(60)])
    header.file_meta.TransferSyntaxUID = MPEG2MPML
    header.save_as(path, enforce_file_format=True)


def cut_codestream(path: Path) -> None:
    header = dicom(noise())
    header.PixelData = encapsulate([b"\xff\xd8\xff\xe0" + bytes(60)])
    header.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    header.save_as(path, enforce_file_format=True)


def of_class(uid: str) -> Callable[[Path], None]:
    return changed_dicom(SOPClassUID=uid)


DECODER = "not a readable image"
NO_IMAGE = "a DICOM object that is no image: "
REFUSED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "empty picture": ("Ann.png", empty, "the file is empty"),
    "empty DICOM file": ("Ann.dcm", empty, "the file is empty"),
    "text named as a picture": ("Ann.png", text, DECODER),
    "text named as DICOM": ("Ann.dcm", text, "not a DICOM file"),
    "text without a suffix": ("Ann", text, DECODER),
    "PNG cut off": ("Ann.png", cut_png, DECODER),
    "JPEG cut off": ("Ann.jpg", cut_jpeg, DECODER),
    "PostScript named as a picture": ("Ann.png", postscript, DECODER),
    "TIFF of several pages": ("Ann.tif", pages, "several pages or frames"),
    "PNG of 60,000 x 60,000": ("Ann.png", large, "more than the 268 million samples"),
    "TIFF of 32-bit whole numbers": ("Ann.tif", whole_numbers, "no stated range of display"),
    "TIFF of real numbers": ("Ann.tif", real_numbers, "no stated range of display"),
    "picture of one row": ("Ann.png", one_row, "the image is only 64x1 pixels"),
    "DICOM cut off": ("Ann.dcm", cut_dicom, "shorter or longer than the size in the header"),
    "DICOM with other rows": (
        "Ann.dcm",
        changed_dicom(Rows=63),
        "shorter or longer than the size in the header",
    ),
    "DICOM without pixels": ("Ann.dcm", dicom_without_pixels, "without pixel data"),
    "DICOM of no rows": ("Ann.dcm", changed_dicom(Rows=0), "the image has no pixels"),
    "DICOM of 65,535 x 65,535": (
        "Ann.dcm",
        changed_dicom(Rows=65535, Columns=65535),
        "more than the 268 million samples",
    ),
    "DICOM, frames in time": ("Ann.dcm", dicom_of_frames, "state no place in space"),
    "DICOM, unknown transfer syntax": ("Ann.dcm", unknown_syntax, "an unknown transfer syntax"),
    "DICOM, film (MPEG)": ("Ann.dcm", no_decoder, "no decoder reads"),
    "DICOM, broken JPEG": ("Ann.dcm", cut_codestream, "no decoder reads"),
    "DICOM, unknown colours": (
        "Ann.dcm",
        changed_dicom(PhotometricInterpretation="HSV"),
        "unknown photometric interpretation",
    ),
    "DICOM, RGB of one sample": (
        "Ann.dcm",
        changed_dicom(PhotometricInterpretation="RGB"),
        "contradicts the photometric interpretation",
    ),
    "DICOM, structured report": (
        "Ann.dcm",
        of_class(BasicTextSRStorage),
        NO_IMAGE + "a structured report",
    ),
    "DICOM, presentation state": (
        "Ann.dcm",
        of_class(GrayscaleSoftcopyPresentationStateStorage),
        NO_IMAGE + "a presentation state",
    ),
    "DICOM, segmentation": ("Ann.dcm", of_class(SegmentationStorage), NO_IMAGE + "a segmentation"),
    "DICOM, RTSTRUCT": (
        "Ann.dcm",
        of_class(RTStructureSetStorage),
        NO_IMAGE + "a set of structures",
    ),
    "DICOM, encapsulated PDF": (
        "Ann.dcm",
        of_class(EncapsulatedPDFStorage),
        NO_IMAGE + "an encapsulated document",
    ),
}


@pytest.mark.parametrize(("name", "write", "reason"), REFUSED.values(), ids=REFUSED)
def test_the_reason_names_no_file(
    tmp_path: Path, name: str, write: Callable[[Path], None], reason: str
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


def test_no_header_value_reaches_a_warning_or_a_log(
    tmp_path: Path,
) -> None:
    header = dicom(noise())
    # pydicom warns of these as it reads them, and repeats them.
    header.SpecificCharacterSet, header.StudyInstanceUID = "CANARY", "canary.1"
    header.PatientID = "any"
    header.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    script = "import logging; logging.basicConfig()\n"
    script += "import sys, pathlib; from medvq.images.formats import read_image, is_dicom\n"
    script += "from medvq.images.formats.dicom import identify\n"
    script += "print(identify(pathlib.Path(sys.argv[1])) is None)\n"
    script += "try: read_image(pathlib.Path(sys.argv[1]))\nexcept Exception as e: print(e)"
    command = [sys.executable, "-c", script, str(tmp_path / "x.dcm")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "canary" not in (done.stdout + done.stderr).lower()


def test_a_panorama_is_shrunk_to_what_memory_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = np.repeat(np.arange(0, 240, 8, dtype=np.uint8), 20)[None].repeat(40, axis=0)
    wanted = picture.reshape(10, 4, 150, 4).mean((1, 3)) / 255
    Image.fromarray(picture).save(tmp_path / "x.jpg", quality=100)
    for name, stored in (("x.png", picture), ("x.tif", wide(picture))):
        Image.fromarray(stored).save(tmp_path / name)
    monkeypatch.setattr("medvq.images.formats.picture.MAX_PIXELS", 10 * 150)
    for name in ("x.png", "x.tif", "x.jpg"):
        np.testing.assert_allclose(read_grey(tmp_path / name), wanted, atol=1.5 / 255)
    for module in ("picture", "display"):
        monkeypatch.setattr(f"medvq.images.formats.{module}.MAX_SAMPLES", 20 * 300)
    np.testing.assert_allclose(read_grey(tmp_path / "x.jpg"), wanted, atol=1.5 / 255)
    with pytest.raises(UnreadableImage, match="samples that are read"):
        read_grey(tmp_path / "x.png")
