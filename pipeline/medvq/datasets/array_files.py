"""Published sets that keep all images in a few array files: PneumoniaMNIST, MNIST, STL-10.

What a set lists, :func:`read_array_image` reads; upright, whatever the order on disk.

References
----------
PneumoniaMNIST: Yang et al., MedMNIST v2, Scientific Data 10 (2023) 41 (NPZ of
``{train,val,test}_{images,labels}``). MNIST: LeCun, Cortes, Burges (IDX: big-endian magic number,
sizes, bytes). STL-10: Coates, Lee, Ng, AISTATS 2011 (bytes, N x 3 x 96 columns x 96 rows).
"""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medvq.datasets.manifest import SourceImage, Split
from medvq.errors import UserError

Bytes = NDArray[np.uint8]
_MEDMNIST_SPLITS: dict[str, Split] = {"train": "train", "val": "validation", "test": "test"}
_STL10_SIDE = 96
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


def read_array_image(file: Path, index: int, channels: int) -> tuple[Bytes, NDArray[np.float32]]:
    """One image of an array file: its stored bytes, and what they show.

    Returns
    -------
    The bytes as (height, width) or (3, height, width), and the picture as float32
    (channels, height, width) in [0, 1]; colour becomes grey by its luminance (ITU-R BT.601).
    """
    stored = _images(file)[index]
    picture = np.atleast_3d(stored.T).T.astype(np.float32) / 255
    if len(picture) == 3 and channels == 1:
        picture = np.tensordot(_LUMINANCE, picture, 1)[None]
    return stored, np.repeat(picture, channels // len(picture), axis=0)


def list_pneumoniamnist(folder: Path) -> Iterator[SourceImage]:
    """All images with their official splits. Subjects are not published: each image is its own."""
    file = folder / "pneumoniamnist.npz"
    _need(folder, [file.name])
    number = 0
    for name, split in _MEDMNIST_SPLITS.items():
        for position, label in enumerate(_npz(file, [f"{name}_labels"])[0].ravel()):
            shown = f"{file.name}/{name}_images/{position}"
            label_name = ("NORMAL", "PNEUMONIA")[int(label)]
            subject = f"{name}-{position}"
            yield SourceImage(file, shown, subject, split, label_name, index=number)
            number += 1
    _check(len(_images(file)) == number, file, "other numbers of images and labels")


def list_mnist(folder: Path) -> Iterator[SourceImage]:
    """All 70,000 digits. Writers are not published by image: each image is its own subject."""
    parts: tuple[tuple[str, Split], ...] = (("train", "train"), ("t10k", "test"))
    kinds = ("images-idx3", "labels-idx1")
    _need(folder, [f"{name}-{kind}-ubyte.gz" for name, _ in parts for kind in kinds])
    for name, split in parts:
        file, labels = (folder / f"{name}-{kind}-ubyte.gz" for kind in kinds)
        truth = _idx(labels)
        _check(len(_images(file)) == len(truth), file, "another number of images than of labels")
        for index, label in enumerate(truth):
            shown = f"{file.name}/{index}"
            yield SourceImage(file, shown, f"{name}-{index}", split, str(label), index=index)


def list_stl10(folder: Path) -> Iterator[SourceImage]:
    """Labelled images with the official folds, and the unlabelled where they are there.

    Training images in no fold, of which the published set has none, would be the validation split.
    """
    if (folder / "stl10_binary").is_dir():
        folder = folder / "stl10_binary"
    names = ["class_names.txt", "fold_indices.txt"]
    _need(folder, [*names, *(f"{s}_{w}.bin" for s in ("train", "test") for w in "Xy")])
    classes = (folder / names[0]).read_text(encoding="utf-8").split()
    labels = {s: np.fromfile(folder / f"{s}_y.bin", np.uint8) for s in ("train", "test")}
    folds: list[list[int]] = [[] for _ in labels["train"]]
    for number, line in enumerate((folder / names[1]).read_text(encoding="utf-8").splitlines()):
        for member in map(int, line.split()):
            folds[member].append(number)
    for name in ("train", "test"):
        file = folder / f"{name}_X.bin"
        count = len(labels[name])
        _check(len(_images(file)) == count, file, "another number of images than of labels")
        for index, label in enumerate(labels[name]):
            inside = tuple(folds[index]) if name == "train" else ()
            split: Split = "test" if name == "test" else "train" if inside else "validation"
            shown, subject = f"{file.name}/{index}", f"{name}-{index}"
            label_name = classes[int(label) - 1]
            yield SourceImage(file, shown, subject, split, label_name, index=index, folds=inside)
    unlabelled = folder / "unlabeled_X.bin"
    for index in range(len(_images(unlabelled)) if unlabelled.is_file() else 0):
        shown = f"{unlabelled.name}/{index}"
        yield SourceImage(unlabelled, shown, f"unlabeled-{index}", "train", None, index=index)


@lru_cache(maxsize=8)
def _images(file: Path) -> Bytes:
    """All images of a file: (N, height, width) or (N, 3, height, width)."""
    if file.suffix == ".npz":
        return np.concatenate(_npz(file, [f"{name}_images" for name in _MEDMNIST_SPLITS]))
    if file.suffix == ".gz":
        return _idx(file)
    image = (3, _STL10_SIDE, _STL10_SIDE)
    size = file.stat().st_size
    _check(size > 0 and size % np.prod(image) == 0, file, "no whole number of images")
    # Mapped, since the unlabelled images are 2.7 GB; stored column by column.
    return np.memmap(file, np.uint8, "r").reshape(-1, *image).swapaxes(2, 3)


def _npz(file: Path, members: Sequence[str]) -> list[Bytes]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            return [np.asarray(archive[member], np.uint8) for member in members]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(file, f"no NPZ file with {', '.join(members)}") from error


def _idx(file: Path) -> Bytes:
    try:
        content = gzip.decompress(file.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(file, "no complete gzip file") from error
    axes = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    start = 4 + 4 * axes
    shape = np.frombuffer(content[4:start], ">u4").astype(int) if len(content) >= start else ()
    _check(axes > 0 and len(content) - start == np.prod(shape), file, "no whole IDX file of bytes")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _need(folder: Path, names: Sequence[str]) -> None:
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UserError(f"{folder} lacks {', '.join(missing)}")


def _check(holds: bool | np.bool_, file: Path, otherwise: str) -> None:
    if not holds:
        raise _damaged(file, otherwise)


def _damaged(file: Path, how: str) -> UserError:
    return UserError(f"{file} is damaged or incomplete ({how}); fetch it again")
