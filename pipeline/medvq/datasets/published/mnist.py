"""MNIST: 70,000 handwritten digits in four gzipped IDX files.

LeCun, Cortes, Burges: The MNIST database of handwritten digits (1998).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from medvq.datasets.array_files import check_count, need_files, read_idx
from medvq.datasets.dataset import Dataset, SourceImage, Split

_PARTS: dict[str, Split] = {"train": "train", "t10k": "test"}


def list_images(folder: Path) -> Iterator[SourceImage]:
    """List all digits. Writers are not published by image: each image is its own subject."""
    kinds = ("images-idx3", "labels-idx1")
    need_files(folder, [f"{part}-{kind}-ubyte.gz" for part in _PARTS for kind in kinds])
    for part, split in _PARTS.items():
        file, labels = (folder / f"{part}-{kind}-ubyte.gz" for kind in kinds)
        classes = read_idx(labels)
        check_count(file, len(classes))
        for index, label in enumerate(classes):
            shown = f"{file.name}/{index}"
            yield SourceImage(file, shown, f"{part}-{index}", split, str(label), index=index)


DATASET = Dataset(list_images)
