"""Files that hold all images of a data set as arrays: MedMNIST's NPZ, IDX, STL-10's binary.

IDX is a big-endian magic number, the sizes, then bytes. Images come out upright, whatever the order
on disk. The files are opened in worker processes, and what their headers declare is checked before
it is read.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvq.datasets.dataset import Split
from medvq.errors import UserError
from medvq.images.formats.display import MAX_SAMPLES
from medvq.images.reading import TIMEOUT, Reader, ReadResult
from medvq.images.resizing import fit_to_shape
from medvq.images.workers import WorkerFailure, map_in_processes, processors

Bytes = NDArray[np.uint8]
MEDMNIST_SPLITS: dict[str, Split] = {"train": "train", "val": "validation", "test": "test"}
_STL10_IMAGE = (3, 96, 96)
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
# Images that a process reads at a time: sending each alone would take longer than reading it.
_BATCH = 64
_TOO_MANY = f"more than the {MAX_SAMPLES // 10**6} million bytes that are read"


class ArrayImage(NamedTuple):
    """An image of an array file, by its place in it."""

    file: Path
    number: int


class LabelledFile(NamedTuple):
    """A file of images, and the file of their labels: the same one where it is NPZ."""

    images: Path
    labels: Path


@dataclass(frozen=True)
class ArrayReader:
    """How images of array files are read: a function from some of one file to their results."""

    reader: Reader

    def __call__(self, images: Sequence[ArrayImage]) -> list[ReadResult]:
        return [self._read(image) for image in images]

    def _read(self, image: ArrayImage) -> ReadResult:
        stored, picture = read_array_image(image.file, image.number, self.reader.channels)
        checksum = hashlib.sha256(np.ascontiguousarray(stored).data).hexdigest()
        pixels = fit_to_shape(picture, self.reader.shape, self.reader.fit)
        return ReadResult(pixels, checksum, picture.shape[1:])


def read_array_images(images: Sequence[ArrayImage], reader: Reader) -> Iterator[ReadResult]:
    """Yield images in their order, read in worker processes.

    Raises
    ------
    UserError
        A file is damaged, or ends the process that reads it.
    """
    of_files = [list(group) for _, group in itertools.groupby(images, lambda image: image.file)]
    batches = [
        group[start : start + _BATCH]
        for group in of_files
        for start in range(0, len(group), _BATCH)
    ]
    read = ArrayReader(reader)
    results = map_in_processes(read, batches, processes=processors(), timeout=TIMEOUT)
    for batch, result in zip(batches, results, strict=True):
        if isinstance(result, WorkerFailure):
            raise UserError(f"{batch[0].file} cannot be read: {result.reason}")
        yield from result


def read_labels(files: Sequence[LabelledFile]) -> Iterator[list[Bytes]]:
    """Yield the labels of each file, read in a worker process: of NPZ one array for each split.

    Raises
    ------
    UserError
        A file is damaged, has another number of images than of labels, or ends the process.
    """
    results = map_in_processes(_read_labels, files, processes=1, timeout=TIMEOUT)
    for file, labels in zip(files, results, strict=True):
        if isinstance(labels, WorkerFailure):
            raise UserError(f"{file.images} cannot be read: {labels.reason}")
        yield labels


def _read_labels(file: LabelledFile) -> list[Bytes]:
    if file.labels.suffix == ".npz":
        labels = read_npz(file.labels, [f"{part}_labels" for part in MEDMNIST_SPLITS])
    elif file.labels.suffix == ".gz":
        labels = [read_idx(file.labels)]
    else:
        _check(file.labels.stat().st_size <= MAX_SAMPLES, file.labels, _TOO_MANY)
        labels = [np.fromfile(file.labels, np.uint8)]
    count = sum(part.size for part in labels)
    _check(
        count == count_images(file.images), file.images, "another number of images than of labels"
    )
    return [part.ravel() for part in labels]


def read_array_image(file: Path, index: int, channels: int) -> tuple[Bytes, NDArray[np.float32]]:
    """Read one image of an array file.

    Returns
    -------
    The stored bytes as (height, width) or (3, height, width), and the picture as float32
    (channels, height, width) in [0, 1]; colour becomes grey by its luminance.
    """
    images = _images(file)
    _check(index < len(images), file, "fewer images than labels")
    stored = images[index]
    picture = np.atleast_3d(stored.T).T.astype(np.float32) / 255
    if len(picture) == 3 and channels == 1:
        picture = np.tensordot(_LUMINANCE, picture, 1)[None]
    return stored, np.repeat(picture, channels // len(picture), axis=0)


def count_images(file: Path) -> int:
    """Count the images of an array file."""
    return len(_images(file))


def class_name(label: int, names: Sequence[str], file: Path, first: int = 0) -> str:
    """Return the name of a class, of which the first has the number ``first``."""
    _check(first <= label < first + len(names), file, f"a label {label} of no class")
    return names[label - first]


def need_files(folder: Path, names: Sequence[str]) -> None:
    """Refuse a folder that lacks one of the files."""
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UserError(f"{folder} lacks {', '.join(missing)}")


def read_npz(file: Path, members: Sequence[str]) -> list[Bytes]:
    """Read arrays of bytes from an NPZ file."""
    try:
        with zipfile.ZipFile(file) as archive:
            sizes = [archive.getinfo(f"{member}.npy").file_size for member in members]
        _check(sum(sizes) <= MAX_SAMPLES, file, _TOO_MANY)
        with np.load(file, allow_pickle=False) as arrays:
            return [_as_bytes(arrays[member], file) for member in members]
    except UserError:
        raise
    except Exception as error:  # of dozens of types; memory for what a false header declares
        raise _damaged(file, f"no NPZ file with {', '.join(members)}") from error


def read_idx(file: Path) -> Bytes:
    """Read the array of a gzipped IDX file of bytes."""
    no_idx = "no whole IDX file of bytes"
    try:
        with gzip.open(file) as stream:
            head = stream.read(4)
            _check(head[:3] == b"\0\0\x08" and len(head) == 4, file, no_idx)
            sizes = stream.read(4 * head[3])
            _check(0 < len(sizes) == 4 * head[3], file, no_idx)
            shape = np.frombuffer(sizes, ">u4").astype(int)
            _check(np.prod(shape, dtype=float) <= MAX_SAMPLES, file, _TOO_MANY)
            # One more: at the end, gzip compares its checksum.
            content = stream.read(int(np.prod(shape)) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(file, "no complete gzip file") from error
    _check(len(content) == np.prod(shape), file, no_idx)
    return np.frombuffer(content, np.uint8).reshape(shape)


@lru_cache(maxsize=8)
def _images(file: Path) -> Bytes:
    """Return all images of a file: (N, height, width) or (N, 3, height, width)."""
    if file.suffix == ".npz":
        parts = read_npz(file, [f"{part}_images" for part in MEDMNIST_SPLITS])
        _check(len({part.shape[1:] for part in parts}) == 1, file, "images of several sizes")
        return _as_images(np.concatenate(parts), file)
    if file.suffix == ".gz":
        return _as_images(read_idx(file), file)
    size = file.stat().st_size
    _check(size > 0 and size % np.prod(_STL10_IMAGE) == 0, file, "no whole number of images")
    # Mapped, since the unlabelled images are 2.7 GB; stored column by column.
    return np.memmap(file, np.uint8, "r").reshape(-1, *_STL10_IMAGE).swapaxes(2, 3)


def _as_images(array: Bytes, file: Path) -> Bytes:
    is_grey, is_colour = array.ndim == 3, array.ndim == 4 and array.shape[1] == 3
    _check((is_grey or is_colour) and min(array.shape[-2:]) > 1, file, "no images")
    return array


def _as_bytes(array: NDArray[np.generic], file: Path) -> Bytes:
    """Return whole numbers as bytes; others, and those beyond 255, are damage."""
    _check(array.dtype.kind in "bui" and array.ndim > 0, file, "no whole numbers")
    if array.dtype != np.uint8 and array.size:
        _check(array.min() >= 0 and array.max() <= 255, file, "numbers beyond 255")
    return np.asarray(array, np.uint8)


def _check(holds: bool | np.bool_, file: Path, otherwise: str) -> None:
    if not holds:
        raise _damaged(file, otherwise)


def _damaged(file: Path, how: str) -> UserError:
    return UserError(f"{file} is damaged or incomplete ({how}); fetch it again")
