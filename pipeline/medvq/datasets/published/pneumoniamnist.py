"""PneumoniaMNIST: the Kermany chest X-rays at 28 x 28 pixels, with their official splits.

Yang et al.: MedMNIST v2. Scientific Data 10 (2023) 41. One NPZ file with the members
``{train,val,test}_{images,labels}``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from medvq.datasets.array_files import MEDMNIST_SPLITS, check_count, need_files, read_npz
from medvq.datasets.dataset import Dataset, SourceImage

_FILE = "pneumoniamnist.npz"
_CLASSES = ("NORMAL", "PNEUMONIA")


def list_images(folder: Path) -> Iterator[SourceImage]:
    """List all images. Subjects are not published: each image is its own."""
    file = folder / _FILE
    need_files(folder, [_FILE])
    index = 0
    for part, split in MEDMNIST_SPLITS.items():
        for position, label in enumerate(read_npz(file, [f"{part}_labels"])[0].ravel()):
            shown, subject = f"{_FILE}/{part}_images/{position}", f"{part}-{position}"
            yield SourceImage(file, shown, subject, split, _CLASSES[int(label)], index=index)
            index += 1
    check_count(file, index)


DATASET = Dataset(list_images)
