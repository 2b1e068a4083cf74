"""PneumoniaMNIST: the Kermany chest X-rays at 28 x 28 pixels, with their official splits.

Yang et al.: MedMNIST v2. Scientific Data 10 (2023) 41. One NPZ file with the members
``{train,val,test}_{images,labels}``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from medvq.datasets.array_files import (
    MEDMNIST_SPLITS,
    LabelledFile,
    class_name,
    need_files,
    read_labels,
)
from medvq.datasets.dataset import Dataset, SourceImage

_FILE = "pneumoniamnist.npz"
_CLASSES = ("NORMAL", "PNEUMONIA")


def list_images(folder: Path) -> Iterator[SourceImage]:
    """List all images. Subjects are not published: each image is its own."""
    file = folder / _FILE
    need_files(folder, [_FILE])
    index = 0
    (labels,) = read_labels([LabelledFile(file, file)])
    for (part, split), classes in zip(MEDMNIST_SPLITS.items(), labels, strict=True):
        for position, label in enumerate(classes):
            shown, subject = f"{_FILE}/{part}_images/{position}", f"{part}-{position}"
            name = class_name(int(label), _CLASSES, file)
            yield SourceImage(file, shown, subject, split, name, index=index)
            index += 1


DATASET = Dataset(list_images)
