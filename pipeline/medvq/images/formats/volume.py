"""Volumes turned to one anatomical orientation, whatever axes they were stored along."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medvq.errors import UnreadableImage
from medvq.images.formats.display import Image

# Slice by slice what a radiologist's screen shows of axial slices: depth rises towards the head
# (S), rows run down to the back (P), columns run to the patient's left (L).
_AXES = ("S", "P", "L")
# Of a voxel with sides of 1; less is flat.
_LEAST_VOLUME = 1e-6


def is_placed(affine: NDArray[np.float64]) -> bool:
    """Say whether an affine (4, 4) says which way the axes point."""
    columns = affine[:3, :3]
    lengths = np.linalg.norm(columns, axis=0)
    if not np.isfinite(affine).all() or not lengths.all():
        return False
    # By the directions alone: voxels in metres are as small as numbers that say nothing.
    return bool(abs(np.linalg.det(columns / lengths)) >= _LEAST_VOLUME)


def axes(affine: NDArray[np.float64]) -> tuple[str, ...]:
    """Return which way each axis points, such as ("L", "P", "S")."""
    from nibabel.orientations import aff2axcodes

    return tuple(map(str, aff2axcodes(affine)))


def to_anatomical(volume: Image, affine: NDArray[np.float64]) -> Image:
    """Flip and transpose to (depth, height, width): towards head, back and left.

    Parameters
    ----------
    volume : (i, j, k) or (i, j, k, 3).
    affine : (4, 4), from indices to millimetres in NIfTI's axes (right, anterior, superior).

    Raises
    ------
    UnreadableImage
        The affine does not say which way the axes point.

    Oblique volumes are turned to the nearest axes and are not resampled.
    """
    from nibabel.orientations import (
        apply_orientation,
        axcodes2ornt,
        io_orientation,
        ornt_transform,
    )

    if not is_placed(affine):
        raise UnreadableImage("the header does not say which way the volume lies")
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(_AXES))
    return np.ascontiguousarray(apply_orientation(volume, turn), np.float32)
