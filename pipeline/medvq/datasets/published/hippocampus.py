"""The hippocampus MR volumes of the Medical Segmentation Decathlon, task 04.

Antonelli et al.: The Medical Segmentation Decathlon. Nature Communications 13 (2022) 4128, data
CC BY-SA 4.0. There are no classes. What a probe predicts is a number: the volume of the hippocampus
where its label maps (``labelsTr``) are there, and else the size of the field of view, which the
header knows and an image that was stretched to a box does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from medvq.datasets.dataset import Dataset, SourceImage
from medvq.errors import UserError

_TEST_SHARE = 0.25
_TASK = "Task04_Hippocampus"


def list_images(folder: Path) -> Iterator[SourceImage]:
    """List all volumes in the order of their names; every volume is its own subject.

    No split is published (of the official test images the label maps are withheld): a quarter of
    the volumes, by a hash of their names, is the test split.

    Raises
    ------
    UserError
        There is no volume, or a label map is missing or no NIfTI file.
    """
    if (folder / _TASK).is_dir():
        folder = folder / _TASK
    images = folder / "imagesTr" if (folder / "imagesTr").is_dir() else folder
    maps = folder / "labelsTr"
    files = sorted(images.glob("hippocampus_*.nii.gz"))
    if not files:
        raise UserError(f"{images} holds no hippocampus_*.nii.gz")
    for file in files:
        subject = file.name.removesuffix(".nii.gz")
        mapped = maps.is_dir()
        digest = hashlib.sha256(subject.encode()).digest()
        yield SourceImage(
            path=file,
            shown_path=file.relative_to(folder).as_posix(),
            subject=subject,
            split="test" if digest[0] < _TEST_SHARE * 256 else "train",
            label=None,
            target=_marked_volume(maps / file.name) if mapped else _field_of_view(file),
            target_name="hippocampus_mm3" if mapped else "field_of_view_mm3",
        )


def _marked_volume(file: Path) -> float:
    """Measure the volume of all voxels that are marked (anterior or posterior), in mm3."""
    opened = _open(file)
    if opened is None:
        raise UserError(f"{file} is missing or no NIfTI file; every volume needs its label map")
    return float(np.count_nonzero(np.asanyarray(opened.dataobj))) * _voxel(opened)


def _field_of_view(file: Path) -> float | None:
    opened = _open(file)
    # An unreadable volume is listed all the same: ingest sets it aside with the reason.
    return None if opened is None else float(np.prod(opened.shape)) * _voxel(opened)


def _voxel(opened: Any) -> float:
    return float(np.prod(opened.header.get_zooms()[:3]))


def _open(file: Path) -> Any:
    import nibabel

    try:
        return nibabel.load(file)
    except Exception:  # of any of its types: a fact about the file
        return None


DATASET = Dataset(list_images)
