"""Copies of a whole set with swapped acquisitions, prepared like any image as read."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from medvq.distributed import map_shared, rank
from medvq.images.frame import frame_features
from medvq.images.preparation import Preparation
from medvq.method.swap import Kind, swap_acquisition

Bytes = NDArray[np.uint8]

# Copies that are made at a time: it bounds the memory of their float32 versions.
_CHUNK = 512


class SwappedImages(NamedTuple):
    """Copies with the acquisitions of random training images.

    Attributes
    ----------
    training : uint8 (copies, train, *image_shape), of the training images.
    validation : uint8 (B, *image_shape), of training and validation images in their order, of the
        kind that no training sees.
    validation_frame : float32 (B, F), their :func:`medvq.images.frame.frame_features`.
    """

    training: Bytes
    validation: Bytes
    validation_frame: NDArray[np.float32]


def swap_all(
    originals: Bytes,
    positions: Tensor,
    split: NDArray[np.str_],
    preparation: Preparation,
    seed: int,
) -> SwappedImages | None:
    """Swap the acquisitions of all training and validation images, in all processes.

    Of several processes only the first one returns the copies.

    Parameters
    ----------
    originals : shape (N, side, side), as read.
    positions : shape (N, 4), in the template of ``preparation``.
    split : shape (N,), the split of each image; only training images are donors.
    """
    train, not_test = np.flatnonzero(split == "train"), np.flatnonzero(split != "test")

    def copies(number: int) -> tuple[Bytes, NDArray[Any]]:
        kind: Kind = "training" if number else "validation"
        rows = train if number else not_test
        rng = np.random.default_rng([seed, number])
        donors = rng.choice(train, len(rows))
        images, frames = [], []
        starts = range(0, len(rows), _CHUNK)
        quiet = rank() > 0
        for start in tqdm(starts, desc=f"swapping ({kind})", unit=" batches", disable=quiet):
            target, donor = rows[start : start + _CHUNK], donors[start : start + _CHUNK]
            swapped = swap_acquisition(
                originals[target], positions[target], originals[donor], positions[donor], kind, rng
            )
            prepared, registration = preparation(swapped)
            images.append(prepared)
            frames.append(frame_features(swapped, registration.positions))
        return np.concatenate(images), np.concatenate(frames)

    # The random numbers of a copy are drawn one after the other: a process makes it whole.
    made = list(map_shared(copies, range(1 + preparation.config.swap.training_copies)))
    if not made:
        return None
    (validation, frame), *training = made
    shape = (len(training), len(train), *preparation.config.image_shape)
    images = np.array([images for images, _ in training], np.uint8).reshape(shape)
    return SwappedImages(images, validation, frame)
