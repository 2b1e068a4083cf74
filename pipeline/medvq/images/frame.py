"""What an image shows around its object, where equipment and operators leave their traces."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

# Cells per side: those of the outer two rings lie outside the lungs in nearly every radiograph.
_CELLS = 14
_RING = 2
# Images at a time, since they may be mapped from a file that is larger than memory.
_CHUNK = 512


def grey_planes(images: NDArray[Any]) -> NDArray[Any]:
    """Return one grey picture of each image: the mean over channels, the middle slice.

    Parameters
    ----------
    images : shape (B, H, W) of grey pictures, else (B, C, [D,] H, W).

    Returns
    -------
    Shape (B, H, W).

    >>> grey_planes(np.arange(24).reshape(1, 1, 3, 2, 4)).tolist()
    [[[8.0, 9.0, 10.0, 11.0], [12.0, 13.0, 14.0, 15.0]]]
    """
    if images.ndim == 3:
        return images
    if images.ndim == 5:
        images = images[:, :, images.shape[2] // 2]
    return np.asarray(images.mean(1))


def frame_features(images: NDArray[np.uint8], positions: Tensor) -> NDArray[np.float32]:
    """Return features of the frame around the object and of the object's position.

    They are all that images show besides the object, so a probe on them measures shortcuts.

    Parameters
    ----------
    images : shape (B, H, W) or (B, C, [D,] H, W), as read; see :func:`grey_planes`.
    positions : shape (B, 4), see :class:`medvq.method.alignment.Registration`.

    Returns
    -------
    Shape (B, 2 x 96 + 4): mean and standard deviation of the outer two of 14 cells on each side,
    then the position, times 255 so that it is on the scale of the greys.
    """
    chunks = zip(range(0, len(images), _CHUNK), positions.split(_CHUNK), strict=True)
    return np.concatenate(
        [_features(grey_planes(images[start : start + _CHUNK]), part) for start, part in chunks]
    )


def _features(planes: NDArray[Any], positions: Tensor) -> NDArray[np.float32]:
    height, width = (side // _CELLS for side in planes.shape[1:])
    cells = planes[:, : _CELLS * height, : _CELLS * width]
    cells = cells.reshape(len(planes), _CELLS, height, _CELLS, width)
    outer = np.ones((_CELLS, _CELLS), bool)
    outer[_RING:-_RING, _RING:-_RING] = False
    mean = cells.mean((2, 4), dtype=np.float32)[:, outer]
    deviation = cells.std((2, 4), dtype=np.float32)[:, outer]
    return np.concatenate([mean, deviation, positions.numpy() * 255], 1).astype(np.float32)
