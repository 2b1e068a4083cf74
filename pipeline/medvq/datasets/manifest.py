"""The manifest: one row per image, and the promise that no subject stands on both sides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from medvq.errors import UserError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_TEXT = (
    "image_id",
    "path",
    "subject_id",
    "certain_subject_id",
    "label_name",
    "target_name",
    "folds",
)

COLUMNS = (
    "image_id",
    "path",
    "subject_id",
    "certain_subject_id",
    "split",
    "label",
    "label_name",
    "sha256",
    "width",
    "height",
    "depth",
    "channels",
    "source",
    "target",
    "target_name",
    "folds",
)


@dataclass(frozen=True)
class SourceImage:
    """An image as its source names it, before it is read.

    Attributes
    ----------
    path : the file.
    shown_path : what tables may show of the path; empty where it could name a patient.
    subject : the person it was taken of, as far as the source tells; where that leaves a doubt,
        images that may be of one person share it, so that splits are safe.
    split : as the source has it; where it has no validation split, ingest makes one of train.
    label : the class by name, None where the source has none.
    index : of the image, where the file holds many.
    target : a number to be predicted instead of a class, None where there is none.
    target_name : what that number is, with its unit.
    folds : the official label draws that the image is in.
    parts : the files of a series that make up one volume; empty where ``path`` is all.
    window : centre and width to show the values with; None leaves it to the header.
    set_aside : why the source wants the image set aside unread; empty where it does not.
    certain_subject : images that are of one person beyond doubt share it, so that one may be taken
        for another view of that person; empty where ``subject`` leaves no doubt.
    """

    path: Path
    shown_path: str
    subject: str
    split: Split
    label: str | None
    index: int | None = None
    target: float | None = None
    target_name: str = ""
    folds: tuple[int, ...] = ()
    parts: tuple[Path, ...] = ()
    window: tuple[float, float] | None = None
    set_aside: str = ""
    certain_subject: str = ""


def crossing_subjects(table: pd.DataFrame) -> list[str]:
    """Subjects that stand in more than one of ``table``'s splits, sorted."""
    splits = table.groupby("subject_id")["split"].nunique()
    return sorted(splits.index[splits > 1])


def check_manifest(
    table: pd.DataFrame, *, official_crossing: bool, splits: tuple[str, ...] = SPLITS
) -> pd.DataFrame:
    """Return ``table`` with the manifest's columns, in order, or refuse it.

    Parameters
    ----------
    table : one row per image.
    official_crossing : the published split itself puts subjects on both sides of train and test:
        then those are let through (and counted by the audit), but still none of validation.
    splits : those that must have an image.

    Raises
    ------
    UserError
        A subject stands in two splits, an ``image_id`` twice, or a split has no image.
    """
    if table["image_id"].duplicated().any():
        raise UserError("two rows of the manifest have the same image_id")
    present = set(table["split"])
    if missing := [split for split in splits if split not in present]:
        raise UserError(
            f"no image is left for the split(s): {', '.join(missing)}; more subjects are needed, "
            "or labels with a column 'split'"
        )
    inside = table.assign(split=table["split"].where(table["split"] != "test", "test"))
    if official_crossing:
        inside = table[table["split"] != "test"]
    if crossing := crossing_subjects(inside):
        raise UserError(
            f"{len(crossing)} subject(s) stand in two splits, e.g. {crossing[0]}; "
            "every subject's images must all be in one"
        )
    return table.loc[:, list(COLUMNS)]


def read_manifest(file: Path) -> pd.DataFrame:
    """Read a manifest that ingest wrote."""
    return pd.read_csv(
        file,
        dtype=dict.fromkeys(_TEXT, "str") | {"label": "Int64", "target": "float64"},
        keep_default_na=False,
        na_values={"label": [""], "target": [""]},
    )
