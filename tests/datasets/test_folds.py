"""One fold of a published set in place of its official split."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from medvq.config_file import load_config
from medvq.datasets.folds import read_folds
from medvq.datasets.published.kermany import DATASET, LABELS
from medvq.datasets.sources import dataset, list_images
from medvq.datasets.splits import draw_splits
from medvq.errors import UserError

FILES = {
    "train/NORMAL/IM-0115-0001.jpeg": "im-115",
    "train/NORMAL/NORMAL2-IM-0381-0001.jpeg": "normal2-im-381",
    "val/PNEUMONIA/person1946_bacteria_4874.jpeg": "bacteria-1946",
    "test/PNEUMONIA/person1_virus_6.jpeg": "virus-1",
    "test/PNEUMONIA/person1_virus_7.jpeg": "virus-1",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        for label in LABELS:
            (tmp_path / split / label).mkdir(parents=True)
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize("split", ["patients", "blocks"])
def test_each_image_is_tested_in_the_fold_of_its_patient(folder: Path, split: str) -> None:
    assert DATASET.folds is not None
    fold_of = read_folds(DATASET.folds)[split]
    tested: dict[str, int] = {}
    for fold in range(5):
        config = load_config("kermany", (f"source.split={split}", f"source.fold={fold}"))
        images = list_images(config, folder)
        assert {image.shown_path: image.subject for image in images} == FILES
        tested |= {image.shown_path: fold for image in images if image.split == "test"}
        assert {image.split for image in images} <= {"train", "test"}
    assert tested == {name: fold_of[subject] for name, subject in FILES.items()}


def test_without_a_fold_the_split_is_the_official_one(folder: Path) -> None:
    listed = list_images(load_config("kermany"), folder)
    assert {image.subject for image in listed if image.split == "test"} == {"virus-1"}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("kermany", ("split=patients",), r"needs the fold to test on: fold=0 to 4"),
        ("kermany", ("fold=1",), r"the official split has none"),
        ("kermany", ("split=blocks", "fold=5"), r"source\.fold=5: .*less than 5"),
        ("kermany", ("split=random", "fold=1"), r"source\.split='random'"),
        ("phantom", ("split=patients", "fold=1"), r"source\.split='patients': no such key"),
        ("stl10", ("split=patients", "fold=1"), r"source\.split=patients: .* stl10 has no folds"),
    ],
)
def test_what_has_no_fold_is_one_line(name: str, settings: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        dataset(load_config(name, [f"source.{setting}" for setting in settings]).source)
    assert "\n" not in str(refused.value)


def test_the_edition_that_the_table_does_not_name_is_one_line(folder: Path) -> None:
    (folder / "test/PNEUMONIA/VIRUS-1680950-0001.jpeg").touch()
    config = load_config("kermany", ("source.split=patients", "source.fold=0"))
    with pytest.raises(UserError, match=r"lists no subject of 1 of 6 images, e\.g\. test/PNEUM"):
        list_images(config, folder)


@pytest.mark.parametrize("split", ["patients", "blocks"])
def test_validation_is_drawn_from_the_other_folds_of_the_real_set(
    real_data: Path, split: str
) -> None:
    config = load_config("kermany", (f"source.split={split}", "source.fold=3"))
    images = draw_splits(
        list_images(config, real_data / "kermany"),
        test_fraction=0.2, validation_fraction=0.12, seed=0,
    )  # fmt: skip
    number = Counter(image.split for image in images)
    assert sum(number.values()) == 5856
    assert number["test"] / 5856 == pytest.approx(0.2, abs=0.005)
    subjects = {name: {i.subject for i in images if i.split == name} for name in number}
    rest = len(subjects["train"]) + len(subjects["validation"])
    assert len(subjects["validation"]) == round(0.12 * rest)
    assert len(set.union(*subjects.values())) == sum(map(len, subjects.values())) == 4097
