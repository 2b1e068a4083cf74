"""Metrics of several classes and of numbers, against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medvq.evaluation.metrics import MANY_CLASSES, NUMBER, evaluate_many, evaluate_number
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
)

Floats = NDArray[np.float64]


@given(st.integers(0, 10_000), st.integers(3, 5))
@settings(deadline=None, max_examples=30)
def test_metrics_of_many_classes_are_those_of_scikit_learn(seed: int, number: int) -> None:
    rng = np.random.default_rng(seed)
    truth = np.r_[np.arange(number), rng.integers(0, number, 20)]
    said = softmax(2 * rng.normal(size=(len(truth), number)).round(1), axis=1)
    weights = np.r_[np.ones(number), rng.integers(0, 4, 20)].astype(float)
    found = {k: float(v[0]) for k, v in evaluate_many(truth, said, weights[None]).items()}
    by = {"sample_weight": weights}
    rest = [(truth == k).astype(int) for k in range(number)]
    called = said.argmax(1)
    distance = ((said - np.eye(number)[truth]) ** 2).sum(1)
    assert tuple(found) == MANY_CLASSES
    assert found == pytest.approx(
        {
            "auroc": np.mean(
                [roc_auc_score(r, s, **by) for r, s in zip(rest, said.T, strict=True)]
            ),
            "auprc": np.mean(
                [average_precision_score(r, s, **by) for r, s in zip(rest, said.T, strict=True)]
            ),
            "balanced_accuracy": balanced_accuracy_score(truth, called, **by),
            "accuracy": accuracy_score(truth, called, **by),
            "brier": np.average(distance, weights=weights),
            "ece": slow_calibration_error(truth, said, weights),
        }
    )


def slow_calibration_error(truth: NDArray[np.int64], said: Floats, weights: Floats) -> float:
    total = 0.0
    for number in range(10):
        chosen = [
            (w, float(t == s.argmax()), s.max())
            for t, s, w in zip(truth, said, weights, strict=True)
            if min(int(s.max() * 10), 9) == number
        ]
        total += abs(sum(w * (right - sure) for w, right, sure in chosen))
    return total / weights.sum()


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_metrics_of_a_number_are_those_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, said = rng.normal(10, 3, 15), rng.normal(10, 3, 15)
    weights = np.r_[1.0, 1.0, rng.integers(0, 4, 13)]
    found = evaluate_number(truth, said, weights[None])
    assert tuple(found) == NUMBER
    by = {"sample_weight": weights}
    assert float(found["r2"][0]) == pytest.approx(r2_score(truth, said, **by))
    assert float(found["mae"][0]) == pytest.approx(mean_absolute_error(truth, said, **by))
