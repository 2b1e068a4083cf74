"""Metrics of a probe under image weights, for many sets of weights at once.

Every metric takes weights (B, N) and returns (B,), so that thousands of bootstrap resamples
(:mod:`medvq.evaluation.intervals`) are a few array operations. With unit weights each equals
scikit-learn's. A metric is NaN where a class that it needs has no weight.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from medvq.evaluation.prevalence import adjust_to_prevalence, estimate_prevalence

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
_BINS = 10
"""Bins of the expected calibration error; its value depends on them, and ten is customary."""
_RANGES = {"r2": (-np.inf, 1.0), "mae": (0.0, np.inf), "brier": (0.0, 2.0)}
_RANGES |= dict.fromkeys(("ece", "ece_prior_shift"), (-np.inf, np.inf))


def range_of(metric: str) -> tuple[float, float]:
    """Return the lowest and the highest value of a metric; most are shares.

    The calibration error is none: its estimate may be negative.
    """
    return _RANGES.get(metric, (0.0, 1.0))


def auroc(truth: Labels, score: Floats, weights: Floats) -> Floats:
    """Return the area under the ROC curve alone; ``truth``, ``score`` (N,), ``weights`` (B, N)."""
    return _auroc(_rank(truth, score, weights))


def binary_metrics(
    truth: Labels, probability: Floats, threshold: float | Floats, weights: Floats
) -> dict[str, Floats]:
    """Compute the metrics of a prediction of two classes.

    Parameters
    ----------
    truth : 0 or 1, (N,).
    probability : of class 1, (N,).
    threshold : an image is predicted as class 1 from this probability on; of all images or (N,).
    weights : (B, N), non-negative.
    """
    positive, predicted = truth == 1, probability >= threshold
    ranked = _rank(truth, probability, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity = weights @ (positive & predicted) / (weights @ positive)
        specificity = weights @ ~(positive | predicted) / (weights @ ~positive)
        total = weights.sum(1)
        accuracy = weights @ (predicted == positive) / total
        brier = weights @ (probability - truth) ** 2 / total
    return {
        "auroc": _auroc(ranked),
        "auprc": _average_precision(ranked),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "accuracy": accuracy,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "brier": brier,
        "ece": _calibration_error(truth, probability, weights),
        "sensitivity_at_90_specificity": _sensitivity_at(0.90, ranked),
        "sensitivity_at_95_specificity": _sensitivity_at(0.95, ranked),
    }


def prior_shift_metrics(
    truth: Labels, probability: Floats, training_prevalence: float | Floats, weights: Floats
) -> dict[str, Floats]:
    """Estimate the prevalence, and compute Brier score and ECE of probabilities adjusted to it.

    The probabilities are adjusted to the prevalence that the images themselves suggest
    (:mod:`medvq.evaluation.prevalence`). That is transductive: it takes all images together, but
    none of their labels, and is done anew for each set of weights.

    Parameters
    ----------
    truth : 0 or 1, (N,), by which the errors are measured.
    probability : of class 1, (N,), calibrated at ``training_prevalence``, a number or (N,).
    weights : (B, N), non-negative.
    """
    prevalence = estimate_prevalence(probability, training_prevalence, weights)
    adjusted = adjust_to_prevalence(probability, training_prevalence, prevalence[:, None])
    brier = np.einsum("bn,bn->b", weights, (adjusted - truth) ** 2) / weights.sum(1)
    error = _calibration_error(truth, adjusted, weights)
    return {
        "prevalence_prior_shift": prevalence,
        "brier_prior_shift": brier,
        "ece_prior_shift": error,
    }


def multiclass_metrics(truth: Labels, probability: Floats, weights: Floats) -> dict[str, Floats]:
    """Compute the metrics of a prediction of several classes.

    AUROC and AUPRC are of one class against the rest, averaged over classes. The Brier score is the
    squared distance of the probabilities to the truth, 0 to 2. The calibration error is that of the
    predicted class.

    Parameters
    ----------
    truth : 0 to K - 1, (N,).
    probability : of each class, (N, K).
    weights : (B, N), non-negative.
    """
    classes = probability.shape[1]
    ranked = [_rank((truth == k).astype(int), probability[:, k], weights) for k in range(classes)]
    correct = (probability.argmax(1) == truth).astype(np.int64)
    one_hot = np.eye(classes)[truth]
    distance = ((probability - one_hot) ** 2).sum(1)
    total = weights.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = ((weights * correct) @ one_hot) / (weights @ one_hot)
        return {
            "auroc": np.mean([_auroc(scores) for scores in ranked], axis=0),
            "auprc": np.mean([_average_precision(scores) for scores in ranked], axis=0),
            "balanced_accuracy": recall.mean(1),
            "accuracy": weights @ correct / total,
            "brier": weights @ distance / total,
            "ece": _calibration_error(correct, probability.max(1), weights),
        }


def regression_metrics(truth: Floats, predicted: Floats, weights: Floats) -> dict[str, Floats]:
    """Compute the metrics of a predicted number, ``truth`` and ``predicted`` (N,).

    They are R^2, the explained share of the variance, and the mean absolute error in the unit of
    ``truth``; ``weights`` are (B, N).
    """
    total = weights.sum(1)
    centred = truth - truth.mean()  # squares of dates in seconds, say, would leave no digits
    mean = weights @ centred / total
    variance = weights @ centred**2 / total - mean**2
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "r2": 1 - (weights @ (truth - predicted) ** 2 / total) / variance,
            "mae": weights @ np.abs(truth - predicted) / total,
        }


class _Ranked(NamedTuple):
    """The weight of images at each distinct score, falling, and their sums so far; (B, S) each."""

    positive: Floats
    negative: Floats
    true_positives: Floats
    false_positives: Floats


def _rank(truth: Labels, score: Floats, weights: Floats) -> _Ranked:
    order = np.argsort(-score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) != 0])
    ordered = weights[:, order]
    parts = [ordered * (truth[order] == label) for label in (1, 0)]
    if len(starts) < len(score):
        parts = [np.add.reduceat(part, starts, axis=1) for part in parts]
    return _Ranked(*parts, *(part.cumsum(1) for part in parts))


def _auroc(ranked: _Ranked) -> Floats:
    """Return the chance that a positive ranks above a negative; ties count half."""
    above = ranked.true_positives - ranked.positive / 2
    pairs = ranked.true_positives[:, -1] * ranked.false_positives[:, -1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((above * ranked.negative).sum(1) / pairs)


def _average_precision(ranked: _Ranked) -> Floats:
    """Return the sum over thresholds of precision times the gain in recall."""
    predicted = ranked.true_positives + ranked.false_positives
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(
            predicted > 0, ranked.true_positives / np.where(predicted > 0, predicted, 1), 0.0
        )
        return np.asarray((precision * ranked.positive).sum(1) / ranked.true_positives[:, -1])


def _sensitivity_at(specificity: float, ranked: _Ranked) -> Floats:
    """Return the highest sensitivity of a threshold that has at least this specificity.

    It is a step of the ROC curve, not a point between two of them, so that a threshold reaches it.
    """
    total = ranked.false_positives[:, -1]
    # A share of whole weights is not exact in binary.
    most = (1 - specificity) * total * (1 + 1e-9)
    reached = ranked.false_positives <= most[:, None]
    true_positives = np.where(reached, ranked.positive, 0.0).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(
            np.where(total > 0, true_positives / ranked.true_positives[:, -1], np.nan)
        )


def _calibration_error(truth: Labels, probability: Floats, weights: Floats) -> Floats:
    """Return the expected calibration error over bins of equal width [1]_, debiased.

    In the plain estimate, the sum of the bins' gaps between truth and probability, chance alone
    makes every gap positive: of a perfectly calibrated classifier and 600 images it is 0.035 [2]_.
    Here the sign of a gap is taken from a random half of the images and its size from the other
    half, which have no chance in common. What is returned is the mean over all such halves, in the
    normal approximation. It is 0 on average where the classifier is calibrated, and so negative
    half of the time; it is the plain estimate where gaps are far above chance, and too small where
    they are not. Images count as independent.

    Parameters
    ----------
    probability : (N,), or (B, N) where it differs between sets of weights.

    References
    ----------
    .. [1] Naeini et al.: Obtaining well calibrated probabilities using Bayesian binning. AAAI 2015.
    .. [2] Kumar, Liang, Ma: Verified uncertainty calibration. NeurIPS 2019.
    """
    residual = truth - probability
    gap, squares = _sum_in_bins(probability, weights, residual, residual**2)
    # Of a random half, the deviation from half the gap is half of this.
    deviation = np.sqrt(squares)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(deviation > 0, gap / deviation, 0.0)
    density = np.exp(-(ratio**2) / 2) / np.sqrt(2 * np.pi)
    debiased = gap * (2 * ndtr(ratio) - 1) - 2 * deviation * density
    return np.asarray(debiased.sum(1) / weights.sum(1))


def _sum_in_bins(probability: Floats, weights: Floats, *values: Floats) -> list[Floats]:
    """Return the weighted sum of each of ``values`` in the bins of the probability, (B, bins)."""
    bins = np.minimum((probability * _BINS).astype(int), _BINS - 1)
    if bins.ndim == 1:
        return [weights @ (np.eye(_BINS)[bins] * value[:, None]) for value in values]
    row_and_bin = (np.arange(len(bins))[:, None] * _BINS + bins).ravel()
    return [
        np.asarray(
            np.bincount(row_and_bin, (weights * value).ravel(), len(bins) * _BINS), float
        ).reshape(-1, _BINS)
        for value in values
    ]
