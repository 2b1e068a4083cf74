"""Folds of a published data set, each the test split of the others, in place of the official split.

A table in ``data_manifests/`` has a row for each subject, and a column for each way to divide them
with the number of the subject's fold.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd

from medvq.config import PublishedSource
from medvq.datasets.dataset import Dataset, Listing, SourceImage
from medvq.errors import UserError


def read_folds(file: Path) -> pd.DataFrame:
    """Read a table of folds; subjects are its index."""
    return pd.read_csv(file, index_col="subject")


def with_fold(dataset: Dataset, source: PublishedSource) -> Dataset:
    """Return the data set with one of its folds as the test split, and all others as training.

    Raises
    ------
    UserError
        There is no table of folds; listing images raises it where the table lacks a subject.
    """
    if (table := dataset.folds) is None:
        raise UserError(
            f"source.split={source.split}: the data set {source.kind} has no folds, only its "
            "official split"
        )

    def list_images(folder: Path) -> Listing:
        listed = dataset.list_images(folder)
        listing = listed if isinstance(listed, Listing) else Listing(list(listed))
        fold_of = read_folds(table)[source.split].to_dict()
        if unknown := [image for image in listing.images if image.subject not in fold_of]:
            raise UserError(
                f"source.split={source.split}: {table} lists no subject of {len(unknown)} of "
                f"{len(listing.images)} images, e.g. {unknown[0].shown_path}; it is of the edition "
                "whose files it names, use that one or source.split=official"
            )
        images = [_tested(image, fold_of[image.subject] == source.fold) for image in listing.images]
        return replace(listing, images=images)

    return Dataset(list_images)


def _tested(image: SourceImage, is_tested: bool) -> SourceImage:
    return replace(image, split="test" if is_tested else "train")
