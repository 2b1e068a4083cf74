"""How a score grows with the number of labels, and how many labels a score needs.

An inverse power law [1]_ is fitted to the scores of nested subsets of the labels at hand. It is an
extrapolation: it holds for more labels that are drawn as those at hand were.

References
----------
.. [1] Figueroa et al.: Predicting sample size required for classification performance. BMC Medical
   Informatics and Decision Making 12 (2012) 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import curve_fit

Floats = NDArray[np.float64]
_TAILS = (0.025, 0.975)
_LOWEST = (0.0, 0.01)
_HIGHEST = (np.inf, 4.0)
"""Bounds of ``a`` and of ``b``; with less ``b`` a curve is a line in log n, without a plateau."""


class Estimate(NamedTuple):
    """A number and the ends of its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class LabelCurve:
    """The law ``score(n) = c - a (n / scale)^-b``, and the same law on resamples of the draws.

    Attributes
    ----------
    scale : number of labels that ``a`` refers to.
    at_hand : the most labels that a score was measured with.
    best : (3,), ``c``, ``a`` and ``b``.
    resampled : (B, 3).
    """

    scale: float
    at_hand: int
    best: Floats
    resampled: Floats

    @property
    def plateau(self) -> Estimate:
        """The score that no number of labels exceeds, with its 95% interval."""
        return _interval(self.best[0], self.resampled[:, 0])

    def score(self, labels: float) -> Estimate:
        """Return the score with a number of labels, with its 95% interval."""
        curves = np.vstack([self.best, self.resampled]).T
        scores = _law(np.float64(labels / self.scale), *curves)
        return _interval(scores[0], scores[1:])

    def labels_for(self, score: float) -> Estimate:
        """Return how many labels a score needs, infinitely many where none suffice."""
        c, a, b = np.vstack([self.best, self.resampled]).T
        with np.errstate(divide="ignore", over="ignore"):
            labels = self.scale * (a / np.maximum(c - score, 0)) ** (1 / b)
        # A curve without a slope has its score with any number of labels.
        labels[a == 0] = np.where(c[a == 0] >= score, 0, np.inf)
        return _interval(labels[0], labels[1:])

    def sentence(self, score: float) -> str:
        """Say how many more labels a score needs."""
        needed = self.labels_for(score)
        if np.isinf(needed.value):
            c = self.plateau
            return (
                f"no number of labels like these reaches {_short(score)} (plateau "
                f"{_short(c.value)} [{_short(c.low)}, {_short(c.high)}])"
            )
        if needed.value <= self.at_hand:
            return f"the {self.at_hand} labels at hand are enough for {_short(score)}"
        value, low, high = (
            _more(n - self.at_hand) for n in (needed.value, needed.low, needed.high)
        )
        return f"for {_short(score)} you need about {value} [{low}, {high}] more labels"


def fit_label_curve(
    labels: ArrayLike,
    scores: ArrayLike,
    seed: int,
    bounds: tuple[float, float] = (0.0, 1.0),
    resamples: int = 200,
) -> LabelCurve:
    """Fit an inverse power law to scores of nested label subsets.

    Parameters
    ----------
    labels : (S,), how many labels each subset has, three different numbers at least.
    scores : (R, S), of each draw; the subsets of one draw are nested, so that draws are resampled
        whole.
    bounds : the least and the greatest value of the metric.
    """
    n, measured = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    if measured.ndim != 2 or measured.shape[1] != len(n):
        raise ValueError("scores must have one row for each draw, one column for each subset")
    if len(np.unique(n)) < 3 or n.min() <= 0 or len(measured) < 2:
        raise ValueError("a curve needs three numbers of labels and two draws")
    scale = float(np.exp(np.log(n).mean()))
    mean, draws = measured.mean(0), len(measured)
    spans = bounds[1] - bounds[0]
    middle = float(mean.max())
    starts = [(min(middle + 0.05 * spans, bounds[1]), 0.1 * spans, b) for b in (0.2, 0.5, 1.0)]
    best = _fit(n / scale, mean, bounds, starts)
    rng = np.random.default_rng(seed)
    # A mean of resampled draws has (R - 1) / R of the variance that the mean of the draws has.
    widened = np.sqrt(draws / (draws - 1))
    resampled = []
    for chosen in rng.integers(0, draws, (resamples, draws)):
        about = mean + widened * (measured[chosen].mean(0) - mean)
        resampled.append(_fit(n / scale, about, bounds, [tuple(best), starts[1]]))
    return LabelCurve(scale, int(n.max()), best, np.array(resampled))


def _law(n: Floats | np.float64, c: Floats, a: Floats, b: Floats) -> Floats:
    return np.asarray(c - a * n**-b)


def _fit(
    n: Floats, scores: Floats, bounds: tuple[float, float], starts: Sequence[tuple[float, ...]]
) -> Floats:
    """Return the parameters of the least squared error over several starts."""
    lowest, highest = (bounds[0], *_LOWEST), (bounds[1], *_HIGHEST)
    fits = []
    for start in starts:
        inside = np.clip(start, lowest, highest)
        fitted, _ = curve_fit(_law, n, scores, inside, bounds=(lowest, highest), max_nfev=2000)
        fits.append((float(np.square(_law(n, *fitted) - scores).sum()), fitted))
    return np.asarray(min(fits, key=lambda fit: fit[0])[1])


def _interval(value: float, resampled: Floats) -> Estimate:
    # Of sorted values, not between two of them: one may be infinite.
    low, high = np.quantile(resampled, _TAILS, method="nearest")
    return Estimate(float(value), float(min(low, value)), float(max(high, value)))


def _short(score: float) -> str:
    return f"{score:.2f}".removeprefix("0")


def _more(labels: float) -> str:
    """Write a number of labels with two digits, since more are not known."""
    if np.isinf(labels):
        return "no end"
    return f"{float(f'{max(labels, 0):.2g}'):,.0f}"
