"""What acting on a classifier gains, and what it errs in when it may leave cases unanswered."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

Floats = NDArray[np.float64]


def net_benefit(truth: NDArray[np.int64], probability: Floats, thresholds: Floats) -> Floats:
    """Net benefit of treating whoever reaches each threshold: its decision curve.

    True positives less false positives at the odds of the threshold, per image: who treats at a
    probability of 20% weighs four false alarms like one case found. Vickers, Elkin, Decision Curve
    Analysis, Medical Decision Making 26 (2006) 565. Treating nobody has the net benefit 0.

    Parameters
    ----------
    truth : 0 or 1, (N,).
    probability : of class 1, (N,).
    thresholds : (T,), in [0, 1).

    Returns
    -------
    Shape (T,).
    """
    treated = probability[:, None] >= thresholds
    found = (treated & (truth == 1)[:, None]).mean(0)
    alarmed = (treated & (truth == 0)[:, None]).mean(0)
    return np.asarray(found - alarmed * thresholds / (1 - thresholds))


def net_benefit_of_all(truth: NDArray[np.int64], thresholds: Floats) -> Floats:
    """Net benefit (T,) of treating everybody, whom no classifier is needed to find."""
    return net_benefit(truth, np.ones(len(truth)), thresholds)


def errors_of_answered(
    truth: NDArray[np.int64], probability: Floats, threshold: float, shares: Floats
) -> tuple[Floats, Floats]:
    """Errors among the most certain cases, when the others are left to somebody else.

    Certain is whose log odds are far from those of the threshold. El-Yaniv, Wiener, On the
    Foundations of Noise-free Selective Classification, JMLR 11 (2010) 1605.

    Parameters
    ----------
    truth : 0 or 1, (N,).
    probability : of class 1, (N,).
    threshold : at or above which an image is called 1, inside (0, 1).
    shares : of the cases that are answered, (S,), in (0, 1]; rounded up to whole cases.

    Returns
    -------
    The share of wrong answers, and its mean over both classes, each (S,); the latter is NaN where
    the answered cases are of one class.
    """
    order = np.argsort(-np.abs(logit(probability) - logit(threshold)), kind="stable")
    positive = truth[order] == 1
    wrong = positive != (probability[order] >= threshold)
    last = np.maximum(np.ceil(shares * len(truth) - 1e-9).astype(int), 1) - 1

    def share_of(chosen: NDArray[np.bool_]) -> Floats:
        with np.errstate(invalid="ignore"):
            return np.asarray(((wrong & chosen).cumsum() / chosen.cumsum())[last])

    everyone = np.ones(len(truth), np.bool_)
    return share_of(everyone), (share_of(positive) + share_of(~positive)) / 2
