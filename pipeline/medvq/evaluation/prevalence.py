"""Adjust probabilities to another prevalence, which is estimated without labels.

Calibrated probabilities hold at the prevalence of the training labels. Where only the prevalence
differs, and each class looks as it did in training, Bayes' rule adjusts them, and the prevalence
itself is the one that maximises the likelihood of the unlabelled images [1]_. The likelihood has a
single maximum, which bisection finds in fewer steps than the paper's expectation maximisation.

References
----------
.. [1] Saerens, Latinne, Decaestecker: Adjusting the outputs of a classifier to new a priori
   probabilities. Neural Computation 14 (2002) 21.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_BISECTIONS = 20
"""Steps of the bisection; they leave an error of 1e-6, far below any standard error."""


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
    low, high = np.zeros(len(weights)), np.ones(len(weights))
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        likelihood = negative + middle[:, None] * difference
        increasing = np.einsum("bn,bn->b", weights, difference / likelihood) > 0
        low, high = np.where(increasing, middle, low), np.where(increasing, high, middle)
    return (low + high) / 2
