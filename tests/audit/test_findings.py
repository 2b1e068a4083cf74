"""The audit on planted faults, and on the facts of the Kermany set."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from factories.audited import audited, manifest, pictures, shift_aurocs, shortcut_aurocs
from medvq.audit.acquisition import describe
from medvq.audit.duplicates import NEAR
from medvq.audit.outliers import image_statistics
from medvq.config import Config
from medvq.datasets import sources
from medvq.datasets.dataset import SourceImage
from medvq.images.formats import read_image
from medvq.images.frame import grey_planes
from medvq.images.resizing import fit_to_shape
from numpy.typing import NDArray
from scipy.fft import dctn


def test_subjects_under_two_labels_are_counted() -> None:
    table = manifest(30)
    table.loc[[0, 1], "subject_id"] = "one"
    result, _ = audited(table, pictures(30))
    assert (result.subjects, result.subjects_with_two_labels) == (29, 1)


@pytest.mark.parametrize(
    ("share", "meaning"),
    [
        (1.0, "The label can be told from the number of images of the subject alone. "),
        (0.3, "Some of the label can be told from the number of images of the subject."),
        (0.1, "Little of the label can be told from the number of images of the subject."),
    ],
)
def test_a_number_of_images_that_goes_with_the_label_is_measured_and_told(
    share: float, meaning: str
) -> None:
    table = manifest(200)
    ill = np.flatnonzero((table["label_name"] == "ill") & (table["split"] == "train"))
    pairs = ill[: 2 * round(share * len(ill) / 2)]
    table.loc[pairs, "subject_id"] = [f"ill {place // 2}" for place in range(len(pairs))]
    result, _ = audited(table, pictures(200))
    shortcut = {one.name: one for one in result.shortcuts}["images_per_subject"]
    # Those with another image rank above all others, who are alike.
    assert shortcut.auroc == pytest.approx(0.5 + share / 2, abs=0.04)
    assert shortcut.warning == (share == 1)
    assert shortcut.meaning.startswith(meaning)


def test_a_frame_that_goes_with_the_label_is_measured_and_warned_of() -> None:
    images, table = pictures(150), manifest(150)
    images[(table["label_name"] == "ill").to_numpy(), :8] = 30
    size = pd.DataFrame({"file_size": np.random.default_rng(0).uniform(1000, 2000, 150)})
    result, _ = audited(table, images, acquisition=size)
    aurocs = shortcut_aurocs(result)
    assert aurocs["frame"] == 1
    assert result.shortcuts[0].warning
    assert "can be told from the frame" in result.shortcuts[0].meaning
    assert aurocs["file_size"] < 0.7
    assert not {"image_size", "position"} & set(aurocs)
    assert max(shift_aurocs(result).values()) < 0.7
    headline = result.headline()
    assert headline.strongest_shortcut is not None
    assert headline.strongest_shortcut.auroc == 1
    assert headline.test_told_from_train == shift_aurocs(result)
    assert headline.warnings == sum(one.warning for one in result.shortcuts) == 2


def test_a_shift_within_one_class_is_found_in_that_class() -> None:
    images, table = pictures(480), manifest(480)
    moved = (table["label_name"] == "well") & (table["split"] == "test")
    images[moved.to_numpy(), -8:] = 90
    result, _ = audited(table, images)
    assert {one.label: one.warning for one in result.shift} == {"ill": False, "well": True}
    assert shift_aurocs(result)["ill"] < 0.7
    assert shift_aurocs(result)["well"] == 1
    # Only labels of train count for the shortcut, and there the frames are alike.
    assert shortcut_aurocs(result)["frame"] < 0.7


def test_without_labels_test_or_subjects_it_says_what_is_missing() -> None:
    images = pictures(60)
    bare, _ = audited(manifest(60, label_name="", split="train"), images)
    assert {one.meaning for one in bare.shortcuts} == {"Not computed: no labels."}
    (shift,) = bare.shift
    assert (shift.label, shift.meaning) == ("", "Not computed: no test split.")
    assert bare.balance == {"train": {"": 60}}
    assert bare.headline().strongest_shortcut is None
    few, _ = audited(manifest(60, subject_id=[f"s{n // 12}" for n in range(60)]), images)
    assert "frame" not in shortcut_aurocs(few)
    assert "10 subjects" in few.shortcuts[0].meaning


def test_three_classes_and_volumes_in_colour() -> None:
    flat, kinds = pictures(120), np.arange(120) % 3
    flat[kinds == 0, :6] = 60
    flat[kinds == 1, -6:] = 120
    result, _ = audited(manifest(120, label_name=np.array(["a", "b", "c"])[kinds]), flat)
    assert shortcut_aurocs(result)["frame"] == 1
    assert len(result.shift) == 3
    volumes = np.zeros((120, 3, 5, 70, 70), np.uint8)
    volumes[:, :, 2] = flat[:, None]
    for images in (volumes, volumes[:, :, 2]):
        np.testing.assert_array_equal(grey_planes(images), flat)
    one, other = image_statistics(flat), image_statistics(volumes)
    np.testing.assert_array_equal(one.thumbnails, other.thumbnails)


Kermany = tuple[list[SourceImage], NDArray[np.uint8], "pd.Series[int]"]


@pytest.fixture(scope="module")
def kermany_images() -> Kermany | None:
    """All images, and a number that two files share if they are byte-identical."""
    mirror = os.environ.get("DATA_MIRROR")
    if not mirror or not Path(mirror).is_dir():
        return None
    config = Config.model_validate({"name": "kermany", "source": {"kind": "kermany"}})
    listed = sources.list_images(config, Path(mirror) / "kermany")
    images = np.stack(
        [fit_to_shape(read_image(item.path), (112, 112), "stretch")[0] for item in listed]
    )
    return listed, images, pd.Series([hash(item.path.read_bytes()) for item in listed])


def test_a_perceptual_hash_would_not_do(real_data: Path, kermany_images: Kermany) -> None:
    _, images, stored = kermany_images
    small = image_statistics(images).thumbnails
    low = dctn(small.astype(np.float32), axes=(1, 2))[:, :8, :8].reshape(len(small), -1)
    bits = np.where(low > np.median(low, axis=1, keepdims=True), 1, -1).astype(np.float32)
    flat = small.reshape(len(small), -1).astype(np.float32)
    flat = flat - flat.mean(1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    alike, highest = 0, 0.0
    for start in range(0, len(small), 512):
        rows = np.arange(start, min(start + 512, len(small)))
        pairs = (rows[:, None] < np.arange(len(small))) & (
            stored.to_numpy()[rows, None] != stored.to_numpy()
        )
        alike += int((((64 - bits[rows] @ bits.T) / 2 <= 6) & pairs).sum())
        highest = max(highest, float((flat[rows] @ flat.T)[pairs].max()))
    assert alike > 1000
    assert highest < 0.98 < NEAR


def test_the_facts_of_kermany_are_found(real_data: Path, kermany_images: Kermany) -> None:
    listed, images, stored = kermany_images
    table = manifest(
        len(listed),
        path=[item.shown_path for item in listed],
        subject_id=[item.subject for item in listed],
        split=[item.split for item in listed],
        label_name=[item.label for item in listed],
        sha256=stored,
    )
    result, clusters = audited(
        table,
        images,
        acquisition=describe([item.path for item in listed]),
    )
    assert (result.duplicate_files, result.duplicate_groups) == (62, 30)
    assert result.duplicates_across_train_and_test == result.near_duplicate_groups == 0
    assert 0.65 < shortcut_aurocs(result)["images_per_subject"] < 0.75
    assert shortcut_aurocs(result)["frame"] > 0.97
    assert shortcut_aurocs(result)["file_size"] > 0.8
    assert shift_aurocs(result)["NORMAL"] > 0.9
    assert shift_aurocs(result)["PNEUMONIA"] < 0.7
    assert len(np.unique(clusters)) == 6
