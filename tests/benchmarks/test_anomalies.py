"""Scores of anomalies by the embedding: textbook values, and what each setting may see."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from benchmarks.prior.anomalies import (
    distance_to_neighbours,
    mahalanobis_distance,
    unlabelled_logit,
)


def test_distances_are_the_textbooks_of_the_standardised_reference() -> None:
    rng = np.random.default_rng(0)
    deviations = np.array([1.0, 2.0, 3.0])
    reference = rng.normal(size=(4000, 3)) * deviations
    point = np.array([[2.0, 2.0, 3.0]])
    assert mahalanobis_distance(reference, point)[0] == pytest.approx(6.0, rel=0.1)
    apart = (reference - point) / reference.std(0)
    expected = np.sort(np.linalg.norm(apart, axis=1))[:5].mean()
    assert distance_to_neighbours(reference, point)[0] == pytest.approx(expected)


def test_unlabelled_images_that_are_mostly_ill_are_nearly_labels() -> None:
    rng = np.random.default_rng(0)

    def draw(number: int, shift: float) -> np.ndarray:
        """The classes differ along one of twenty axes, so that distances hardly tell them."""
        return rng.normal(size=(number, 20)) + np.r_[shift, np.zeros(19)]

    normal, ill = draw(400, 0.0), draw(1200, 3.0)
    images, truth = np.concatenate([draw(300, 0.0), draw(300, 3.0)]), np.repeat([0, 1], 300)
    alone = roc_auc_score(truth, distance_to_neighbours(normal, images))
    logit = unlabelled_logit(normal, np.concatenate([normal, ill]), images)
    supervised = LogisticRegression().fit(
        np.concatenate([normal, ill]), np.repeat([0, 1], [len(normal), len(ill)])
    )
    assert alone < 0.85
    assert roc_auc_score(truth, logit) > 0.95
    assert roc_auc_score(truth, logit) == pytest.approx(
        roc_auc_score(truth, supervised.decision_function(images)), abs=0.03
    )
    # Without anything but normal images there is nothing to learn.
    nothing = roc_auc_score(truth, unlabelled_logit(normal, normal, images))
    assert nothing == pytest.approx(0.5, abs=0.1)
