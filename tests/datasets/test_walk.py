"""Walking through a folder: every file is listed or counted, links are followed once."""

import os
from pathlib import Path

import pytest
from medvq.config import ImageFolderSource, Labels
from medvq.datasets.folders import TABLE, list_images
from medvq.datasets.walk import (
    BROKEN_LINK,
    HIDDEN,
    NO_FILE,
    OWN,
    REPEATED_LINK,
    SYSTEM,
    shown,
    walk,
)
from medvq.errors import Notice


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"any")


def no_image(path: Path) -> str:
    return "" if path.suffix == ".png" else "no image"


def test_hidden_and_system_files_are_counted(tmp_path: Path) -> None:
    touch(
        tmp_path, "ill/a.png", "ill/.ipynb_checkpoints/a-checkpoint.png", ".DS_Store", "._a.png",
        "ill/@eaDir/a.png/SYNOPHOTO_THUMB_M.png", "ill/@eaDir/b.png", "__MACOSX/ill/._a.png",
        "Thumbs.db", "ill/desktop.ini", "notes.txt", "ill/@Recycle/a.png", "@tmp/a.png",
    )  # fmt: skip
    found = walk(tmp_path, no_image)
    assert found.files == ["ill/a.png"]
    assert found.skipped == {HIDDEN: 3, SYSTEM: 7, "no image": 1}


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "set", tmp_path / "elsewhere"
    touch(folder, "well/a.png", "z/b.png")
    touch(elsewhere, "c.png", "deep/d.png", "e.png")
    (folder / "ill").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    (elsewhere / "deep" / "up").symlink_to("..")
    (folder / "alias.png").symlink_to(elsewhere / "e.png")
    (folder / "copy.png").symlink_to(folder / "z" / "b.png")
    (folder / "gone.png").symlink_to("nowhere")
    (folder / "itself").symlink_to("itself")
    found = walk(folder, no_image)
    assert found.files == ["ill/c.png", "ill/deep/d.png", "ill/e.png", "well/a.png", "z/b.png"]
    assert found.skipped[BROKEN_LINK] == 2
    assert found.skipped[REPEATED_LINK] == 4


def test_a_link_to_the_folder_itself(tmp_path: Path) -> None:
    touch(tmp_path / "set", "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "set")
    assert walk(tmp_path / "link", no_image).files == ["a.png"]


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert walk(tmp_path, no_image).skipped == {NO_FILE: 1}


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = b"caf\xe9.png"
    try:
        (tmp_path / os.fsdecode(name)).write_bytes(b"any")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")  # macOS; CI is Linux
    (path,) = walk(tmp_path, no_image).files
    assert os.fsencode(path) == name
    assert shown(path) == r"caf\xe9.png"
    assert shown("café.png") == "café.png"


def test_names_are_shown_in_one_line() -> None:
    assert shown("p1\r/a\nb\x1b[31m\u2028.png") == r"p1\r/a\nb\x1b[31m\u2028.png"
    assert shown("a　b.png") == "a　b.png"


def test_links_to_listed_files_are_kept_with_those(tmp_path: Path) -> None:
    touch(tmp_path, "ill/a.png")
    (tmp_path / "well.png").symlink_to("ill/a.png")
    (tmp_path / "copy.png").symlink_to("well.png")
    found = walk(tmp_path, no_image)
    assert found.files == ["ill/a.png"]
    assert found.repeats == [("copy.png", "ill/a.png"), ("well.png", "ill/a.png")]


def test_artifacts_in_the_folder_of_the_images_are_no_images(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "a.png",
        "artifacts/mlflow.db",
        "artifacts/set/probe/0123/figures/roc.png",
        "elsewhere/ingest/0123/stage.json",
        "elsewhere/ingest/0123/figures/images.png",
        "elsewhere/b.png",
    )
    found = walk(tmp_path, lambda path: "")
    assert found.files == ["a.png", "elsewhere/b.png"]
    assert found.skipped == {OWN: 4}
    # Who asks for the folder itself gets what is in it.
    assert walk(tmp_path / "artifacts", lambda path: "").files == [
        "mlflow.db",
        "set/probe/0123/figures/roc.png",
    ]


def test_what_the_table_names_by_a_link_is_listed_once(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    for name in "ab":
        (tmp_path / f"raw/{name}.png").write_bytes(b"any")
    (tmp_path / "images").symlink_to("raw")
    (tmp_path / "ill.png").symlink_to("raw/b.png")
    (tmp_path / "labels.csv").write_text("file,label,split\nimages/a.png,well,test\nill.png,ill,\n")
    source = ImageFolderSource(kind="image_folder", folder=".", labels=Labels(file="labels.csv"))
    found = list_images(tmp_path, source)
    rows = [(image.shown_path, image.label, image.split) for image in found.images]
    assert rows == [("ill.png", "ill", "train"), ("images/a.png", "well", "test")]
    assert found.skipped == {REPEATED_LINK: 2, TABLE: 1}
    (tmp_path / "labels.csv").write_text("file,label\nraw/b.png,ill\nill.png,ill\n")
    found = list_images(tmp_path, source)  # as the table says, twice
    assert [image.shown_path for image in found.images] == ["ill.png", "raw/a.png", "raw/b.png"]
    assert found.skipped == {REPEATED_LINK: 1, TABLE: 1}


def test_files_that_icloud_has_not_downloaded_are_told(tmp_path: Path) -> None:
    touch(tmp_path, "ill/a.png", "ill/.b.png.icloud")
    source = ImageFolderSource(kind="image_folder", folder=".")
    with pytest.warns(Notice, match="1 file not read .* 1 x file that iCloud has not downloaded"):
        list_images(tmp_path, source, b"key")
