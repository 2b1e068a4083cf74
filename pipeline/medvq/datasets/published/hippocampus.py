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
from medvq.images.formats.display import check_size
from medvq.images.workers import read_headers

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
    mapped = maps.is_dir()
    measured = (
        read_headers(_marked_volume, [maps / file.name for file in files])
        if mapped
        else (read_headers(_field_of_view, files))
    )
    for file, target in zip(files, measured, strict=True):
        if mapped and not isinstance(target, float):
            raise UserError(
                f"{maps / file.name} is missing or no NIfTI file; every volume needs its label map"
            )
        subject = file.name.removesuffix(".nii.gz")
        digest = hashlib.sha256(subject.encode()).digest()
        yield SourceImage(
            path=file,
            shown_path=file.relative_to(folder).as_posix(),
            subject=subject,
            split="test" if digest[0] < _TEST_SHARE * 256 else "train",
            label=None,
            # An unreadable volume is listed all the same: ingest sets it aside with the reason.
            target=target if isinstance(target, float) else None,
            target_name="hippocampus_mm3" if mapped else "field_of_view_mm3",
        )


def _marked_volume(file: Path) -> float | None:
    """Measure the volume of all voxels that are marked (anterior or posterior), in mm3."""
    import nibabel

    try:
        opened: Any = nibabel.load(file)
        check_size(*opened.shape, opened.get_data_dtype().itemsize)
        return float(np.count_nonzero(np.asanyarray(opened.dataobj))) * _voxel(opened)
    except MemoryError:
        raise
    except Exception:  # of any of its types: a fact about the file
        return None


def _field_of_view(file: Path) -> float | None:
    import nibabel

    try:
        opened: Any = nibabel.load(file)
        return float(np.prod(opened.shape)) * _voxel(opened)
    except Exception:  # of any of its types: a fact about the file
        return None


def _voxel(opened: Any) -> float:
    return float(np.prod(opened.header.get_zooms()[:3]))


DATASET = Dataset(list_images)
