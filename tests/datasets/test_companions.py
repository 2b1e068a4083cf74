"""Versions of images, as for augmentation, beside these."""

import json
import warnings
from pathlib import Path

import pytest
from medvq.config import ImageFolderSource
from medvq.datasets.companions import count_altered
from medvq.datasets.folder_files import count_masks
from medvq.datasets.folders import list_images
from medvq.errors import Notice


@pytest.mark.parametrize(
    ("names", "altered"),
    [
        ("a/1.png a/1_flip.png a/1-aug-12.png a/1_aug_0_123.png b/1_h_flip.png", 4),
        ("a/1.png a/1.preview.png a/1_thumb.png b/1_overlay.png b/1_gradcam.png", 4),
        ("x_png.rf.0123456789abcdef0123.jpg x_png.rf.123456789abcdef01234.jpg", 1),
        ("x_jpg.rf.0123456789abcdef0123.jpg y_jpg.rf.123456789abcdef01234.jpg", 0),
        ("1.png 1_2.png 2_flip.png flip.png _flip.png x_left.png x.png", 0),
    ],
)
def test_names_of_altered_versions(names: str, altered: int) -> None:
    assert count_altered(names.split()) == altered


@pytest.mark.usefixtures("kept_workers")
def test_altered_versions_without_a_subject_are_told(tmp_path: Path) -> None:
    for name in ("ill/1.png", "ill/1_rot90.png", "well/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"any")
    source = ImageFolderSource(kind="image_folder", folder=".")
    with pytest.warns(Notice, match=r"1 file named as altered .* on another side of a split"):
        list_images(tmp_path, source, b"key")
    rows = ["file,subject", *(f"{name},p" for name in ("ill/1.png", "ill/1_rot90.png"))]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    named = {"kind": "image_folder", "folder": ".", "labels": "labels.csv"}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", r"\d+ files? named as altered", Notice)
        list_images(tmp_path, ImageFolderSource.model_validate_json(json.dumps(named)), b"key")


def test_a_folder_of_labels_beside_one_of_images_holds_masks() -> None:
    assert count_masks(["images/1.png", "images/2.png", "labels/1.png", "labels/2.png"]) == 2
    assert count_masks(["labels/ill/1.png", "labels/well/1.png"]) == 0


@pytest.mark.usefixtures("kept_workers")
def test_a_table_that_is_not_read_is_told_where_no_folder_is_a_class(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"any")
    (tmp_path / "labels.csv").write_text("file,label\n1.png,ill\n")
    source = ImageFolderSource(kind="image_folder", folder=".")
    with pytest.warns(Notice, match="no image has a label, and 1 table in the folder .* name it"):
        list_images(tmp_path, source, b"key")
    (tmp_path / "ill").mkdir()
    (tmp_path / "1.png").rename(tmp_path / "ill/1.png")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "no image has a label", Notice)
        list_images(tmp_path, source, b"key")


def test_long_names_take_no_time() -> None:
    assert count_altered([f"x_flip{'1' * 200}a.png", f"x{'_' * 200}a.png", "x_1" * 80]) == 0


@pytest.mark.usefixtures("kept_workers")
def test_names_that_hold_folders_of_windows_are_told(tmp_path: Path) -> None:
    for name in (r"train\ill\1.png", r"train\well\2.png"):
        (tmp_path / name).write_bytes(b"any")
    source = ImageFolderSource(kind="image_folder", folder=".")
    with pytest.warns(Notice, match=r"2 files with a backslash in the name, .* makes folders"):
        list_images(tmp_path, source, b"key")


def told_of_folders(folder: Path, names: list[str], *table: str) -> list[str]:
    """What is told of images in folders that are named by splits or classes, beside a table."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"any")
    (folder / "labels.csv").write_text("\n".join(table))
    source = {"kind": "image_folder", "folder": ".", "labels": "labels.csv"}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        list_images(folder, ImageFolderSource.model_validate_json(json.dumps(source)), b"key")
    return [str(one.message) for one in told if "folders" in str(one.message)]


@pytest.mark.usefixtures("kept_workers")
def test_splits_of_folders_that_a_table_does_not_keep_are_told(tmp_path: Path) -> None:
    names = ["train/1.png", "train/2.png", "test/3.png"]
    rows = [f"{name},{'ill' if '1' in name else 'well'}" for name in names]
    (told,) = told_of_folders(tmp_path, names, "file,label", *rows)
    assert told.startswith(
        "folders are called test and train, and the table of labels has no split"
    )
    splits = ["train", "validation", "test"]
    rows = [f"{row},{split}" for row, split in zip(rows, splits, strict=True)]
    (told,) = told_of_folders(tmp_path, names, "file,label,split", *rows)
    assert told.startswith("1 image lies in folders of another split than the table of labels")
    rows[1] = "train/2.png,well,train"
    assert told_of_folders(tmp_path, names, "file,label,split", *rows) == []


@pytest.mark.usefixtures("kept_workers")
def test_classes_of_folders_that_contradict_the_table_are_told(tmp_path: Path) -> None:
    names = ["Ill/1.png", "Ill/2.png", "well/3.png", "7/4.png"]
    rows = ["Ill/1.png,ill", "Ill/2.png,well", "well/3.png,well", "7/4.png,ill"]
    (told,) = told_of_folders(tmp_path, names, "file,label", *rows)
    assert told.startswith("1 image lies in folders of another class than the table of labels")
    assert told_of_folders(tmp_path, names, "file,label", *rows[:1], *rows[2:]) == []
    numbers = ["Ill/1.png,7", "well/3.png,8", "7/4.png,8"]  # 7 may be a ward
    assert told_of_folders(tmp_path, names, "file,label", *numbers) == []
