"""Prevalences that are known, since the images were sampled by them."""

import numpy as np
import pytest
from medvq.evaluation.metrics import binary_metrics, prior_shift_metrics
from medvq.evaluation.prevalence import adjust_to_prevalence, estimate_prevalence
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

Floats = NDArray[np.float64]
TRAINING = 0.74


def sample(prevalence: float, number: int) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Truth, the probability of a Gaussian score calibrated at 74% positives, unit weights."""
    rng = np.random.default_rng(0)
    truth = (rng.random(number) < prevalence).astype(np.int64)
    score = rng.normal(2.0 * truth, 1.0)
    return truth, expit(2.0 * score - 2.0 + logit(TRAINING)), np.ones((1, number))


@pytest.mark.parametrize("prevalence", [0.1, 0.5, 0.62, 0.9])
def test_a_shifted_prevalence_is_found_without_labels(prevalence: float) -> None:
    truth, probability, unit = sample(prevalence, 20_000)
    estimate = estimate_prevalence(probability, TRAINING, unit)
    assert estimate == pytest.approx(prevalence, abs=0.015)
    before = binary_metrics(truth, probability, 0.5, unit)
    after = prior_shift_metrics(truth, probability, TRAINING, unit)
    assert after["brier_prior_shift"][0] < before["brier"][0]
    assert after["ece_prior_shift"][0] < 0.015 < before["ece"][0]


def test_probabilities_at_the_training_prevalence_are_left_alone() -> None:
    _, probability, unit = sample(TRAINING, 20_000)
    (estimate,) = estimate_prevalence(probability, TRAINING, unit)
    assert estimate == pytest.approx(TRAINING, abs=0.01)
    adjusted = adjust_to_prevalence(probability, TRAINING, estimate)
    np.testing.assert_allclose(adjusted, probability, atol=0.02)


def test_the_estimate_maximises_the_likelihood() -> None:
    _, probability, _ = sample(0.4, 60)
    weights = np.random.default_rng(1).integers(0, 3, (3, 60)).astype(float)
    densities = probability / TRAINING, (1 - probability) / (1 - TRAINING)
    for row, value in zip(
        weights, estimate_prevalence(probability, TRAINING, weights), strict=True
    ):

        def loss(share: float, row: Floats = row) -> float:
            return -float(row @ np.log(densities[0] * share + densities[1] * (1 - share)))

        best = minimize_scalar(loss, bounds=(0, 1), method="bounded")
        assert value == pytest.approx(best.x, abs=1e-3)


def test_adjusted_probabilities_keep_bayes_rule_and_come_back() -> None:
    probability = np.array([0.02, 0.3, TRAINING, 0.99])
    adjusted = adjust_to_prevalence(probability, TRAINING, 0.3)
    np.testing.assert_allclose(logit(adjusted) - logit(probability), logit(0.3) - logit(TRAINING))
    np.testing.assert_allclose(adjust_to_prevalence(adjusted, 0.3, TRAINING), probability)
    # The prevalence is what a model without any information predicts.
    assert adjusted[2] == pytest.approx(0.3)


def test_certain_predictions_are_counted() -> None:
    probability = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    weights = np.array([[1.0, 1, 1, 1, 1], [1, 0, 0, 1, 0]])
    assert estimate_prevalence(probability, 0.5, weights) == pytest.approx([0.6, 0], abs=1e-5)


def test_errors_are_those_of_a_loop_over_resamples() -> None:
    truth, probability, _ = sample(0.5, 80)
    weights = np.random.default_rng(2).integers(0, 3, (4, 80)).astype(float)
    metrics = prior_shift_metrics(truth, probability, TRAINING, weights)
    assert len(metrics) == 3
    for number, row in enumerate(weights):
        (prevalence,) = estimate_prevalence(probability, TRAINING, row[None])
        adjusted = adjust_to_prevalence(probability, TRAINING, prevalence)
        plain = binary_metrics(truth, adjusted, 0.5, row[None])
        assert metrics["prevalence_prior_shift"][number] == pytest.approx(prevalence)
        assert metrics["brier_prior_shift"][number] == pytest.approx(plain["brier"][0])
        assert metrics["ece_prior_shift"][number] == pytest.approx(plain["ece"][0])
