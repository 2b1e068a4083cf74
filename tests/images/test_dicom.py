"""DICOM against values worked out elsewhere: pydicom's tables, and dcmtk as a second opinion."""

import fnmatch
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from factories.dcmtk import shown_by_dcmtk
from medvq.errors import UnreadableImage
from medvq.images.formats import Window, is_dicom, read_image
from numpy.typing import NDArray
from pydicom.pixels import apply_modality_lut, apply_voi_lut

BUNDLED = Path(pydicom.__file__).parent / "data" / "test_files"

NO_PIXELS = "without pixel data"
# Reasons, and the files of pydicom's (.dcm) that are refused for them.
REFUSED_FOR = {
    "not a DICOM file": "no_meta",
    "no image: a set of structures": "rtstruct",
    NO_PIXELS: "UN_sequence empty_charset_LEI meta_missing_tsyntax nested_priv_SQ"
    " no_meta_group_length priv_SQ",
    "shorter than the size in the header": "MR_truncated",
    "of another size than the header says": "JPEG2000-embedded-sequence-delimiter",
    "several frames that state no place": "SC_rgb_rle_2frame SC_rgb_rle_16bit_2frame"
    " SC_rgb_rle_32bit_2frame examples_ybr_color",
    "no image: a dose distribution": "badVR rtdose rtdose_1frame rtdose_expb rtdose_expb_1frame"
    " rtdose_rle rtdose_rle_1frame",
    "no image: a segmentation": "liver_1frame liver_expb_1frame",
    "no image: a structured report": "reportsi reportsi_with_empty_number_tags test-SR",
    "no image: a treatment plan": "ExplVR_BigEndNoMeta ExplVR_LitEndNoMeta rtplan rtplan_truncated",
    "no image: a waveform": "waveform_ecg",
}
REFUSED = {f"{name}.dcm": why for why, names in REFUSED_FOR.items() for name in names.split()}
# What dcmtk's tools cannot open, and the same pixels in a file that they can.
SAME_AS = {
    "MR_small_jp2klossless.dcm": "MR_small.dcm",
    "SC_rgb_gdcm_KY.dcm": "SC_rgb_rle.dcm",
    "SC_rgb_jpeg.dcm": "SC_rgb_jpeg_dcmd.dcm",
}
# Read by GDCM alone: the decoder is held against Pillow's OpenJPEG (below).
ONE_DECODER = {
    "693_J2KI.dcm",
    "J2K_pixelrep_mismatch.dcm",
    "JPEG2000.dcm",
    "examples_jpeg2k.dcm",
    "GDCMJ2K_TextGBR.dcm",
}


# Of pydicom's files and of the kinds that `test_dicom_deviations` and `test_dicom_tables` build:
# what dcmtk shows in another way, and why.
EXCEPTIONS = {
    "SC_rgb_rle_2frame.dcm, SC_rgb_rle_16bit_2frame.dcm, SC_rgb_rle_32bit_2frame.dcm, "
    "examples_ybr_color.dcm": "refused: a film is no picture; dcmtk shows its first frame",
    "rtdose*.dcm, badVR.dcm": "refused: a dose distribution is no picture",
    "liver_1frame.dcm, liver_expb_1frame.dcm": "refused: a segmentation is no picture",
    "JPEG-lossy.dcm, JPGExtended.dcm": "nuclear medicine without a window: percentiles, since its "
    "scale means nothing; dcmtk shows all bits. Over one window both show the same",
    "CT without a window": "soft tissue, since most of all bits is air; dcmtk shows all bits",
    "MR, PET, and signed or rescaled values without a window": "percentiles; dcmtk shows all bits",
    "values in a small part of their range": "shown over that part; dcmtk leaves 16 greys",
    "a table of 12 bits, or 8 packed, under 16 stated": "shown over its entries; dcmtk shows black",
    "fewer than 8 bits without a window": "white is white; dcmtk shows 4 bits up to 240 of 255",
    "uncompressed YBR_PARTIAL_422, 12 bits allocated, signed colour": "refused: retired or not "
    "allowed; dcmtk guesses",
    "JPEG that tells its colours (by JFIF, Adobe or fewer samples of two components)": "as it "
    "tells; dcmtk believes the header, and may show it green and pink",
    "a table of 16 bits under 14 stated": "shown over its entries; dcmtk drops the lower bits",
    "a stream of 12 bits that are used, under 8 or 10 stored": "read by its own bits; dcmtk drops "
    "the upper ones",
    "a table with more entries than stated": "those stated count (PS3.3 C.11.1.1); in dcmtk all do",
    "window or rescale of 1E155, inf or NaN": "passed over; dcmtk shows black",
    "WindowCenter `2047,5` or `abc`": "passed over; dcmtk reads 2047 or 0",
    "NumberOfFrames of letters": "refused; dcmtk reads 1",
    "whole rows or columns of other bytes after the pixels": "refused: the size may be wrong; "
    "dcmtk crops or shears",
    "JPEG damaged in the middle": "refused; dcmtk shows what it can",
    "uncompressed YBR_FULL": "rounded; dcmtk truncates, up to 2/255",
    "functional groups": "applied (PS3.3 C.7.6.16); dcm2pnm does not read them",
}


def exceptions() -> str:
    """The table above, as ``docs/formats.md`` shows it."""
    rows = "".join(f"| {what} | {why} |\n" for what, why in EXCEPTIONS.items())
    return f"| file | here, and why |\n|---|---|\n{rows}"


def bundled() -> list[Path]:
    found = [path for path in sorted(BUNDLED.rglob("*")) if path.is_file()]
    return [path for path in found if is_dicom(path) and not path.name.startswith("DICOMDIR")]


def name_of(path: Path) -> str:
    return str(path.relative_to(BUNDLED))


READ = [path for path in bundled() if path.name not in REFUSED and path.name != "IM000000"]
READ = [path for path in READ if "TINY_ALPHA" not in path.parts]


def demanded(header: pydicom.Dataset) -> Window | None:
    """A window for both where viewers differ on what to show without one."""
    stated = "WindowCenter" in header or "VOILUTSequence" in header
    windows = {"NM": Window(128, 256), "CT": Window(40, 400)}
    return None if stated else windows.get(header.get("Modality"))


def options(header: pydicom.Dataset) -> list[str]:
    """What dcm2pnm is asked for, so that it shows the range that we show."""
    if window := demanded(header):
        return ["+Ww", str(window.center), str(window.width)]
    if "VOILUTSequence" in header:
        return ["+Wl", "1"]
    return ["+Wi", "1"] if "WindowCenter" in header else []


def beside_dcmtk(path: Path, folder: Path) -> NDArray[np.float64]:
    """The picture of a file by dcmtk, (3, height, width) in [0, 1]."""
    header = pydicom.dcmread(path, stop_before_pixels=True)
    copy = folder / path.name
    shutil.copy(path, copy)
    shown = shown_by_dcmtk(copy, options(header), 8 if header.BitsStored <= 8 else 16)
    assert shown is not None
    return shown


@pytest.mark.usefixtures("dcmtk")
@pytest.mark.parametrize(
    "path",
    [path for path in READ if path.name not in SAME_AS | dict.fromkeys(ONE_DECODER)],
    ids=name_of,
)
def test_a_file_looks_as_dcmtk_shows_it(path: Path, tmp_path: Path) -> None:
    header = pydicom.dcmread(path, stop_before_pixels=True)
    ours = read_image(path, 3, demanded(header))
    # Rounding: to bytes or to 16 bits, and of a rescale before or after it.
    tolerance = 1.01 / 255 if header.BitsStored <= 8 else 0.1 / 255
    np.testing.assert_allclose(ours, beside_dcmtk(path, tmp_path), atol=tolerance)
    assert read_image(path, 1, demanded(header)).shape == (1, *ours.shape[1:])


@pytest.mark.usefixtures("dcmtk")
def test_real_radiographs_look_as_dcmtk_shows_them(real_data: Path, tmp_path: Path) -> None:
    for path in sorted((real_data / "dicom").glob("*.dcm")):
        shown = beside_dcmtk(path, tmp_path)
        np.testing.assert_allclose(read_image(path, 3), shown, atol=1.01 / 255)


@pytest.mark.parametrize(("name", "twin"), SAME_AS.items())
def test_a_compressed_file_is_its_uncompressed_twin(name: str, twin: str) -> None:
    one, two = (read_image(BUNDLED / file, 3) for file in (name, twin))
    np.testing.assert_allclose(one, two, atol=1 / 255)


@pytest.mark.parametrize("name", sorted(ONE_DECODER - {"GDCMJ2K_TextGBR.dcm"}))
def test_two_decoders_of_jpeg_2000_agree(name: str) -> None:
    one, two = (
        pydicom.pixels.pixel_array(BUNDLED / name, decoding_plugin=plugin)
        for plugin in ("gdcm", "pillow")
    )
    np.testing.assert_array_equal(one, two)
    assert read_image(BUNDLED / name).std() > 0.01


def has_greys(path: Path) -> bool:
    header = pydicom.dcmread(path, stop_before_pixels=True)
    stated = "WindowCenter" in header or "VOILUTSequence" in header
    return stated and header.SamplesPerPixel == 1


@pytest.mark.parametrize("path", [path for path in READ if has_greys(path)], ids=name_of)
def test_greys_as_pydicom_works_them_out(path: Path) -> None:
    header = pydicom.dcmread(path)
    shown = apply_voi_lut(apply_modality_lut(header.pixel_array, header), header).astype(float)
    # pydicom maps a window to the range of what can be stored, in the units of the modality.
    signed, bits = header.PixelRepresentation == 1, header.BitsStored
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    slope, offset = float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))
    low, high = (slope * value + offset for value in (low, high))
    expected = (shown - low) / (high - low)
    if header.PhotometricInterpretation == "MONOCHROME1":
        expected = 1 - expected
    np.testing.assert_allclose(read_image(path)[0], expected, atol=1e-5)


@pytest.mark.parametrize("path", bundled(), ids=name_of)
def test_every_bundled_file_is_read_or_refused(path: Path) -> None:
    if reason := REFUSED.get(path.name):
        with pytest.raises(UnreadableImage, match=reason):
            read_image(path)
    elif path in READ:
        image = read_image(path)
        assert image.min() >= 0
        assert image.max() <= 1
    else:
        with pytest.raises(UnreadableImage, match=NO_PIXELS):
            read_image(path)


@pytest.mark.parametrize("path", sorted(BUNDLED.rglob("DICOMDIR*")), ids=name_of)
def test_a_directory_of_files_is_no_image(path: Path) -> None:
    with pytest.raises(UnreadableImage, match="no image: a directory of other files"):
        read_image(path)


COMPRESSED = [
    "SC_rgb_jpeg_dcmtk.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "JPGExtended.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_RLE.dcm",
]


@pytest.mark.parametrize(
    ("name", "down", "across"),
    [
        (name, down, across)
        for name in COMPRESSED
        for down, across in [(0.5, 1), (1, 2), (0.5, 2), (2, 0.5)]
        # Run lengths state how many pixels there are, and not in which rows.
        if "RLE" not in name or down * across != 1
    ],
)
def test_compressed_pixels_of_another_size_than_the_header_says(
    tmp_path: Path, name: str, down: float, across: float
) -> None:
    # Left to themselves decoders crop, shear, or (GDCM with JPEG-LS) end the process.
    header = pydicom.dcmread(BUNDLED / name)
    header.Rows, header.Columns = int(header.Rows * down), int(header.Columns * across)
    header.save_as(tmp_path / "x.dcm")
    with pytest.raises(UnreadableImage, match="of another size than the header says"):
        read_image(tmp_path / "x.dcm")


@pytest.mark.parametrize("name", COMPRESSED)
def test_fewer_frames_than_the_header_says(tmp_path: Path, name: str) -> None:
    header = pydicom.dcmread(BUNDLED / name)
    header.NumberOfFrames = 2
    header.save_as(tmp_path / "x.dcm")
    with pytest.raises(UnreadableImage):
        read_image(tmp_path / "x.dcm")


def test_the_documentation_lists_the_exceptions() -> None:
    document = Path(__file__).parents[2] / "docs" / "formats.md"
    assert exceptions() in document.read_text(encoding="utf-8")


@pytest.mark.usefixtures("dcmtk")
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_dcmtk_refuses_what_is_refused_here_but_for_the_exceptions(
    name: str, tmp_path: Path
) -> None:
    paths = [path for path in bundled() if path.name == name]
    excepted = any(
        fnmatch.fnmatch(name, pattern) for row in EXCEPTIONS for pattern in row.split(", ")
    )
    for path in paths:
        copy = tmp_path / name
        shutil.copy(path, copy)
        assert (shown_by_dcmtk(copy) is not None) == excepted
