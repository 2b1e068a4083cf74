"""Tumour or none in slices of brain MR, collected from the web.

Chakrabarty: Brain MRI Images for Brain Tumor Detection (Kaggle, 2019). Nobody knows the patients,
and some slices are there several times.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from medvq.datasets.dataset import Dataset, SourceImage

_LABELS = {"no": "NO TUMOUR", "yes": "TUMOUR"}
_SUFFIXES = {".jpg", ".jpeg", ".png"}
_AUGMENTED = "augmented data"


def list_images(folder: Path) -> Iterator[SourceImage]:
    """List all slices in folders ``yes`` and ``no``, less the augmented copies.

    There is no split: slices that are equal, or nearly so, are drawn for one together.
    """
    for path in sorted(folder.rglob("*")):
        label = _LABELS.get(path.parent.name)
        if label is None or path.suffix.lower() not in _SUFFIXES or path.name[0] == ".":
            continue
        shown = path.relative_to(folder).as_posix()
        if _AUGMENTED not in shown:
            subject = f"{path.parent.name}/{path.stem}"
            yield SourceImage(path, shown, subject, "train", label, has_known_subject=False)


DATASET = Dataset(list_images, test_fraction=0.2)
