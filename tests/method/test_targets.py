"""Models of several classes and of numbers, against scikit-learn and closed forms."""

import numpy as np
import pytest
from medvq.config import ProbeConfig
from medvq.errors import UserError
from medvq.evaluation.metrics import multiclass_metrics
from medvq.method.probe import ProbeFeatures, fit_probe
from medvq.method.targets import Binary, Multiclass, Regression, Target
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.linear_model import Ridge
from sklearn.metrics import accuracy_score, log_loss

Floats = NDArray[np.float64]


class Blobs:
    """Three classes around the corners of a triangle; every image its own subject."""

    def __init__(self, number: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(0, 3, number)
        corners = 1.5 * np.eye(3)[self.labels]
        self.images = np.c_[corners + rng.normal(size=(number, 3)), rng.normal(size=(number, 4))]
        self.subjects = np.arange(number).astype(str)


def test_three_classes_are_predicted_as_well_as_possible_and_calibrated() -> None:
    data, unseen = Blobs(300), Blobs(3000, 1)
    config = ProbeConfig(regularisation=(1e-3, 1.0, 1e3), folds=3)
    features = ProbeFeatures(data.images, [], None)
    fitted = fit_probe(features, data.labels, data.subjects, np.arange(300), config, Multiclass())
    probability = Multiclass().predict(fitted.classifier, unseen.images)
    # The best there is: equal covariances make the posterior a softmax of 1.5 x.
    best = softmax(1.5 * unseen.images[:, :3], axis=1)
    assert accuracy_score(unseen.labels, probability.argmax(1)) > (
        accuracy_score(unseen.labels, best.argmax(1)) - 0.02
    )
    assert log_loss(unseen.labels, probability) < log_loss(unseen.labels, best) + 0.05


def test_a_temperature_mends_overconfidence_and_keeps_the_order() -> None:
    data, unseen = Blobs(40), Blobs(2000, 1)
    target = Multiclass()
    sure = target.fit(data.images, data.labels, 1e4)
    before = target.predict(sure, unseen.images)
    held_out = Blobs(500, 2)
    scores = target.scores(sure, held_out.images)
    target.calibrate(sure, held_out.labels, scores, np.ones(500))
    after = target.predict(sure, unseen.images)
    assert log_loss(unseen.labels, after) < log_loss(unseen.labels, before)
    assert multiclass_metrics(unseen.labels, after, np.ones((1, 2000)))["ece"][0] < 0.05
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
    # Three quarters of the images fitted the held-out models, and the last shrinks as they did.
    expected = Ridge(alpha=1 / 7.5).fit(images[:100], truth[:100])
    np.testing.assert_allclose(
        Regression().predict(fitted.classifier, images[100:]), expected.predict(images[100:])
    )


def test_with_very_many_labels_one_held_out_fold_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medvq.method.probe.MANY_LABELS", 200)
    data = Blobs(300)
    fitted_on: list[int] = []

    class Counting(Multiclass):
        def fit(self, images: Floats, truth: NDArray[np.int64], regularisation: float) -> object:
            fitted_on.append(len(images))
            return super().fit(images, truth, regularisation)

    config = ProbeConfig(regularisation=(1e-2, 1.0), folds=3)
    features = ProbeFeatures(data.images, [], None)
    fit_probe(features, data.labels, data.subjects, np.arange(300), config, Counting())
    assert fitted_on == [200, 200, 300]


@pytest.mark.parametrize(
    ("target", "known", "strata", "column"),
    [
        (Binary(), [True, False, True], [1, -1, 0], "label"),
        (Multiclass(), [True, False, True], [1, -1, 0], "label"),
        (Regression(), [False, True, True], [0, 0, 0], "target"),
    ],
)
def test_the_truth_of_a_target(
    target: Target, known: list[bool], strata: list[int], column: str
) -> None:
    truth = target.select_truth(np.array([1, -1, 0]), np.array([np.nan, 2.0, 0.5]))
    assert target.known(truth).tolist() == known
    assert target.strata(truth).tolist() == strata
    assert target.truth_column == column


@pytest.mark.parametrize(
    ("target", "truth", "message"),
    [
        (Binary(), [1, 1], "the test split has images of one class only"),
        (Multiclass(), [0, 2], "the test split has not every class"),
        (Regression(), [0.5], "the test split has fewer than two images with a number"),
    ],
)
def test_a_split_that_cannot_be_judged_is_refused(
    target: Target, truth: list[float], message: str
) -> None:
    target.check_split("train", np.array([0, 1]), 2)
    with pytest.raises(UserError, match=message):
        target.check_split("test", np.array(truth), 3 if isinstance(target, Multiclass) else 2)
