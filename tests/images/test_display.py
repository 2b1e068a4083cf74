"""Which values of a DICOM file are shown, against the standard and pydicom's own tables."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories.deviations import BYTES, STORED
from factories.images import Array, ct_series, dicom, read_grey, save_dicom
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from medvq.images.formats import Window, read_image, read_series
from medvq.images.formats.notes import recorded
from pydicom.dataset import Dataset, FileDataset
from pydicom.pixels import apply_voi_lut

RAMP = np.arange(0, 600, dtype=np.uint16).reshape(20, 30)
WIDE = 6 * RAMP  # over most of 12 bits


def expect(shown: Array, header: FileDataset, folder: Path, atol: float = 1e-6) -> None:
    """``shown`` is what a MONOCHROME2 image would be; MONOCHROME1 is inverted."""
    if header.PhotometricInterpretation == "MONOCHROME1":
        shown = 1 - shown
    (grey,) = read_image(save_dicom(folder / "x.dcm", header))
    np.testing.assert_allclose(grey, shown, atol=atol)


@settings(
    max_examples=40,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    height=st.integers(2, 12),
    width=st.integers(2, 12),
    bits=st.integers(8, 16),
    signed=st.booleans(),
    photometric=st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
    windowed=st.booleans(),
    slope=st.sampled_from([1.0, 2.0, -1.0, 0.25]),
    seed=st.integers(0, 2**16),
)
def test_any_depth_sign_and_scale(
    tmp_path: Path, height: int, width: int, bits: int, signed: bool, photometric: str,
    windowed: bool, slope: float, seed: int,
) -> None:  # fmt: skip
    share = np.random.default_rng(seed).integers(0, 2**bits, (height, width))
    low, top = -(2 ** (bits - 1)) if signed else 0, 2**bits - 1
    kind = f"{'' if signed else 'u'}int{8 if bits == 8 else 16}"
    header = dicom((share + low).astype(kind), photometric, bits)
    shown = share / top
    if windowed:
        header.RescaleSlope, header.RescaleIntercept = slope, -1000
        header.WindowCenter = slope * (low + top / 2) - 1000
        header.WindowWidth, header.VOILUTFunction = abs(slope) * top, "LINEAR_EXACT"
        shown = 1 - shown if slope < 0 else shown
    elif signed:
        ends = np.percentile(share, [0.5, 99.5])
        shown = np.clip((share - ends[0]) / max(ends[1] - ends[0], 1e-9), 0, 1)
    expect(shown, header, tmp_path, atol=1e-4)


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize(
    ("kind", "rescale"),
    [
        ("uint16", {}),
        ("uint16", {"RescaleSlope": 2, "RescaleIntercept": -1024}),
        ("int16", {"RescaleSlope": 1, "RescaleIntercept": 0}),
    ],
)
def test_a_window_as_the_standard_has_it(
    tmp_path: Path, kind: str, rescale: dict[str, Any], photometric: str
) -> None:
    low, high = (0, 4096) if kind == "uint16" else (-2048, 2048)
    stored = np.random.default_rng(1).integers(low, high, (9, 14)).astype(kind)
    header = dicom(stored, photometric, 12, WindowCenter=700, WindowWidth=900, **rescale)
    value = stored * float(rescale.get("RescaleSlope", 1))
    value += float(rescale.get("RescaleIntercept", 0))
    shown = np.clip((value - 699.5) / 899 + 0.5, 0, 1)  # PS3.3 C.11.2.1.2.1
    theirs = apply_voi_lut(value, header).astype(float)
    theirs = (theirs - theirs.min()) / (theirs.max() - theirs.min())
    np.testing.assert_allclose(shown, theirs, atol=1e-9)
    expect(shown, header, tmp_path)


@pytest.mark.parametrize(
    ("sequence", "others"),
    [
        ("VOILUTSequence", {}),
        ("VOILUTSequence", {"WindowCenter": 700, "WindowWidth": 900}),
        ("ModalityLUTSequence", {}),
    ],
)
def test_a_table_of_greys_goes_before_a_window(
    tmp_path: Path, sequence: str, others: dict[str, Any]
) -> None:
    table = np.random.default_rng(2).permutation(256).astype(np.uint16)
    stored = np.random.default_rng(3).integers(0, 256, (6, 10)).astype(np.uint16)
    entry = Dataset()
    entry.LUTDescriptor, entry.LUTData, entry.ModalityLUTType = [256, 0, 8], table.tolist(), "US"
    entry["LUTDescriptor"].VR, entry["LUTData"].VR = "US", "US"
    header = dicom(stored, bits=12, **others | {sequence: [entry]})
    expect(table[stored] / 255, header, tmp_path)


def test_the_first_of_several_windows_is_shown(tmp_path: Path) -> None:
    header = dicom(RAMP, bits=12, WindowCenter=[100, 40], WindowWidth=[101, 400])
    expect(np.clip((RAMP - 99.5) / 100 + 0.5, 0, 1), header, tmp_path)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_the_three_shapes_of_a_window(tmp_path: Path, function: str) -> None:
    header = dicom(RAMP, bits=12, WindowCenter=300, WindowWidth=200, VOILUTFunction=function)
    expect(apply_voi_lut(RAMP, header) / 4095, header, tmp_path)  # which pydicom tests


@pytest.mark.parametrize(("center", "width"), [(300, 0), (300, -5), (float("nan"), 9), (None, 9)])
def test_a_window_that_cannot_be_applied_is_ignored(
    tmp_path: Path, center: float | None, width: float
) -> None:
    header = dicom(WIDE, bits=12, WindowCenter=center, WindowWidth=width)
    expect(WIDE / 4095, header, tmp_path)


def test_a_window_of_one_is_a_step(tmp_path: Path) -> None:
    header = dicom(RAMP, bits=12, WindowCenter=300, WindowWidth=1)
    expect((RAMP >= 300).astype(float), header, tmp_path, atol=0)


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("limit", [None, -1990, -2010])
def test_padding_is_black_and_no_part_of_the_image(
    tmp_path: Path, photometric: str, limit: int | None
) -> None:
    stored = RAMP.astype(np.int16)
    padding = np.zeros(stored.shape, bool)
    padding[:, :5] = True
    stored[padding] = -2000
    header = dicom(stored, photometric, PixelPaddingValue=-2000)
    if limit is not None:
        stored[:3, 1], padding[:3, 1] = (-2000 + limit) // 2, True
        header = dicom(stored, photometric, PixelPaddingValue=-2000, PixelPaddingRangeLimit=limit)
    low, high = np.percentile(stored[~padding], [0.5, 99.5])
    shown = np.clip((stored - low) / (high - low), 0, 1)
    black = 0 if photometric == "MONOCHROME2" else 1
    expect(np.where(padding, black, shown), header, tmp_path)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_value_far_below_all_others_is_padding_that_no_header_names(
    tmp_path: Path, photometric: str
) -> None:
    stored = STORED.astype(np.int16) - 1000
    padding = np.zeros(stored.shape, bool)
    padding[:6] = True
    stored[padding] = -32768
    low, high = np.percentile(stored[~padding], [0.5, 99.5])
    shown = np.clip((stored - low) / (high - low), 0, 1)
    black = 0 if photometric == "MONOCHROME2" else 1
    with recorded() as notes:
        expect(np.where(padding, black, shown), dicom(stored, photometric, Modality="MR"), tmp_path)
    assert sum("far below all others" in text for text in notes.notices) == 1


def test_a_volume_with_a_value_far_below_all_others(tmp_path: Path) -> None:
    body = np.random.default_rng(0).integers(-500, 1500, (5, 6, 7)).astype(np.int16)
    body[:, 0] = -32768
    paths = []
    for number, header in enumerate(ct_series(body)):
        header.Modality = "MR"
        paths.append(save_dicom(tmp_path / f"{number}.dcm", header))
    shown = read_series(paths)[0]
    assert shown[:, 1:].std() > 0.2
    assert shown[:, 0].max() == 0


def test_padding_that_covers_the_whole_picture_is_told(tmp_path: Path) -> None:
    for limit, told in ((4095, True), (100, False)):
        header = dicom(STORED, bits=12, PixelPaddingValue=0, PixelPaddingRangeLimit=limit)
        with recorded() as notes:
            shown = read_grey(save_dicom(tmp_path / "x.dcm", header))
        assert shown.any() != told
        assert any("all pixels are padding" in text for text in notes.notices) == told


def test_padding_that_a_scanner_wrote_unsigned(tmp_path: Path) -> None:
    stored = RAMP.astype(np.int16)
    stored[:, :5] = -2000
    window: dict[str, Any] = {
        "WindowCenter": -2000,
        "WindowWidth": 9,
        "VOILUTFunction": "LINEAR_EXACT",
    }
    header = dicom(stored, **window)
    header.add_new("PixelPaddingValue", "US", 65536 - 2000)
    expect((stored != -2000).astype(float), header, tmp_path, atol=0)


def test_padding_that_was_written_signed_in_an_unsigned_image(tmp_path: Path) -> None:
    stored = (RAMP - RAMP.min()).astype(np.uint16)
    stored[:, :5] = 65536 - 2000
    window: dict[str, Any] = {"WindowCenter": -100, "WindowWidth": 9}  # all white but for padding
    header = dicom(stored, **window)
    header.add_new("PixelPaddingValue", "SS", -2000)
    expect((stored != 65536 - 2000).astype(float), header, tmp_path, atol=0)


def test_padding_of_fewer_bits_that_was_written_unsigned(tmp_path: Path) -> None:
    stored = RAMP.astype(np.int16) - 1000
    stored[:, :5] = -2048
    window: dict[str, Any] = {"WindowCenter": -3000, "WindowWidth": 9}  # all white but for padding
    header = dicom(stored, bits=12, **window)
    header.add_new("PixelPaddingValue", "US", 2048)  # the twelve bits of -2048
    expect((stored != -2048).astype(float), header, tmp_path, atol=0)


def test_colour_of_twelve_bits(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 4096, (9, 13, 3)).astype(np.uint16)
    path = save_dicom(tmp_path / "x.dcm", dicom(picture, "RGB", 12))
    colour = read_image(path, channels=3)
    np.testing.assert_allclose(colour, picture.transpose(2, 0, 1) / 4095, atol=1e-6)


def test_hounsfield_units_without_a_window_are_shown_as_soft_tissue(tmp_path: Path) -> None:
    stored = RAMP + 800
    header = dicom(stored, bits=12, Modality="CT", RescaleSlope=1, RescaleIntercept=-1024)
    expect(np.clip((stored - 1024.0 - 39.5) / 399 + 0.5, 0, 1), header, tmp_path)
    window = Window(0, 100, "LINEAR_EXACT")
    lung = np.clip((stored - 1024.0) / 100 + 0.5, 0, 1)
    np.testing.assert_allclose(read_image(tmp_path / "x.dcm", 1, window)[0], lung, atol=1e-6)


def test_a_window_of_the_configuration_on_values_in_no_units_is_told(tmp_path: Path) -> None:
    window = Window(0, 100, "LINEAR_EXACT")
    for elements, told in (({}, 1), ({"RescaleSlope": 1, "RescaleIntercept": 0}, 0)):
        path = save_dicom(tmp_path / "x.dcm", dicom(RAMP, Modality="CT", **elements))
        with recorded() as notes:
            read_image(path, 1, window)
        assert len(notes.notices) == told
        assert all("not in Hounsfield units" in text for text in notes.notices)


def test_bits_that_are_not_stored_are_not_shown(tmp_path: Path) -> None:
    header = dicom(WIDE, bits=12)
    overlay = np.random.default_rng(0).integers(0, 16, RAMP.shape).astype(np.uint16)
    header.PixelData = (WIDE | overlay << 12).tobytes()
    expect(WIDE / 4095, header, tmp_path)


@pytest.mark.parametrize(("center", "grey"), [(-5000, 1), (60_000, 0)])
def test_a_window_that_leaves_nothing_to_be_seen_is_told(
    tmp_path: Path, center: int, grey: int
) -> None:
    told = ["its window or lookup table leaves nothing to be seen: all is of one grey"]
    padded = np.where(STORED < 80, 0, STORED)
    for stored, expected in ((padded, told), (np.full_like(STORED, 9), [])):
        header = dicom(stored, bits=12, WindowCenter=center, WindowWidth=100, PixelPaddingValue=0)
        with recorded() as notes:
            shown = read_grey(save_dicom(tmp_path / "x.dcm", header))
        np.testing.assert_array_equal(shown, np.where(stored == 0, 0, grey))
        assert list(notes.notices) == expected


@pytest.mark.parametrize(("width", "told"), [(65536, 1), (60_000, 1), (3000, 0)])
def test_a_window_that_leaves_little_to_be_seen_is_told(
    tmp_path: Path, width: int, told: int
) -> None:
    header = dicom(BYTES, WindowCenter=width // 2, WindowWidth=width)  # as for 16 bits
    with recorded() as notes:
        shown = read_grey(save_dicom(tmp_path / "x.dcm", header))
    np.testing.assert_allclose(shown, BYTES / (width - 1), atol=2e-4)
    assert sum("leaves little to be seen" in text for text in notes.notices) == told


def test_a_picture_of_little_contrast_without_a_window_is_none_of_a_wrong_one(
    tmp_path: Path,
) -> None:
    with recorded() as notes:
        read_grey(save_dicom(tmp_path / "x.dcm", dicom(100 + BYTES // 32)))
    assert notes.notices == ()


def test_a_window_that_leaves_nothing_of_a_volume_is_told(tmp_path: Path) -> None:
    headers = ct_series(np.arange(5 * 6 * 7, dtype=np.uint16).reshape(5, 6, 7))
    paths = []
    for number, header in enumerate(headers):
        header.WindowCenter, header.WindowWidth = 4000, 100
        paths.append(save_dicom(tmp_path / f"{number}.dcm", header))
    with recorded() as notes:
        assert read_series(paths).max() == 0
    assert len(notes.notices) == 1
    assert "nothing to be seen" in notes.notices[0]
    with recorded() as notes:
        assert read_series(paths, Window(100, 200)).max() == 1
    assert notes.notices == ()
