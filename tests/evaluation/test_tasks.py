"""Several classes and numbers, against scikit-learn and closed forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medvq.config import ProbeConfig
from medvq.evaluation.metrics import MANY_CLASSES, NUMBER, evaluate_many, evaluate_number
from medvq.evaluation.tasks import Multiclass, Regression
from medvq.method.probe import ProbeFeatures, fit_probe
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.linear_model import Ridge
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    log_loss,
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


class Blobs:
    """Three classes around the corners of a triangle; every image its own subject."""

    def __init__(self, number: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(0, 3, number)
        corners = 1.5 * np.eye(3)[self.labels]
        self.images = np.c_[corners + rng.normal(size=(number, 3)), rng.normal(size=(number, 4))]
        self.subjects = np.arange(number).astype(str)


def test_three_classes_are_told_as_well_as_they_can_be_and_calibrated() -> None:
    data, unseen = Blobs(300), Blobs(3000, 1)
    config = ProbeConfig(regularisation=(1e-3, 1.0, 1e3), folds=3)
    encoded = ProbeFeatures(data.images, [], None)
    fitted = fit_probe(encoded, data.labels, data.subjects, np.arange(300), config, Multiclass())
    said = Multiclass().predict(fitted.classifier, unseen.images)
    # The best there is: equal covariances make the posterior a softmax of 1.5 x.
    best = softmax(1.5 * unseen.images[:, :3], axis=1)
    assert accuracy_score(unseen.labels, said.argmax(1)) > (
        accuracy_score(unseen.labels, best.argmax(1)) - 0.02
    )
    assert log_loss(unseen.labels, said) < log_loss(unseen.labels, best) + 0.05


def test_a_temperature_mends_overconfidence_and_keeps_the_order() -> None:
    data, unseen = Blobs(40), Blobs(2000, 1)
    task = Multiclass()
    sure = task.fit(data.images, data.labels, 1e4)
    before = task.predict(sure, unseen.images)
    held_out = Blobs(500, 2)
    scores = task.scores(sure, held_out.images)
    task.calibrate(sure, held_out.labels, scores, np.ones(500))
    after = task.predict(sure, unseen.images)
    assert log_loss(unseen.labels, after) < log_loss(unseen.labels, before)
    assert evaluate_many(unseen.labels, after, np.ones((1, 2000)))["ece"][0] < 0.05
    np.testing.assert_array_equal(after.argmax(1), before.argmax(1))


def test_a_number_is_predicted_by_the_ridge_that_cross_validation_chose() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(120, 5))
    truth = 40 + 3 * images[:, 0] - images[:, 1] + 0.1 * rng.normal(size=120)
    config = ProbeConfig(regularisation=(1e-4, 1e-2, 10.0), folds=4)
    subjects = np.repeat(np.arange(60), 2).astype(str)
    fitted = fit_probe(
        ProbeFeatures(images, [], None), truth, subjects, np.arange(100), config, Regression()
    )
    assert fitted.regularisation == 10.0
    assert fitted.selection_score > 0.99
    # Three quarters of the images fitted the held-out models, and the last shrinks as they did.
    expected = Ridge(alpha=1 / 7.5).fit(images[:100], truth[:100])
    np.testing.assert_allclose(
        Regression().predict(fitted.classifier, images[100:]), expected.predict(images[100:])
    )


def test_with_very_many_labels_one_held_out_fold_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medvq.method.probe._MANY", 200)
    data = Blobs(300)
    fitted_on: list[int] = []

    class Counting(Multiclass):
        def fit(self, images: Floats, truth: NDArray[np.int64], regularisation: float) -> object:
            fitted_on.append(len(images))
            return super().fit(images, truth, regularisation)

    config = ProbeConfig(regularisation=(1e-2, 1.0), folds=3)
    encoded = ProbeFeatures(data.images, [], None)
    fit_probe(encoded, data.labels, data.subjects, np.arange(300), config, Counting())
    assert fitted_on == [200, 200, 300]
