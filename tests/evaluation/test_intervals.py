"""Bootstrap intervals by hand, and how often they cover a truth that is known."""

import numpy as np
import pytest
from medvq.evaluation.intervals import (
    Resampled,
    interval,
    resample,
    subject_weights,
    subset_weights,
)
from medvq.evaluation.metrics import binary_metrics
from medvq.summaries import Interval
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def test_images_of_a_subject_are_drawn_together() -> None:
    subjects = np.array(["c", "a", "b", "a", "c", "c", "d"])
    weights = subject_weights(subjects, 4000, seed=0)
    first = [int(np.flatnonzero(subjects == name)[0]) for name in subjects]
    np.testing.assert_array_equal(weights, weights[:, first])
    one_each = weights[:, np.unique(subjects, return_index=True)[1]]
    assert np.all(one_each.sum(1) == 4)
    # Binomial with n = 4 and p = 1/4: mean 1, variance 3/4.
    np.testing.assert_allclose(one_each.mean(0), 1, atol=0.07)
    np.testing.assert_allclose(one_each.var(0), 0.75, atol=0.08)


def test_weights_of_label_subsets_are_shares() -> None:
    weights = subset_weights(5, 4000, seed=0)
    np.testing.assert_allclose(weights.sum(1), 1)
    np.testing.assert_array_equal((weights * 5).round(9) % 1, 0)
    np.testing.assert_allclose(weights.mean(0), 0.2, atol=0.015)
    assert np.all(subset_weights(1, 10, seed=0) == 1)


def test_interval_and_paired_difference_by_hand() -> None:
    resampled = np.stack([np.arange(101.0), np.arange(101.0) + 10], axis=1)
    metric, evenly = Resampled(np.array([4.0, 6.0]), resampled), np.full((101, 2), 0.5)
    both = interval(metric, evenly)
    assert both.mean == 5
    assert both.std == pytest.approx(2**0.5)
    assert both.ci95 == pytest.approx((7.5, 102.5))
    one = interval(Resampled(np.array([4.0]), resampled[:, :1]), np.ones((101, 1)))
    assert one.std == 0
    assert one.ci95 == pytest.approx((2.5, 97.5))
    lower = Resampled(metric.of_subset - 1, resampled - 1)
    assert interval(metric - lower, evenly) == Interval(1.0, 0.0, (1.0, 1.0))


def test_a_metric_is_computed_on_the_test_set_and_on_its_resamples() -> None:
    weights = np.array([[2.0, 0], [0, 3]])

    def compute(subset: int, image_weights: Floats) -> dict[str, Floats]:
        return {"total": (subset + 1) * image_weights.sum(1)}

    total = resample(compute, 3, weights)["total"]
    assert total.of_subset.tolist() == [2, 4, 6]
    assert total.resampled.tolist() == [[2, 4, 6], [3, 6, 9]]


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    # Scores of the classes are N(0, 1) and N(1, 1): AUROC is Phi(1 / sqrt 2).
    expected, covered, trials = 0.7602, 0, 60
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1], 60)
    subjects = np.arange(120).astype(str)
    for trial in range(trials):
        probability = rng.normal(truth, 1) / 20 + 0.5

        def compute(
            _subset: int, weights: Floats, probability: Floats = probability
        ) -> dict[str, Floats]:
            return binary_metrics(truth, probability, 0.5, weights)

        auroc = resample(compute, 1, subject_weights(subjects, 200, trial))["auroc"]
        low, high = interval(auroc, np.ones((200, 1))).ci95
        covered += low <= expected <= high
    # Binomial with n = 60 and p = 0.95 stays above 51 in 999 of 1000 cases.
    assert covered >= 51
