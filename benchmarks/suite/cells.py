"""The rows of one cell, a data set at a share of its labels, and how they are compared.

Chance is in three factors: which subjects the test has, which labels are drawn, and how a training
went. All three are resampled, crossed; a difference is taken on the same resamples of each.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from medvq.evaluation.intervals import subject_weights, subset_weights
from medvq.evaluation.metrics import binary_metrics, regression_metrics
from medvq.stages.probe import MEDVQ
from medvq.summaries import Interval, Validation
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """The headline metric of a row.

    Attributes
    ----------
    of_test : (T, S), of every training and label subset, on the test set itself.
    resampled : (B, T, S), on resampled subjects of the test set.
    seed : of the resamples of trainings and label subsets; rows of a data set share it.
    """

    of_test: Floats
    resampled: Floats
    seed: int

    def __sub__(self, other: Score) -> Score:
        """Return the difference, paired; a row of one training is compared with each of several."""
        difference = self.resampled - other.resampled
        return Score(self.of_test - other.of_test, difference, self.seed)

    @property
    def mean(self) -> float:
        return float(self.of_test.mean())

    def bootstrap(self) -> Floats:
        """Return the mean over resampled trainings, label subsets and subjects, (B,)."""
        resamples, trainings, subsets = self.resampled.shape
        of_training = subset_weights(trainings, resamples, self.seed + 1)
        of_subset = subset_weights(subsets, resamples, self.seed + 2)
        return np.asarray(np.einsum("bts,bt,bs->b", self.resampled, of_training, of_subset))

    def interval(self) -> Interval:
        """Return the mean, its deviation over trainings and subsets, and its 95% interval."""
        std = float(self.of_test.std(ddof=1)) if self.of_test.size > 1 else 0.0
        return Interval(self.mean, std, _ci95(self.bootstrap()))


def mean_interval(scores: Sequence[Score]) -> Interval:
    """Return the mean over cells and its 95% interval, data sets being independent."""
    means = np.array([score.mean for score in scores])
    std = float(means.std(ddof=1)) if len(means) > 1 else 0.0
    together = np.mean([score.bootstrap() for score in scores], axis=0)
    return Interval(float(means.mean()), std, _ci95(together))


def _ci95(values: Floats) -> tuple[float, float]:
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class Row:
    """What one row reached: ``trainings`` probes, or one where all would be the same."""

    features: str
    trainings: int
    validation: Validation | None
    score: Score


@dataclass(frozen=True)
class Cell:
    """The rows of a data set at a share of its labels, MedVQ's first where it is judged."""

    dataset: str
    label_fraction: float
    labels: int
    headline: str
    rows: list[Row]

    @property
    def medvq(self) -> Row | None:
        return next((row for row in self.rows if row.features == MEDVQ), None)

    @property
    def best_baseline(self) -> Row | None:
        """The baseline with the highest mean on the test split, which flatters it."""
        baselines = [row for row in self.rows if row.features != MEDVQ]
        return max(baselines, key=lambda row: row.score.mean, default=None)

    @property
    def lead(self) -> Score | None:
        """MedVQ's score less that of the best baseline."""
        medvq, baseline = self.medvq, self.best_baseline
        return medvq.score - baseline.score if medvq and baseline else None


HEADLINES: dict[str, Callable[[pd.DataFrame, Floats], Floats]] = {
    "auroc": lambda table, weights: binary_metrics(
        table["label"].to_numpy(np.int64), table["probability"].to_numpy(), 0.5, weights
    )["auroc"],
    "accuracy": lambda table, weights: (
        weights @ (table["label"] == table["predicted"]).to_numpy(float) / weights.sum(1)
    ),
    "r2": lambda table, weights: regression_metrics(
        table["target"].to_numpy(), table["predicted"].to_numpy(), weights
    )["r2"],
}
"""Headline metrics of predictions under weights (B, N), each (B,)."""


def score(
    trainings: Sequence[Sequence[pd.DataFrame]], headline: str, dataset: str, resamples: int
) -> Score:
    """Judge the predictions of a row.

    Parameters
    ----------
    trainings : of each, for each label subset, the test images in one order.
    dataset : its name; the subjects of each data set are resampled on their own.
    """
    seed = zlib.crc32(dataset.encode())
    subjects = trainings[0][0]["subject_id"].to_numpy(str)
    weights = np.ones((resamples + 1, len(subjects)))
    weights[1:] = subject_weights(subjects, resamples, seed)
    metric = HEADLINES[headline]
    values = np.array([[metric(table, weights) for table in subsets] for subsets in trainings])
    return Score(values[..., 0], np.moveaxis(values[..., 1:], -1, 0), seed)
