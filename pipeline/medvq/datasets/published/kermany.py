"""The Kermany paediatric chest X-rays: layouts, file names, subjects.

Kermany, Zhang, Goldbaum: Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for
Classification, Mendeley Data, doi 10.17632/rscbjbr9sj.2, CC BY 4.0; Cell 172 (2018) 1122.

By series and number no patient is in both train and test of the official split. Its test patients
are a block of each series' numbers (of ``virus`` two), so it also tests a shift of acquisition.
``kermany_folds.csv`` holds five folds of all images; it is made by ``benchmarks.kermany_folds``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from medvq.datasets.data_manifest import FOLDER
from medvq.datasets.dataset import Dataset, SourceImage
from medvq.errors import UserError

LABELS = ("NORMAL", "PNEUMONIA")
# The official validation split has 16 images: too few to choose by, so they go to training.
_SPLITS: dict[str, Literal["train", "test"]] = {"train": "train", "val": "train", "test": "test"}

_NAMES = (
    re.compile(r"(?P<series>NORMAL2-IM|IM)-(?P<number>\d+)-"),
    re.compile(r"person(?P<number>\d+)_(?P<series>bacteria|virus)_"),
    re.compile(r"(?P<series>NORMAL|BACTERIA|VIRUS)-(?P<number>\d+)-"),
)


class FileName(NamedTuple):
    """What a file name says: the label, the number of the patient, and the series it counts in."""

    label: str
    number: int
    series: str

    @property
    def subject(self) -> str:
        """The number within its series (subtype or prefix), since every series counts anew.

        Aligned images of one series and number are alike (AUROC .81 of telling such pairs from
        random ones by their similarity); those of one number in two series are not (.49).
        """
        return f"{self.series.lower()}-{self.number}"


def parse_name(name: str) -> FileName | None:
    """Read a file name of either published edition, None for any other.

    >>> parse_name("person1000_virus_1681.jpeg").subject
    'virus-1000'
    >>> parse_name("NORMAL2-IM-0381-0001.jpeg").subject
    'normal2-im-381'
    """
    for pattern in _NAMES:
        if match := pattern.match(name):
            series = match["series"]
            label = "PNEUMONIA" if series.lower() in {"bacteria", "virus"} else "NORMAL"
            return FileName(label, int(match["number"]), series)
    return None


def find_root(folder: Path) -> Path:
    """Find the folder that holds ``train`` and ``test``, in any of the published layouts.

    Raises
    ------
    UserError
        There is none below ``folder``.
    """
    candidates = [folder, *(folder / n for n in ("chest_xray", "chest_xray/chest_xray"))]
    candidates += sorted(p for p in folder.glob("*/chest_xray") if "__MACOSX" not in p.parts)
    for root in candidates:
        if all((root / split / label).is_dir() for split in ("train", "test") for label in LABELS):
            return root
    raise UserError(
        f"{folder} does not hold the Kermany layout "
        "chest_xray/{train,test}/{NORMAL,PNEUMONIA}; unpack the published archive there"
    )


def list_images(folder: Path) -> Iterator[SourceImage]:
    """List all images of the set."""
    root = find_root(folder)
    for split_name, split in _SPLITS.items():
        for label in LABELS:
            for path in sorted((root / split_name / label).glob("*")):
                if path.suffix.lower() not in {".jpeg", ".jpg", ".png"} or path.name[0] == ".":
                    continue
                parsed = parse_name(path.name)
                subject = parsed.subject if parsed else f"{label.lower()}-{path.stem}"
                shown = path.relative_to(folder).as_posix()
                yield SourceImage(path, shown, subject, split, label)


DATASET = Dataset(list_images, folds=FOLDER / "kermany_folds.csv")
