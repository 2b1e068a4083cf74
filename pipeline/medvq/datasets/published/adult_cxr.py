"""Chest radiographs of adults, read as normal and used without labels.

The class ``Normal`` of the RSNA Pneumonia Detection Challenge 2018 (Shih et al.: Radiology:
Artificial Intelligence 1 (2019) e180041), whose images are of NIH ChestX-ray14 (Wang et al.: CVPR
2017), as they are in the COVID-19 Radiography Database (Chowdhury et al.: IEEE Access 8 (2020)
132665).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from medvq.datasets.dataset import Dataset, SourceImage

_TABLE = "images.csv"


def list_images(folder: Path) -> Iterator[SourceImage]:
    """List all radiographs; the column ``subject`` of ``images.csv`` says of whom some are."""
    subjects = _subjects(folder / _TABLE)
    for path in sorted((folder / "images").iterdir()):
        if path.suffix.lower() in {".jpeg", ".jpg", ".png"} and path.name[0] != ".":
            shown = path.relative_to(folder).as_posix()
            subject = subjects.get(shown, "")
            yield SourceImage(
                path,
                shown,
                subject or path.stem,
                "train",
                label=None,
                has_known_subject=bool(subject),
            )


def _subjects(table: Path) -> dict[str, str]:
    if not table.is_file():
        return {}
    with table.open(encoding="utf-8", newline="") as stream:
        return {row.get("file", ""): row.get("subject", "") for row in csv.DictReader(stream)}


DATASET = Dataset(list_images)
