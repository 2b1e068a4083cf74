"""Copies of images: what the labels say of one DICOM instance or picture holds for its copies."""

from pathlib import Path

import pytest
from factories.images import dicom, noise, save_dicom
from medvq.config import ImageFolderSource, Labels
from medvq.datasets.dataset import SourceImage
from medvq.datasets.folder_files import CONTRADICTION, COPY
from medvq.datasets.folders import list_images

pytestmark = pytest.mark.usefixtures("kept_workers")


def save_copies(folder: Path, *names: str) -> None:
    header = dicom(noise(8, 8), PatientID="one")
    for name in names:
        header.StudyDescription = name  # as where an image is sent twice
        save_dicom(folder / name, header)
    save_dicom(folder / "other.dcm", dicom(noise(8, 8, seed=1), PatientID="two"))


def listed(folder: Path, table: str = "") -> list[SourceImage]:
    labels = None
    if table:
        (folder / "labels.csv").write_text(table)
        labels = Labels(file="labels.csv")
    source = ImageFolderSource(kind="image_folder", folder=".", labels=labels)
    return list_images(folder, source, b"key").images


def test_an_image_has_the_label_of_its_copy(tmp_path: Path) -> None:
    save_copies(tmp_path, "a.dcm", "b.dcm")
    images = listed(tmp_path, "file,label,subject\na.dcm,,one\nb.dcm,ill,\nother.dcm,normal,\n")
    assert [(image.label, image.set_aside) for image in images] == [
        *(("ill", ""), ("ill", COPY), ("normal", "")),
    ]
    unlabelled = listed(tmp_path, "file,label,subject\na.dcm,,one\nother.dcm,normal,\n")
    assert images[0].subject == unlabelled[0].subject


@pytest.mark.parametrize("by_table", [False, True])
def test_copies_with_contradicting_labels_are_all_set_aside(tmp_path: Path, by_table: bool) -> None:
    save_copies(tmp_path, "ill/a.dcm", "normal/a.dcm")
    table = "file,label\nill/a.dcm,ill\nnormal/a.dcm,normal\nother.dcm,normal\n"
    images = listed(tmp_path, table if by_table else "")
    assert [image.set_aside for image in images] == [CONTRADICTION, CONTRADICTION, ""]


def test_what_follows_its_copy_is_what_no_split_is_stated_of(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / f"{name}.png").write_bytes(b"any")
    images = listed(tmp_path, "file,subject,split\na.png,1,test\nb.png,1,\nc.png,2,\n")
    assert [image.has_stated_split for image in images] == [True, True, False, False]
    assert [image.split for image in images] == ["test", "test", "train", "train"]
