"""Metrics against scikit-learn, slow loops and closed forms; bootstrap intervals by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medvq.evaluation.metrics import (
    METRICS,
    draw_weights,
    evaluate,
    interval,
    over_draws,
    subject_weights,
)
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    recall_score,
    roc_auc_score,
    roc_curve,
)

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@st.composite
def judged(draw: st.DrawFn) -> tuple[Labels, Floats, float, Floats]:
    """Truth of both classes, probabilities with ties, a threshold and whole weights."""
    number = draw(st.integers(2, 30))
    # Odd denominators, so that no probability stands on the border of a bin.
    chance = st.integers(0, 13).map(lambda step: step / 13)
    truth = [0, 1, *draw(st.lists(st.integers(0, 1), min_size=number, max_size=number))]
    said = draw(st.lists(chance, min_size=len(truth), max_size=len(truth)))
    weights = draw(st.lists(st.integers(0, 4), min_size=number, max_size=number))
    return np.array(truth), np.array(said), draw(chance), np.array([1.0, 1.0, *weights])


def slow_calibration_error(truth: Labels, said: Floats) -> float:
    total = 0.0
    for number in range(10):
        inside = (said >= number / 10) & ((said < (number + 1) / 10) | (number == 9))
        if inside.any():
            total += inside.sum() * abs(truth[inside].mean() - said[inside].mean())
    return total / len(truth)


def slow_sensitivity_at(specificity: float, truth: Labels, said: Floats, weights: Floats) -> float:
    best = 0.0
    for threshold in said:
        called = said >= threshold
        left_alone = weights[(truth == 0) & ~called].sum() / weights[truth == 0].sum()
        if left_alone >= specificity - 1e-12:
            found = weights[(truth == 1) & called].sum() / weights[truth == 1].sum()
            best = max(best, found)
    return best


def reference(truth: Labels, said: Floats, threshold: float, weights: Floats) -> dict[str, float]:
    called = (said >= threshold).astype(int)
    by = {"sample_weight": weights}
    repeats = weights.astype(int)
    return {
        "auroc": roc_auc_score(truth, said, **by),
        "auprc": average_precision_score(truth, said, **by),
        "balanced_accuracy": balanced_accuracy_score(truth, called, **by),
        "accuracy": accuracy_score(truth, called, **by),
        "sensitivity": recall_score(truth, called, **by),
        "specificity": recall_score(truth, called, pos_label=0, **by),
        "brier": brier_score_loss(truth, said, **by),
        "ece": slow_calibration_error(np.repeat(truth, repeats), np.repeat(said, repeats)),
        "sensitivity_at_90_specificity": slow_sensitivity_at(0.90, truth, said, weights),
        "sensitivity_at_95_specificity": slow_sensitivity_at(0.95, truth, said, weights),
    }


@given(judged())
@settings(deadline=None, max_examples=60)
def test_metrics_are_scikit_learns(case: tuple[Labels, Floats, float, Floats]) -> None:
    truth, said, threshold, weights = case
    unit = np.ones_like(weights)
    found = evaluate(truth, said, threshold, np.stack([unit, weights]))
    assert tuple(found) == METRICS
    for row, given_weights in enumerate((unit, weights)):
        for name, value in reference(truth, said, threshold, given_weights).items():
            assert found[name][row] == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("percent", [90, 95])
def test_sensitivity_at_a_specificity_is_a_step_of_sklearns_roc_curve(percent: int) -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 400)
    # Rounded, so that there are ties.
    said = np.round(0.3 * truth + 0.7 * rng.random(400), 2)
    weights = rng.integers(0, 3, (2, 400)).astype(float)
    found = evaluate(truth, said, 0.5, weights)[f"sensitivity_at_{percent}_specificity"]
    for value, given_weights in zip(found, weights, strict=True):
        false, true, _ = roc_curve(truth, said, sample_weight=given_weights)
        assert value == pytest.approx(true[false <= 1 - percent / 100 + 1e-12].max())
        assert 0.2 < value < 0.8


def test_the_border_of_a_specificity_belongs_to_it() -> None:
    # One of ten negatives is called at 0.5: just what 90% allow, and 95% do not.
    truth = np.array([1, 0, 1] + [0] * 9)
    said = np.array([0.9, 0.8, 0.5] + [0.1] * 9)
    found = evaluate(truth, said, 0.5, np.ones((1, 12)))
    assert found["sensitivity_at_90_specificity"][0] == 1
    assert found["sensitivity_at_95_specificity"][0] == 0.5


@given(judged())
@settings(deadline=None, max_examples=40)
def test_a_weight_is_a_repeated_row(case: tuple[Labels, Floats, float, Floats]) -> None:
    truth, said, threshold, weights = case
    repeats = weights.astype(int)
    repeated = np.repeat(truth, repeats), np.repeat(said, repeats)
    weighted = evaluate(truth, said, threshold, weights[None])
    plain = evaluate(*repeated, threshold, np.ones((1, repeats.sum())))
    for name in METRICS:
        assert weighted[name][0] == pytest.approx(plain[name][0], abs=1e-12), name


def test_a_perfect_prediction() -> None:
    truth = np.array([0, 1, 1, 0])
    found = evaluate(truth, truth.astype(float), 0.5, np.ones((1, 4)))
    wrong = {name: value[0] for name, value in found.items() if name in ("brier", "ece")}
    assert wrong == {"brier": 0, "ece": 0}
    assert all(found[name][0] == 1 for name in METRICS if name not in wrong)


def test_a_constant_prediction() -> None:
    truth = np.array([1, 0, 0, 0])
    found = evaluate(truth, np.full(4, 0.35), 0.25, np.ones((1, 4)))
    assert {name: value[0] for name, value in found.items()} == pytest.approx(
        {
            "auroc": 0.5,
            "auprc": 0.25,
            "balanced_accuracy": 0.5,
            "accuracy": 0.25,
            "sensitivity": 1,
            "specificity": 0,
            "brier": (0.65**2 + 3 * 0.35**2) / 4,
            "ece": 0.1,
            "sensitivity_at_90_specificity": 0,
            "sensitivity_at_95_specificity": 0,
        }
    )


def test_a_class_without_weight_has_no_auroc() -> None:
    weights = np.array([[1.0, 1, 0], [1, 1, 1]])
    found = evaluate(np.array([0, 0, 1]), np.array([0.1, 0.2, 0.7]), 0.5, weights)
    assert np.isnan(found["auroc"]).tolist() == [True, False]
    for name in ("sensitivity", "sensitivity_at_90_specificity"):
        assert np.isnan(found[name]).tolist() == [True, False]
    without_negatives = evaluate(np.array([0, 1]), np.array([0.1, 0.7]), 0.5, np.array([[0.0, 1]]))
    assert np.isnan(without_negatives["sensitivity_at_90_specificity"]).all()
    assert found["specificity"].tolist() == [1, 1]


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


def test_weights_of_draws_are_shares() -> None:
    weights = draw_weights(5, 4000, seed=0)
    np.testing.assert_allclose(weights.sum(1), 1)
    np.testing.assert_array_equal((weights * 5).round(9) % 1, 0)
    np.testing.assert_allclose(weights.mean(0), 0.2, atol=0.015)
    assert np.all(draw_weights(1, 10, seed=0) == 1)


def test_interval_by_hand() -> None:
    resampled = np.stack([np.arange(101.0), np.arange(101.0) + 10], axis=1)
    evenly = np.full((101, 2), 0.5)
    found = interval(np.array([4.0, 6.0]), resampled, evenly)
    assert found["mean"] == 5
    assert found["std"] == pytest.approx(2**0.5)
    assert found["ci95"] == pytest.approx([7.5, 102.5])
    one = interval(np.array([4.0]), resampled[:, :1], np.ones((101, 1)))
    assert (one["std"], one["ci95"]) == (0, pytest.approx([2.5, 97.5]))


def test_values_of_draws_come_before_their_resamples() -> None:
    weights = np.array([[2.0, 0], [0, 3]])

    def compute(draw: int, given_weights: Floats) -> dict[str, Floats]:
        return {"total": (draw + 1) * given_weights.sum(1)}

    values, resampled = over_draws(compute, 3, weights)["total"]
    assert values.tolist() == [2, 4, 6]
    assert resampled.tolist() == [[2, 4, 6], [3, 6, 9]]


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    # Scores of the classes are N(0, 1) and N(1, 1): AUROC is Phi(1 / sqrt 2).
    expected, covered, trials = 0.7602, 0, 60
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1], 60)
    subjects = np.arange(120).astype(str)
    for trial in range(trials):
        scores = rng.normal(truth, 1)
        weights = subject_weights(subjects, 200, trial)
        unit = np.concatenate([np.ones((1, 120)), weights])
        auroc = evaluate(truth, scores / 20 + 0.5, 0.5, unit)["auroc"]
        low, high = interval(auroc[:1], auroc[1:, None], np.ones((200, 1)))["ci95"]
        covered += low <= expected <= high
    # Binomial with n = 60 and p = 0.95 stays above 51 in 999 of 1000 cases.
    assert covered >= 51
