"""Prevalences that are known, since the images were drawn by them."""

import numpy as np
import pytest
from medvq.evaluation.metrics import PRIOR_SHIFT, evaluate, evaluate_prior_shift
from medvq.evaluation.prevalence import at_prevalence, estimated_prevalence
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

Floats = NDArray[np.float64]
LEARNT = 0.74


def drawn(prevalence: float, number: int, seed: int = 0) -> tuple[NDArray[np.int64], Floats]:
    """Truth, and the calibrated probability of a Gaussian score learnt at 74% positives."""
    rng = np.random.default_rng(seed)
    truth = (rng.random(number) < prevalence).astype(np.int64)
    score = rng.normal(2.0 * truth, 1.0)
    return truth, expit(2.0 * score - 2.0 + logit(LEARNT))


@pytest.mark.parametrize("prevalence", [0.1, 0.5, 0.62, 0.9])
def test_a_shifted_prevalence_is_found_without_labels(prevalence: float) -> None:
    truth, said = drawn(prevalence, 20_000)
    (found,) = estimated_prevalence(said, LEARNT, np.ones((1, len(said))))
    assert found == pytest.approx(prevalence, abs=0.015)
    before = evaluate(truth, said, 0.5, np.ones((1, len(said))))
    after = evaluate_prior_shift(truth, said, LEARNT, np.ones((1, len(said))))
    assert after["brier_prior_shift"][0] < before["brier"][0]
    assert after["ece_prior_shift"][0] < 0.015 < before["ece"][0]


def test_data_as_they_were_learnt_are_left_alone() -> None:
    _, said = drawn(LEARNT, 20_000)
    (found,) = estimated_prevalence(said, LEARNT, np.ones((1, len(said))))
    assert found == pytest.approx(LEARNT, abs=0.01)
    np.testing.assert_allclose(at_prevalence(said, LEARNT, found), said, atol=0.02)


def test_the_prevalence_is_the_likeliest() -> None:
    _, said = drawn(0.4, 60)
    weights = np.random.default_rng(1).integers(0, 3, (3, 60)).astype(float)
    found = estimated_prevalence(said, LEARNT, weights)
    for given, value in zip(weights, found, strict=True):

        def unlikelihood(share: float, given: Floats = given) -> float:
            mixed = said / LEARNT * share + (1 - said) / (1 - LEARNT) * (1 - share)
            return -float(given @ np.log(mixed))

        best = minimize_scalar(unlikelihood, bounds=(0, 1), method="bounded")
        assert value == pytest.approx(best.x, abs=1e-3)


def test_it_is_where_expectation_and_maximisation_ends() -> None:
    _, said = drawn(0.4, 300)
    share = LEARNT
    for _ in range(200):
        share = at_prevalence(said, LEARNT, share).mean()
    assert estimated_prevalence(said, LEARNT, np.ones((1, 300))) == pytest.approx(share, abs=1e-5)


def test_carried_probabilities_keep_bayes_rule_and_come_back() -> None:
    said = np.array([0.02, 0.3, 0.74, 0.99])
    there = at_prevalence(said, LEARNT, 0.3)
    np.testing.assert_allclose(logit(there) - logit(said), logit(0.3) - logit(LEARNT))
    np.testing.assert_allclose(at_prevalence(there, 0.3, LEARNT), said)
    # Who knows nothing says the prevalence.
    assert at_prevalence(np.array([LEARNT]), LEARNT, 0.3)[0] == pytest.approx(0.3)


def test_certain_predictions_are_counted() -> None:
    said = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    found = estimated_prevalence(said, 0.5, np.array([[1.0, 1, 1, 1, 1], [1, 0, 0, 1, 0]]))
    assert found == pytest.approx([0.6, 0], abs=1e-5)


def test_errors_are_those_of_a_loop_over_resamples() -> None:
    truth, said = drawn(0.5, 80)
    weights = np.random.default_rng(2).integers(0, 3, (4, 80)).astype(float)
    found = evaluate_prior_shift(truth, said, LEARNT, weights)
    assert tuple(found) == PRIOR_SHIFT
    for row, given in enumerate(weights):
        (prevalence,) = estimated_prevalence(said, LEARNT, given[None])
        plain = evaluate(truth, at_prevalence(said, LEARNT, prevalence), 0.5, given[None])
        assert found["prevalence_prior_shift"][row] == pytest.approx(prevalence)
        assert found["brier_prior_shift"][row] == pytest.approx(plain["brier"][0])
        assert found["ece_prior_shift"][row] == pytest.approx(plain["ece"][0])
