"""Images that a data set holds more than once: byte by byte, or nearly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Floats = NDArray[np.float32]

NEAR = 0.985
"""Correlation of two thumbnails above which they show the same image. Radiographs are too
alike for the 64 bits of a perceptual hash; see docs/audit.md."""
# Low frequencies per axis, as many as perceptual hashes use.
_LOW_FREQUENCIES = 8
# Limits that keep the search under a minute and a gigabyte: the time grows with the square of N.
_MAX_IMAGES = 50_000
_MAX_PAIRS = 20_000
_CHUNK = 512


@dataclass(frozen=True)
class DuplicateGroup:
    """Identities of images that are the same, and the splits, labels and subjects they have."""

    images: list[str]
    splits: list[str]
    labels: list[str]
    subjects: int

    @classmethod
    def of(cls, manifest: pd.DataFrame, rows: list[int]) -> DuplicateGroup:
        """Describe the images in some rows of the manifest."""
        group = manifest.iloc[rows]
        splits, labels = (sorted(set(group[name])) for name in ("split", "label_name"))
        return cls(group["image_id"].tolist(), splits, labels, int(group["subject_id"].nunique()))


def find_duplicates(
    manifest: pd.DataFrame, thumbnails: NDArray[np.uint8]
) -> tuple[list[list[int]], list[list[int]], str]:
    """Return groups of rows of equal files, and of different files that look nearly the same.

    The third value says why the latter were not searched for; it is empty where they were.
    """
    near, reason = near_duplicates(thumbnails)
    different = [rows for rows in near if manifest["sha256"].iloc[rows].nunique() > 1]
    return rows_with_equal(manifest["sha256"]), different, reason


def rows_with_equal(keys: pd.Series) -> list[list[int]]:
    """Return groups of two or more rows that share a key, in order of first appearance.

    >>> rows_with_equal(pd.Series(["b", "a", "b", "c", "a"]))
    [[0, 2], [1, 4]]
    """
    rows = pd.Series(np.arange(len(keys)))[keys.duplicated(keep=False).to_numpy()]
    grouped = rows.groupby(keys.to_numpy()[rows.index], sort=False)
    return [group.tolist() for _, group in grouped]


def near_duplicates(thumbnails: NDArray[np.uint8]) -> tuple[list[list[int]], str]:
    """Find images that show nearly the same picture, whatever their brightness and contrast.

    All pairs are compared by the lowest 8x8 frequencies of their cosine transforms, and those
    that pass by all of the thumbnail: they correlate above :data:`NEAR`.

    Returns
    -------
    Groups of rows of ``thumbnails`` (N, side, side); and why there was no search, empty where
    there was one.
    """
    if len(thumbnails) > _MAX_IMAGES:
        return [], f"there are more than {_MAX_IMAGES} images"
    flat = thumbnails.reshape(len(thumbnails), -1)
    chunks = range(0, len(thumbnails), _CHUNK)
    low = np.concatenate([_low_frequencies(thumbnails[start : start + _CHUNK]) for start in chunks])
    pairs: list[NDArray[np.intp]] = []
    candidates = 0
    for start in chunks:
        one, other = np.nonzero(low[start : start + _CHUNK] @ low[start:].T > NEAR)
        one, other = one[one < other] + start, other[one < other] + start
        candidates += len(one)
        if candidates > _MAX_PAIRS:
            return [], f"the images are too alike: more than {_MAX_PAIRS} pairs"
        alike = np.einsum("np,np->n", _normalised(flat[one]), _normalised(flat[other])) > NEAR
        pairs.append(np.stack([one[alike], other[alike]]))
    one, other = np.concatenate(pairs, axis=1) if pairs else np.empty((2, 0), np.intp)
    graph = coo_array((np.ones(len(one)), (one, other)), shape=(len(low), len(low)))
    return rows_with_equal(pd.Series(connected_components(graph, directed=False)[1])), ""


def _low_frequencies(thumbnails: NDArray[np.uint8]) -> Floats:
    low = dctn(thumbnails.astype(np.float32), axes=(1, 2), norm="ortho")
    low = low[:, :_LOW_FREQUENCIES, :_LOW_FREQUENCIES].reshape(len(low), -1)
    low[:, 0] = 0  # the mean
    return _normalised(low)


def _normalised(rows: NDArray[Any]) -> Floats:
    rows = rows - rows.mean(1, keepdims=True, dtype=np.float32)
    # Constant images have no norm; they are listed as outliers instead.
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-3))
