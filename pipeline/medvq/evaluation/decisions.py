"""Decision curves, and the errors of a classifier that may leave cases unanswered."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

Floats = NDArray[np.float64]


def net_benefit(truth: NDArray[np.int64], probability: Floats, thresholds: Floats) -> Floats:
    """Return the net benefit of treating images whose probability reaches each threshold.

    It is the share of true positives less that of false positives, which are weighted by the odds
    of the threshold [1]_: treating at a probability of 20% counts four false positives as much as
    one true positive. Treating nobody has the net benefit 0.

    Parameters
    ----------
    truth : 0 or 1, (N,).
    probability : of class 1, (N,).
    thresholds : (T,), in [0, 1).

    Returns
    -------
    Shape (T,).

    References
    ----------
    .. [1] Vickers, Elkin: Decision curve analysis. Medical Decision Making 26 (2006) 565.
    """
    treated = probability[:, None] >= thresholds
    true_positives = (treated & (truth == 1)[:, None]).mean(0)
    false_positives = (treated & (truth == 0)[:, None]).mean(0)
    return np.asarray(true_positives - false_positives * thresholds / (1 - thresholds))


def net_benefit_treat_all(truth: NDArray[np.int64], thresholds: Floats) -> Floats:
    """Return the net benefit (T,) of treating everybody, which needs no classifier."""
    return net_benefit(truth, np.ones(len(truth)), thresholds)


def selective_errors(
    truth: NDArray[np.int64], probability: Floats, threshold: float | Floats, coverage: Floats
) -> tuple[Floats, Floats]:
    """Return the error rates among the most certain cases, where the others are not answered.

    Certainty is the distance of the log odds from those of the threshold [1]_.

    Parameters
    ----------
    truth : 0 or 1, (N,).
    probability : of class 1, (N,).
    threshold : an image is predicted as class 1 from this probability on, inside (0, 1);
        of all images or (N,).
    coverage : shares of the cases that are answered, (S,), in (0, 1]; rounded up to whole cases.

    Returns
    -------
    The error rate, and its mean over both classes, each (S,); the latter is NaN where the answered
    cases are of one class.

    References
    ----------
    .. [1] El-Yaniv, Wiener: On the foundations of noise-free selective classification. JMLR 11
       (2010) 1605.
    """
    order = np.argsort(-np.abs(logit(probability) - logit(threshold)), kind="stable")
    positive = truth[order] == 1
    wrong = positive != (probability >= threshold)[order]
    # Without the small number 0.3 of 10 cases would be rounded up to 4.
    last = np.maximum(np.ceil(coverage * len(truth) - 1e-9).astype(int), 1) - 1

    def error_rate(group: NDArray[np.bool_]) -> Floats:
        with np.errstate(invalid="ignore"):
            return np.asarray(((wrong & group).cumsum() / group.cumsum())[last])

    all_cases = np.ones(len(truth), np.bool_)
    return error_rate(all_cases), (error_rate(positive) + error_rate(~positive)) / 2
