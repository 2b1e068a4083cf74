"""Images that are unlike the rest in size or greys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medvq.images.frame import grey_planes

Floats = NDArray[np.float32]

# Robust standard deviations from the median: of normal values one in two million is beyond five.
_FAR = 5.0
# Of a normal distribution, standard deviations in one median absolute deviation.
_NORMAL = 1.4826
# Small enough to compare all pairs, large enough that two radiographs never look the same.
_THUMBNAIL = 32
_CHUNK = 512


@dataclass(frozen=True)
class ImageStatistics:
    """One row per image.

    Attributes
    ----------
    thumbnails : uint8 (N, 32, 32).
    mean, deviation : float32 (N,), of the grey values.
    constant : bool (N,), true where all pixels are equal.
    """

    thumbnails: NDArray[np.uint8]
    mean: Floats
    deviation: Floats
    constant: NDArray[np.bool_]


def image_statistics(images: NDArray[np.uint8]) -> ImageStatistics:
    """Go through all images once, a few at a time; see :func:`grey_planes` for their shape."""
    size = (_THUMBNAIL, _THUMBNAIL)
    thumbnails, constant, mean, deviation = [], [], [], []
    for start in range(0, len(images), _CHUNK):
        planes = grey_planes(images[start : start + _CHUNK])
        constant.append(planes.min((1, 2)) == planes.max((1, 2)))
        for plane in planes:
            small = cv2.resize(np.float32(plane), size, interpolation=cv2.INTER_AREA)
            mean.append(small.mean())
            deviation.append(small.std())
            thumbnails.append(small.round().astype(np.uint8))
    return ImageStatistics(
        np.stack(thumbnails), np.array(mean), np.array(deviation), np.concatenate(constant)
    )


def find_outliers(
    manifest: pd.DataFrame, statistics: ImageStatistics, limit: int
) -> dict[str, list[str]]:
    """Return the identities of up to ``limit`` images far from the others, by kind, farthest first.

    Far is five robust standard deviations (1.4826 times the median deviation) from the median.
    """
    sides = manifest[["width", "height"]].to_numpy(float)
    by_kind = {
        "size": np.maximum(_distance(sides.prod(1)), _distance(sides[:, 0] / sides[:, 1])),
        "intensity": np.maximum(_distance(statistics.mean), _distance(statistics.deviation)),
        "constant": np.where(statistics.constant, np.inf, 0.0),
    }
    names = manifest["image_id"].to_numpy(str)
    return {
        kind: names[order[distance[order] > _FAR]].tolist()[:limit]
        for kind, distance in by_kind.items()
        for order in [np.argsort(-distance, kind="stable")]
    }


def _distance(values: NDArray[Any]) -> NDArray[np.float64]:
    away = np.abs(values - np.median(values)).astype(np.float64)
    scale = _NORMAL * np.median(away) or away.std()
    return np.asarray(away / scale if scale else np.zeros_like(away))
