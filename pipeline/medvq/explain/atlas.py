"""What each code stands for: where it stands in images, with which class it goes, how it looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvq.inference import Encoder
from medvq.method.scaling import to_unit
from medvq.storage.feature_store import read_feature, read_keys, read_metadata

Floats = NDArray[np.float64]
# Images that codes are counted in: evenly spaced, more would only take longer.
_COUNTED = 20_000
# Images that are encoded again for the patches nearest to a code, and how many of them at once.
_ENCODED, _BATCH = 256, 32


class Patch(NamedTuple):
    """A place of an image: the image's row, and the index into the flattened grid."""

    row: int
    place: int


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
    """

    code: int
    share: float
    places: Floats
    lean: dict[str, float]


def describe_codes(store: Path, number: int) -> list[CodeEntry]:
    """Describe the most frequent codes of the training images, so many at most.

    None are described of a data set without training images, as another site's is.

    Parameters
    ----------
    store : the table of features.
    """
    keys, metadata = read_keys(store), read_metadata(store)
    train = np.flatnonzero(keys["split"] == "train")
    if not len(train):
        return []
    train = train[:: -(-len(train) // _COUNTED)]
    codes = read_feature(store, "codes_0")[train]
    grid, size = metadata.levels[0].latent_shape, metadata.levels[0].codebook_size
    counts = np.bincount(codes.ravel().astype(np.int64), minlength=size)
    labels = keys["label"].to_numpy()[train]
    return [
        _describe(code, codes, grid, labels, metadata.classes)
        for code in np.argsort(-counts, kind="stable")[:number].tolist()
        if counts[code]
    ]


def _describe(
    code: int,
    codes: NDArray[Any],
    grid: Sequence[int],
    labels: NDArray[Any],
    classes: Sequence[str],
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
    return CodeEntry(code, float(there.mean()), there.mean(0).reshape(grid), lean)


def nearest_patches(
    store: Path, encoder: Encoder, images: NDArray[Any], codes: Sequence[int], number: int
) -> dict[int, list[Patch]]:
    """Return the patches whose latent vectors are nearest to each code, the nearest first.

    They are searched for in some training images, evenly spaced, since these are encoded again.
    Each patch is of another subject, since nothing but pixels is shown.

    Parameters
    ----------
    images : all, as the cache has them.
    codes : of the coarsest codebook.
    number : of patches of each code, at most.
    """
    keys = read_keys(store)
    train = np.flatnonzero(keys["split"] == "train")
    rows = train[:: -(-len(train) // _ENCODED)]
    found, distances = [], []
    for batch in np.array_split(rows, -(-len(rows) // _BATCH)):
        encoding = encoder.encode(to_unit(images[batch]))
        nearest = encoder.model.quantizers[0].decode(encoding.codes[0])
        squared = (encoding.latents[0] - nearest).square().sum(1)
        found.append(encoding.codes[0].flatten(1).cpu().numpy())
        distances.append(squared.flatten(1).cpu().numpy())
    code_of, distance = np.concatenate(found), np.concatenate(distances)
    subjects = keys["subject_id"].to_numpy(str)[rows]
    return {code: _nearest(code_of == code, distance, rows, subjects, number) for code in codes}


def _nearest(
    has: NDArray[np.bool_],
    distance: Floats,
    rows: NDArray[np.intp],
    subjects: NDArray[np.str_],
    number: int,
) -> list[Patch]:
    image, place = np.nonzero(has)
    order = np.argsort(distance[image, place], kind="stable")
    _, first = np.unique(subjects[image[order]], return_index=True)
    chosen = order[np.sort(first)[:number]]
    return [Patch(int(rows[image[one]]), int(place[one])) for one in chosen]
