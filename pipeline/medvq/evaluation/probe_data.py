"""The images of a feature store as a probe sees them: truth, subjects, splits, label subsets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medvq.config import ProbeConfig
from medvq.errors import UserError
from medvq.evaluation.label_subsets import draw_subsets
from medvq.evaluation.tasks import Task, read_truth
from medvq.method.targets import Truth

Rows = NDArray[np.intp]


@dataclass(frozen=True)
class ProbeData:
    """The images of a feature store, one entry per image, in its order.

    Attributes
    ----------
    task : what is to be predicted.
    truth : (N,), the class, -1 where unknown, or the number, NaN where unknown.
    subjects : (N,), names.
    unlabelled_train : all rows of the training split.
    train, validation, test : rows of the splits that have a truth.
    labelled : rows of all splits that have a truth.
    official_subsets : rows of each official label subset; empty where there are none.
    """

    task: Task
    truth: Truth
    subjects: NDArray[np.str_]
    unlabelled_train: Rows
    train: Rows
    validation: Rows
    test: Rows
    labelled: Rows
    official_subsets: list[Rows]

    @classmethod
    def from_keys(cls, keys: pd.DataFrame, *, check_splits: bool = True) -> Self:
        """Read the key columns of a feature store.

        Parameters
        ----------
        check_splits : whether every split must have what is predicted.

        Raises
        ------
        UserError
            There is nothing to predict, or not in every split where ``check_splits``.
        """
        task, truth = read_truth(keys)
        known, split = task.known(truth), keys["split"].to_numpy()
        classes = len(np.unique(truth[known]))
        rows = {
            name: np.flatnonzero((split == name) & known)
            for name in ("train", "validation", "test")
        }
        for name, chosen in rows.items() if check_splits else ():
            task.check_split(name, truth[chosen], classes)
        return cls(
            task=task,
            truth=truth,
            subjects=keys["subject_id"].to_numpy(str),
            unlabelled_train=np.flatnonzero(split == "train"),
            **rows,
            labelled=np.flatnonzero(known),
            official_subsets=_official(keys, np.union1d(rows["train"], rows["validation"])),
        )

    def label_subsets(self, config: ProbeConfig, seed: int) -> list[Rows]:
        """Return the rows of each label subset of ``config.label_fraction``.

        Raises
        ------
        UserError
            The fraction is too small, or official subsets are of another one or do not exist.
        """
        if config.label_subsets == "random":
            strata = self.task.strata(self.truth[self.train])
            subjects = self.subjects[self.train]
            fraction, repeats = config.label_fraction, config.repeats
            subsets = draw_subsets(subjects, strata, fraction, repeats, seed)
            return [self.train[rows] for rows in subsets]
        if not self.official_subsets:
            raise UserError(
                "probe.label_subsets=official, but this data set has no official label subsets; "
                "probe.label_subsets=random draws some"
            )
        share = len(self.official_subsets[0]) / (len(self.train) + len(self.validation))
        if abs(share - config.label_fraction) > 0.01:
            raise UserError(
                f"the official label subsets of this data set hold {share:.0%} of the labels; "
                f"LABEL_FRACTION={config.label_fraction:g} needs probe.label_subsets=random"
            )
        return self.official_subsets


def _official(keys: pd.DataFrame, labelled: Rows) -> list[Rows]:
    """Return the official label subsets, which may hold images of our validation split."""
    if "folds" not in keys:
        return []
    folds = [set(text.split()) for text in keys["folds"].fillna("").iloc[labelled]]
    names = sorted(set().union(*folds), key=int)
    return [labelled[[name in names_of_image for names_of_image in folds]] for name in names]
