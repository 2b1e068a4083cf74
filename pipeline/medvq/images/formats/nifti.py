"""NIfTI-1 and NIfTI-2 volumes (``.nii``, ``.nii.gz``), through nibabel.

The range shown, in this order: ``cal_min`` to ``cal_max`` where the header states them; 0 to 255
for colour, and for a single slice of unscaled unsigned bytes, which is a picture; else the 0.5th to
the 99.5th percentile of the volume.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medvq.errors import UnreadableImage
from medvq.images.formats.display import (
    Image,
    Values,
    Window,
    check_size,
    robust_range,
    stretch,
    to_channels,
)
from medvq.images.formats.volume import to_anatomical

NIFTI_SUFFIXES = (".nii", ".nii.gz")


def is_nifti(path: Path) -> bool:
    """Say whether ``path`` is named as a NIfTI file."""
    return path.name.lower().endswith(NIFTI_SUFFIXES)


def read_nifti(path: Path, channels: int, window: Window | None = None) -> Image:
    """Read (channels, depth, height, width) in [0, 1], (channels, height, width) of a single slice.

    The volume is turned as :func:`~medvq.images.formats.volume.to_anatomical` says. A slice across
    another axis than the body's stands head up.

    Raises
    ------
    UnreadableImage
        Several volumes in one file, complex numbers, voxels that are not numbers, no orientation.
    """
    import nibabel

    image: Any = nibabel.load(path)
    shape = image.shape
    if len(shape) < 2 or np.prod(shape[3:]) > 1:
        raise UnreadableImage("a NIfTI file of several volumes, or of none")
    check_size(*shape)
    stored = np.asanyarray(image.dataobj).reshape((*shape, 1)[:3])
    colour = stored.dtype.names is not None
    if colour:
        stored = np.stack([stored[band] for band in "RGB"], axis=-1)
    if np.iscomplexobj(stored):
        raise UnreadableImage("a NIfTI file of complex numbers")
    if not np.isfinite(stored).all():
        raise UnreadableImage("the image has pixels that are not numbers")
    shown = _shown(stored, image.header, window)
    turned = _upright(to_anatomical(shown, np.asarray(image.affine, np.float64)))
    return to_channels(turned, channels, colour=colour)


def _shown(stored: Values, header: Any, window: Window | None) -> Image:
    if window is not None:
        return window.apply(stored.astype(np.float32))
    low, high = float(header["cal_min"]), float(header["cal_max"])
    if not low < high:
        picture = stored.dtype == np.uint8 and (stored.ndim == 4 or 1 in stored.shape)
        low, high = (0.0, 255.0) if picture else robust_range(stored)
    return stretch(stored, low, high)


def _upright(volume: Image) -> Image:
    depth, height, width = volume.shape[:3]
    if depth > 1 and height > 1 and width > 1:
        return volume
    if depth == 1:
        return np.asarray(volume[0])
    return np.asarray(volume[::-1, 0] if height == 1 else volume[::-1, :, 0])
