"""What a file tells of how its image was taken: derived, hashed, and nothing else."""

from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from medvq.audit.acquisition import SETTINGS, describe
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    header = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    paths = []
    for number, (date, maker) in enumerate((("20200131", "Acme"), ("20200302", "Other"))):
        header.StudyDate, header.StudyTime, header.Manufacturer = date, "133000", maker
        header.PatientAge, header.PatientSex, header.KVP = f"01{number}Y", "F", "120"
        header.save_as(tmp_path / f"{number}.dcm")
        paths.append(tmp_path / f"{number}.dcm")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "broken.dcm").write_text("nothing")
    return [*paths, tmp_path / "a.png", tmp_path / "broken.dcm", tmp_path / "gone.dcm"]


def test_numbers_hashes_and_days_since_the_first(files: list[Path]) -> None:
    table = describe(files)
    assert table["file_size"].tolist()[:4] == [file.stat().st_size for file in files[:4]]
    assert table["moment.day"].tolist()[:2] == [0, 31]  # over a leap day
    assert table["moment.weekday"].tolist()[:2] == ["4", "0"]
    assert table["moment.hour"].tolist()[:2] == [13.5, 13.5]
    assert table["person.age"].tolist()[:2] == [10, 11]
    assert table["settings.KVP"].tolist()[:2] == [120, 120]
    assert table["settings.BitsStored"].tolist()[:2] == [16, 16]
    makers = table["equipment.Manufacturer"]
    assert makers[:2].nunique() == 2
    assert makers[:2].str.fullmatch("[0-9a-f]{16}").all()
    assert table.loc[2:, table.columns != "file_size"].isna().all(axis=None)
    assert np.isnan(table.loc[4, "file_size"])


@pytest.mark.parametrize(
    ("age", "years"), [("002Y", 2), ("018M", 1.5), ("006W", 6 / 52.18), ("073D", 73 / 365.25)]
)
def test_an_age_is_in_years_whatever_its_unit(files: list[Path], age: str, years: float) -> None:
    header = pydicom.dcmread(files[0])
    header.PatientAge = age
    header.save_as(files[0])
    assert describe(files[:1])["person.age"].tolist() == pytest.approx([years])


def test_a_sequence_in_place_of_a_value_counts_as_missing(files: list[Path]) -> None:
    content = files[0].read_bytes()
    sound = b"\x08\x00\x70\x00LO\x04\x00Acme"
    assert content.count(sound) == 1
    nested = b"\xfe\xff\x00\xe0\x0a\0\0\0" + b"\x10\x00\x20\x00TY\x02\x00ab"
    sequence = b"\x08\x00\x70\x00SQ\0\0\x12\0\0\0" + nested
    files[0].write_bytes(content.replace(sound, sequence))
    table = describe(files[:1])
    assert "equipment.Manufacturer" not in table
    assert table["person.age"].tolist() == [10]


def test_no_text_of_a_header_stands_in_the_table(files: list[Path]) -> None:
    shown = describe(files).to_csv()
    assert not any(word in shown for word in ("Acme", "Other", "2020", "CompressedSamples"))


def test_pictures_tell_their_size_alone(files: list[Path]) -> None:
    table = describe(files[2:3])
    pd.testing.assert_frame_equal(
        table, pd.DataFrame({"file_size": [float(files[2].stat().st_size)]})
    )


@pytest.mark.parametrize("value", ["1E155", "-1E155", "inf", "NaN", "9" * 400, "1,5", "a", ""])
def test_absurd_numbers_count_as_missing(tmp_path: Path, value: str) -> None:
    header = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    for name in SETTINGS:
        tag = Tag(name)
        if dictionary_VR(tag) in {"DS", "IS"}:
            text = value.encode() + b" " * (len(value) % 2)
            kind = dictionary_VR(tag)
            header[tag] = RawDataElement(tag, kind, len(text), text, 0, False, True)
    header.PatientAge = "1E9Y"
    header.save_as(tmp_path / "a.dcm")
    table = describe([tmp_path / "a.dcm"]).select_dtypes("number")
    assert (table.abs() <= 1e12).all(axis=None)
    assert set(table.columns) >= {"settings.BitsStored", "file_size"}
    assert not {"settings.KVP", "settings.Exposure", "settings.RescaleSlope"} & set(table.columns)
