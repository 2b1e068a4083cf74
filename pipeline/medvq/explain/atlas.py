"""What each code stands for: where it stands in images, with which class it goes, how it looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvq.storage.feature_store import read_feature, read_keys, read_metadata

Floats = NDArray[np.float64]
# Images that codes are counted in: evenly spaced, more would only take longer.
_COUNTED = 20_000


@dataclass(frozen=True)
class CodeEntry:
    """One code of the coarsest codebook.

    Attributes
    ----------
    code : its index.
    share : of all places of the training images.
    places : (*grid), the share of images that have it at each place.
    lean : by class, how much more often an image of the class has it anywhere than an image on
        average, as a factor; empty without labels.
    examples : (row, place): a training image each, evenly spaced over those that have the code.
    """

    code: int
    share: float
    places: Floats
    lean: dict[str, float]
    examples: list[tuple[int, int]]


def describe_codes(store: Path, number: int, examples: int) -> list[CodeEntry]:
    """Describe the most frequent codes of the training images.

    Parameters
    ----------
    store : the table of features.
    number, examples : codes, and images to show of each, at most.
    """
    keys, metadata = read_keys(store), read_metadata(store)
    train = np.flatnonzero(keys["split"] == "train")
    train = train[:: -(-len(train) // _COUNTED)]
    codes = read_feature(store, "codes_0")[train]
    grid, size = metadata.levels[0].latent_shape, metadata.levels[0].codebook_size
    counts = np.bincount(codes.ravel().astype(np.int64), minlength=size)
    labels = keys["label"].to_numpy()[train]
    subjects = keys["subject_id"].to_numpy(str)[train]
    return [
        _describe(code, codes, train, grid, labels, metadata.classes, subjects, examples)
        for code in np.argsort(-counts, kind="stable")[:number].tolist()
        if counts[code]
    ]


def _describe(
    code: int,
    codes: NDArray[Any],
    rows: NDArray[np.intp],
    grid: Sequence[int],
    labels: NDArray[Any],
    classes: Sequence[str],
    subjects: NDArray[np.str_],
    examples: int,
) -> CodeEntry:
    there = codes == code
    has = there.any(1)
    known = np.array([label == label and label is not None for label in labels], bool)
    lean = {}
    if len(classes) > 1 and (average := has[known].mean() if known.any() else 0.0):
        for index, name in enumerate(classes):
            of_class = known & (labels == index)
            if of_class.any():
                lean[name] = float(has[of_class].mean() / average)
    # One image of each subject, since nothing but pixels is shown.
    _, first = np.unique(subjects[has], return_index=True)
    candidates = np.flatnonzero(has)[np.sort(first)]
    spaced = np.unique(np.linspace(0, len(candidates) - 1, examples).astype(int))
    chosen = candidates[spaced]
    pairs = [(int(rows[image]), int(np.flatnonzero(there[image])[0])) for image in chosen]
    return CodeEntry(code, float(there.mean()), there.mean(0).reshape(grid), lean, pairs)
