"""Tuberculosis or none in chest radiographs of Montgomery County and Shenzhen, at 128 pixels.

Jaeger et al.: Two public chest X-ray datasets for computer-aided screening of pulmonary diseases.
Quantitative Imaging in Medicine and Surgery 4 (2014) 475. One radiograph of each patient, with a
fixed test split of 120.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from medvq.datasets.dataset import Dataset, SourceImage, Split
from medvq.errors import UserError

# The repository keeps augmented copies, too: ``aug0`` is the radiograph itself.
_NAME = re.compile(r"(?:aug0_)?(?P<patient>(?:CHNCXR|MCUCXR)_\d+_(?P<label>[01]))\.png")
_LABELS = ("NORMAL", "TB")
_SPLITS: dict[str, Split] = {"train": "train", "test": "test"}
_TABLE = "labels.csv"


def list_images(folder: Path) -> Iterator[SourceImage]:
    """List all radiographs, of the repository or of a folder with a table.

    The last digit of a name is the label. The split is the name of the folder, ``train`` or
    ``test``, or what the column ``split`` of ``labels.csv`` says of the column ``file``.

    Raises
    ------
    UserError
        No radiograph is for the test.
    """
    splits, listed = _splits(folder / _TABLE), []
    for path in sorted(folder.rglob("*.png")):
        shown = path.relative_to(folder).as_posix()
        split = _SPLITS.get(splits.get(shown, path.parent.name))
        if (name := _NAME.fullmatch(path.name)) and split:
            label = _LABELS[int(name["label"])]
            listed.append(SourceImage(path, shown, name["patient"], split, label))
    if not any(image.split == "test" for image in listed):
        raise UserError(
            f"{folder} has neither a folder test/ nor a {_TABLE} with the columns file and split, "
            "so that nothing says which radiographs are for the test"
        )
    yield from listed


def _splits(table: Path) -> dict[str, str]:
    """Return the split of each file that the table names; none without a table."""
    if not table.is_file():
        return {}
    with table.open(encoding="utf-8", newline="") as stream:
        return {row.get("file", ""): row.get("split", "") for row in csv.DictReader(stream)}


DATASET = Dataset(list_images)
