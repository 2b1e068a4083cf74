"""What spreadsheets and statistics programs do to the cells of a table, told with the way out."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from medvq.config import Source
from medvq.datasets.dataset import Listing
from medvq.datasets.folders import list_images
from medvq.errors import Notice, UserError
from pydantic import TypeAdapter

SOURCE: TypeAdapter[Any] = TypeAdapter(Source)
TABLE = SOURCE.validate_python({"kind": "image_folder", "labels": "labels.csv"})


def listing(
    folder: Path, cells: Sequence[str], column: str = "label", **labels: object
) -> tuple[Listing, str]:
    """The images of a table with one column, and all that is told."""
    rows = [f"{number}.png,{cell}" for number, cell in enumerate(cells)]
    for number in range(len(cells)):
        (folder / f"{number}.png").write_bytes(b"any")
    (folder / "labels.csv").write_text("\n".join([f"file,{column}", *rows]), encoding="utf-8")
    source = {"kind": "image_folder", "labels": {"file": "labels.csv"} | labels}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        images = list_images(folder, SOURCE.validate_json(json.dumps(source)))
    return images, "\n".join(str(one.message) for one in told if one.category is Notice)


@pytest.mark.parametrize(
    "date",
    [
        "02-Jan", "2-Feb", "Jan-02", "Mar 04", "2. Jan", "5. M\u00e4rz", "12-d\u00e9c.", "3-Mai",
        "2024-01-02", "2024-01-02 00:00:00", "01/02/2024", "1.2.2024",
    ],
)  # fmt: skip
def test_labels_that_a_spreadsheet_has_made_dates_of_are_told(tmp_path: Path, date: str) -> None:
    images, told = listing(tmp_path, [date, date, "1-2", "1-2"])
    assert [image.label for image in images.images] == [date, date, "1-2", "1-2"]
    assert f"1 label in the form of a date, first '{date}'" in told
    assert "are dates" not in listing(tmp_path, [date, "1-2"], classes=[date, "1-2"])[1]


@pytest.mark.parametrize(
    "label", ["1-2", "3-4", "4A", "mar", "Marfan", "may be", "grade 02", "2-marked", "1.2", "1/2"]
)
def test_other_labels_are_no_dates(tmp_path: Path, label: str) -> None:
    assert "are dates" not in listing(tmp_path, [label, label, "other", "other"])[1]


@pytest.mark.parametrize(
    ("cells", "is_told"),
    [
        (["1.234", "987", "12.500"], True),
        (["-1.234", "98"], True),
        (["1.234", "987", "0.5"], False),  # no digits are grouped so
        (["0.234", "987"], False),
        (["1.234", "2.345"], False),  # all of them measured to a thousandth
        (["1.234", "1500"], False),
        (["1234", "987"], False),
    ],
)
def test_numbers_whose_digits_may_be_grouped_by_points_are_told(
    tmp_path: Path, cells: list[str], is_told: bool
) -> None:
    images, told = listing(tmp_path, cells, "age", target="age")
    assert [image.target for image in images.images] == [float(cell) for cell in cells]
    assert ("have a point and three digits" in told) == is_told


@pytest.mark.parametrize(
    ("cells", "line"),
    [
        (["1234567890123450", "7", "1234567890123460"], 2),
        (["7", "123456789012345000"], 3),
        (["1234567890123450", "1234567890123461"], 0),
        (["123456789012340", "7"], 0),
    ],
)
def test_long_numbers_of_patients_that_may_be_rounded_are_told_by_their_line(
    tmp_path: Path, cells: list[str], line: int
) -> None:
    _, told = listing(tmp_path, cells, "subject")
    assert (f"of more than 15 digits, first on line {line}," in told) == bool(line)
    assert "12345" not in told


def test_the_names_of_rows_that_r_writes_are_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"any")
    (tmp_path / "labels.csv").write_text('"file","label"\n"1","a.png","ill"\n')
    source = {"kind": "image_folder", "labels": {"file": "labels.csv"}}
    with pytest.raises(UserError, match=r"line 2: more fields than columns.*row\.names=FALSE"):
        list_images(tmp_path, SOURCE.validate_json(json.dumps(source)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\3\4 file,label\n", "is a workbook .* save it as 'CSV UTF-8'"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), "is a workbook .* 'CSV UTF-8'"),
        (b"<!DOCTYPE html><p>log in", "no table: it is a page of a server"),
        (b"version https://git-lfs.github.com/spec/v1\n", "no table: it is a pointer of Git LFS"),
        (b"\x1f\x8b\x08\0", "no table: it is compressed by gzip; unpack it"),
        (b"%PDF-1.4\n", "no table: it is a PDF"),
        (b'[\n  {"file": "a.png"}]', "no table: it is JSON; save it as CSV"),
    ],
)
def test_what_is_no_table_is_called_what_it_is(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(UserError, match=said):
        list_images(tmp_path, TABLE)


def test_a_table_may_begin_as_a_bitmap_does(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(b"any")
    table = "BMI,file,label\n20,a.png,ill\n21,b.png,well\n"
    (tmp_path / "labels.csv").write_text(table, encoding="utf-8")
    images = list_images(tmp_path, TABLE).images
    assert [one.label for one in images] == ["ill", "well"]
