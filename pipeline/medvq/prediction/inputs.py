"""New images: their files, their names in tables, and how they differ from the training images.

A process that has others read imports this module, and so neither torch nor pydicom.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from medvq.config import Config
from medvq.datasets.folder_files import (
    PICTURES,
    FolderFile,
    kinds,
    may_show,
    why_no_kind_of_image,
)
from medvq.datasets.pseudonyms import pseudonym, subject_key
from medvq.datasets.walk import shown, walk
from medvq.errors import UserError
from medvq.images.formats import is_dicom
from medvq.images.formats.identity import Identity, identify
from medvq.images.reading import ImageFiles
from medvq.images.workers import WorkerFailure, read_headers

if TYPE_CHECKING:
    import pandas as pd

# Beyond the sizes and the aspect ratios of the training images by these factors, an image is of
# another kind: another body part or scanner, a thumbnail, a contact sheet.
_SIZE_FACTOR, _ASPECT_FACTOR = 2.0, 1.25
_SIZE, _WIDTH = "its size", "its width"
MISALIGNED = "it cannot be registered to the training images"


@dataclass(frozen=True)
class NewImage:
    """An image to predict.

    Attributes
    ----------
    name : what tables call it: the path relative to the folder, or of what is or may be DICOM,
        whose path may name a patient, a keyed hash of it.
    files : of the image; several for the slices of a volume.
    dicom : whether they are DICOM.
    """

    name: str
    files: ImageFiles
    dicom: bool


@dataclass(frozen=True)
class Inputs:
    """The images of a file or folder, sorted by path; and its other files, counted by reason."""

    images: tuple[NewImage, ...]
    skipped: Counter[str]

    def digest(self) -> str:
        """Return a hash of the paths, sizes and times of all files, which tells two runs apart."""
        hashed = hashlib.sha256()
        for image in self.images:
            for path in image.files.paths:
                try:
                    status = path.stat()
                    stamp = (status.st_size, status.st_mtime_ns)
                except OSError:
                    stamp = (-1, -1)
                hashed.update(repr((str(path), stamp)).encode("utf-8", "surrogateescape"))
        return hashed.hexdigest()


def list_inputs(path: Path, config: Config) -> Inputs:
    """List the images of a file or of a folder of any mix of pictures, DICOM and NIfTI files.

    Parameters
    ----------
    config : of what the images are for; where that is volumes, DICOM slices of a series are one.

    Raises
    ------
    UserError
        There is no such file, or no image in the folder. No path below it is named.
    """
    if not path.exists():
        # The path of a DICOM file may name a patient.
        missing = "such DICOM file" if is_dicom(path) else f"file or folder {path}"
        raise UserError(f"there is no {missing} (IN=)")
    if not path.is_dir():
        return Inputs(tuple(_images(path.parent, [path.name], config)), Counter())
    found = walk(path, why_no_kind_of_image)
    if not found.files:
        reasons = "; ".join(f"{number} x {reason}" for reason, number in found.skipped.items())
        wanted = f"{kinds(PICTURES)}, NIfTI"
        raise UserError(f"no image ({wanted}) is in {path}" + (f": {reasons}" if reasons else ""))
    return Inputs(tuple(_images(path, found.files, config)), found.skipped)


def _images(folder: Path, names: Sequence[str], config: Config) -> list[NewImage]:
    files = [FolderFile(name, dicom=is_dicom(folder / name)) for name in names]
    hidden = any(not may_show(file) for file in files)
    key = subject_key() if hidden else b""
    window = getattr(config.source, "window", None)
    if len(config.ingest.read_shape) == 3:
        files = _with_series(folder, files)
    groups: dict[str, list[FolderFile]] = {}
    for file in files:
        groups.setdefault(file.series or f"file {file.path}", []).append(file)
    return [
        NewImage(
            _name(group[0], key),
            ImageFiles(tuple(folder / file.path for file in group), len(group) > 1, window),
            group[0].dicom,
        )
        for group in groups.values()
    ]


def _with_series(folder: Path, files: Sequence[FolderFile]) -> list[FolderFile]:
    """Return the files with the series that DICOM slices belong to."""
    headers = read_headers(identify, [folder / file.path for file in files if file.dicom])
    return [replace(file, series=_series(next(headers))) if file.dicom else file for file in files]


def _series(identity: Identity | WorkerFailure | None) -> str:
    # What is no slice is read alone, and refused with its reason.
    if not isinstance(identity, Identity) or identity.no_image or identity.is_localizer:
        return ""
    return identity.series


def _name(file: FolderFile, key: bytes) -> str:
    if may_show(file):
        return shown(file.path)
    return "f-" + pseudonym(f"file:{file.path}", key).removeprefix("s-")


@dataclass(frozen=True)
class TrainingSizes:
    """The sizes of the images that were trained on, by which images of another kind are told.

    Attributes
    ----------
    low, high : along each axis, depth first.
    aspect : the least and the greatest width over height.
    """

    low: tuple[int, ...]
    high: tuple[int, ...]
    aspect: tuple[float, float]

    @classmethod
    def of(cls, manifest: pd.DataFrame, axes: int) -> Self:
        """Return those of a manifest's training images."""
        train = manifest[manifest["split"] == "train"]
        sizes = train[["depth", "height", "width"][-axes:]]
        aspect = train["width"] / train["height"]
        return cls(
            tuple(sizes.min().astype(int)),
            tuple(sizes.max().astype(int)),
            (float(aspect.min()), float(aspect.max())),
        )

    def differs(self, size: tuple[int, ...]) -> str:
        """Say in what a size is far from those of training; empty where it is not."""
        sizes = (size, self.low, self.high)
        shape, low, high = (" x ".join(map(str, one[::-1])) for one in sizes)
        aspect = size[-1] / size[-2]
        sides = zip(size, self.low, self.high, strict=True)
        if any(not least / _SIZE_FACTOR <= n <= _SIZE_FACTOR * most for n, least, most in sides):
            return f"{_SIZE} {shape} is far from those of training, {low} to {high}"
        narrowest, widest = self.aspect
        if not narrowest / _ASPECT_FACTOR <= aspect <= widest * _ASPECT_FACTOR:
            return (
                f"{_WIDTH} is {aspect:.2f} times its height, in training "
                f"{narrowest:.2f} to {widest:.2f}"
            )
        return ""


def kind_of_difference(reason: str) -> str:
    """Return in what an image differs, without its own numbers, for counting.

    >>> kind_of_difference("its size 9 x 12 is far from those of training, 200 x 200 to 300 x 310")
    'its size is far from those of training'
    """
    kinds = {_SIZE: "its size", _WIDTH: "its width over its height"}
    found = next((kind for start, kind in kinds.items() if reason.startswith(start)), "")
    return f"{found} is far from those of training" if found else reason
