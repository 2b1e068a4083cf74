"""Tables as programs save them: ends of lines, files that are no tables, signs for no value."""

import errno
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from medvq.config import Source
from medvq.datasets.dataset import Listing
from medvq.datasets.folders import list_images
from medvq.errors import Notice, UserError
from pydantic import TypeAdapter

SOURCE: TypeAdapter[Any] = TypeAdapter(Source)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abcdef":
        (tmp_path / f"{name}.png").write_bytes(b"any")
    return tmp_path


def listing(folder: Path, **labels: object) -> Listing:
    source = {"kind": "image_folder", "labels": {"file": "labels.csv"} | labels}
    return list_images(folder, SOURCE.validate_json(json.dumps(source)))


def write(folder: Path, *values: str, column: str = "label", end: str = "\n") -> None:
    rows = [f"{name}.png,{value}" for name, value in zip("abcdef", values, strict=False)]
    table = end.join([f"file,{column}", *rows, ""])
    (folder / "labels.csv").write_bytes(table.encode())


def labels_in(folder: Path, **labels: object) -> list[str | None]:
    return [image.label for image in listing(folder, **labels).images]


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_lines_end_as_any_system_ends_them(folder: Path, end: str) -> None:
    write(folder, "ill", "well", end=end)
    assert labels_in(folder)[:3] == ["ill", "well", None]
    (folder / "labels.csv").write_bytes(f"file;label{end}a.png;ill{end}".encode())
    assert labels_in(folder)[:2] == ["ill", None]


def test_a_line_that_is_far_too_long_is_refused(folder: Path) -> None:
    (folder / "labels.csv").write_text("x" * 200_000)
    with pytest.raises(UserError, match=r"labels\.csv, line 1: not plain CSV"):
        listing(folder)


@pytest.mark.parametrize("word", ["none", "None", "nil", "-", "\u2013"])
def test_words_for_no_label_that_may_be_a_class_are_told(folder: Path, word: str) -> None:
    write(folder, "mild", "severe", word, word, "", "NA")
    with pytest.warns(Notice, match=f"'{word}' .2 rows. is no label; if it is a class, list all"):
        assert labels_in(folder)[:4] == ["mild", "severe", None, None]


def test_words_for_no_label_are_classes_where_the_configuration_lists_them(folder: Path) -> None:
    write(folder, "+", "-", "+", "-", "NA", "")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "labels.csv", Notice)
        assert labels_in(folder, classes=["+", "-"]) == ["+", "-", "+", "-", None, None]


@pytest.mark.parametrize("number", ["-1", "-9", "-99", "-999", "-1.0"])
def test_numbers_that_may_stand_for_no_label_are_told(folder: Path, number: str) -> None:
    write(folder, "0", "1", number)
    with pytest.warns(Notice, match=f"'{number}' counts as a class; if it stands for no label"):
        assert labels_in(folder)[:3] == ["0", "1", number]


def test_the_only_negative_number_to_predict_is_told(folder: Path) -> None:
    write(folder, "50", "-1", "61.5", "-1", column="age")
    text = "labels.csv: the only negative 'age' is -1, on 2 rows; if it stands for no value, leave"
    with pytest.warns(Notice, match=text):
        listing(folder, target="age")
    for values in (("-1", "-2", "5"), ("-1", "-1"), ("0", "1")):
        write(folder, *values, column="age")
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "labels.csv", Notice)
            listing(folder, target="age")


def test_empty_fields_after_the_last_column_are_none(folder: Path) -> None:
    (folder / "labels.csv").write_text("file;label\na.png;ill;\nb.png;well; ;\n")
    assert labels_in(folder)[:3] == ["ill", "well", None]
    (folder / "labels.csv").write_text("file,age\na.png,1,5\n")
    with pytest.raises(UserError, match=r"line 2: more fields than columns; .* in quotes"):
        listing(folder)


def test_a_table_that_may_not_be_read_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, "ill", "well")

    def refuse(_: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=r"labels\.csv cannot be read \(Permission denied\)"):
        listing(folder)
