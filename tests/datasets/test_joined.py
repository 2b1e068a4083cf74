"""Several published data sets as one: no test image, no label, no subject of two sets."""

from collections import Counter
from pathlib import Path

import pytest
from medvq.config_file import load_config
from medvq.datasets import sources
from medvq.errors import UserError

TUBERCULOSIS = ("CHNCXR_0001_0", "CHNCXR_0002_1", "MCUCXR_0001_0")


def write(root: Path) -> Path:
    """Write a part of two sets, each under the other name that its folder may have."""
    for folder in ("adult-cxr/images", "tb/images"):
        (root / folder).mkdir(parents=True)
    for name in ("a", "b"):
        (root / f"adult-cxr/images/{name}.jpg").touch()
    (root / "adult-cxr/images.csv").write_text("file,subject\nimages/a.jpg,CHNCXR_0001_0\n")
    rows = []
    for number, name in enumerate(TUBERCULOSIS):
        (root / f"tb/images/{name}.png").touch()
        rows.append(f"images/{name}.png,{'test' if number == 1 else 'train'}")
    (root / "tb/labels.csv").write_text("\n".join(["file,split", *rows]))
    return root


def config(*members: str) -> object:
    return load_config("base", [f"source.members=[{','.join(members)}]"])


def test_the_union_holds_training_images_without_labels(tmp_path: Path) -> None:
    write(tmp_path / "data")
    settings = config("adult_cxr", "tuberculosis")
    root = sources.locate(settings, tmp_path / "data", None)
    listing = sources.list_dataset(settings, root)
    assert [(image.shown_path, image.subject) for image in listing.images] == [
        ("adult-cxr/images/a.jpg", "adult_cxr CHNCXR_0001_0"),
        ("adult-cxr/images/b.jpg", "adult_cxr b"),
        ("tb/images/CHNCXR_0001_0.png", "tuberculosis CHNCXR_0001_0"),
        ("tb/images/MCUCXR_0001_0.png", "tuberculosis MCUCXR_0001_0"),
    ]
    assert {(image.label, image.split) for image in listing.images} == {(None, "train")}
    assert [image.has_known_subject for image in listing.images] == [True, False, True, True]
    assert listing.skipped == {"held back for the test of tuberculosis": 1}


def test_a_member_that_nobody_offers_as_a_file_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "mirror")
    for file in (tmp_path / "mirror/adult-cxr/images").iterdir():
        file.unlink()
    settings = config("tuberculosis", "adult_cxr")
    with pytest.raises(UserError, match=r"put images/\*\.jpg of https://.* into .*data/adult_cxr"):
        sources.locate(settings, tmp_path / "data", str(tmp_path / "mirror"))


def test_members_apart_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "mirror")
    write(tmp_path / "data")
    for file in (tmp_path / "data/adult-cxr/images").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="lie in two folders; put one beside the other"):
        sources.locate(
            config("tuberculosis", "adult_cxr"), tmp_path / "data", str(tmp_path / "mirror")
        )


@pytest.mark.parametrize(
    ("members", "complaint"),
    [("[]", "at least 1 item"), ("[mnist,mnist]", "names a data set twice")],
)
def test_members_are_named_once_each(members: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        load_config("base", [f"source.members={members}"])


def test_an_unknown_member_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"kind=kermani is no data set"):
        sources.locate(config("kermani", "mnist"), tmp_path, None)


def test_the_real_sets(real_data: Path) -> None:
    settings = load_config("base")
    root = sources.locate(settings, Path("nothing"), str(real_data))
    listing = sources.list_dataset(settings, root)
    assert Counter(image.subject.split()[0] for image in listing.images) == {
        "kermany": 5232,
        "adult_cxr": 6650,
    }
    assert listing.skipped["held back for the test of kermany"] == 624
