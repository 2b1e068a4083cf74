"""Metrics of several probes on the same label subsets and the same resampled test subjects.

Differences between two probes are taken subset by subset and resample by resample, so that what is
hard for both does not widen the interval of the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from medvq.config import Config
from medvq.evaluation.intervals import (
    Resampled,
    interval,
    resample,
    subject_weights,
    subset_weights,
)
from medvq.evaluation.metrics import binary_metrics
from medvq.summaries import Interval
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """The metrics of a probe of two classes.

    Attributes
    ----------
    metrics : by name, of every label subset.
    weights : (B, S), of the label subsets in each resample.
    """

    metrics: dict[str, Resampled]
    weights: Floats

    def interval(self, metric: str) -> Interval:
        """Return the mean of a metric and its 95% interval."""
        return interval(self.metrics[metric], self.weights)

    def minus(self, other: Judged, metric: str) -> Interval:
        """Return the difference of a metric to that of another probe."""
        return interval(self.metrics[metric] - other.metrics[metric], self.weights)


def judge(
    subsets: Sequence[pd.DataFrame], config: Config, rows: NDArray[np.bool_] | None = None
) -> Judged:
    """Judge the predictions of a probe.

    Parameters
    ----------
    subsets : for each label subset the test images in one order, with ``label``, ``subject_id``,
        ``probability`` of class 1 and ``threshold``.
    rows : judge these images alone. The subjects of all test images are resampled even so, since
        the size of a subgroup varies as it would in another test set.
    """
    chosen = np.ones(len(subsets[0]), bool) if rows is None else rows
    truth = subsets[0]["label"].to_numpy(np.int64)[chosen]
    resamples, seed = config.probe.bootstrap, config.seed
    subjects = subject_weights(subsets[0]["subject_id"].to_numpy(str), resamples, seed)

    def evaluate(number: int, weights: Floats) -> dict[str, Floats]:
        subset = subsets[number]
        threshold = float(subset["threshold"].iloc[0])
        return binary_metrics(truth, subset["probability"].to_numpy()[chosen], threshold, weights)

    metrics = resample(evaluate, len(subsets), subjects[:, chosen])
    return Judged(metrics, subset_weights(len(subsets), resamples, seed))
