"""STL-10: ten classes of natural pictures, few with labels in ten official folds, many without.

Coates, Lee, Ng: An analysis of single-layer networks in unsupervised feature learning. AISTATS
2011. Binary files of N x 3 x 96 columns x 96 rows bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from medvq.datasets.array_files import (
    LabelledFile,
    class_name,
    count_images,
    need_files,
    read_labels,
)
from medvq.datasets.dataset import Dataset, SourceImage, Split
from medvq.errors import UserError

# Bytes of a file of text: the folds have 60,000.
_LONGEST_TEXT = 2**20
_LABELLED = ("train", "test")


def list_images(folder: Path) -> Iterator[SourceImage]:
    """List labelled images with their official folds, then the unlabelled where they are present.

    Training images in no fold, of which the published set has none, would be the validation split.
    """
    if (folder / "stl10_binary").is_dir():
        folder = folder / "stl10_binary"
    names, folds = "class_names.txt", "fold_indices.txt"
    need_files(
        folder, [names, folds, *(f"{part}_{kind}.bin" for part in _LABELLED for kind in "Xy")]
    )
    classes = _text(folder / names).split()
    folds_of = _folds(folder / folds)
    files = [LabelledFile(folder / f"{part}_X.bin", folder / f"{part}_y.bin") for part in _LABELLED]
    for part, file, (labels,) in zip(_LABELLED, files, read_labels(files), strict=True):
        for index, label in enumerate(labels):
            members = tuple(folds_of.get(index, ())) if part == "train" else ()
            split: Split = "test" if part == "test" else "train" if members else "validation"
            shown, subject = f"{file.images.name}/{index}", f"{part}-{index}"
            name = class_name(int(label), classes, file.labels, first=1)
            yield SourceImage(file.images, shown, subject, split, name, index=index, folds=members)
    unlabelled = folder / "unlabeled_X.bin"
    for index in range(count_images(unlabelled) if unlabelled.is_file() else 0):
        shown, subject = f"{unlabelled.name}/{index}", f"unlabeled-{index}"
        yield SourceImage(unlabelled, shown, subject, "train", None, index=index)


def _folds(file: Path) -> dict[int, list[int]]:
    """Return the folds that each labelled training image is in."""
    folds_of: dict[int, list[int]] = {}
    for fold, line in enumerate(_text(file).splitlines()):
        try:
            members = [int(number) for number in line.split()]
        except ValueError as error:
            raise UserError(f"{file}, line {fold + 1}: not a list of whole numbers") from error
        for member in members:
            folds_of.setdefault(member, []).append(fold)
    return folds_of


def _text(file: Path) -> str:
    with file.open("rb") as stream:
        return stream.read(_LONGEST_TEXT).decode(errors="replace")


DATASET = Dataset(list_images)
