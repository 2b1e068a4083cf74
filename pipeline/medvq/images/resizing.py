"""From a picture or volume of any size to bytes of the size that a data set is read at.

Processes that read import this module, so torch and MONAI are imported for volumes alone.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from medvq.errors import UnreadableImage

Bytes = NDArray[np.uint8]
Fit = Literal["stretch", "pad"]
# What an integral image of 32-bit sums of bytes can hold.
_INTEGRAL_PIXELS = (2**31 - 1) // 255
# Memory that MONAI may take to blur a volume: its convolution copies each voxel for each tap.
_BLUR_BYTES = 2**30


# By the axes that are expected; one file may be wrong among many, or the settings.
_OTHER_AXES = {
    2: "a volume, where pictures are expected: save the slices that matter as pictures, or take it "
    "out; a set of volumes alone needs ingest.image_size and ingest.read_size as "
    "[depth, height, width]",
    3: "a picture, where volumes are expected: take it out (slices of DICOM are put together by "
    "source.series_as_volumes); a set of pictures alone needs ingest.image_size and "
    "ingest.read_size as one number",
}


def to_bytes(grey: NDArray[np.float32]) -> Bytes:
    """Map [0, 1] to the nearest of 0..255."""
    return np.asarray(np.rint(np.clip(grey, 0.0, 1.0) * 255.0), np.uint8)


def fit_to_shape(image: NDArray[np.float32], shape: tuple[int, ...], fit: Fit) -> Bytes:
    """Bring a picture or volume (C, *spatial) in [0, 1] to bytes (C, *shape).

    Parameters
    ----------
    fit : ``stretch`` resizes along each axis: pictures by area averaging, volumes linearly after a
        blur where they shrink. ``pad`` keeps the scale, and pads with 0 or crops evenly on both
        sides.

    Raises
    ------
    UnreadableImage
        The image has another number of axes.
    """
    if image.ndim != 1 + len(shape):
        raise UnreadableImage(_OTHER_AXES[len(shape)])
    if image.shape[1:] == shape:
        return to_bytes(image)
    if fit == "pad":
        return to_bytes(_pad_or_crop(image, shape))
    if len(shape) == 3:
        return to_bytes(_stretch_volume(image, shape))
    size = shape[::-1]
    return to_bytes(np.stack([cv2.resize(c, size, interpolation=cv2.INTER_AREA) for c in image]))


def shrink_bytes(picture: Bytes, shape: tuple[int, int]) -> Bytes:
    """Average a (height, width) byte picture over areas to a smaller ``shape``.

    The same as :func:`fit_to_shape` but for ties in rounding, and twice as fast: the mean over any
    rectangle is a second difference of the integral image (Crow 1984), bilinear between pixels.
    """
    depth = cv2.CV_32S if picture.size <= _INTEGRAL_PIXELS else cv2.CV_64F
    integral = cv2.integral(picture, sdepth=depth)
    (top, down), (left, right) = (_edges(n, m) for n, m in zip(picture.shape, shape, strict=True))
    width = integral.shape[1]
    corners = integral.ravel()
    at = top[:, None] * width + left
    corner, next_column, next_row, diagonal = (
        corners[start:].take(at) for start in (0, 1, width, width + 1)
    )
    # In place, which is a third of the time: the bilinear value between the four corners.
    diagonal -= next_column
    diagonal -= next_row
    diagonal += corner
    sums = right * diagonal
    sums += next_row
    sums -= corner
    sums *= down[:, None]
    sums += right * (next_column - corner)
    sums += corner
    means = np.diff(np.diff(sums, axis=0), axis=1) * (shape[0] * shape[1] / picture.size)
    return np.asarray(np.rint(means), np.uint8)


@lru_cache(4096)
def _edges(pixels: int, cells: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return where cells begin and end: whole pixels, and the part of the next one."""
    at = np.arange(cells + 1) * pixels / cells
    whole = np.minimum(at.astype(np.intp), pixels - 1)
    return whole, at - whole


def _stretch_volume(image: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Resize (C, depth, height, width) linearly, after a blur where it shrinks.

    Both are sums of products along one axis after the other, so that a large volume is multiplied
    by one matrix for each axis: the same but for rounding, in a thirtieth of the memory.
    """
    taps = 4 * max(old / new for old, new in zip(image.shape[1:], shape, strict=True))
    if image.size * taps * image.itemsize <= _BLUR_BYTES:
        return np.asarray(_stretch(shape, "trilinear")(image))
    for axis in (3, 2, 1):
        impulses = np.eye(image.shape[axis], dtype=np.float32)
        weights = np.asarray(_stretch((shape[axis - 1],), "linear")(impulses))
        image = np.moveaxis(np.tensordot(image, weights, axes=(axis, 0)), -1, axis)
    return image


@cache
def _stretch(shape: tuple[int, ...], mode: str) -> Any:
    from monai.transforms import Resize

    return Resize(shape, mode=mode, anti_aliasing=True)


def _pad_or_crop(image: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Crop where ``image`` (C, *spatial) is larger than ``shape``, pad with 0 where smaller."""
    spare = [new - old for new, old in zip(shape, image.shape[1:], strict=True)]
    inner = [slice(max(-s, 0) // 2, max(-s, 0) // 2 + w) for s, w in zip(spare, shape, strict=True)]
    around = [(max(s, 0) // 2, max(s, 0) - max(s, 0) // 2) for s in spare]
    return np.pad(image[:, *inner], [(0, 0), *around])
