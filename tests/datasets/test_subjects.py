"""Subjects as tables name them: what may be one patient, or several, and is told."""

import json
import re
import warnings
from pathlib import Path

import pytest
from factories.images import dicom, ramp, save_dicom
from medvq.config import DicomFolderSource, ImageFolderSource, Source
from medvq.datasets.dataset import Listing
from medvq.datasets.folder_labels import labels_of_folders
from medvq.datasets.folders import list_images
from medvq.errors import Notice, UserError
from pydantic import TypeAdapter


def listing(folder: Path) -> Listing:
    wanted = json.dumps({"kind": "image_folder", "labels": "labels.csv"})
    return list_images(folder, TypeAdapter(Source).validate_json(wanted))


def write(folder: Path, *lines: str) -> None:
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in "abcde":
        (tmp_path / f"{name}.png").write_bytes(b"any")
    return tmp_path


@pytest.mark.parametrize("subject", ["1.23457E+11", "1E+15", '"1,2E+12"', "1.234567890123457e+17"])
def test_subjects_that_a_spreadsheet_has_rounded_are_refused(folder: Path, subject: str) -> None:
    write(folder, "file,subject", "a.png,12E5", f"b.png,{subject}", f"c.png,{subject}")
    with pytest.raises(UserError, match=r"line 3: its subject is a number .* rounded") as refused:
        listing(folder)
    assert subject not in str(refused.value)


def test_subjects_that_may_be_one_are_told_by_their_lines(folder: Path) -> None:
    write(folder, "file,subject", "a.png,007", "b.png,Ann", "c.png,7", "d.png,7.0", "e.png,ann ")
    with pytest.warns(Notice, match="2 subjects written in several ways") as told:
        images = listing(folder).images
    assert "lines 2 and 4;" in " ".join(str(one.message) for one in told)
    assert len({image.subject for image in images if image.has_known_subject}) == 5
    write(folder, "file,subject", "a.png,007", "b.png,007", "c.png,8")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "subjects are written")
        listing(folder)


def patients(folder: Path, *names: str, table: str = "") -> tuple[set[str], str]:
    """List radiographs of patients as DICOM; return their subjects and what is told."""
    for number, name in enumerate(names):
        save_dicom(folder / f"{number}.dcm", dicom(ramp(), PatientID=name))
    source: dict[str, object] = {"kind": "dicom_folder"}
    if table:
        (folder / "labels.csv").write_text(table)
        source["labels"] = {"file": "labels.csv", "join": "subject"}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        images = list_images(folder, TypeAdapter(Source).validate_json(json.dumps(source))).images
    return {image.subject for image in images}, " ".join(str(one.message) for one in told)


@pytest.mark.usefixtures("kept_workers")
def test_patients_whose_numbers_are_alike_are_told(tmp_path: Path) -> None:
    subjects, told = patients(tmp_path, "0012", "12", "12", "ann", "ANN", "7")
    assert len(subjects) == 5
    assert "2 PatientIDs written in several ways" in told
    assert "12" not in told
    _, told = patients(tmp_path / "other", "0012", "13", "13", "ann", "ANN1")
    assert "several ways" not in told


@pytest.mark.usefixtures("kept_workers")
def test_rows_that_nearly_name_a_patient_say_so(tmp_path: Path) -> None:
    table = "subject,label\n12,ill\n7.0,well\n9,ill\n8,well\n"
    _, told = patients(tmp_path, "0012", "7", "8", table=table)
    assert "3 of 4 rows of the labels name no subject of any image; 2 of them would" in told
    with pytest.raises(UserError, match=r"name no subject .*; 2 of them would if zeros, capitals"):
        patients(tmp_path, "0012", "7", "8", table=table.replace("8,well\n", ""))


@pytest.mark.usefixtures("kept_workers")
def test_a_patient_whose_number_has_a_backslash_is_joined_by_it(tmp_path: Path) -> None:
    table = "subject,label\n7\\8,ill\n7,well\n9,well\n"
    subjects, told = patients(tmp_path, r"7\8", "7", "9", r"7\8", table=table)
    assert len(subjects) == 3
    assert "name no subject" not in told


def studies(folder: Path, *images: tuple[str, str]) -> tuple[list[str], str]:
    """List images of a patient and a study each; return their subjects and what is told."""
    for number, (patient, study) in enumerate(images):
        header = dicom(ramp(), PatientID=patient, StudyInstanceUID=study)
        save_dicom(folder / f"{number}.dcm", header)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        listed = list_images(folder, DicomFolderSource(kind="dicom_folder"), b"key").images
    return [image.subject for image in listed], " ".join(str(one.message) for one in told)


@pytest.mark.usefixtures("kept_workers")
def test_an_image_that_names_no_patient_follows_its_study(tmp_path: Path) -> None:
    images = [("", "1.2"), ("Ann", "1.2"), ("Ann", "1.3"), ("", "1.4"), ("Bob", "1.5")]
    subjects, told = studies(tmp_path, *images)
    assert subjects[0] == subjects[1] == subjects[2]
    assert len(set(subjects)) == 3
    assert "studies" not in told


@pytest.mark.usefixtures("kept_workers")
def test_studies_of_several_patients_are_told(tmp_path: Path) -> None:
    images = [("Ann", "1.2"), ("0815", "1.2"), ("", "1.2"), ("Bob", "1.3"), ("Bob", "1.3")]
    subjects, told = studies(tmp_path, *images)
    assert len(set(subjects)) == 4
    assert "the images of 1 study have several patients" in told
    assert not any(name in told for name in ("Ann", "0815", "1.2"))


@pytest.mark.usefixtures("kept_workers")
def test_patients_of_several_issuers_are_told(tmp_path: Path) -> None:
    for number, (patient, issuer) in enumerate(zip("1122334", "ABAA A ", strict=True)):
        header = dicom(ramp(), PatientID=patient, IssuerOfPatientID=issuer.strip())
        save_dicom(tmp_path / f"{number}.dcm", header)
    with pytest.warns(Notice, match=r"^1 PatientID came from several issuers"):
        list_images(tmp_path, DicomFolderSource(kind="dicom_folder"), b"key")


def placeholders(folder: Path, of_one: int, of_others: int) -> bool:
    """List images of five patients and of one more, and say whether this is taken for none."""
    subjects = ["ANONYMOUS"] * of_one + [name for name in "abcde" for _ in range(of_others)]
    for number in range(len(subjects)):
        (folder / f"{number}.png").write_bytes(b"any")
    write(folder, "file,subject", *(f"{n}.png,{name}" for n, name in enumerate(subjects)))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        listing(folder)
    text = f"one patient has {of_one} of"
    return any(text in str(one.message) for one in told)


def test_a_patient_who_may_be_a_placeholder_is_told(folder: Path) -> None:
    assert placeholders(folder, 40, 2)
    assert not placeholders(folder, 40, 3)
    assert not placeholders(folder, 19, 0)
    assert placeholders(folder, 20, 0)


@pytest.mark.parametrize(
    ("name", "number", "told"),
    [("p{:03}", 11, True), ("1.2.{}", 11, True), ("{}", 10, False), ("p{:03}", 10, False)],
)
def test_folders_of_patients_that_count_as_classes_are_told(
    name: str, number: int, told: bool
) -> None:
    paths = [f"{name.format(patient)}/{image}.png" for patient in range(number) for image in "ab"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = labels_of_folders(paths)
    assert len({one.label for one in found}) == number
    texts = [str(warning.message) for warning in caught]
    assert texts == (
        [
            "the folders are 11 classes whose names differ in numbers alone: if they are patients "
            "or studies, give labels and subjects in a CSV (source.labels)"
        ]
        if told
        else []
    )


@pytest.mark.parametrize("name", ["patient_{}", "Subject {}", "sub-{:02}", "case{}"])
def test_a_few_folders_that_are_called_patients_are_told(name: str) -> None:
    with pytest.warns(Notice, match="the folders are 3 classes whose names .* if they are patient"):
        labels_of_folders([f"{name.format(patient)}/a.png" for patient in range(3)])


@pytest.mark.parametrize("copy", ["ill - Copy", "ill (1)", "ill copy 2", "ill - Kopie (2)"])
def test_a_folder_that_is_named_as_a_copy_is_told(copy: str) -> None:
    paths = [f"{folder}/a.png" for folder in ("ill", "well", copy)]
    with pytest.warns(Notice, match=f"^the folder '{re.escape(copy)}' is named as a copy of ano"):
        assert [one.label for one in labels_of_folders(paths)] == ["ill", "well", copy]
    with pytest.warns(Notice, match="^the folder .not named: its files are DICOM. is named as a"):
        labels_of_folders(paths, may_name=False)


@pytest.mark.usefixtures("kept_workers")
def test_folders_that_hold_a_patient_each_are_no_classes(tmp_path: Path) -> None:
    for patient in ("CANARY1", "CANARY2", "CANARY3"):
        for number in range(2):
            header = dicom(ramp(), PatientID=patient)
            save_dicom(tmp_path / patient / f"{number}.dcm", header)
    source = ImageFolderSource(kind="image_folder", folder=".")
    with pytest.raises(UserError, match=r"3 folders .* patients, and no classes") as refused:
        list_images(tmp_path, source, b"key")
    assert "CANARY" not in str(refused.value)
    save_dicom(tmp_path / "CANARY1/3.dcm", dicom(ramp(), PatientID="another"))
    assert {image.label for image in list_images(tmp_path, source, b"key").images} == {
        *("CANARY1", "CANARY2", "CANARY3")
    }


@pytest.mark.usefixtures("kept_workers")
@pytest.mark.parametrize(
    "names",
    [
        ["CANARY_JOHN"] * 4 + ["CANARY_JOHM", "OTHER"],  # one may be a misspelling
        ["Canary", "CANARY", "OTHER"],
        ["1950-01-02", "1961-03-04", "1970-01-01"],
        ["CANARY+OTHER", "CANARY", "OTHER"],
    ],
)
def test_folders_of_patients_are_named_by_no_notice(tmp_path: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        for series in "ab":
            header = dicom(ramp(), PatientID=name)
            save_dicom(tmp_path / name / series / f"{number}.dcm", header)
    source = ImageFolderSource(kind="image_folder", folder=".")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(UserError, match=r"3 folders .* patients, and no classes") as refused:
            list_images(tmp_path, source, b"key")
    texts = [str(refused.value), *(str(one.message) for one in told)]
    assert not any(name in text for name in names for text in texts)


@pytest.mark.parametrize("word", ["unknown", "Anonymous", "-1", "NO_ID"])
def test_subjects_that_may_stand_for_no_patient_are_told(folder: Path, word: str) -> None:
    write(folder, "file,label,subject", f"a.png,x,{word}", f"b.png,y,{word}", "c.png,x,7")
    with pytest.warns(Notice, match="2 images have a subject or PatientID such as 'unknown'"):
        listing(folder)


def test_patient_ids_that_may_stand_for_no_patient_are_told(tmp_path: Path) -> None:
    for name in "ab":
        save_dicom(tmp_path / f"{name}.dcm", dicom(ramp(), PatientID="ANONYMIZED"))
    with pytest.warns(Notice, match="2 images have a subject or PatientID such as 'unknown'"):
        list_images(tmp_path, DicomFolderSource(kind="dicom_folder", folder=str(tmp_path)))


def test_folders_of_a_patient_and_a_split_are_not_named() -> None:
    paths = ["CANARY_train/1.dcm", "CANARY_test/2.dcm"]
    with pytest.raises(UserError, match="looks like a split") as refused:
        labels_of_folders(paths, may_name=False)
    assert "CANARY" not in str(refused.value)
    with pytest.raises(UserError, match="'CANARY_test', 'CANARY_train' looks like a split"):
        labels_of_folders(paths)


def test_folders_are_named_in_one_line() -> None:
    with pytest.raises(UserError, match=r"the folder 'a\\rb\\xe9' stands beside 'train'"):
        labels_of_folders(["train/ill/1.png", "a\rb\udce9/2.png"])
