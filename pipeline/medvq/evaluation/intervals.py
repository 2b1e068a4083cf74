"""95% intervals of metrics over test subjects, label subsets and trainings, which are crossed.

Chance is in three factors: which subjects the test set has, which labels were drawn, and how a
training went. Test subjects are many and resampled; a bootstrap over subjects is a matrix of image
weights, how often the subject of each image was drawn, which metrics take
(:mod:`medvq.evaluation.metrics`). Label subsets and trainings are few. A bootstrap over ``n`` of
them has ``(n - 1) / n`` of the variance that their mean has, and no quantiles worth the name; their
part is that of Student's t instead. The parts are put together as the distances of the ends of each
interval from its middle, by the root of their squares [1]_. The intervals of shares, such as AUROC,
are made on the scale of logits [2]_: near 1 chance reaches farther down than up, of which quantiles
of a bootstrap show too little. All others, such as differences, have those quantiles. ``make
benchmark-coverage`` measures how often such intervals hold the truth.

A factor with one level takes no part: the interval is then one given this training set, or given
this training, and tables name it so (:func:`medvq.summaries.given`).

References
----------
.. [1] Zou, Donner: Construction of confidence intervals about effect measures: a general approach.
   Statistics in Medicine 27 (2008) 1693.
.. [2] Pepe: The statistical evaluation of medical tests for classification and prediction. Oxford
   University Press (2003), section 5.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import norm, t

from medvq.method.probe import on_one_core
from medvq.summaries import Interval

Floats = NDArray[np.float64]
_TAIL = 0.025
"""Share of the truths beyond each end of an interval."""
_BLOCK, _FEWEST_ROWS = 2**15, 32
"""Image weights at a time, which a processor's cache holds, and resamples at least."""


@dataclass(frozen=True)
class Resampled:
    """A metric of the probe of every training and label subset.

    Attributes
    ----------
    cells : (T, S), on the test set itself, of T trainings by S label subsets.
    resampled : (B,), the mean over cells on each resample of the test subjects.
    """

    cells: Floats
    resampled: Floats

    def __sub__(self, other: Resampled) -> Resampled:
        """Return the paired difference, on the same trainings, label subsets and test subjects.

        Where one of the two has a single training (or label subset), since there is no chance in
        it, it is compared with each of the other.
        """
        return Resampled(self.cells - other.cells, self.resampled - other.resampled)


def cross(trainings: Sequence[Resampled]) -> Resampled:
    """Return a metric of several trainings from that of each.

    All have the same label subsets and the same resamples of the same test subjects.
    """
    return Resampled(
        np.concatenate([one.cells for one in trainings]),
        np.mean([one.resampled for one in trainings], axis=0),
    )


def average(metrics: Sequence[Resampled]) -> Resampled:
    """Return the mean of metrics of one test set, such as those at several shares of its labels."""
    cells = np.mean(np.broadcast_arrays(*(one.cells for one in metrics)), axis=0)
    return Resampled(cells, np.mean([one.resampled for one in metrics], axis=0))


def subject_weights(subjects: NDArray[np.str_], resamples: int, seed: int) -> Floats:
    """Return image weights (resamples, N): how often the subject of each image was drawn."""
    names, owner = np.unique(subjects, return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return counts[:, owner].astype(np.float64)


def resample(
    compute: Callable[[int, Floats], dict[str, Floats]], subsets: int, weights: Floats
) -> dict[str, Resampled]:
    """Compute metrics of every label subset of one training, on the test set and its resamples.

    Parameters
    ----------
    compute : takes the number of a label subset and image weights (B, N); returns metrics, each
        (B,).
    weights : those of :func:`subject_weights`.
    """
    stacked = np.concatenate([np.ones((1, weights.shape[1])), weights])
    size = max(_FEWEST_ROWS, _BLOCK // weights.shape[1])
    blocks = [stacked[start : start + size] for start in range(0, len(stacked), size)]
    with on_one_core():
        parts = [[compute(subset, block) for block in blocks] for subset in range(subsets)]
    columns = {
        name: np.stack([np.concatenate([m[name] for m in metrics]) for metrics in parts])
        for name in parts[0][0]
    }
    return {
        name: Resampled(values[None, :, 0], values[:, 1:].mean(0))
        for name, values in columns.items()
    }


def interval(metric: Resampled, lowest: float = -np.inf, highest: float = np.inf) -> Interval:
    """Summarise a metric by its mean and deviation over cells and a 95% interval of the mean.

    Parameters
    ----------
    lowest, highest : the range of the metric, which the interval is cut to; the mean lies inside.
        From 0 to 1 it is a share.
    """
    mean = float(metric.cells.mean())
    std = float(metric.cells.std(ddof=1)) if metric.cells.size > 1 else 0.0
    chance = [_half_width(metric.cells.mean(axis)) for axis in (0, 1)]
    if (lowest, highest) == (0, 1) and 0 < mean < 1:
        return Interval(mean, std, _ends_of_share(mean, metric.resampled, chance))
    # From the median, not from the mean of the cells: resamples of a biased statistic lie aside.
    low, middle, high = np.nanpercentile(metric.resampled, [100 * _TAIL, 50, 100 - 100 * _TAIL])
    below, above = (
        float(np.linalg.norm([part, *chance])) for part in (middle - low, high - middle)
    )
    return Interval(mean, std, (max(mean - below, lowest), min(mean + above, highest)))


def _ends_of_share(mean: float, resampled: Floats, chance: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the interval of a share, as far from it on both sides in logits."""
    resampled = resampled[~np.isnan(resampled)]
    slope = mean * (1 - mean)  # of a share, by its logit
    ends_are_met = resampled.min() <= 0 or resampled.max() >= 1
    deviation = (resampled if ends_are_met else logit(resampled)).std(ddof=1)
    if ends_are_met:  # where a logit is infinite
        deviation /= slope
    subjects = norm.ppf(1 - _TAIL) * deviation
    width = np.linalg.norm([subjects, *(part / slope for part in chance)])
    return float(expit(logit(mean) - width)), float(expit(logit(mean) + width))


def mean_interval(parts: Sequence[Interval]) -> Interval:
    """Return the mean over independent data sets, with its 95% interval."""
    means = np.array([part.mean for part in parts])
    ends = np.array([part.ci95 for part in parts])
    below, above = np.linalg.norm(ends - means[:, None], axis=0) / len(parts)
    mean = float(means.mean())
    std = float(means.std(ddof=1)) if len(parts) > 1 else 0.0
    return Interval(mean, std, (mean - float(below), mean + float(above)))


def _half_width(values: Floats) -> float:
    """Return half the width of the 95% interval of a mean by Student's t; of one value 0."""
    if len(values) < 2:
        return 0.0
    quantile = float(t.ppf(1 - _TAIL, len(values) - 1))
    return quantile * float(values.std(ddof=1) / np.sqrt(len(values)))
