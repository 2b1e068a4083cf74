"""Whether the splits hold what a probe needs, said before anything is trained."""

from __future__ import annotations

import re

import pandas as pd

from medvq.datasets.dataset import SPLITS
from medvq.errors import UserError
from medvq.wording import counted

_MORE = (
    "add images of it, change source.test_fraction or ingest.validation_fraction, or leave the "
    "class out"
)
_LARGEST = 1e30
"""Of numbers to predict: squares of larger ones leave the range of a float, and so do weights."""


def check_splits_for_probe(manifest: pd.DataFrame, folds: int) -> None:
    """Refuse labels that no probe can be fitted on and judged by; none at all are fine.

    Parameters
    ----------
    manifest : one row per image.
    folds : of the cross-validation inside the training labels.

    Raises
    ------
    UserError
        There is one class, a class has one subject, is missing from a split, or has fewer training
        subjects than folds; of numbers to predict there are too few.
    """
    numbers = manifest[manifest["target"].notna()]
    if len(numbers):
        _check_numbers(numbers, folds)
        return
    labelled = manifest[manifest["label_name"] != ""]
    classes = sorted(set(labelled["label_name"]))
    if not classes:
        return
    if len(classes) == 1:
        raise UserError(
            f"all {len(labelled)} labelled images are of one class, '{classes[0]}', and a probe "
            "needs two: add images of another class, or leave the labels out (where the folder "
            "is no class, let source.folder be that folder itself)"
        )
    for name in classes:
        part = labelled[labelled["label_name"] == name]
        counts: dict[str, int] = {
            split: part.loc[part["split"] == split, "subject_id"].nunique() for split in SPLITS
        }
        _check_class(name, len(part), part["subject_id"].nunique(), counts, folds)


def _check_class(name: str, images: int, subjects: int, counts: dict[str, int], folds: int) -> None:
    sizes = ", ".join(f"{split} {count}" for split, count in counts.items())
    if subjects == 1:
        number = ", or name their column in source.labels.target if labels are numbers to predict"
        raise UserError(
            f"class '{name}' has 1 subject ({counted(images, 'image')}), and every split needs "
            "one of its own: add images of other subjects, or leave the class out"
            + (number if re.fullmatch(r"[-+]?\d+[.,]?\d*", name) else "")
        )
    if missing := [split for split, count in counts.items() if count == 0]:
        raise UserError(
            f"class '{name}' is missing from {' and '.join(missing)} (subjects: {sizes}): {_MORE}"
        )
    if counts["train"] < folds:
        fewer = f"set probe.folds={counts['train']}, " if counts["train"] > 1 else ""
        raise UserError(
            f"class '{name}' has {counts['train']} training subjects (subjects: {sizes}), fewer "
            f"than probe.folds={folds}: {fewer}{_MORE}"
        )


def _check_numbers(numbers: pd.DataFrame, folds: int) -> None:
    for split in SPLITS:
        part = numbers[numbers["split"] == split]
        subjects, needed = part["subject_id"].nunique(), folds if split == "train" else 2
        if subjects < needed:
            raise UserError(
                f"{subjects} subjects of {split} have a number to predict, and {needed} are "
                "needed: add images, change source.test_fraction or ingest.validation_fraction, "
                "or set fewer probe.folds"
            )
        low, high = part["target"].min(), part["target"].max()
        if max(-low, high) > _LARGEST or 0 < high - low < 1 / _LARGEST:
            raise UserError(
                f"the numbers to predict of {split} lie between {low:g} and {high:g}, with which "
                "nothing can be computed: leave fields empty that mark a missing value, or give "
                "the numbers in another unit (the column that labels.target names)"
            )
        if split != "validation" and low == high:
            raise UserError(
                f"all numbers to predict of {split} are {part['target'].iloc[0]:g}, from which "
                "nothing can be learnt or judged: check the column that labels.target names"
            )
