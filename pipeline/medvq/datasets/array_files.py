"""Files that hold all images of a data set as arrays: MedMNIST's NPZ, IDX, STL-10's binary.

IDX is a big-endian magic number, the sizes, then bytes. Images come out upright, whatever the order
on disk.
"""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medvq.datasets.dataset import Split
from medvq.errors import UserError

Bytes = NDArray[np.uint8]
MEDMNIST_SPLITS: dict[str, Split] = {"train": "train", "val": "validation", "test": "test"}
_STL10_IMAGE = (3, 96, 96)
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def read_array_image(file: Path, index: int, channels: int) -> tuple[Bytes, NDArray[np.float32]]:
    """Read one image of an array file.

    Returns
    -------
    The stored bytes as (height, width) or (3, height, width), and the picture as float32
    (channels, height, width) in [0, 1]; colour becomes grey by its luminance.
    """
    stored = _images(file)[index]
    picture = np.atleast_3d(stored.T).T.astype(np.float32) / 255
    if len(picture) == 3 and channels == 1:
        picture = np.tensordot(_LUMINANCE, picture, 1)[None]
    return stored, np.repeat(picture, channels // len(picture), axis=0)


def count_images(file: Path) -> int:
    """Count the images of an array file."""
    return len(_images(file))


def check_count(file: Path, labels: int) -> None:
    """Refuse a file with another number of images than of labels."""
    _check(count_images(file) == labels, file, "another number of images than of labels")


def need_files(folder: Path, names: Sequence[str]) -> None:
    """Refuse a folder that lacks one of the files."""
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UserError(f"{folder} lacks {', '.join(missing)}")


def read_npz(file: Path, members: Sequence[str]) -> list[Bytes]:
    """Read arrays of bytes from an NPZ file."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            return [np.asarray(archive[member], np.uint8) for member in members]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(file, f"no NPZ file with {', '.join(members)}") from error


def read_idx(file: Path) -> Bytes:
    """Read the array of a gzipped IDX file of bytes."""
    try:
        content = gzip.decompress(file.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(file, "no complete gzip file") from error
    axes = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    start = 4 + 4 * axes
    shape = np.frombuffer(content[4:start], ">u4").astype(int) if len(content) >= start else ()
    _check(axes > 0 and len(content) - start == np.prod(shape), file, "no whole IDX file of bytes")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


@lru_cache(maxsize=8)
def _images(file: Path) -> Bytes:
    """Return all images of a file: (N, height, width) or (N, 3, height, width)."""
    if file.suffix == ".npz":
        return np.concatenate(read_npz(file, [f"{part}_images" for part in MEDMNIST_SPLITS]))
    if file.suffix == ".gz":
        return read_idx(file)
    size = file.stat().st_size
    _check(size > 0 and size % np.prod(_STL10_IMAGE) == 0, file, "no whole number of images")
    # Mapped, since the unlabelled images are 2.7 GB; stored column by column.
    return np.memmap(file, np.uint8, "r").reshape(-1, *_STL10_IMAGE).swapaxes(2, 3)


def _check(holds: bool | np.bool_, file: Path, otherwise: str) -> None:
    if not holds:
        raise _damaged(file, otherwise)


def _damaged(file: Path, how: str) -> UserError:
    return UserError(f"{file} is damaged or incomplete ({how}); fetch it again")
