"""Adjust probabilities to another prevalence, which is estimated without labels.

Calibrated probabilities hold at the prevalence of the training labels. Where only the prevalence
differs, and each class looks as it did in training, Bayes' rule adjusts them, and the prevalence
itself is the one that maximises the likelihood of the unlabelled images [1]_. The likelihood has a
single maximum, which bisection and Newton's method find in fewer steps than the paper's expectation
maximisation.

References
----------
.. [1] Saerens, Latinne, Decaestecker: Adjusting the outputs of a classifier to new a priori
   probabilities. Neural Computation 14 (2002) 21.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_GRID = 2**6
"""Intervals of the prevalence, one of which holds the maximum."""
_STEPS, _TOLERANCE = 30, 1e-9


def adjust_to_prevalence(
    probability: Floats, training_prevalence: float | Floats, prevalence: float | Floats
) -> Floats:
    """Adjust probabilities of class 1 from the prevalence of the training labels to another one.

    All are broadcast; ``training_prevalence`` lies inside (0, 1).

    >>> adjust_to_prevalence(np.array([0.0, 0.75, 1.0]), 0.75, 0.5)
    array([0. , 0.5, 1. ])
    """
    positive = probability * (prevalence / training_prevalence)
    negative = (1 - probability) * ((1 - prevalence) / (1 - training_prevalence))
    return np.asarray(positive / (positive + negative))


def estimate_prevalence(
    probability: Floats, training_prevalence: float | Floats, weights: Floats
) -> Floats:
    """Estimate the share of class 1 among unlabelled images by maximum likelihood.

    Parameters
    ----------
    probability : of class 1, (N,), calibrated at ``training_prevalence``, a number or (N,), which
        lies inside (0, 1).
    weights : (B, N), non-negative.

    Returns
    -------
    Shape (B,), inside (0, 1).
    """
    negative = (1 - probability) / (1 - training_prevalence)
    difference = probability / training_prevalence - negative
    # The slope of the likelihood falls, and all resamples share its values on a grid.
    grid = np.linspace(0, 1, _GRID + 1)[1:-1]
    slopes = weights @ (difference[:, None] / (negative[:, None] + grid * difference[:, None]))
    low = (slopes > 0).sum(1) / _GRID
    high = low + 1 / _GRID
    middle = (low + high) / 2
    for _ in range(_STEPS):
        ratio = difference / (negative + middle[:, None] * difference)
        weighted = weights * ratio
        slope, curvature = weighted.sum(1), np.einsum("bn,bn->b", weighted, ratio)
        low, high = np.where(slope > 0, middle, low), np.where(slope > 0, high, middle)
        step = np.divide(slope, curvature, out=np.zeros_like(slope), where=curvature > 0)
        moved = middle + step
        # Beyond what is known of the maximum, halve that.
        moved = np.where((moved >= low) & (moved <= high), moved, (low + high) / 2)
        done = np.abs(moved - middle).max() <= _TOLERANCE
        middle = moved
        if done:
            break
    return np.asarray(middle)
