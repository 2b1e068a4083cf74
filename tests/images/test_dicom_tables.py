"""Lookup tables of DICOM files, however they are packed and whatever they say of their entries."""

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from factories.dcmtk import shown_by_dcmtk
from factories.images import Array, dicom, save_dicom
from medvq.errors import UnreadableImage
from medvq.images.formats import read_image
from medvq.images.formats.display import SMALL_RANGE
from medvq.images.formats.notes import recorded
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

STORED = (np.arange(52 * 80) % 4096).reshape(52, 80).astype(np.uint16)
"""A ramp of all 12 bits, (52, 80)."""
BYTES = (STORED >> 4).astype(np.uint8)
DARKER = (4095 * (np.arange(4096) / 4095) ** 2).astype(np.uint16)
"""Entries of 12 bits, a curve that no window makes."""
DEPTH = "a lookup table states another depth than its entries have: their own is used"
PACKED = "a lookup table states more than 8 bits and holds entries of 8: read as those"
SHORT = "a lookup table has fewer entries than it states: the last one stands for the rest"


class Table(NamedTuple):
    """An item of a sequence of tables, what it maps all 12 bits to, and what is told."""

    descriptor: list[int]
    data: bytes | list[int]
    expected: Array
    notice: str = ""
    by_dcmtk: bool = True
    kind: str = "OW"


FEW = np.minimum(np.arange(4096), 1999)
TABLES = {
    "12 bits in words": Table([4096, 0, 12], DARKER.tobytes(), DARKER / 4095),
    "12 bits as numbers": Table([4096, 0, 12], DARKER.tolist(), DARKER / 4095, kind="US"),
    "16 bits": Table([4096, 0, 16], (DARKER * 16).tobytes(), DARKER * 16 / 65535),
    "8 bits packed in words": Table(
        [4096, 0, 8], (DARKER >> 4).astype(np.uint8).tobytes(), (DARKER >> 4) / 255
    ),
    "8 bits, one in a word": Table([4096, 0, 8], (DARKER >> 4).tobytes(), (DARKER >> 4) / 255),
    "an odd number of 8 bits": Table(
        [4095, 0, 8],
        (DARKER[:4095] >> 4).astype(np.uint8).tobytes() + b"\0",
        (DARKER[np.minimum(np.arange(4096), 4094)] >> 4) / 255,
    ),
    "8 bits packed under 16 stated": Table(
        [4096, 0, 16],
        (DARKER >> 4).astype(np.uint8).tobytes(),
        (DARKER >> 4) / 255,
        PACKED,
        by_dcmtk=False,
    ),
    "12 bits under 16 stated": Table(
        [4096, 0, 16], DARKER.tobytes(), DARKER / 4095, DEPTH, by_dcmtk=False
    ),
    "10 bits under 16 stated": Table(
        [4096, 0, 16], (DARKER >> 2).tobytes(), (DARKER >> 2) / 1023, DEPTH, by_dcmtk=False
    ),
    "16 bits under 14 stated": Table(
        [4096, 0, 14], (DARKER * 16).tobytes(), DARKER * 16 / 65535, DEPTH, by_dcmtk=False
    ),
    "0 bits stated": Table([4096, 0, 0], DARKER.tobytes(), DARKER / 4095, DEPTH, by_dcmtk=False),
    "the first value mapped is 1000": Table(
        [3096, 1000, 12], DARKER[1000:].tobytes(), DARKER[np.maximum(np.arange(4096), 1000)] / 4095
    ),
    "fewer entries than stated": Table(
        [4096, 0, 10], DARKER[:2000].tobytes(), DARKER[FEW] / 1023, SHORT
    ),
    "more entries than stated": Table(
        [2000, 0, 10], DARKER.tobytes(), DARKER[FEW] / 1023, by_dcmtk=False
    ),
}


def item(table: Table) -> list[Dataset]:
    one = Dataset()
    one.add_new("LUTDescriptor", "US", table.descriptor)
    one.add_new("LUTData", table.kind, table.data)
    return [one]


@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize("kind", TABLES)
def test_a_table_of_greys(tmp_path: Path, kind: str, sequence: str) -> None:
    table = TABLES[kind]
    header = dicom(STORED, bits=12, **{sequence: item(table)})
    path = save_dicom(tmp_path / "x.dcm", header)
    with recorded() as notes:
        np.testing.assert_allclose(read_image(path)[0], table.expected[STORED], atol=1e-6)
    assert notes.notices == ((table.notice,) if table.notice else ())


@pytest.mark.usefixtures("dcmtk")
@pytest.mark.parametrize("sequence", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize("kind", [kind for kind, table in TABLES.items() if table.by_dcmtk])
def test_dcmtk_shows_the_same_table(tmp_path: Path, kind: str, sequence: str) -> None:
    header = dicom(STORED, bits=12, **{sequence: item(TABLES[kind])})
    path = save_dicom(tmp_path / "x.dcm", header)
    options = ("+Wl", "1") if sequence == "VOILUTSequence" else ()
    shown = shown_by_dcmtk(path, options)
    assert shown is not None
    np.testing.assert_allclose(read_image(path, 3), shown, atol=1 / 255)


def test_a_picture_that_uses_a_small_part_of_a_modality_table(tmp_path: Path) -> None:
    table = Table([65536 % 2**16, 0, 16], np.arange(2**16).astype("<u2").tobytes(), DARKER)
    path = save_dicom(tmp_path / "x.dcm", dicom(STORED, bits=16, ModalityLUTSequence=item(table)))
    with recorded() as notes:
        np.testing.assert_allclose(read_image(path)[0], STORED / 4095, atol=1e-6)
    assert notes.notices == (SMALL_RANGE,)


SIGNED = STORED.astype(np.int16) - 2048


@pytest.mark.usefixtures("dcmtk")
@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big endian"])
@pytest.mark.parametrize("representation", ["US", "SS"])
@pytest.mark.parametrize("values", ["signed", "rescaled"])
def test_the_first_value_of_a_table_is_negative(
    tmp_path: Path, syntax: str, representation: str, values: str
) -> None:
    # Under implicit VR nothing in the file says that the descriptor is signed.
    if values == "signed":
        header = dicom(SIGNED, bits=12)
    else:
        header = dicom(STORED, bits=12, RescaleSlope=1, RescaleIntercept=-2048)
    one = Dataset()
    first = -2048 if representation == "SS" else 2**16 - 2048
    one.add_new("LUTDescriptor", representation, [4096, first, 12])
    entries = DARKER.astype(">u2" if syntax == "big endian" else "<u2")
    one.add_new("LUTData", "OW", entries.tobytes())
    header.VOILUTSequence = [one]
    if syntax == "implicit":
        header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    elif syntax == "big endian":
        header.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        stored = SIGNED if values == "signed" else STORED
        header.PixelData = stored.astype(f">{stored.dtype.kind}2").tobytes()
        header.set_original_encoding(False, False)
    path = save_dicom(tmp_path / "x.dcm", header)
    shown = read_image(path, 3)
    np.testing.assert_allclose(shown[0], DARKER[STORED] / 4095, atol=1e-6)
    by_dcmtk = shown_by_dcmtk(path, ("+Wl", "1"))
    assert by_dcmtk is not None
    np.testing.assert_allclose(shown, by_dcmtk, atol=1 / 255)


@pytest.mark.parametrize("missing", ["both", "LUTData", "LUTDescriptor"])
def test_an_empty_table_is_passed_over(tmp_path: Path, missing: str) -> None:
    (empty,) = item(TABLES["12 bits in words"])
    for name in ("LUTDescriptor", "LUTData"):
        if missing in {"both", name}:
            setattr(empty, name, None)
    window = {"WindowCenter": 2000, "WindowWidth": 1001, "VOILUTFunction": "LINEAR_EXACT"}
    header = dicom(STORED, bits=12, VOILUTSequence=[empty], ModalityLUTSequence=[empty], **window)
    with recorded() as notes:
        (shown,) = read_image(save_dicom(tmp_path / "x.dcm", header))
    np.testing.assert_allclose(shown, np.clip((STORED - 2000.0) / 1001 + 0.5, 0, 1), atol=1e-6)
    expected = {f"{name}LUTSequence holds no table: passed over" for name in ("VOI", "Modality")}
    assert set(notes.notices) == expected
    header.VOILUTSequence.append(item(TABLES["12 bits in words"])[0])
    (shown,) = read_image(save_dicom(tmp_path / "x.dcm", header))
    np.testing.assert_allclose(shown, DARKER[STORED] / 4095, atol=1e-6)


@pytest.mark.usefixtures("dcmtk")
def test_one_table_after_the_other(tmp_path: Path) -> None:
    header = dicom(STORED, bits=12)
    header.ModalityLUTSequence = item(TABLES["12 bits in words"])
    header.VOILUTSequence = item(TABLES["8 bits packed in words"])
    path = save_dicom(tmp_path / "x.dcm", header)
    shown = read_image(path, 3)
    np.testing.assert_allclose(shown[0], (DARKER[DARKER[STORED]] >> 4) / 255, atol=1e-6)
    by_dcmtk = shown_by_dcmtk(path, ("+Wl", "1"))
    assert by_dcmtk is not None
    np.testing.assert_allclose(shown, by_dcmtk, atol=1 / 255)


COLOURS = np.stack([np.arange(256), 255 - np.arange(256), np.arange(256) ** 2 // 255], axis=1)
"""(256, 3), of 8 bits."""
PALETTE_DEPTH = "the palette has entries of another depth than it states: their own is used"
PALETTES: dict[str, tuple[int, Array, float, str, bool]] = {
    # Bits stated, entries, the one that is white, what is told, whether dcmtk shows the same.
    "8 bits packed": (8, COLOURS.astype(np.uint8), 255, "", True),
    "8 bits, one in a word": (8, COLOURS.astype(np.uint16), 255, "", True),
    "16 bits": (16, (COLOURS * 257).astype(np.uint16), 65535, "", True),
    "16 bits, the lower 8 empty": (16, (COLOURS * 256).astype(np.uint16), 65535, "", True),
    "12 bits": (12, (COLOURS * 16).astype(np.uint16), 4095, "", True),
    "8 bits under 16 stated": (16, COLOURS.astype(np.uint16), 255, PALETTE_DEPTH, False),
    "16 bits under 8 stated": (8, (COLOURS * 257).astype(np.uint16), 65535, PALETTE_DEPTH, False),
}


def indexed(bits: int, entries: Array, count: int = 256, first: int = 0) -> FileDataset:
    header = dicom(BYTES, "PALETTE COLOR")
    for colour, column in zip(("Red", "Green", "Blue"), entries.T, strict=True):
        name = f"{colour}PaletteColorLookupTable"
        setattr(header, f"{name}Descriptor", [count, first, bits])
        setattr(header, f"{name}Data", np.ascontiguousarray(column).tobytes())
    return header


@pytest.mark.usefixtures("dcmtk")
@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("kind", PALETTES)
def test_a_palette(tmp_path: Path, kind: str, implicit: bool) -> None:
    bits, entries, white, notice, by_dcmtk = PALETTES[kind]
    header = indexed(bits, entries)
    if implicit:
        header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    path = save_dicom(tmp_path / "x.dcm", header)
    with recorded() as notes:
        shown = read_image(path, 3)
    expected = entries[BYTES].transpose(2, 0, 1) / white
    np.testing.assert_allclose(shown, expected, atol=1e-6)
    assert notes.notices == ((notice,) if notice else ())
    if by_dcmtk:
        second = shown_by_dcmtk(path)
        assert second is not None
        np.testing.assert_allclose(shown, second, atol=1.01 / 255)


def test_a_palette_of_fewer_entries_begins_at_its_first_value(tmp_path: Path) -> None:
    header = indexed(8, COLOURS[:200].astype(np.uint8), 200, 30)
    shown = read_image(save_dicom(tmp_path / "x.dcm", header), 3)
    expected = COLOURS[np.clip(BYTES.astype(int) - 30, 0, 199)].transpose(2, 0, 1) / 255
    np.testing.assert_allclose(shown, expected, atol=1e-6)


def test_a_segmented_palette_is_expanded(tmp_path: Path) -> None:
    header = dicom(BYTES, "PALETTE COLOR")
    # One entry of 0, then 255 entries on a line to 65535 (PS3.3 C.7.9.2).
    segments = struct.pack("<6H", 0, 1, 0, 1, 255, 65535)
    for colour in ("Red", "Green", "Blue"):
        setattr(header, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(header, f"Segmented{colour}PaletteColorLookupTableData", segments)
    path = save_dicom(tmp_path / "x.dcm", header)
    np.testing.assert_allclose(read_image(path, 3)[0], BYTES / 255, atol=1e-4)
    header.SegmentedRedPaletteColorLookupTableData = segments[:10]
    with pytest.raises(UnreadableImage, match="a segmented palette that cannot be expanded"):
        read_image(save_dicom(path, header))


def test_a_palette_without_entries_is_refused(tmp_path: Path) -> None:
    header = indexed(8, COLOURS.astype(np.uint8))
    del header.GreenPaletteColorLookupTableData
    with pytest.raises(UnreadableImage, match="a palette is missing or empty"):
        read_image(save_dicom(tmp_path / "x.dcm", header))
