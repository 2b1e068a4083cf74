"""MNIST: 70,000 handwritten digits in four gzipped IDX files.

LeCun, Cortes, Burges: The MNIST database of handwritten digits (1998).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from medvq.datasets.array_files import LabelledFile, need_files, read_labels
from medvq.datasets.dataset import Dataset, SourceImage, Split

_PARTS: dict[str, Split] = {"train": "train", "t10k": "test"}


def list_images(folder: Path) -> Iterator[SourceImage]:
    """List all digits. Writers are not published by image: each image is its own subject."""
    kinds = ("images-idx3", "labels-idx1")
    need_files(folder, [f"{part}-{kind}-ubyte.gz" for part in _PARTS for kind in kinds])
    files = [
        LabelledFile(*(folder / f"{part}-{kind}-ubyte.gz" for kind in kinds)) for part in _PARTS
    ]
    labels = read_labels(files)
    for (part, split), file, (classes,) in zip(_PARTS.items(), files, labels, strict=True):
        for index, label in enumerate(classes):
            shown = f"{file.images.name}/{index}"
            yield SourceImage(file.images, shown, f"{part}-{index}", split, str(label), index=index)


DATASET = Dataset(list_images)
