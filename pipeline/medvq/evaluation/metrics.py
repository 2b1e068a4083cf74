"""Metrics of a probe under image weights, for whole sets of weights at once.

A bootstrap over subjects is a matrix of weights: how often each image's subject was drawn. Every
metric here takes weights (B, N) and answers (B,), so that thousands of resamples are a few array
operations. With unit weights each equals scikit-learn's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from medvq.evaluation.prevalence import at_prevalence, estimated_prevalence

Floats = NDArray[np.float64]
METRICS = (
    "auroc",
    "auprc",
    "balanced_accuracy",
    "accuracy",
    "sensitivity",
    "specificity",
    "brier",
    "ece",
    "sensitivity_at_90_specificity",
    "sensitivity_at_95_specificity",
)
PRIOR_SHIFT = ("prevalence_prior_shift", "brier_prior_shift", "ece_prior_shift")
MANY_CLASSES = ("auroc", "auprc", "balanced_accuracy", "accuracy", "brier", "ece")
NUMBER = ("r2", "mae")
_BINS = 10


class Interval(TypedDict):
    """A metric over draws: mean and standard deviation, and the bootstrap's 95% interval."""

    mean: float
    std: float
    ci95: list[float]


def evaluate(
    truth: NDArray[np.int64], probability: Floats, threshold: float, weights: Floats
) -> dict[str, Floats]:
    """All of :data:`METRICS`.

    Parameters
    ----------
    truth : 0 or 1, (N,).
    probability : of class 1, (N,).
    threshold : at or above which an image is called 1.
    weights : (B, N), non-negative.

    Returns
    -------
    Each (B,); NaN where a class has no weight.
    """
    positive = truth == 1
    ranked = _ranked(truth, probability, weights)
    called = probability >= threshold
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity = weights[:, positive & called].sum(1) / weights[:, positive].sum(1)
        specificity = weights[:, ~positive & ~called].sum(1) / weights[:, ~positive].sum(1)
        total = weights.sum(1)
        accuracy = weights[:, called == positive].sum(1) / total
        brier = weights @ (probability - truth) ** 2 / total
    return {
        "auroc": _auroc(*ranked),
        "auprc": _average_precision(*ranked),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "accuracy": accuracy,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "brier": brier,
        "ece": _calibration_error(truth, probability, weights),
        "sensitivity_at_90_specificity": _sensitivity_at(0.90, *ranked),
        "sensitivity_at_95_specificity": _sensitivity_at(0.95, *ranked),
    }


def evaluate_prior_shift(
    truth: NDArray[np.int64], probability: Floats, learnt: float, weights: Floats
) -> dict[str, Floats]:
    """All of :data:`PRIOR_SHIFT`: the prevalence that the images themselves suggest, and what
    probabilities are worth once they are carried to it.

    The correction is transductive: it takes all the images together, but none of their labels, and
    is made anew for each set of weights. See :mod:`medvq.evaluation.prevalence`.

    Parameters
    ----------
    truth : 0 or 1, (N,); the errors are measured by it.
    probability : of class 1, (N,), as it holds at the prevalence ``learnt``.
    weights : (B, N), non-negative.

    Returns
    -------
    Each (B,).
    """
    prevalence = estimated_prevalence(probability, learnt, weights)
    carried = at_prevalence(probability, learnt, prevalence[:, None])
    brier = np.einsum("bn,bn->b", weights, (carried - truth) ** 2) / weights.sum(1)
    error = _calibration_error(truth, carried, weights)
    return dict(zip(PRIOR_SHIFT, (prevalence, brier, error), strict=True))


def evaluate_many(
    truth: NDArray[np.int64], probability: Floats, weights: Floats
) -> dict[str, Floats]:
    """All of :data:`MANY_CLASSES`.

    Areas are of one class against the rest, averaged over classes. The Brier score is the squared
    distance of the probabilities to the truth, 0 to 2; the calibration error that of the class that
    is called.

    Parameters
    ----------
    truth : 0 to K - 1, (N,).
    probability : of each class, (N, K).
    weights : (B, N), non-negative.

    Returns
    -------
    Each (B,); NaN where a class has no weight.
    """
    number = probability.shape[1]
    ranked = [_ranked((truth == k).astype(int), probability[:, k], weights) for k in range(number)]
    called = probability.argmax(1)
    right = (called == truth).astype(np.int64)
    member = np.eye(number)[truth]
    distance = ((probability - member) ** 2).sum(1)
    total = weights.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = ((weights * right) @ member) / (weights @ member)
        return {
            "auroc": np.mean([_auroc(*one) for one in ranked], axis=0),
            "auprc": np.mean([_average_precision(*one) for one in ranked], axis=0),
            "balanced_accuracy": recall.mean(1),
            "accuracy": weights @ right / total,
            "brier": weights @ distance / total,
            "ece": _calibration_error(right, probability.max(1), weights),
        }


def evaluate_number(truth: Floats, predicted: Floats, weights: Floats) -> dict[str, Floats]:
    """All of :data:`NUMBER`: the share of the variance that is explained, and the mean absolute
    error in the unit of ``truth`` (N,); weights (B, N), each answer (B,).
    """
    total = weights.sum(1)
    mean = weights @ truth / total
    variance = weights @ truth**2 / total - mean**2
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "r2": 1 - (weights @ (truth - predicted) ** 2 / total) / variance,
            "mae": weights @ np.abs(truth - predicted) / total,
        }


def subject_weights(subjects: NDArray[np.str_], resamples: int, seed: int) -> Floats:
    """Weights (resamples, N) of a bootstrap over subjects: each as often as it was drawn."""
    names, owner = np.unique(subjects, return_inverse=True)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    return counts[:, owner].astype(np.float64)


def draw_weights(draws: int, resamples: int, seed: int) -> Floats:
    """Weights (resamples, draws) of a bootstrap over label draws, summing to 1."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(draws, np.full(draws, 1 / draws), size=resamples) / draws


def interval(values: Floats, resampled: Floats, weights: Floats) -> Interval:
    """Summarise a metric over label draws crossed with test subjects.

    Parameters
    ----------
    values : (D,), the metric of each draw on the test set itself.
    resampled : (B, D), on resampled subjects.
    weights : (B, D), of :func:`draw_weights`.
    """
    means = (resampled * weights).sum(1)
    low, high = np.nanpercentile(means, [2.5, 97.5])
    return {
        "mean": float(values.mean()),
        "std": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        "ci95": [float(low), float(high)],
    }


def over_draws(
    compute: Callable[[int, Floats], dict[str, Floats]], draws: int, weights: Floats
) -> dict[str, tuple[Floats, Floats]]:
    """For each metric the values (D,) and resampled values (B, D) of all draws.

    ``compute`` is given a draw and weights (B, N) and answers as :func:`evaluate` does.
    """
    unit = np.ones((1, weights.shape[1]))
    stacked = np.concatenate([unit, weights])
    per_draw = [compute(draw, stacked) for draw in range(draws)]
    together = {name: np.stack([d[name] for d in per_draw], axis=1) for name in per_draw[0]}
    return {name: (values[0], values[1:]) for name, values in together.items()}


def _ranked(truth: NDArray[np.int64], score: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Weight of positives and of negatives at each distinct score, falling; (B, scores)."""
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) != 0])
    ordered = weights[:, order]
    positive = np.add.reduceat(ordered * (truth[order] == 1), starts, axis=1)
    negative = np.add.reduceat(ordered * (truth[order] == 0), starts, axis=1)
    return positive, negative


def _auroc(positive: Floats, negative: Floats) -> Floats:
    """Chance that a positive is ranked above a negative, ties counting half."""
    above = positive.cumsum(1) - positive / 2
    pairs = positive.sum(1) * negative.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((above * negative).sum(1) / pairs)


def _average_precision(positive: Floats, negative: Floats) -> Floats:
    """Sum over thresholds of precision times the gain in recall."""
    found = positive.cumsum(1)
    called = found + negative.cumsum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(called > 0, found / np.where(called > 0, called, 1), 0.0)
        return np.asarray((precision * positive).sum(1) / positive.sum(1))


def _sensitivity_at(specificity: float, positive: Floats, negative: Floats) -> Floats:
    """The most that one threshold finds while it calls no more negatives than it may.

    A step of the ROC curve, not a point between two of them, so that a threshold does reach it.
    """
    total = negative.sum(1)
    # A share of whole weights is not exact in binary.
    most = (1 - specificity) * total * (1 + 1e-9)
    found = np.where(negative.cumsum(1) <= most[:, None], positive.cumsum(1), 0.0).max(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(total > 0, found / positive.sum(1), np.nan))


def _calibration_error(truth: NDArray[np.int64], probability: Floats, weights: Floats) -> Floats:
    """Expected calibration error over ten bins of equal width (Naeini et al., AAAI 2015).

    ``probability`` is (N,), or (B, N) where it differs between sets of weights.
    """
    bins = np.minimum((probability * _BINS).astype(int), _BINS - 1)
    gap = weights * (truth - probability)
    if bins.ndim == 1:
        gap = gap @ np.eye(_BINS)[bins]
    else:
        own = np.arange(len(bins))[:, None] * _BINS + bins
        total = np.bincount(own.ravel(), gap.ravel(), len(bins) * _BINS)
        gap = total.astype(np.float64).reshape(-1, _BINS)
    return np.asarray(np.abs(gap).sum(1) / weights.sum(1))
