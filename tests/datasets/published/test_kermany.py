"""The Kermany set: names, layouts, and the published counts."""

from pathlib import Path

import pytest
from medvq.datasets.dataset import SourceImage
from medvq.datasets.published.kermany import LABELS, FileName, find_root, list_images, parse_name
from medvq.errors import UserError

FILES = (
    "train/NORMAL/IM-0115-0001.jpeg",
    "train/NORMAL/NORMAL2-IM-0381-0001.jpeg",
    "train/PNEUMONIA/person1_bacteria_1.jpeg",
    "train/PNEUMONIA/person1_virus_6.jpeg",
    "val/PNEUMONIA/BACTERIA-1008087-0001.jpeg",
    "test/NORMAL/NORMAL-1049278-0001.jpeg",
    "test/PNEUMONIA/VIRUS-1680950-0001.jpeg",
)


def lay_out(root: Path) -> None:
    for split in ("train", "test"):
        for label in LABELS:
            (root / split / label).mkdir(parents=True)
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("IM-0115-0001.jpeg", FileName("NORMAL", 115, "IM")),
        ("IM-0115-0001-0002.jpeg", FileName("NORMAL", 115, "IM")),
        ("NORMAL2-IM-0381-0001.jpeg", FileName("NORMAL", 381, "NORMAL2-IM")),
        ("person1000_bacteria_2931.jpeg", FileName("PNEUMONIA", 1000, "bacteria")),
        ("person1000_virus_1681.jpeg", FileName("PNEUMONIA", 1000, "virus")),
        ("NORMAL-1049278-0001.jpeg", FileName("NORMAL", 1049278, "NORMAL")),
        ("BACTERIA-1008087-0001.jpeg", FileName("PNEUMONIA", 1008087, "BACTERIA")),
        ("VIRUS-1680950-0003.jpeg", FileName("PNEUMONIA", 1680950, "VIRUS")),
        ("person_bacteria_1.jpeg", None),
        ("COVID-19-0001.jpeg", None),
        ("image.jpeg", None),
    ],
)
def test_names_of_both_editions(name: str, expected: FileName | None) -> None:
    assert parse_name(name) == expected


def test_a_person_is_a_number_of_a_series() -> None:
    names = ("person1_bacteria_1.jpeg", "person1_bacteria_2.jpeg", "person1_virus_6.jpeg")
    parsed = [parse_name(name) for name in names]
    assert [name.subject for name in parsed if name] == ["bacteria-1", "bacteria-1", "virus-1"]


@pytest.mark.parametrize("inside", ["", "chest_xray", "chest_xray/chest_xray", "v2/chest_xray"])
def test_every_layout(tmp_path: Path, inside: str) -> None:
    lay_out(tmp_path / inside)
    assert find_root(tmp_path) == tmp_path / inside
    listed = list(list_images(tmp_path))
    told = {(image.shown_path, image.subject, image.split, image.label) for image in listed}
    prefix = f"{inside}/" if inside else ""
    assert told == {
        (prefix + FILES[0], "im-115", "train", "NORMAL"),
        (prefix + FILES[1], "normal2-im-381", "train", "NORMAL"),
        (prefix + FILES[2], "bacteria-1", "train", "PNEUMONIA"),
        (prefix + FILES[3], "virus-1", "train", "PNEUMONIA"),
        (prefix + FILES[4], "bacteria-1008087", "train", "PNEUMONIA"),
        (prefix + FILES[5], "normal-1049278", "test", "NORMAL"),
        (prefix + FILES[6], "virus-1680950", "test", "PNEUMONIA"),
    }


def test_what_is_no_image_is_passed_over(tmp_path: Path) -> None:
    lay_out(tmp_path)
    for name in (".DS_Store", "._IM-0115-0001.jpeg", "notes.txt"):
        (tmp_path / "train" / "NORMAL" / name).touch()
    lay_out(tmp_path / "__MACOSX" / "chest_xray")
    assert len(list(list_images(tmp_path))) == len(FILES)


def test_another_layout_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "train" / "NORMAL").mkdir(parents=True)
    with pytest.raises(UserError, match=r"does not hold the Kermany layout") as caught:
        find_root(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.fixture
def real(real_data: Path) -> list[SourceImage]:
    return list(list_images(real_data / "kermany"))


def test_the_real_set_has_the_published_counts(real: list[SourceImage]) -> None:
    counts = {
        (split, label): sum((image.split, image.label) == (split, label) for image in real)
        for split in ("train", "test")
        for label in LABELS
    }
    assert counts == {
        ("train", "NORMAL"): 1349,
        ("train", "PNEUMONIA"): 3883,
        ("test", "NORMAL"): 234,
        ("test", "PNEUMONIA"): 390,
    }
    assert len(real) == 5856
    assert all(parse_name(image.path.name) for image in real)


def test_no_patient_of_the_real_set_is_in_train_and_test(real: list[SourceImage]) -> None:
    of_split = {split: {i.subject for i in real if i.split == split} for split in ("train", "test")}
    assert not of_split["train"] & of_split["test"]
