"""Copies of a whole set with swapped acquisitions, prepared like any image as read."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from medvq.images.frame import frame_features
from medvq.images.preparation import Preparation
from medvq.method.swap import Kind, swap_acquisition

Bytes = NDArray[np.uint8]

# Copies that are made at a time. The random numbers are taken copy by copy, so that it has no
# influence on them.
_CHUNK = 512


class SwappedCopies(NamedTuple):
    """Prepared copies, and their frames.

    Attributes
    ----------
    images : uint8 (B, *image_shape).
    frame : float32 (B, F), see :func:`medvq.images.frame.frame_features`.
    """

    images: Bytes
    frame: NDArray[np.float32]


def swapped_copies(
    originals: Bytes,
    positions: Tensor,
    rows: NDArray[np.intp],
    donors: NDArray[np.intp],
    preparation: Preparation,
    kind: Kind,
    rng: np.random.Generator,
) -> SwappedCopies:
    """Make a copy of some images, each with the acquisition of a random one of ``donors``.

    Parameters
    ----------
    originals, positions : of all images, (N, side, side) as read and (N, 4).
    rows, donors : the images to copy, and those whose acquisitions they may get.
    """
    chosen = rng.choice(donors, len(rows))
    images, frames = [], []
    starts = range(0, len(rows), _CHUNK)
    for start in tqdm(starts, desc=f"swapping ({kind})", unit=" batches"):
        target, donor = rows[start : start + _CHUNK], chosen[start : start + _CHUNK]
        swapped = swap_acquisition(
            originals[target], positions[target], originals[donor], positions[donor], kind, rng
        )
        prepared, registration = preparation(swapped)
        images.append(prepared)
        frames.append(frame_features(swapped, registration.positions))
    return SwappedCopies(np.concatenate(images), np.concatenate(frames))
