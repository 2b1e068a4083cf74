"""The manifest: one row per image, and the promise that no subject stands in two splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from medvq.datasets.dataset import SPLITS
from medvq.errors import UserError

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


def _crossing_subjects(table: pd.DataFrame) -> list[str]:
    """Return the subjects that stand in more than one of ``table``'s splits, sorted."""
    splits = table.groupby("subject_id")["split"].nunique()
    return sorted(splits.index[splits > 1])


def images_per_subject(table: pd.DataFrame) -> pd.Series[float]:
    """Return of each row the binary logarithm of the number of images that its subject has."""
    number = table.groupby("subject_id")["subject_id"].transform("size")
    return pd.Series(np.log2(number.to_numpy(float)), table.index, name="images_per_subject")


def check_manifest(table: pd.DataFrame, splits: tuple[str, ...] = SPLITS) -> pd.DataFrame:
    """Return ``table`` with the manifest's columns, in order, or refuse it.

    Parameters
    ----------
    table : one row per image.
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
    if crossing := _crossing_subjects(table):
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
