"""Probabilities where the classes are as common as elsewhere, found without a label.

A calibrated probability holds for images of which as many are positive as of those it was learnt
from. Where that share is another and nothing else is (each class looks as it did), Bayes' rule
carries the probabilities over, and the share itself can be found from them: it is the likeliest
one. The likelihood has one maximum. Expectation and maximisation, as in the paper, climbs to it, in
hundreds of steps where the classes look alike; here it is found by halving.

Saerens, Latinne, Decaestecker, Adjusting the Outputs of a Classifier to New a Priori
Probabilities: A Simple Procedure, Neural Computation 14 (2002) 21.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_HALVINGS = 20


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
    negative = (1 - probability) / (1 - learnt)
    difference = probability / learnt - negative
    low, high = np.zeros(len(weights)), np.ones(len(weights))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        likelihood = negative + middle[:, None] * difference
        rises = np.einsum("bn,bn->b", weights, difference / likelihood) > 0
        low, high = np.where(rises, middle, low), np.where(rises, high, middle)
    return (low + high) / 2
