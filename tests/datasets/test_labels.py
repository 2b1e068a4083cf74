"""Labels as people write them: columns, missing values, spellings, file names, folders."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
from factories.images import dicom, ramp, save_dicom
from medvq.config import FolderSource, Source
from medvq.config_file import load_config
from medvq.datasets.classes import Label, edit_distance, is_missing, unify
from medvq.datasets.dataset import Listing
from medvq.datasets.folder_labels import labels_of_folders
from medvq.datasets.folders import NOT_NAMED, TABLE, list_images
from medvq.errors import Notice, UserError
from pydantic import TypeAdapter

SOURCE: TypeAdapter[Any] = TypeAdapter(Source)


pytestmark = pytest.mark.usefixtures("kept_workers")


def listing(folder: Path, labels: object = "labels.csv", **source: object) -> Listing:
    wanted = {"kind": "image_folder", "labels": labels} | source
    return list_images(folder, SOURCE.validate_json(json.dumps(wanted)))


def labels_in(folder: Path, labels: object = "labels.csv") -> list[str | None]:
    return [image.label for image in listing(folder, labels).images]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abcdefgh":
        (tmp_path / f"{name}.png").write_bytes(b"any")
    return tmp_path


def write(folder: Path, *lines: str) -> None:
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def with_labels(*labels: str) -> list[str]:
    rows = zip("abcdefgh", labels, strict=False)
    return ["file,label", *(f"{name}.png,{label}" for name, label in rows)]


def test_missing_values_are_no_label(folder: Path) -> None:
    write(folder, *with_labels("normal", "nan", "NA", "#N/A", " null ", "None", "-", ""))
    assert labels_in(folder) == ["normal", *[None] * 7]
    assert [is_missing(text) for text in ("n/a", "0", "no", "\xa0")] == [True, False, False, True]


def test_marks_that_are_not_seen_make_no_class(folder: Path) -> None:
    write(
        folder, *with_labels("ill", "ill\u200b", "\ufeffill", "well", "well", "\u200b", "\u00ad-")
    )
    with pytest.warns(Notice, match="one class each"):
        assert labels_in(folder) == ["ill"] * 3 + ["well"] * 2 + [None] * 3


def test_missing_subjects_splits_and_numbers(folder: Path) -> None:
    write(folder, "file,subject,split,age", "a.png,NA,NULL,nan", "b.png,NA,test,3")
    one, two, *_ = listing(folder, {"file": "labels.csv", "target": "age"}).images
    assert (one.has_known_subject, one.split, one.target) == (False, "train", None)
    assert one.subject != two.subject
    assert (two.split, two.target) == ("test", 3.0)


@pytest.mark.parametrize(
    ("written", "read", "notice"),
    [
        ("Normal normal ILLNESS Illness", "Normal Normal ILLNESS ILLNESS", "'Normal' (1) and"),
        ("0 0.0 1 1.0 1.", "0 0 1 1 1", "'0' (1) and '0.0' (1); '1' (1) and '1.' (1)"),
        ("non-small non_small large", "non-small non-small large", "'non-small' (1) and 'non_"),
        ("1-2 1_2 a+ a- HER2-neg HER2_neg", "1-2 1_2 a+ a- HER2-neg HER2-neg", "'HER2-neg' (1)"),
        ("ill ILL ILL ill ill 1.5 1.50", "ill ill ill ill ill 1.5 1.50", "'ill' (3) and 'ILL' (2)"),
        ("normal\xa0 normal well", "normal normal well", ""),
    ],
)  # fmt: skip
def test_one_class_in_several_spellings(folder: Path, written: str, read: str, notice: str) -> None:
    write(folder, *with_labels(*written.split(" ")))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = [label for label in labels_in(folder) if label]
    assert found == read.split()
    told = [str(w.message) for w in caught if "counted as one class each" in str(w.message)]
    assert len(told) == bool(notice)
    assert all(notice in text for text in told)


def test_rows_that_differ_in_spelling_do_not_contradict(folder: Path) -> None:
    write(folder, "file,label", "a.png,Ill", "a.png,ill", "b.png,Ill")
    assert labels_in(folder)[:2] == ["Ill", "Ill"]


def test_a_rare_misspelling_is_asked_about(folder: Path) -> None:
    write(folder, *with_labels("NORMAL", "ill", "NORMAL", "ill", "NORMAL", "NORMLA"))
    asked = r"labels\.csv, line 7: label 'NORMLA' occurs once; did you mean 'NORMAL'\?"
    with pytest.raises(UserError, match=asked):
        listing(folder)
    listed = {"file": "labels.csv", "classes": ["ill", "NORMAL", "NORMLA"]}
    assert labels_in(folder, listed)[5] == "NORMLA"
    with pytest.raises(UserError, match=r"line 3: label 'ill' is not in source\.labels\.classes"):
        listing(folder, {"file": "labels.csv", "classes": ["normal", "NORMLA"]})
    spelt = labels_in(folder, {"file": "labels.csv", "classes": ["Normal", "Normla", "ILL"]})
    assert spelt[:6] == ["Normal", "ILL", "Normal", "ILL", "Normal", "Normla"]


@pytest.mark.parametrize(
    ("common", "rare", "asked"),
    [
        ("normal", "abnormal", False),
        ("grade 2", "grade 3", False),
        ("stage ii", "stage iii", False),
        ("benign a", "benign b", False),
        ("ill", "il", False),
        ("1", "2", False),
        ("pneumonia", "pnuemonia", True),
        ("pneumonia", "pneumona", True),
        ("effusion", "effusions", True),
        ("pneumonia", "pneumothorax", False),
    ],
)
def test_what_counts_as_a_misspelling(common: str, rare: str, asked: bool) -> None:
    labels = [Label(common)] * 60 + [Label(rare)]
    if asked:
        with pytest.raises(UserError, match=f"did you mean '{common}'"):
            unify(labels, "table")
        with pytest.raises(UserError, match=f"'{rare}' occurs 3 times; did you mean '{common}'"):
            unify([*labels, Label(rare), Label(rare)], "table")
    else:
        assert unify(labels, "table") == labels
    # As many as these are no slip.
    assert unify([Label(common)] * 60 + [Label(rare)] * 9, "table")


@pytest.mark.parametrize(
    ("one", "other", "distance"), [("", "ab", 2), ("abcd", "acbd", 1), ("ill", "ill", 0)]
)
def test_edit_distance(one: str, other: str, distance: int) -> None:
    assert edit_distance(one, other) == edit_distance(other, one) == distance


@pytest.mark.parametrize(
    "header",
    ["file,label,Subject,Split", "Filename,Class,Patient_ID,SPLIT", "image,Label,PatientID,split",
     "Image Index,Labels,patient id,Split", "File Path,LABEL,Participant-ID,splits"],
)  # fmt: skip
def test_columns_are_known_by_the_names_that_people_give_them(folder: Path, header: str) -> None:
    write(folder, header, "a.png,n,P0,train", "b.png,s,P0,train", "c.png,n,P1,dev")
    one, two, three, *_ = listing(folder).images
    assert [i.label for i in (one, two, three)] == ["n", "s", "n"]
    assert one.subject == two.subject != three.subject
    assert [i.split for i in (one, two, three)] == ["train", "train", "validation"]


@pytest.mark.parametrize(
    ("header", "notice"),
    [
        (
            "file,Diagnosis",
            "labels.csv: 'Diagnosis' is not used; if it is the label, source.labels",
        ),
        ("file,label,case id", "'case id' is not used; if it is the subject, rename it"),
        ("file,label,Fold", "'Fold' is not used; if it is the split, rename it"),
        ("file,subject,patient", "'patient' is not used; if it is the subject"),
        ("file,label,label.1", "'label.1' is not used; if it is the label"),
        ("file,label,set,split", "'set' is not used; if it is the split, rename it"),
        ("file,label,diagnosis", "'diagnosis' is not used; if it is the label, source.labels"),
        ("file,subject,case,id", "'case' is not used; if it is the subject, rename it"),
        ("file,diagnostic", "'diagnostic' is not used; if it is the label, source.labels"),
        ("file,label,lesion_id", "'lesion_id' is not used; if it is the subject, rename it"),
        ("file,label,data_split", "'data_split' is not used; if it is the split, rename it"),
        ("file,label,split2", "'split2' is not used; if it is the split, rename it"),
    ],
)
def test_a_column_that_looks_like_one_of_ours_is_named(
    folder: Path, header: str, notice: str
) -> None:
    write(folder, header, ",".join(["a.png", "x", "1"][: len(header.split(","))]))
    with pytest.warns(Notice) as caught:
        listing(folder)
    assert any(notice in str(warning.message) for warning in caught)


def test_two_columns_for_one_purpose(folder: Path) -> None:
    write(folder, "file,patient,patientid", "a.png,1,2")
    with pytest.raises(UserError, match="'patient' and 'patientid' may each be the subject"):
        listing(folder)


def test_files_that_are_not_named_are_unlabelled_or_left_out(folder: Path) -> None:
    write(folder, *with_labels("ill", "well", "ill"))
    found = listing(folder)
    assert [i.label for i in found.images] == ["ill", "well", "ill", *[None] * 5]
    assert found.skipped == {TABLE: 1}
    found = listing(folder, {"file": "labels.csv", "only": True})
    assert [i.label for i in found.images] == ["ill", "well", "ill"]
    assert found.skipped == {TABLE: 1, NOT_NAMED: 5}


@pytest.mark.parametrize("name", ["A.PNG", "a", "./a.png", "in\\deep\\i.png", "i.png", "i"])
def test_names_that_stand_for_one_file_only(folder: Path, name: str) -> None:
    (folder / "in" / "deep").mkdir(parents=True)
    (folder / "in" / "deep" / "i.png").write_bytes(b"any")
    write(folder, "file,label", f"{name},ill")
    (labelled,) = (i for i in listing(folder).images if i.label)
    assert labelled.path.stem == name.replace("\\", "/").rpartition("/")[2][0].lower()


def test_volumes_and_uids_without_a_suffix(tmp_path: Path) -> None:
    for name in ("a/sub-01.nii.gz", "sub-02.NII.GZ", "sub-03.nii.gz"):
        (tmp_path / "volumes" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "volumes" / name).write_bytes(b"any")
    write(tmp_path / "volumes", "file,label", "sub-01,ill", "sub-02,well", "sub-03.nii,old")
    volumes = listing(tmp_path / "volumes", kind="nifti_folder").images
    assert [image.label for image in volumes] == ["ill", "well", "old"]
    # The name of the second file is the UID of another image, with a part more.
    for name in ("1.2.3.9", "1.2.3.4.1"):
        save_dicom(tmp_path / "uids" / name, dicom(ramp()))
    write(tmp_path / "uids", "file,label", "1.2.3.9,well", "1.2.3.4,ill")
    with pytest.raises(UserError, match="line 3: the file it names is not in"):
        listing(tmp_path / "uids")


def test_names_that_stand_for_two_files_are_refused(folder: Path) -> None:
    (folder / "in").mkdir()
    for name in ("x.png", "in/x.png"):
        (folder / name).write_bytes(b"any")
    write(folder, "file,label", "x,ill")
    with pytest.raises(UserError, match=r"line 2: the file it names is not in .* 2 files may be"):
        listing(folder)
    write(folder, "file,label", "aa.png,ill")
    with pytest.raises(UserError, match=r"did you mean 'a\.png'\?"):
        listing(folder)


def test_letters_in_another_encoding(folder: Path) -> None:
    try:
        (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(b"any")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")  # macOS; CI is Linux
    (folder / "nai\u0308f.png").write_bytes(b"any")
    write(folder, "file,label", "café.png,ill", "naïf.png,well")
    images = {image.label: image for image in listing(folder).images}
    assert images["ill"].shown_path == r"caf\xe9.png"
    assert images["well"].shown_path == "nai\u0308f.png"


def test_the_separator_that_excel_states(folder: Path) -> None:
    write(folder, "sep=;", "file;label", "a.png;ill, very")
    assert labels_in(folder)[0] == "ill, very"
    write(folder, "sep=;", "file;label", "gone.png;ill")
    with pytest.raises(UserError, match="line 3: the file it names"):
        listing(folder)


@pytest.mark.parametrize(
    ("paths", "labels", "splits"),
    [
        ("train/ill/1 valid/well/2 test/ill/3", "ill well ill", "train validation test"),
        ("ill/train/1 well/Test_set/2 ill/dev/p/3", "ill well ill", "train test validation"),
        ("ill/train/p1/1 ill/test/p2/2 well/train/p3/3", "ill ill well", "train test train"),
        ("set/train/ill/1 set/test/ill/2", "ill ill", "train test"),
        ("s1/train/ill/1 s2/train/ill/2 s2/test/well/3", "ill ill well", "train train test"),
        ("train/1 test/2 eval/3", "None None None", "train test validation"),
        ("ill/1 well/ward/2 3", "ill well None", "None None None"),
    ],
)
def test_folders_name_splits_and_classes(paths: str, labels: str, splits: str) -> None:
    found = labels_of_folders([f"{path}.png" for path in paths.split()])
    assert [str(one.label) for one in found] == labels.split()
    assert [str(one.split) for one in found] == splits.split()


def test_a_class_is_one_line_whatever_its_folder_is_called() -> None:
    found = labels_of_folders(["train\r/ill\r/1.png", "train\r/caf\udce9\nA/2.png"])
    assert [(one.label, one.split) for one in found] == [("ill", "train"), (r"caf\xe9\nA", "train")]


@pytest.mark.parametrize("name", ["tset", "test_images", "fold2", "train 2"])
def test_a_folder_that_looks_like_a_split_is_asked_about(name: str) -> None:
    with pytest.raises(UserError, match=f"the folder '{name}' looks like a split, but is called"):
        labels_of_folders(["train/ill/1.png", f"{name}/ill/2.png"])


@pytest.mark.parametrize("names", ["trainA trainB testA testB", "TrainIll TrainWell TestIll"])
def test_splits_and_classes_in_one_word_are_asked_about(names: str) -> None:
    with pytest.raises(UserError, match="looks like a split, but is called"):
        labels_of_folders([f"{name}/1.png" for name in names.split()])
    assert labels_of_folders(["protestA/1.png", "trainer/2.png"])[0].label == "protestA"


def test_one_class_in_two_folders(tmp_path: Path) -> None:
    for name in ("train/Normal/1.png", "train/Normal/2.png", "test/normal/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"any")
    with pytest.warns(Notice, match=r"'Normal' \(2\) and 'normal' \(1\)"):
        assert {image.label for image in listing(tmp_path, None).images} == {"Normal"}


def study(tmp_path: Path, folder: str = "images", labels: str = "labels.csv") -> Path:
    (tmp_path / "study" / "images").mkdir(parents=True, exist_ok=True)
    (tmp_path / "study" / "images" / "a.png").write_bytes(b"any")
    file = tmp_path / "study" / "mine.yaml"
    source = {"kind": "image_folder", "folder": folder, "labels": labels}
    file.write_text(json.dumps({"name": "mine", "source": source}))
    return file


def read_by(file: Path) -> list[str | None]:
    source = load_config(file).source
    assert isinstance(source, FolderSource)
    images = list_images(Path(source.folder or ""), source).images
    return [image.label for image in images]


def test_paths_are_relative_to_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = study(tmp_path)
    monkeypatch.chdir(tmp_path)
    beside, inside = file.parent / "labels.csv", file.parent / "images" / "labels.csv"
    with pytest.raises(UserError, match=r"no labels file .*images/labels\.csv or .*study/labels"):
        read_by(Path("study/mine.yaml"))
    beside.write_text("file,label\na.png,beside\n")
    assert read_by(Path("study/mine.yaml")) == read_by(file) == ["beside"]
    inside.write_text("file,label\na.png,inside\n")
    with pytest.raises(UserError, match="two tables of labels: "):
        read_by(file)
    inside.write_text(beside.read_text())
    assert read_by(file) == ["beside"]
    assert read_by(study(tmp_path, str(file.parent / "images"), str(beside))) == ["beside"]


def test_a_table_in_the_home_folder_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "labels.csv").write_text("file,label\na.png,home\n")
    file = study(tmp_path)
    assert read_by(study(tmp_path, str(file.parent / "images"), "~/labels.csv")) == ["home"]


def test_a_configuration_that_is_extended_keeps_its_own_paths(tmp_path: Path) -> None:
    file = study(tmp_path)
    (file.parent / "labels.csv").write_text("file,label\na.png,base\n")
    other = tmp_path / "other.yaml"
    other.write_text("extends: study/mine.yaml\nname: other\n")
    assert read_by(other) == ["base"]


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        ("train/ill/1 test/ill/2 extra/ill/3", "'extra' stands beside 'test', 'train'"),
        ("train/ill/1 test/ill/2 unlabelled/3", "'unlabelled' stands beside 'test', 'train'"),
        ("train/ill/1 trainval/ill/2", "'trainval' stands beside 'train'"),
        ("a/train/ill/1 a/test/ill/2 a/more/ill/3", "'more' stands beside 'test', 'train'"),
        ("ill/1 well/train/2 well/test/3", "'well' holds splits, and 'ill' beside it holds none"),
        ("images/train/ill/1 masks/2", "'images' holds splits, and 'masks' beside it"),
        ("ill_train/1 ill_test/2 well_train/3 well_test/4", "'ill_test', 'ill_train', "),
        ("train-ill/1 test-ill/2", "'test-ill', 'train-ill' looks like a split"),
        ("cv1/ill/1 cv2/ill/2", "'cv1', 'cv2' looks like a split"),
        ("ill/CT_train/1 ill/CT_test/2 well/CT_train/3", "'CT_test', 'CT_train' looks like a"),
    ],
)
def test_folders_that_would_silently_be_classes_are_asked_about(paths: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        labels_of_folders([f"{path}.png" for path in paths.split()])


def test_classes_may_be_named_like_splits_and_stand_beside_them() -> None:
    found = labels_of_folders(["test positive/1.png", "test negative/2.png"])
    assert [(one.split, one.label) for one in found] == [
        (None, "test positive"),
        (None, "test negative"),
    ]
    found = labels_of_folders(["ill/1.png", "test/ill/2.png", "train/3.png"])
    assert [(one.split, one.label) for one in found] == [
        (None, "ill"),
        ("test", "ill"),
        ("train", None),
    ]


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        ("a/ill/1 a/well/2 b/ill/3 b/well/4", "the folders 'a', 'b'; .* 'ill', 'well', are"),
        ("2019/ill/1 2019/well/2 2020/ill/3", "the folders '2019', '2020'; .* 'ill', are"),
        (
            "train/p1/ill/1 train/p2/ill/2 train/p3/well/3 test/p4/ill/4 test/p5/ill/5 test/p6/b/6",
            "6 folders; other folders, 'ill', are",
        ),
        ("a/p1/ill/1 a/p2/well/2 b/p3/ill/3 b/p4/well/4", "'a', 'b'; .* 'ill', 'well', are"),
        ("train/a/p1/ill/1 train/b/p2/ill/2 test/b/p3/well/3", "'a', 'b'; .* 'ill', are"),
        ("ill/a/train/1 ill/b/test/2 well/a/train/3 well/b/test/4", "'a', 'b'; .* 'ill', 'well',"),
        ("a/train/ill/1 a/test/b/2 c/train/b/3 c/test/ill/4", "'b', 'ill'; .* 'a', 'c', are"),
    ],
)
def test_folders_that_recur_in_several_classes_are_told(paths: str, said: str) -> None:
    with pytest.warns(Notice, match=f"the classes are .*{said} .*no labels"):
        labels_of_folders([f"{path}.png" for path in paths.split()])


def test_folders_that_may_be_patients_are_counted_and_not_named() -> None:
    paths = [f"{name}/{patient}/1.dcm" for name in ("ill", "well") for patient in ("smith", "chen")]
    with pytest.warns(Notice, match="'ill', 'well'; 2 other folders that recur are no labels"):
        labels_of_folders(paths, may_name=False)


def test_folders_of_a_few_patients_below_classes_are_no_cause_to_ask() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labels_of_folders([f"{path}/x.png" for path in ("ill/p1", "ill/p2", "well/p3", "well/p4")])


@pytest.mark.parametrize("missing", ["?", ".", "\u2013", "\u2014", "''", "#DIV/0!", "#NAME?"])
def test_signs_and_errors_of_spreadsheets_are_no_label(folder: Path, missing: str) -> None:
    write(folder, *with_labels("ill", "well", missing))
    assert labels_in(folder)[:3] == ["ill", "well", None]


@pytest.mark.parametrize("word", ["unknown", "Missing", "not available", "N.D."])
def test_words_that_may_stand_for_no_label_are_told(folder: Path, word: str) -> None:
    write(folder, *with_labels("ill", word))
    with pytest.warns(Notice, match=f"'{word}' counts as a class; if it stands for no label"):
        assert labels_in(folder)[:2] == ["ill", word]


@pytest.mark.parametrize(
    "labels",
    ["True False 0", "yes N no", "1 0 Yes", "positive neg pos", "TRUE WAHR FALSCH", "ja nein no"],
)
def test_yes_and_no_in_several_ways_are_refused(folder: Path, labels: str) -> None:
    write(folder, *with_labels(*labels.split()))
    with pytest.raises(UserError, match="write yes and no in several ways"):
        labels_in(folder)
    listed = {"file": "labels.csv", "classes": labels.split()}
    assert labels_in(folder, listed)[:3] == labels.split()


@pytest.mark.parametrize(
    ("column", "purpose"),
    [
        ("subj", "subject"),
        ("Patient Name", "subject"),
        ("is_test", "split"),
        ("train/test", "split"),
        ("Usage", "split"),
    ],
)
def test_more_columns_that_look_like_ours_are_named(
    folder: Path, column: str, purpose: str
) -> None:
    write(folder, f"file,label,{column}", "a.png,ill,1")
    with pytest.warns(Notice, match=f"'{column}' is not used; if it is the {purpose}, rename it"):
        labels_in(folder)


def test_columns_may_be_separated_by_bars(folder: Path) -> None:
    write(folder, *(line.replace(",", "|") for line in with_labels("ill", "well")))
    assert labels_in(folder)[:2] == ["ill", "well"]
    write(folder, "file label", "a.png ill")
    with pytest.raises(UserError, match="separated by commas, semicolons, tabs or"):
        labels_in(folder)


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("file\tlabel\tnotes, of age, sex, side", "a.png\till\t1"),
        ('"file";"label";"notes (age, sex, side)"', '"a.png";"ill";"1"'),
        ("sex;age, years, at, scan;file;label", "f;1;a.png;ill"),
    ],
)
def test_commas_in_the_names_of_other_columns(folder: Path, header: str, row: str) -> None:
    write(folder, header, row)
    assert labels_in(folder)[0] == "ill"


def test_quotes_after_a_space_are_no_part_of_a_label(folder: Path) -> None:
    write(folder, "file, label, note", 'a.png, "ill", "b, c"', "b.png,ill,", "c.png, well,")
    assert labels_in(folder)[:3] == ["ill", "ill", "well"]


@pytest.mark.parametrize("row", ["a.png,###,1", "a.png,ill,########"])
def test_what_a_narrow_column_shows_is_no_value(folder: Path, row: str) -> None:
    write(folder, "file,label,subject", row)
    with pytest.raises(UserError, match="line 2: '###' is what a spreadsheet shows"):
        labels_in(folder)


def test_digits_that_are_grouped_are_no_number(folder: Path) -> None:
    write(folder, "file,age", "a.png,1_000")
    with pytest.raises(UserError, match="line 2: 'age' is not a number"):
        listing(folder, {"file": "labels.csv", "target": "age"})


def test_a_quote_that_is_not_closed_swallows_no_row(folder: Path) -> None:
    write(folder, "file,label", "a.png,ill", 'b.png,"', 'c.png,"', "d.png,well")
    with pytest.raises(UserError, match="line 4: a field of several lines; is a quote not closed"):
        labels_in(folder)
    (folder / "labels.csv").write_bytes(b'file,label\na.png,"ill\rgrave"\n')
    with pytest.raises(UserError, match="line 3: a field of several lines"):
        labels_in(folder)
    write(folder, "file,label,report", 'a.png,ill,"two', 'lines"', "b.png,well,one")
    assert labels_in(folder)[:2] == ["ill", "well"]


def test_names_from_above_the_folder_and_escaped_ones(folder: Path) -> None:
    (folder / "x y.png").write_bytes(b"any")
    names = (f"{folder.name}/a.png", str(folder / "b.png"), "x%20y.png", f"{folder.name}/x%20y.png")
    for name in names:
        write(folder, "file,label", f"{name},ill")
        with pytest.warns(Notice, match="1 row without the folder or suffix of the file"):
            assert labels_in(folder).count("ill") == 1
    write(folder, "file,label", f"{folder.name}/../../a.png,ill")
    with pytest.raises(UserError, match="is not in"):
        labels_in(folder)


def test_links_that_contradict_the_place_of_a_file_are_refused(tmp_path: Path) -> None:
    for name in ("train/ill/a.png", "train/well/b.png", "test/ill/c.png", "test/well/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"any")
    (tmp_path / "newest.png").symlink_to("train/ill/a.png")
    with pytest.warns(Notice, match="1 x symbolic link to what is listed already"):
        assert len(listing(tmp_path, None).images) == 4
    for name in ("train/well/e.png", "test/ill/e.png"):
        (tmp_path / name).symlink_to(tmp_path / "train/ill/a.png")
        with pytest.raises(UserError, match=f"link {name} leads to a file .* another class or"):
            listing(tmp_path, None)
        (tmp_path / name).unlink()
