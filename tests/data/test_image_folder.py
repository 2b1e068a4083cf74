"""A user's own folder: what its CSV or its folders say, and what never leaves it."""

from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from pipeline.data.image_folder import list_images
from pipeline.data.manifest import SourceImage
from pipeline.data.privacy import pseudonym, subject_key
from pipeline.errors import UserError


def named(subject: str) -> str:
    return pseudonym(subject, subject_key())


def listed(folder: Path, labels: str | None = "labels.csv") -> list[SourceImage]:
    return list(list_images(folder, labels))


def write_dicom(path: Path, patient: str) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    header = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID = meta.MediaStorageSOPClassUID
    header.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    header.PatientID = patient
    header.save_as(path, enforce_file_format=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(b"any")
    return tmp_path


def test_a_table_from_a_spreadsheet(folder: Path) -> None:
    # Excel writes a byte order mark, semicolons aside, and columns nobody asked for.
    table = "\ufefffile,ward,label,subject,split\nb.png,3,ill,Bo,Testing\na.png,4, well ,Ann,\n"
    (folder / "labels.csv").write_text(table, encoding="utf-8")
    assert listed(folder) == [
        SourceImage(folder / "a.png", "a.png", named("Ann"), "train", "well"),
        SourceImage(folder / "b.png", "b.png", named("Bo"), "test", "ill"),
    ]


def test_a_file_column_is_enough(folder: Path) -> None:
    (folder / "labels.csv").write_text("file\na.png\nb.png\n")
    found = [(image.subject, image.split, image.label) for image in listed(folder)]
    assert found == [(named("a.png"), "train", None), (named("b.png"), "train", None)]


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("image,label\na.png,ill\n", "must have a column 'file'; none of its 2 is called so"),
        ("", "none of its 0 is called so"),
        ("file,label\na.png,ill\ngone.png,well\n", "line 3: the file it names is not in"),
        ("label,file\nill,a.png\nwell\n", "line 3: the file it names is not in"),
        ("file\na.png\n/etc/hostname\n", "line 3: the file it names is not in"),
        ("file,label\na.png,ill\nb.png,ill\na.png,well\n", "line 4: a file that an earlier line"),
        ("file,split\na.png,holdout\n", "a split is neither train nor test"),
        ("file\n", "no image"),
    ],
)
def test_a_table_that_cannot_be_followed(folder: Path, table: str, reason: str) -> None:
    (folder / "labels.csv").write_text(table)
    with pytest.raises(UserError, match=reason) as caught:
        listed(folder)
    assert str(folder) in str(caught.value)


def test_a_table_that_is_not_utf8(folder: Path) -> None:
    (folder / "labels.csv").write_bytes("file,label\na.png,gesünder\n".encode("latin-1"))
    with pytest.raises(UserError, match="UTF-8"):
        listed(folder)


def test_a_table_that_is_not_there(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no labels file .*other\.csv"):
        listed(folder, "other.csv")


def test_folders_are_splits_and_labels(tmp_path: Path) -> None:
    names = (
        "train/ill/a.png", "Val/well/b.PNG", "test/ill/c.jpg", "ill/d.tif", "e.bmp",
        "train/ill/notes.txt", "train/ill/._a.png",
    )  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"any")
    assert [(i.shown_path, i.split, i.label) for i in listed(tmp_path, None)] == [
        ("Val/well/b.PNG", "train", "well"),
        ("e.bmp", "train", None),
        ("ill/d.tif", "train", "ill"),
        ("test/ill/c.jpg", "test", "ill"),
        ("train/ill/a.png", "train", "ill"),
    ]


def test_an_empty_folder_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no image \(\.bmp, \.dcm"):
        listed(tmp_path, None)


def test_dicom_files_are_shown_by_no_name(tmp_path: Path) -> None:
    for name in ("Ann_1", "Ann_2.dcm", "Bo.dicom"):
        write_dicom(tmp_path / name, patient=name.split("_")[0].split(".")[0])
    (tmp_path / "labels.csv").write_text("file,subject\nAnn_1,\nAnn_2.dcm,\nBo.dicom,Bob\n")
    images = listed(tmp_path)
    assert [image.shown_path for image in images] == ["", "", ""]
    assert [image.subject for image in images] == [named("Ann"), named("Ann"), named("Bob")]


def test_a_broken_dicom_file_is_left_to_ingest(tmp_path: Path) -> None:
    (tmp_path / "x.dcm").write_text("no DICOM")
    (image,) = listed(tmp_path, None)
    assert image.shown_path == ""
    assert image.subject == named("x.dcm")
