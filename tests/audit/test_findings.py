"""The audit on planted faults, and on the facts of the Kermany set."""

import io
import itertools
import os
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from medvq.audit.acquisition import describe
from medvq.audit.findings import (
    NEAR,
    acquisition_clusters,
    audit,
    headline,
    measure,
    near_duplicates,
    planes,
)
from medvq.config import Config
from medvq.datasets import sources
from medvq.datasets.dataset import SourceImage
from medvq.datasets.published import kermany
from medvq.images.formats import read_image
from medvq.images.resizing import fit_to_shape
from medvq.stages.ingest import frame_features
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn


def pictures(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth pictures that are all different, in a dark frame; (count, 70, 70)."""
    rng = np.random.default_rng(seed)
    smooth = [cv2.resize(rng.random((9, 9)), (50, 50)) for _ in range(count)]
    framed = np.pad(40 + 150 * np.array(smooth), ((0, 0), (10, 10), (10, 10)))
    return (framed + rng.uniform(0, 8, framed.shape)).astype(np.uint8)


def table(count: int, **columns: object) -> pd.DataFrame:
    """A manifest of ``count`` images, each of its own subject: train, then a third of test."""
    test = np.arange(count) >= count * 2 // 3
    filled = {
        "image_id": [f"i{n}" for n in range(count)],
        "subject_id": [f"s{n}" for n in range(count)],
        "split": np.where(test, "test", "train"),
        "label_name": np.where(np.arange(count) % 2, "well", "ill"),
        "sha256": [f"h{n}" for n in range(count)],
        "width": 70,
        "height": 70,
        "depth": 1,
        "channels": 1,
    }
    return pd.DataFrame(filled | columns)


def run(
    manifest: pd.DataFrame, images: NDArray[np.uint8], **more: object
) -> tuple[dict, NDArray[np.intp]]:
    frame = frame_features(images, torch.zeros(len(images), 4))
    unknown = pd.DataFrame(index=range(len(images)))
    given = {"acquisition": unknown, "groupings": {"subject": manifest["subject_id"]}} | more
    return audit(manifest, images, frame, **given)


def told(found: dict, name: str) -> float | None:
    return next(s["auroc"] for s in found["shortcuts"] if s["name"] == name)


def test_near_duplicates_are_found_through_what_copies_suffer() -> None:
    images = pictures(40)
    stream = io.BytesIO()
    Image.fromarray(images[3]).save(stream, "JPEG", quality=30)
    small = cv2.resize(images[5], (35, 35), interpolation=cv2.INTER_AREA)
    images[10] = np.asarray(Image.open(stream))
    images[11] = (images[4] * 0.6 + 20).astype(np.uint8)
    images[12] = cv2.resize(small, (70, 70))
    images[13] = images[3]
    images[20:23] = 0  # constant images are equal, and no pictures of the same
    thumbnails = measure(images).thumbnails
    groups, why_not = near_duplicates(thumbnails)
    assert (groups, why_not) == ([[3, 10, 13], [4, 11], [5, 12]], "")
    flat = thumbnails.reshape(40, -1).astype(float)
    slow = [
        {i, j}
        for i, j in itertools.combinations(range(40), 2)
        if flat[i].std() and flat[j].std() and np.corrcoef(flat[i], flat[j])[0, 1] > NEAR
    ]
    assert slow == [{3, 10}, {3, 13}, {4, 11}, {5, 12}, {10, 13}]


def test_too_many_alike_end_the_search_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medvq.audit.findings._MOST_PAIRS", 44)
    alike = measure(np.repeat(pictures(1), 10, axis=0)).thumbnails
    groups, why_not = near_duplicates(alike)
    assert groups == []
    assert "more than 44 pairs" in why_not
    assert near_duplicates(alike[:9]) == ([list(range(9))], "")


def test_duplicates_are_counted_described_and_told_apart() -> None:
    images, hashes = pictures(60), [f"h{n}" for n in range(60)]
    images[[2, 50]], hashes[2], hashes[50] = images[8], "h8", "h8"  # 50 is of the test
    images[31] = (images[30] * 0.7).astype(np.uint8)
    found, _ = run(table(60, sha256=hashes), images)
    assert (found["duplicate_files"], found["duplicate_groups"]) == (3, 1)
    assert found["duplicates_across_train_and_test"] == 1
    assert found["exact_duplicates"] == [
        {
            "images": ["i2", "i8", "i50"],
            "splits": ["test", "train"],
            "labels": ["ill"],
            "subjects": 3,
        }
    ]
    assert found["near_duplicate_groups"] == 1
    assert found["near_duplicates_across_train_and_test"] == 0
    (near,) = found["near_duplicates"]
    assert (near["images"], near["labels"]) == (["i30", "i31"], ["ill", "well"])


def test_subjects_are_followed_under_every_rule() -> None:
    manifest = table(30)  # the last ten are of the test
    coarse = ["one", "one", *manifest["subject_id"][2:25], *["s2"] * 5]
    rules = {"coarse": coarse, "fine": manifest["subject_id"].tolist()}
    found, _ = run(manifest, pictures(30), groupings=rules)
    one, other = found["groupings"]
    assert one == {
        "rule": "coarse",
        "subjects": 24,
        "in_train_and_test": 1,
        "their_test_images": 5,
        "with_two_labels": 2,
    }
    assert (other["in_train_and_test"], other["with_two_labels"]) == (0, 0)
    assert found["subjects_in_train_and_test"] == 1
    assert found["subjects_with_two_labels"] == 2


def test_outliers_and_constant_images_are_named_farthest_first() -> None:
    rng = np.random.default_rng(0)
    widths, images = 700 + rng.integers(-20, 20, 60), pictures(60)
    widths[7], widths[9] = 2000, 1400
    images[11], images[12] = 255, 0
    images[13, ::2] = 255
    found, _ = run(table(60, width=widths, height=700), images)
    assert found["outliers"]["size"] == ["i7", "i9"]
    assert found["outliers"]["constant"] == ["i11", "i12"]
    assert found["outliers"]["intensity"] == ["i11", "i13", "i12"]


def test_a_frame_that_goes_with_the_label_is_told_and_warned_of() -> None:
    images, manifest = pictures(150), table(150)
    images[(manifest["label_name"] == "ill").to_numpy(), :8] = 30
    size = pd.DataFrame({"file_size": np.random.default_rng(0).uniform(1000, 2000, 150)})
    found, _ = run(manifest, images, acquisition=size)
    assert told(found, "frame") == 1
    assert found["shortcuts"][0]["warning"]
    assert "can be told from the frame" in found["shortcuts"][0]["meaning"]
    assert told(found, "file_size") < 0.7
    assert told(found, "image_size") is told(found, "position") is None
    assert all(shift["auroc"] < 0.7 for shift in found["shift"])
    shown = headline(found)
    assert shown["strongest_shortcut"]["auroc"] == 1
    assert set(shown["test_told_from_train"]) == {"ill", "well"}
    assert shown["warnings"] == sum(s["warning"] for s in found["shortcuts"]) == 2


def test_a_shift_within_one_class_is_found_in_that_class() -> None:
    images, manifest = pictures(480), table(480)
    moved = (manifest["label_name"] == "well") & (manifest["split"] == "test")
    images[moved.to_numpy(), -8:] = 90
    found, _ = run(manifest, images)
    shift = {s["label"]: s for s in found["shift"]}
    assert shift["well"]["auroc"] == 1
    assert shift["ill"]["auroc"] < 0.7
    assert (shift["ill"]["warning"], shift["well"]["warning"]) == (False, True)
    # Only labels of train count for the shortcut, and there the frames are alike.
    assert told(found, "frame") < 0.7


def test_clusters_are_the_kinds_of_frames_largest_first() -> None:
    kind = np.repeat([0, 1, 2], [30, 20, 10])
    rng = np.random.default_rng(0)
    frame = (10 * rng.standard_normal((3, 40))[kind] + rng.standard_normal((60, 40))).astype("f4")
    found = acquisition_clusters(frame)
    pairs = pd.crosstab(kind, found)
    assert (pairs > 0).sum(axis=0).eq(1).all()  # no cluster holds two kinds
    assert np.all(np.diff(np.bincount(found)) <= 0)
    assert (acquisition_clusters(frame[:15]) == -1).all()
    assert (acquisition_clusters(np.ones((100, 40), np.float32)) == -1).all()


def test_without_labels_test_or_subjects_it_says_what_is_missing() -> None:
    images = pictures(60)
    bare, _ = run(table(60, label_name="", split="train"), images)
    assert {s["meaning"] for s in bare["shortcuts"]} == {"Not computed: no labels."}
    assert [(s["label"], s["meaning"]) for s in bare["shift"]] == [
        ("", "Not computed: no test split.")
    ]
    assert bare["balance"] == {"train": {"": 60}}
    assert headline(bare)["strongest_shortcut"] is None
    few, _ = run(table(60, subject_id=[f"s{n // 12}" for n in range(60)]), images)
    assert told(few, "frame") is None
    assert "10 subjects" in few["shortcuts"][0]["meaning"]


def test_three_classes_and_volumes_in_colour() -> None:
    flat, kinds = pictures(120), np.arange(120) % 3
    flat[kinds == 0, :6] = 60
    flat[kinds == 1, -6:] = 120
    labels = np.array(["a", "b", "c"])[kinds]
    found, _ = run(table(120, label_name=labels), flat)
    assert told(found, "frame") == 1
    assert len(found["shift"]) == 3
    volumes = np.zeros((120, 3, 5, 70, 70), np.uint8)
    volumes[:, :, 2] = flat[:, None]
    np.testing.assert_array_equal(planes(volumes), flat)
    np.testing.assert_array_equal(planes(volumes[:, :, 2]), flat)
    one, other = measure(flat), measure(volumes)
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
    small = measure(images).thumbnails
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
    manifest = table(
        len(listed),
        path=[item.shown_path for item in listed],
        subject_id=[item.subject for item in listed],
        split=[item.split for item in listed],
        label_name=[item.label for item in listed],
        sha256=stored,
    )
    found, clusters = run(
        manifest,
        images,
        acquisition=describe([item.path for item in listed]),
        groupings=kermany.subject_rules(manifest["path"].tolist()),
    )
    assert (found["duplicate_files"], found["duplicate_groups"]) == (62, 30)
    assert found["duplicates_across_train_and_test"] == 0
    assert found["near_duplicate_groups"] == 0
    number, series = found["groupings"]
    assert number["in_train_and_test"] == 264
    assert series["in_train_and_test"] == 0
    assert told(found, "frame") > 0.97
    assert told(found, "file_size") > 0.8
    shift = {s["label"]: s["auroc"] for s in found["shift"]}
    assert shift["NORMAL"] > 0.9
    assert shift["PNEUMONIA"] < 0.7
    assert len(np.unique(clusters)) == 6
