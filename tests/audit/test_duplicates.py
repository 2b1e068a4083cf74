"""Duplicates: byte by byte, and through what copies suffer."""

import io
import itertools

import cv2
import numpy as np
import pytest
from factories.audited import audited, manifest, pictures
from medvq.audit.duplicates import NEAR, DuplicateGroup, near_duplicates
from medvq.audit.outliers import image_statistics
from PIL import Image


def test_near_duplicates_survive_compression_resizing_and_another_brightness() -> None:
    images = pictures(40)
    stream = io.BytesIO()
    Image.fromarray(images[3]).save(stream, "JPEG", quality=30)
    small = cv2.resize(images[5], (35, 35), interpolation=cv2.INTER_AREA)
    images[10] = np.asarray(Image.open(stream))
    images[11] = (images[4] * 0.6 + 20).astype(np.uint8)
    images[12] = cv2.resize(small, (70, 70))
    images[13] = images[3]
    images[20:23] = 0  # constant images are equal, and no pictures of the same
    thumbnails = image_statistics(images).thumbnails
    assert near_duplicates(thumbnails) == ([[3, 10, 13], [4, 11], [5, 12]], "")
    flat = thumbnails.reshape(40, -1).astype(float)
    slow = [
        {i, j}
        for i, j in itertools.combinations(range(40), 2)
        if flat[i].std() and flat[j].std() and np.corrcoef(flat[i], flat[j])[0, 1] > NEAR
    ]
    assert slow == [{3, 10}, {3, 13}, {4, 11}, {5, 12}, {10, 13}]


def test_too_many_alike_end_the_search_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medvq.audit.duplicates._MAX_PAIRS", 44)
    alike = image_statistics(np.repeat(pictures(1), 10, axis=0)).thumbnails
    groups, reason = near_duplicates(alike)
    assert groups == []
    assert "more than 44 pairs" in reason
    assert near_duplicates(alike[:9]) == ([list(range(9))], "")


def test_exact_and_near_duplicates_are_counted_and_described_apart() -> None:
    images, hashes = pictures(60), [f"h{n}" for n in range(60)]
    images[[2, 50]], hashes[2], hashes[50] = images[8], "h8", "h8"  # 50 is of the test
    images[31] = (images[30] * 0.7).astype(np.uint8)
    result, _ = audited(manifest(60, sha256=hashes), images)
    assert (result.duplicate_files, result.duplicate_groups) == (3, 1)
    assert result.duplicates_across_train_and_test == 1
    exact = DuplicateGroup(["i2", "i8", "i50"], ["test", "train"], ["ill"], subjects=3)
    assert result.exact_duplicates == [exact]
    assert result.near_duplicate_groups == 1
    assert result.near_duplicates_across_train_and_test == 0
    (near,) = result.near_duplicates
    assert (near.images, near.labels) == (["i30", "i31"], ["ill", "well"])
