"""Bootstrap intervals of metrics, over test subjects crossed with label subsets.

A bootstrap over subjects is a matrix of image weights: how often the subject of each image was
drawn. Metrics take such weights (:mod:`medvq.evaluation.metrics`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medvq.summaries import Interval

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Resampled:
    """A metric of the probe of every label subset.

    The difference of two is paired: it is taken on the same label subsets and test subjects.

    Attributes
    ----------
    of_subset : (S,), on the test set itself.
    resampled : (B, S), on resampled subjects of the test set.
    """

    of_subset: Floats
    resampled: Floats

    def __sub__(self, other: Resampled) -> Resampled:
        return Resampled(self.of_subset - other.of_subset, self.resampled - other.resampled)


def subject_weights(subjects: NDArray[np.str_], resamples: int, seed: int) -> Floats:
    """Return image weights (resamples, N): how often the subject of each image was drawn."""
    names, owner = np.unique(subjects, return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return counts[:, owner].astype(np.float64)


def subset_weights(subsets: int, resamples: int, seed: int) -> Floats:
    """Return weights (resamples, subsets) of a bootstrap over label subsets; each row sums to 1."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(subsets, np.full(subsets, 1 / subsets), size=resamples) / subsets


def resample(
    compute: Callable[[int, Floats], dict[str, Floats]], subsets: int, weights: Floats
) -> dict[str, Resampled]:
    """Compute metrics of every label subset, on the test set and on its resamples.

    Parameters
    ----------
    compute : takes the number of a label subset and image weights (B, N); returns metrics, each
        (B,).
    weights : those of :func:`subject_weights`.
    """
    stacked = np.concatenate([np.ones((1, weights.shape[1])), weights])
    metrics = [compute(subset, stacked) for subset in range(subsets)]
    columns = {name: np.stack([m[name] for m in metrics], axis=1) for name in metrics[0]}
    return {name: Resampled(values[0], values[1:]) for name, values in columns.items()}


def interval(metric: Resampled, weights: Floats) -> Interval:
    """Summarise a metric by its mean and deviation over label subsets and a 95% interval.

    Parameters
    ----------
    weights : (B, S), those of :func:`subset_weights`.
    """
    low, high = np.nanpercentile((metric.resampled * weights).sum(1), [2.5, 97.5])
    std = float(metric.of_subset.std(ddof=1)) if len(metric.of_subset) > 1 else 0.0
    return Interval(float(metric.of_subset.mean()), std, (float(low), float(high)))
