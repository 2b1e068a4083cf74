"""Image files as scanners, archives and editors write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from medvq.images.formats import read_image
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    generate_uid,
)

Array = NDArray[Any]
Bytes = NDArray[np.uint8]
TO_LEFT_AND_BACK = np.diag([-1.0, -1.0, 1.0, 1.0])
"""A NIfTI affine: columns to the patient's left, rows to the back, slices to the head."""


def noise(*shape: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def read_grey(path: Path) -> Array:
    (grey,) = read_image(path)
    return np.asarray(grey)


def ramp(height: int = 7, width: int = 11) -> Bytes:
    """Symmetric in no axis and under no rotation; no grey twice."""
    return (3 * np.arange(height * width).reshape(height, width)).astype(np.uint8)


def wide(picture: Bytes) -> NDArray[np.uint16]:
    return picture.astype(np.uint16) * np.uint16(257)


def rgb(picture: Bytes) -> Bytes:
    return np.repeat(picture[..., None], 3, axis=2)


def palette(picture: Bytes) -> Image.Image:
    """Every grey v under the index v + 100."""
    image = Image.fromarray(picture + np.uint8(100)).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(np.repeat((np.arange(256) - 100) % 256, 3).astype(np.uint8).tobytes())
    return image


def save_picture(
    path: Path, seed: int = 0, mode: str = "L", size: tuple[int, int] = (70, 60)
) -> Path:
    """A picture of noise, ``size`` (width, height)."""
    channels = () if mode == "L" else (3,)
    Image.fromarray(noise(*size[::-1], *channels, seed=seed)).save(path)
    return path


def dicom(
    stored: Array | None = None, photometric: str = "MONOCHROME2", bits: int = 0, **elements: Any
) -> FileDataset:
    """A radiograph as DICOM; without ``stored`` a header alone, with ``elements`` set."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid()
    header = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID = meta.MediaStorageSOPClassUID
    header.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    if stored is not None:
        stored = np.ascontiguousarray(stored)
        header.set_pixel_data(stored, photometric, bits or 8 * stored.dtype.itemsize)
    for name, value in elements.items():
        setattr(header, name, value)
    return header


def save_dicom(path: Path, header: FileDataset) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)
    return path


# Direction cosines of rows and columns, and the volume (head, back, left) sliced that way: axes
# (slice, row, column).
PLANES: dict[str, tuple[list[int], Callable[[Array], Array]]] = {
    "axial": ([1, 0, 0, 0, 1, 0], lambda v: v),
    "axial from the feet, prone": ([-1, 0, 0, 0, 1, 0], lambda v: v[::-1, :, ::-1]),
    "coronal": ([1, 0, 0, 0, 0, -1], lambda v: v[::-1].transpose(1, 0, 2)),
    "sagittal": ([0, 1, 0, 0, 0, -1], lambda v: v[::-1].transpose(2, 0, 1)[::-1]),
}


def ct_series(volume: Array, plane: str = "axial", spacing: float = 2.0) -> list[FileDataset]:
    """The slices of a volume (head, back, left), in order along their normal."""
    orientation, cut = PLANES[plane]
    normal = np.cross(orientation[:3], orientation[3:])
    start, series = np.array([12.5, -30.25, 100.0]), generate_uid()
    return [
        dicom(
            stored,
            bits=16,
            SOPClassUID=CTImageStorage,
            SeriesInstanceUID=series,
            Modality="CT",
            ImageOrientationPatient=orientation,
            ImagePositionPatient=[round(float(x), 6) for x in start + number * spacing * normal],
            PixelSpacing=[0.5, 0.75],
            RescaleSlope=1,
            RescaleIntercept=0,
        )
        for number, stored in enumerate(cut(volume))
    ]


def save_nifti(
    path: Path, stored: Array, affine: ArrayLike = TO_LEFT_AND_BACK, **header: object
) -> Path:
    """A volume (column, row, slice) as it is stored, with fields of the header set."""
    image = nibabel.Nifti1Image(stored, np.asarray(affine, float))
    for name, value in header.items():
        image.header[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path
