"""Probabilities where the classes are as common as elsewhere, found without a label.

A calibrated probability holds for images of which as many are positive as of those it was learnt
from. Where that share is another and nothing else is (each class looks as it did), Bayes' rule
carries the probabilities over, and the share itself can be found from them: by expectation and
maximisation, which climbs to its greatest likelihood.

Saerens, Latinne, Decaestecker, Adjusting the Outputs of a Classifier to New a Priori
Probabilities: A Simple Procedure, Neural Computation 14 (2002) 21.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_ROUNDS = 500
_CLOSE = 1e-6
_LEAST = 1e-6


def at_prevalence(probability: Floats, learnt: float, prevalence: float | Floats) -> Floats:
    """Probabilities of class 1 that hold at ``learnt``, carried to another prevalence.

    ``probability`` and ``prevalence`` are broadcast; ``learnt`` is inside (0, 1).

    >>> at_prevalence(np.array([0.0, 0.75, 1.0]), 0.75, 0.5)
    array([0. , 0.5, 1. ])
    """
    positive = probability * (prevalence / learnt)
    negative = (1 - probability) * ((1 - prevalence) / (1 - learnt))
    return np.asarray(positive / (positive + negative))


def estimated_prevalence(probability: Floats, learnt: float, weights: Floats) -> Floats:
    """The likeliest share of class 1 among images that nobody labelled.

    Parameters
    ----------
    probability : of class 1, (N,), as it holds at the prevalence ``learnt``, inside (0, 1).
    weights : (B, N), non-negative.

    Returns
    -------
    Shape (B,), inside (0, 1).
    """
    total = weights.sum(1)
    found = np.full(len(weights), learnt)
    for _ in range(_ROUNDS):
        carried = at_prevalence(probability, learnt, found[:, None])
        before, found = found, np.einsum("bn,bn->b", weights, carried) / total
        found = found.clip(_LEAST, 1 - _LEAST)
        if np.abs(found - before).max() < _CLOSE:
            break
    return found
