"""STL-10: ten classes of natural pictures, few with labels in ten official folds, many without.

Coates, Lee, Ng: An analysis of single-layer networks in unsupervised feature learning. AISTATS
2011. Binary files of N x 3 x 96 columns x 96 rows bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from medvq.datasets.array_files import check_count, count_images, need_files
from medvq.datasets.dataset import Dataset, SourceImage, Split

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
    classes = (folder / names).read_text(encoding="utf-8").split()
    folds_of: dict[int, list[int]] = {}
    for fold, line in enumerate((folder / folds).read_text(encoding="utf-8").splitlines()):
        for member in map(int, line.split()):
            folds_of.setdefault(member, []).append(fold)
    for part in _LABELLED:
        file = folder / f"{part}_X.bin"
        labels = np.fromfile(folder / f"{part}_y.bin", np.uint8)
        check_count(file, len(labels))
        for index, label in enumerate(labels):
            members = tuple(folds_of.get(index, ())) if part == "train" else ()
            split: Split = "test" if part == "test" else "train" if members else "validation"
            shown, subject = f"{file.name}/{index}", f"{part}-{index}"
            name = classes[int(label) - 1]
            yield SourceImage(file, shown, subject, split, name, index=index, folds=members)
    file = folder / "unlabeled_X.bin"
    for index in range(count_images(file) if file.is_file() else 0):
        shown, subject = f"{file.name}/{index}", f"unlabeled-{index}"
        yield SourceImage(file, shown, subject, "train", None, index=index)


DATASET = Dataset(list_images)
