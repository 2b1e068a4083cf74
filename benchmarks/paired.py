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
from medvq.evaluation.intervals import Resampled, cross, interval, resample, subject_weights
from medvq.evaluation.metrics import binary_metrics, range_of
from medvq.summaries import Interval
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """The metrics of probes of two classes.

    Attributes
    ----------
    metrics : by name, of every training and label subset.
    """

    metrics: dict[str, Resampled]

    def interval(self, metric: str) -> Interval:
        """Return the mean of a metric and its 95% interval."""
        return interval(self.metrics[metric], *range_of(metric))

    def minus(self, other: Judged, metric: str) -> Interval:
        """Return the difference of a metric to that of another probe."""
        return interval(self.metrics[metric] - other.metrics[metric])


def judge_trainings(
    trainings: Sequence[Sequence[pd.DataFrame]],
    config: Config,
    rows: NDArray[np.bool_] | None = None,
) -> Judged:
    """Judge the predictions of probes of several trainings, each as :func:`judge` takes them.

    Parameters
    ----------
    config : of all, so that they are judged on the same resampled subjects.
    """
    judged = [judge(subsets, config, rows).metrics for subsets in trainings]
    return Judged({name: cross([one[name] for one in judged]) for name in judged[0]})


def judge(
    subsets: Sequence[pd.DataFrame], config: Config, rows: NDArray[np.bool_] | None = None
) -> Judged:
    """Judge the predictions of the probes of one training.

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

    return Judged(resample(evaluate, len(subsets), subjects[:, chosen]))
