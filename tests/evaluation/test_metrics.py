"""Metrics against scikit-learn, slow loops and closed forms."""

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medvq.evaluation.metrics import (
    binary_metrics,
    multiclass_metrics,
    regression_metrics,
)
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.special import expit, softmax
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    mean_absolute_error,
    r2_score,
    recall_score,
    roc_auc_score,
)

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Labels, Floats, float, Floats]:
    """Truth of both classes, probabilities with ties, a threshold and whole weights."""
    number = draw(st.integers(2, 30))
    # Odd denominators, so that no probability stands on the border of a bin.
    chance = st.integers(0, 13).map(lambda step: step / 13)
    truth = [0, 1, *draw(st.lists(st.integers(0, 1), min_size=number, max_size=number))]
    probability = draw(st.lists(chance, min_size=len(truth), max_size=len(truth)))
    weights = draw(st.lists(st.integers(0, 4), min_size=number, max_size=number))
    return np.array(truth), np.array(probability), draw(chance), np.array([1.0, 1.0, *weights])


def bins(probability: Floats) -> list[NDArray[np.bool_]]:
    return [
        (probability >= number / 10) & ((probability < (number + 1) / 10) | (number == 9))
        for number in range(10)
    ]


def slow_calibration_error(truth: Labels, probability: Floats, weights: Floats) -> float:
    """Integrate over the gap of a random half, which gives the sign to that of the other half."""
    total = 0.0
    for inside in bins(probability):
        residual = (truth - probability)[inside]
        gap = (weights[inside] * residual).sum()
        deviation = np.sqrt((weights[inside] * residual**2).sum()) / 2
        if deviation == 0:
            continue
        # Of the standard library: a density of SciPy takes fifty times as long for one number.
        half, reach = NormalDist(float(gap) / 2, float(deviation)), abs(gap) + 10 * deviation

        def moment(low: float, high: float, half: NormalDist = half, gap: float = gap) -> float:
            return float(quad(lambda x: half.pdf(x) * (gap - x), low, high)[0])

        total += 2 * (moment(0, reach) - moment(-reach, 0))
    return float(total / weights.sum())


def plain_calibration_error(truth: Labels, probability: Floats) -> float:
    gaps = [(truth - probability)[inside].sum() for inside in bins(probability)]
    return float(np.abs(gaps).sum() / len(truth))


def slow_sensitivity_at(
    specificity: float, truth: Labels, probability: Floats, weights: Floats
) -> float:
    best = 0.0
    for threshold in probability:
        called = probability >= threshold
        reached = weights[(truth == 0) & ~called].sum() / weights[truth == 0].sum()
        if reached >= specificity - 1e-12:
            recall = weights[(truth == 1) & called].sum() / weights[truth == 1].sum()
            best = max(best, recall)
    return best


def reference(
    truth: Labels, probability: Floats, threshold: float, weights: Floats
) -> dict[str, float]:
    called = (probability >= threshold).astype(int)
    by = {"sample_weight": weights}
    return {
        "auroc": roc_auc_score(truth, probability, **by),
        "auprc": average_precision_score(truth, probability, **by),
        "balanced_accuracy": balanced_accuracy_score(truth, called, **by),
        "accuracy": accuracy_score(truth, called, **by),
        "sensitivity": recall_score(truth, called, **by),
        "specificity": recall_score(truth, called, pos_label=0, **by),
        "brier": brier_score_loss(truth, probability, **by),
        "ece": slow_calibration_error(truth, probability, weights),
        "sensitivity_at_90_specificity": slow_sensitivity_at(0.90, truth, probability, weights),
        "sensitivity_at_95_specificity": slow_sensitivity_at(0.95, truth, probability, weights),
    }


@given(cases())
@settings(max_examples=60)
def test_metrics_of_two_classes_are_those_of_scikit_learn(
    case: tuple[Labels, Floats, float, Floats],
) -> None:
    truth, probability, threshold, weights = case
    unit = np.ones_like(weights)
    metrics = binary_metrics(truth, probability, threshold, np.stack([unit, weights]))
    assert set(metrics) == set(reference(*case))
    for row, row_weights in enumerate((unit, weights)):
        for name, value in reference(truth, probability, threshold, row_weights).items():
            close = 1e-7 if name == "ece" else 1e-12
            assert metrics[name][row] == pytest.approx(value, abs=close), name
    repeats = weights.astype(int)
    repeated = np.repeat(truth, repeats), np.repeat(probability, repeats)
    plain = binary_metrics(*repeated, threshold, np.ones((1, repeats.sum())))
    for name in metrics:
        assert metrics[name][1] == pytest.approx(plain[name][0], abs=1e-12), name


def test_a_threshold_that_just_reaches_a_specificity_counts() -> None:
    # One of ten negatives is called at 0.5: just what 90% allow, and 95% do not.
    truth = np.array([1, 0, 1] + [0] * 9)
    probability = np.array([0.9, 0.8, 0.5] + [0.1] * 9)
    metrics = binary_metrics(truth, probability, 0.5, np.ones((1, 12)))
    assert metrics["sensitivity_at_90_specificity"][0] == 1
    assert metrics["sensitivity_at_95_specificity"][0] == 0.5


def calibration_error(truth: Labels, probability: Floats) -> float:
    one_each = np.ones((1, len(truth)))
    return float(binary_metrics(truth, probability, 0.5, one_each)["ece"][0])


@pytest.mark.parametrize("images", [100, 624])
def test_of_a_calibrated_classifier_the_calibration_error_is_nothing(images: int) -> None:
    rng, errors, plain = np.random.default_rng(images), [], []
    for _ in range(300):
        probability = expit(rng.normal(0.5, 2, images))
        truth = (rng.random(images) < probability).astype(int)
        errors.append(calibration_error(truth, probability))
        plain.append(plain_calibration_error(truth, probability))
    # Three standard errors; few images in a bin are not quite normal.
    assert abs(np.mean(errors)) < 3 * np.std(errors) / 300**0.5 + 0.2 / images
    assert np.mean(plain) > 0.03


@given(st.integers(0, 10_000), st.floats(0.3, 3), st.floats(-1, 1))
@settings(max_examples=30)
def test_a_calibration_error_far_above_chance_is_the_plain_one(
    seed: int, slope: float, offset: float
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, 200)
    truth = (rng.random(200) < expit(slope * logits + offset)).astype(int)
    probability = expit(logits)
    error, plain = (
        calibration_error(truth, probability),
        plain_calibration_error(truth, probability),
    )
    assert error <= plain
    # Of the same images a million times over there is less chance by the root of a million.
    often = binary_metrics(truth, probability, 0.5, np.full((1, 200), 1e6))["ece"][0]
    assert often == pytest.approx(plain, abs=2e-3)


def test_a_perfect_and_a_constant_prediction() -> None:
    truth = np.array([0, 1, 1, 0])
    perfect = binary_metrics(truth, truth.astype(float), 0.5, np.ones((1, 4)))
    assert {name: value[0] for name, value in perfect.items()} == {
        name: float(name not in ("brier", "ece")) for name in perfect
    }
    constant = binary_metrics(np.array([1, 0, 0, 0]), np.full(4, 0.35), 0.25, np.ones((1, 4)))
    assert {name: value[0] for name, value in constant.items()} == pytest.approx(
        {
            "auroc": 0.5,
            "auprc": 0.25,
            "balanced_accuracy": 0.5,
            "accuracy": 0.25,
            "sensitivity": 1,
            "specificity": 0,
            "brier": (0.65**2 + 3 * 0.35**2) / 4,
            "ece": slow_calibration_error(np.array([1, 0, 0, 0]), np.full(4, 0.35), np.ones(4)),
            "sensitivity_at_90_specificity": 0,
            "sensitivity_at_95_specificity": 0,
        }
    )


def test_metrics_are_nan_where_a_class_has_no_weight() -> None:
    weights = np.array([[1.0, 1, 0], [1, 1, 1]])
    metrics = binary_metrics(np.array([0, 0, 1]), np.array([0.1, 0.2, 0.7]), 0.5, weights)
    for name in ("auroc", "sensitivity", "sensitivity_at_90_specificity"):
        assert np.isnan(metrics[name]).tolist() == [True, False]
    assert metrics["specificity"].tolist() == [1, 1]
    no_negatives = binary_metrics(np.array([0, 1]), np.array([0.1, 0.7]), 0.5, np.array([[0.0, 1]]))
    assert np.isnan(no_negatives["sensitivity_at_90_specificity"]).all()


@given(st.integers(0, 10_000), st.integers(3, 5))
@settings(max_examples=30)
def test_metrics_of_several_classes_are_those_of_scikit_learn(seed: int, number: int) -> None:
    rng = np.random.default_rng(seed)
    truth = np.r_[np.arange(number), rng.integers(0, number, 20)]
    probability = softmax(2 * rng.normal(size=(len(truth), number)).round(1), axis=1)
    weights = np.r_[np.ones(number), rng.integers(0, 4, 20)].astype(float)
    metrics = multiclass_metrics(truth, probability, weights[None])
    by = {"sample_weight": weights}
    one_against_rest = [((truth == k).astype(int), probability[:, k]) for k in range(number)]
    called = probability.argmax(1)
    distance = ((probability - np.eye(number)[truth]) ** 2).sum(1)
    correct = (called == truth).astype(int)
    assert {name: float(value[0]) for name, value in metrics.items()} == pytest.approx(
        {
            "auroc": np.mean([roc_auc_score(*one, **by) for one in one_against_rest]),
            "auprc": np.mean([average_precision_score(*one, **by) for one in one_against_rest]),
            "balanced_accuracy": balanced_accuracy_score(truth, called, **by),
            "accuracy": accuracy_score(truth, called, **by),
            "brier": np.average(distance, weights=weights),
            "ece": slow_calibration_error(correct, probability.max(1), weights),
        }
    )


@given(st.integers(0, 10_000), st.sampled_from([10.0, 1e12]))
@settings(max_examples=30)
def test_metrics_of_a_number_are_those_of_scikit_learn(seed: int, mean: float) -> None:
    rng = np.random.default_rng(seed)
    truth, predicted = rng.normal(mean, 3, 15), rng.normal(mean, 3, 15)
    weights = np.r_[1.0, 1.0, rng.integers(0, 4, 13)]
    metrics = regression_metrics(truth, predicted, weights[None])
    assert set(metrics) == {"r2", "mae"}
    by = {"sample_weight": weights}
    assert float(metrics["r2"][0]) == pytest.approx(r2_score(truth, predicted, **by))
    assert float(metrics["mae"][0]) == pytest.approx(mean_absolute_error(truth, predicted, **by))
