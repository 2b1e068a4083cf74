"""How a score grows with the number of labels, and how many labels a score needs.

An inverse power law [1]_ is fitted to the scores of nested subsets of the labels at hand. It is an
extrapolation: it holds for more labels that are drawn as those at hand were.

References
----------
.. [1] Figueroa et al.: Predicting sample size required for classification performance. BMC Medical
   Informatics and Decision Making 12 (2012) 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
_TAILS = (0.025, 0.975)
_EXPONENTS = (0.01, 4.0)
"""Bounds of ``b``; with less a curve is a line in log n, without a plateau."""
_GRID, _ROUNDS = 61, 4
_POOR = 2.0
_EXACT = 1e-4
"""Standard error below which scores are as good as exact."""
_NORMAL = 1.96


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
    misfit : residual of the law, in standard errors of the mean over draws. Above 1 the resamples
        are spread as many times wider.
    noise : standard deviation of the score of a single draw, times the root of its labels.
    highest : the greatest value of the metric.
    """

    scale: float
    at_hand: int
    best: Floats
    resampled: Floats
    misfit: float
    noise: float
    highest: float

    @property
    def is_poor(self) -> bool:
        """Whether the law misses the scores by more than chance makes likely."""
        return self.misfit > _POOR

    @property
    def plateau(self) -> Estimate:
        """The score that no number of labels exceeds, with its 95% interval."""
        return _interval(self.best[0], self.resampled[:, 0])

    def score(self, labels: float) -> Estimate:
        """Return the score of a probe with a number of labels, with its 95% interval.

        Which labels these are is chance, too, besides that of the curve.
        """
        curves = np.vstack([self.best, self.resampled]).T
        scores = _law(np.float64(labels / self.scale), *curves)
        value, low, high = _interval(scores[0], scores[1:])
        luck = _NORMAL * self.noise / labels**0.5
        below, above = np.hypot([value - low, high - value], luck)
        return Estimate(value, float(value - below), float(min(value + above, self.highest)))

    def labels_for(self, score: float) -> Estimate:
        """Return how many labels a score needs, infinitely many where none suffice."""
        c, a, b = np.vstack([self.best, self.resampled]).T
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            labels = self.scale * (a / np.maximum(c - score, 0)) ** (1 / b)
        # A curve without a slope has its score with any number of labels.
        labels[a == 0] = np.where(c[a == 0] >= score, 0, np.inf)
        return _interval(labels[0], labels[1:])

    def sentence(self, score: float) -> str:
        """Say how many more labels a score needs."""
        needed = self.labels_for(score)
        if np.isinf(needed.value):
            c = self.plateau
            plateau = f"(plateau {_short(c.value)} [{_short(c.low)}, {_short(c.high)}])"
            if c.high < score:
                return f"no number of labels like these reaches {_short(score)} {plateau}"
            return f"it is not certain that more labels like these reach {_short(score)} {plateau}"
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
    (best,) = _fit(n / scale, mean[None], bounds)
    rng = np.random.default_rng(seed)
    misfit = _misfit(_law(n / scale, *best) - mean, measured)
    # A mean of resampled draws has (R - 1) / R of the variance that the mean of the draws has.
    widened = np.sqrt(draws / (draws - 1)) * max(misfit, 1.0)
    chosen = rng.integers(0, draws, (resamples, draws))
    about = mean + widened * (measured[chosen].mean(1) - mean)
    resampled = _fit(n / scale, about, bounds)
    # Where all labels are at hand they are one draw, which has no deviation.
    deviations = measured.std(0, ddof=1) * np.sqrt(n)
    noise = np.sqrt(np.square(deviations[deviations > 0]).mean()) if deviations.any() else 0.0
    return LabelCurve(scale, int(n.max()), best, resampled, misfit, float(noise), bounds[1])


def _misfit(residuals: Floats, measured: Floats) -> float:
    """Return the root of the mean squared residual by the mean squared standard error."""
    variance = measured.var(0, ddof=1).mean() / len(measured) + _EXACT**2
    freedom = max(len(residuals) - 3, 1)
    return float(np.sqrt(np.square(residuals).sum() / freedom / variance))


def _law(n: Floats | np.float64, c: Floats, a: Floats, b: Floats) -> Floats:
    return np.asarray(c - a * n**-b)


def _fit(n: Floats, scores: Floats, bounds: tuple[float, float]) -> Floats:
    """Return ``c``, ``a`` and ``b`` of the least squared error, (B, 3), of scores (B, S).

    Given ``b`` the best ``c`` and ``a`` have a closed form, so that ``b`` alone is searched for,
    on a grid that is made finer around the best value.
    """
    rows, steps = np.arange(len(scores)), np.linspace(0, 1, _GRID)
    low, high = (np.full(len(scores), end) for end in _EXPONENTS)
    for _ in range(_ROUNDS):
        b = low[:, None] * (high / low)[:, None] ** steps
        c, a, error = _given_exponent(n, scores, b, bounds)
        best = error.argmin(1)
        found = np.stack([values[rows, best] for values in (c, a, b)], axis=1)
        low, high = b[rows, np.maximum(best - 1, 0)], b[rows, np.minimum(best + 1, _GRID - 1)]
    return found


def _given_exponent(
    n: Floats, scores: Floats, b: Floats, bounds: tuple[float, float]
) -> tuple[Floats, Floats, Floats]:
    """Return the best ``c`` and ``a`` for exponents (B, G), and the squared error, (B, G) each."""
    x, y = n ** -b[..., None], scores[:, None]
    mean, level = x.mean(-1), y.mean(-1)
    slope = ((x - mean[..., None]) * (y - level[..., None])).sum(-1)
    a = np.maximum(-slope / ((x - mean[..., None]) ** 2).sum(-1), 0)
    c = np.maximum(level + a * mean, bounds[0])
    # Where the plateau would lie above the metric's range, it is at its end.
    at_end = np.maximum((x * (bounds[1] - y)).sum(-1) / (x**2).sum(-1), 0)
    c, a = np.minimum(c, bounds[1]), np.where(c > bounds[1], at_end, a)
    return c, a, ((c[..., None] - a[..., None] * x - y) ** 2).sum(-1)


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
