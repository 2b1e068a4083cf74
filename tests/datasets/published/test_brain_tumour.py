"""Brain MR from the web: what is a slice, and which slices no split may part."""

from collections import Counter
from pathlib import Path

from medvq.cli import main
from medvq.datasets.manifest import read_manifest
from medvq.datasets.published.brain_tumour import DATASET, list_images


def test_slices_are_in_yes_and_no_and_no_augmented_copy_is_one(tmp_path: Path) -> None:
    for name in (
        "yes/Y1.jpg", "no/1 no.JPG", "no/.DS_Store", "no/notes.txt", "other/Y2.jpg",
        "augmented data/yes/aug_Y1_0_1.jpg",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    listed = list(list_images(tmp_path))
    assert [(image.shown_path, image.label) for image in listed] == [
        ("no/1 no.JPG", "NO TUMOUR"),
        ("yes/Y1.jpg", "TUMOUR"),
    ]
    assert not any(image.has_known_subject for image in listed)
    assert len({image.subject for image in listed}) == 2


def test_equal_slices_of_the_real_set_are_in_one_split(real_data: Path, tmp_path: Path) -> None:
    where = ("--data-root", str(tmp_path), "--data-mirror", str(real_data))
    small = ("--set", "ingest.read_size=64", "--set", "ingest.image_size=64")
    artifacts = ("--artifacts", str(tmp_path / "artifacts"))
    assert main(["ingest", "--config", "brain-tumour", *where, *small, *artifacts]) == 0
    folder = tmp_path / "artifacts/brain-tumour/ingest/latest"
    manifest = read_manifest(folder / "manifest.csv")
    assert Counter(manifest["label_name"]) == {"TUMOUR": 155, "NO TUMOUR": 98}
    equal = manifest.groupby("sha256")["split"].nunique()
    assert (len(equal), equal.max()) == (len(set(manifest["sha256"])), 1)
    assert manifest["sha256"].duplicated().sum() >= 22
    share = (manifest["split"] == "test").mean()
    assert abs(share - DATASET.test_fraction) < 0.03
