"""Make ``data_manifests/kermany_folds.csv``: five folds of the Kermany images, in two ways.

``python -m benchmarks.kermany_folds FOLDER``, where FOLDER holds the edition whose files are called
``IM-0115-0001.jpeg`` and ``person1_virus_6.jpeg``. The same files give the same table.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from medvq.config.source import FOLDS
from medvq.datasets.dataset import SourceImage
from medvq.datasets.published.kermany import DATASET, list_images
from scipy.cluster.hierarchy import DisjointSet


class Patients(NamedTuple):
    """Patients who stay together: one, or several who share a byte-identical file."""

    series: str
    number: int
    images: int
    subjects: tuple[str, ...]


def together(images: Sequence[SourceImage]) -> list[Patients]:
    """Return the patients of a set, joined where they share a byte-identical file."""
    joined = DisjointSet(image.subject for image in images)
    first_with: dict[str, str] = {}
    for image in images:
        checksum = hashlib.sha256(image.path.read_bytes()).hexdigest()
        joined.merge(image.subject, first_with.setdefault(checksum, image.subject))
    number = Counter(image.subject for image in images)
    patients = []
    for part in joined.subsets():
        subjects = tuple(sorted(part, key=_place))
        several = sum(number[subject] for subject in subjects)
        patients.append(Patients(*_place(subjects[0]), several, subjects))
    return patients


def patient_folds(patients: Sequence[Patients]) -> dict[str, int]:
    """Deal patients out to the folds, those of one series and number of images evenly."""

    def order(one: Patients) -> tuple[str, int, bytes]:
        digest = hashlib.sha256(one.subjects[0].encode()).digest()
        return one.series, one.images, digest

    dealt = enumerate(sorted(patients, key=order))
    return {subject: place % FOLDS for place, one in dealt for subject in one.subjects}


def block_folds(patients: Sequence[Patients]) -> dict[str, int]:
    """Cut every series, in the order of its numbers, into blocks of about as many images."""
    total = Counter[str]()
    for one in patients:
        total[one.series] += one.images
    seen, folds = Counter[str](), dict[str, int]()
    for one in sorted(patients):
        middle = seen[one.series] + one.images / 2
        folds |= dict.fromkeys(one.subjects, int(FOLDS * middle / total[one.series]))
        seen[one.series] += one.images
    return folds


def fold_table(images: Sequence[SourceImage]) -> pd.DataFrame:
    """Return the table of folds, a row for each patient in the order of series and numbers."""
    patients = together(images)
    columns = {"patients": patient_folds(patients), "blocks": block_folds(patients)}
    table = pd.DataFrame(columns).rename_axis("subject")
    return table.loc[sorted(table.index, key=_place)]


def _place(subject: str) -> tuple[str, int]:
    series, _, number = subject.rpartition("-")
    return series, int(number)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    assert DATASET.folds is not None
    fold_table(list(list_images(parser.parse_args().folder))).to_csv(DATASET.folds)
    print(DATASET.folds)
