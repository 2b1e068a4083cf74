"""Decision and abstention curves against closed forms."""

import numpy as np
import pytest
from medvq.evaluation.decisions import net_benefit, net_benefit_treat_all, selective_errors
from scipy.special import expit

TRUTH = np.array([1, 0, 0, 1, 0, 0, 0, 1])
THRESHOLDS = np.linspace(0.01, 0.99, 25)


def test_a_perfect_predictor_gains_the_prevalence() -> None:
    np.testing.assert_allclose(net_benefit(TRUTH, TRUTH.astype(float), THRESHOLDS), 3 / 8)


def test_treating_all_gains_the_prevalence_less_the_others_at_the_odds() -> None:
    odds = THRESHOLDS / (1 - THRESHOLDS)
    benefit = net_benefit_treat_all(TRUTH, THRESHOLDS)
    np.testing.assert_allclose(benefit, 3 / 8 - 5 / 8 * odds)
    # At the prevalence itself it is worth as much as treating nobody.
    assert net_benefit_treat_all(TRUTH, np.array([3 / 8]))[0] == pytest.approx(0)


def test_treating_nobody_gains_nothing() -> None:
    assert not net_benefit(TRUTH, np.zeros(8), THRESHOLDS).any()


def test_net_benefit_by_hand() -> None:
    probability = np.array([0.9, 0.6, 0.1, 0.3, 0.2, 0.4, 0.1, 0.5])
    # From 0.4 on: two true and two false positives, at the odds 2 : 3.
    assert net_benefit(TRUTH, probability, np.array([0.4]))[0] == pytest.approx((2 - 2 * 2 / 3) / 8)


def test_who_is_most_certain_answers_first() -> None:
    probability = np.array([0.99, 0.97, 0.1, 0.2, 0.4, 0.45, 0.3, 0.95])
    # By the distance of log odds to even: 1, 0 (wrong), 1, 0, 1 (wrong), 0, 0, 0.
    error, balanced = selective_errors(TRUTH, probability, 0.5, np.array([0.125, 0.25, 0.5, 1.0]))
    np.testing.assert_allclose(error, [0, 1 / 2, 1 / 4, 2 / 8])
    np.testing.assert_allclose(balanced, [np.nan, 1 / 2, (0 + 1 / 2) / 2, (1 / 3 + 1 / 5) / 2])


def test_certainty_is_counted_from_the_threshold() -> None:
    truth, probability = np.array([1, 0]), np.array([0.85, 0.5])
    # 0.85 is nearer to 0.8 than 0.5 is, though further from even.
    error, _ = selective_errors(truth, probability, 0.8, np.array([0.5]))
    assert error[0] == 0
    error, _ = selective_errors(1 - truth, probability, 0.8, np.array([0.5]))
    assert error[0] == 1


def test_certainty_at_random_is_flat_and_a_calibrated_one_falls() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 40_000)
    coverage = np.linspace(0.1, 1, 10)
    predicted = (logits >= 0).astype(int)
    at_random = np.where(rng.random(40_000) < 0.2, 1 - predicted, predicted)
    error, balanced = selective_errors(at_random, expit(logits), 0.5, coverage)
    np.testing.assert_allclose(error, 0.2, atol=0.02)
    np.testing.assert_allclose(balanced, 0.2, atol=0.02)
    calibrated = (rng.random(40_000) < expit(logits)).astype(int)
    error, _ = selective_errors(calibrated, expit(logits), 0.5, coverage)
    assert (np.diff(error) > 0).all()
    # Who answers all errs as often as the less likely class is likely.
    assert error[-1] == pytest.approx(expit(-np.abs(logits)).mean(), abs=0.01)
