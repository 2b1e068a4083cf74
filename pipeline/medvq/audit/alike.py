"""Images that are taken for those of one subject because they show nearly the same."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from medvq.audit.duplicates import near_duplicates
from medvq.audit.outliers import image_statistics
from medvq.errors import Notice

LARGEST_SHARE = 0.1
"""Share of the images beyond which a group says that the images are alike by nature, since pairs
of neighbours make a chain: then nothing is said of subjects. Few patients have so many images."""
_SMALLEST = 20
"""Images that a group may hold whatever their share: small sets have large shares."""


def find_alike(images: NDArray[np.uint8]) -> list[list[int]]:
    """Return groups of images, by position, that are nearly identical.

    Parameters
    ----------
    images : uint8, as read; see :func:`medvq.images.frame.grey_planes`.
    """
    if len(images) < 2:
        return []
    groups, reason = near_duplicates(image_statistics(images).thumbnails)
    largest = max(map(len, groups), default=0)
    if not reason and largest > max(_SMALLEST, LARGEST_SHARE * len(images)):
        reason = f"{largest} of {len(images)} images are alike"
    if reason:
        warnings.warn(
            Notice(
                f"nearly identical images were not joined to one subject ({reason}); where they "
                "are of one patient, name the subjects"
            ),
            stacklevel=2,
        )
        return []
    return groups
