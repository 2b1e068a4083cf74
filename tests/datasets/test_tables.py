"""Tables as programs save them: ends of lines, files that are no tables, signs for no value."""

import errno
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from factories.images import dicom, save_dicom
from medvq.config import Source
from medvq.datasets.classes import Label, _check_spelling
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


@pytest.mark.parametrize("number", ["99", "999", "9999.0", "99999"])
def test_nines_far_above_all_other_numbers_to_predict_are_told(folder: Path, number: str) -> None:
    write(folder, "40", number, "41.5", number, "3", column="score")
    text = rf"the largest 'score' is {float(number):g}, more than twice .* 2 rows; if it stands for"
    with pytest.warns(Notice, match=text):
        listing(folder, target="score")
    for values in ((number, "60000", "5"), ("1e5", "2"), (number, number)):
        write(folder, *values, column="score")
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "labels.csv", Notice)
            listing(folder, target="score")


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


def test_a_name_that_no_file_may_have_is_refused_in_one_line(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no labels file .*aaa"):
        listing(folder, file="a" * 300)


def test_text_that_a_spreadsheet_writes_as_a_formula_is_text(tmp_path: Path) -> None:
    for name in ("001", "010"):
        (tmp_path / f"{name}.png").write_bytes(b"any")
    (tmp_path / "labels.csv").write_text('file;label\n="001";="1"\n"=""010""";"=""2"""\n')
    assert labels_in(tmp_path) == ["1", "2"]


def test_a_number_that_has_lost_its_zeros_is_asked_about(tmp_path: Path) -> None:
    for name in ("001", "010"):
        (tmp_path / f"{name}.png").write_bytes(b"any")
    for written in ("10", "10.0"):
        (tmp_path / "labels.csv").write_text(f"file,label\n{written},x\n")
        with pytest.raises(UserError, match=r"did you mean '010\.png'"):
            listing(tmp_path)


def test_a_row_that_names_a_folder_is_refused_with_the_way_out(folder: Path) -> None:
    (folder / "p1").mkdir()
    (folder / "labels.csv").write_text("file,label\np1,x\n")
    with pytest.raises(UserError, match=r"line 2: .*: it names a folder; give each of its files a"):
        listing(folder)


def test_whole_numbers_with_a_decimal_comma_are_whole_numbers(folder: Path) -> None:
    write(folder, '"0,0"', '"1,0"', "1", "0", '"1,00"', '"1,000"')
    with pytest.warns(Notice, match="counted as one class each"):
        assert labels_in(folder) == ["0", "1", "1", "0", "1", "1,000"]


def test_a_second_column_of_files_is_named(folder: Path) -> None:
    (folder / "labels.csv").write_text("image,image_2,label\na.png,b.png,x\nc.png,d.png,y\n")
    with pytest.warns(Notice, match="'image_2' is not used; give each file a row of its own"):
        assert labels_in(folder) == ["x", None, "y", None, None, None]


@pytest.mark.parametrize("mark", ["|", ";", "+"])
def test_labels_that_seem_to_be_several_are_told(folder: Path, mark: str) -> None:
    write(folder, "mass", "edema", f"mass{mark}edema", "a/b")
    with pytest.warns(Notice, match=r"1 label may be several, first 'mass.edema'"):
        assert labels_in(folder)[2:4] == [f"mass{mark}edema", "a/b"]


def test_a_title_above_the_header_is_told(folder: Path) -> None:
    (folder / "labels.csv").write_text("Export of 2024,\nfile,label\na.png,x\n")
    with pytest.raises(UserError, match="; the first line must name the columns"):
        listing(folder)


def test_a_table_without_the_column_of_classes_says_what_names_it(folder: Path) -> None:
    (folder / "labels.csv").write_text("file,NORMAL,PNEUMONIA\na.png,1,0\n")
    with pytest.warns(Notice, match=r"labels no image: .*; source\.labels\.column names"):
        listing(folder)


def test_texts_that_differ_are_not_compared_with_each_other() -> None:
    class Counts(dict[str, int]):
        visited = 0

        def items(self) -> Any:
            for item in super().items():
                self.visited += 1
                yield item

    counts = Counts({f"finding {number} of {number * 7}": 1 for number in range(1000)})
    _check_spelling([Label(text) for text in counts], counts)
    assert counts.visited <= 2 * len(counts)


@pytest.mark.usefixtures("kept_workers")
def test_an_accession_number_is_asked_for_no_study(tmp_path: Path) -> None:
    save_dicom(tmp_path / "a.dcm", dicom(StudyInstanceUID="1.2", AccessionNumber="A1"))
    (tmp_path / "labels.csv").write_text("AccessionNumber,label\nA1,ill\n")
    for labels in ({"join": "study"}, {"join": "study", "key": "AccessionNumber"}):
        with pytest.raises(UserError, match="StudyInstanceUID") as refused:
            listing(tmp_path, **labels)
        assert "if it is 'AccessionNumber'" not in str(refused.value)


def test_letters_that_only_look_alike_make_no_class(folder: Path) -> None:
    write(folder, "Covid", "Covid", "\u0421\u043evid", "cob", "cob", "CO\u0412")
    with pytest.warns(Notice, match="one class each") as told:
        assert labels_in(folder) == ["Covid"] * 3 + ["cob"] * 3
    text = next(str(one.message) for one in told if "one class" in str(one.message))
    assert r"'cob' (2) and 'CO\u0412' (1); 'Covid' (2) and '\u0421\u043evid' (1)" in text


def test_words_in_another_alphabet_stay_words(folder: Path) -> None:
    normal, ill = "\u043d\u043e\u0440\u043c\u0430", "\u0431\u043e\u043b\u044c\u043d\u043e\u0439"
    write(folder, normal, normal, normal.upper(), ill, ill, ill)
    with pytest.warns(Notice, match=f"'{normal}' .2. and '{normal.upper()}' .1.$"):
        assert labels_in(folder) == [normal] * 3 + [ill] * 3


def test_a_curly_apostrophe_makes_no_class(folder: Path) -> None:
    write(folder, "Crohn's", "Crohn's", "Crohn\u2019s", "normal")
    with pytest.warns(Notice, match="one class each"):
        assert labels_in(folder)[:4] == ["Crohn's"] * 3 + ["normal"]
