"""Montgomery and Shenzhen: labels and splits in both layouts."""

from collections import Counter
from pathlib import Path

import pytest
from medvq.datasets.published.tuberculosis import list_images
from medvq.errors import UserError


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_the_repository_without_its_augmented_copies(tmp_path: Path) -> None:
    put(
        tmp_path / "XTBTorch-78e1b83",
        "data/train/aug0_CHNCXR_0001_0.png",
        "data/train/aug1_CHNCXR_0001_0.png",
        "data/train/aug0_MCUCXR_0104_1.png",
        "data/test/aug0_CHNCXR_0330_1.png",
        "pics/aug0_CHNCXR_0001_0.png",
        "pics/creport.png",
    )
    listed = [(image.subject, image.split, image.label) for image in list_images(tmp_path)]
    assert listed == [
        ("CHNCXR_0330_1", "test", "TB"),
        ("CHNCXR_0001_0", "train", "NORMAL"),
        ("MCUCXR_0104_1", "train", "TB"),
    ]


def test_a_table_says_what_is_for_the_test(tmp_path: Path) -> None:
    put(tmp_path, "images/CHNCXR_0001_0.png", "images/CHNCXR_0002_1.png", "images/other.png")
    with pytest.raises(UserError, match=r"labels\.csv with the columns file and split"):
        list(list_images(tmp_path))
    rows = "images/CHNCXR_0001_0.png,test\nimages/CHNCXR_0002_1.png,train\n"
    (tmp_path / "labels.csv").write_text("file,split\n" + rows)
    listed = {image.shown_path: (image.split, image.label) for image in list_images(tmp_path)}
    assert listed == {
        "images/CHNCXR_0001_0.png": ("test", "NORMAL"),
        "images/CHNCXR_0002_1.png": ("train", "TB"),
    }


def test_the_real_set(real_data: Path) -> None:
    listed = list(list_images(real_data / "tb"))
    assert Counter((image.split, image.label) for image in listed) == {
        ("train", "NORMAL"): 256,
        ("train", "TB"): 244,
        ("test", "NORMAL"): 60,
        ("test", "TB"): 60,
    }
    assert len({image.subject for image in listed}) == 620
