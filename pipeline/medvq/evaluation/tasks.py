"""What a probe predicts: one of two classes, one of several, or a number.

A task says how a linear model is fitted and calibrated, what its choices are made by, and how it is
judged. All else (draws, cross-validation, bootstrap, baselines) is the same for all. Each has

- ``metrics``, the names of what ``evaluate`` answers, and ``headline``, the one that rows are
  compared by;
- ``fit``: a linear model of images (N, D); the regularisation is scikit-learn's C;
- ``scores``: of a model's images, what the three below take;
- ``score``: the figure that designs are compared by, higher is better;
- ``merit``: what C is chosen by, higher is better;
- ``calibrate``: mends a model in place by the scores of held-out images;
- ``threshold``: of the drawn labels, what ``evaluate`` is given;
- ``predict``: probabilities of class 1 (N,), of every class (N, K), or numbers (N,);
- ``evaluate``: the metrics under weights (B, N), each (B,).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import balanced_accuracy_score, r2_score, roc_auc_score

from medvq.evaluation import metrics

Floats = NDArray[np.float64]


class Binary:
    """Logistic regression, chosen by log loss, calibrated by a scale and a shift (Platt 1999).

    The AUROC of forty held-out images moves in steps and ties; their log loss tells the values of C
    apart.
    """

    metrics = metrics.METRICS + metrics.PRIOR_SHIFT
    headline = "auroc"

    def fit(self, images: Floats, truth: NDArray[Any], regularisation: float) -> LogisticRegression:
        classifier = LogisticRegression(
            C=regularisation, solver="newton-cholesky", tol=1e-4, max_iter=200
        )
        return classifier.fit(images, truth)

    def scores(self, model: LogisticRegression, images: Floats) -> Floats:
        return np.asarray(model.decision_function(images))

    def score(self, truth: NDArray[Any], scores: Floats) -> float:
        return float(roc_auc_score(truth, scores))

    def selection_score(self, truth: NDArray[Any], scores: Floats) -> float:
        return -float(np.logaddexp(0, np.where(truth == 1, -scores, scores)).mean())

    def calibrate(
        self, model: LogisticRegression, truth: NDArray[Any], scores: Floats, weights: Floats
    ) -> None:
        spread = float(scores.std()) or 1.0
        sigmoid = LogisticRegression().fit(scores[:, None] / spread, truth, sample_weight=weights)
        slope = float(sigmoid.coef_[0, 0]) / spread
        if slope <= 0:
            # Scores that rank held-out images backwards carry no information to calibrate.
            slope = 1e-6
        model.coef_ = model.coef_ * slope
        model.intercept_ = model.intercept_ * slope + sigmoid.intercept_

    def threshold(self, truth: NDArray[Any]) -> float:
        return float(truth.mean())

    def predict(self, model: LogisticRegression, images: Floats) -> Floats:
        return np.asarray(model.predict_proba(images)[:, 1])

    def evaluate(
        self, truth: NDArray[Any], predicted: Floats, threshold: float, weights: Floats
    ) -> dict[str, Floats]:
        # The threshold is the drawn prevalence, which is that of the calibrated probabilities.
        return metrics.evaluate(
            truth, predicted, threshold, weights
        ) | metrics.evaluate_prior_shift(truth, predicted, threshold, weights)


class Multiclass:
    """Multinomial logistic regression, chosen by balanced accuracy, calibrated by a temperature.

    Guo et al., On Calibration of Modern Neural Networks, ICML 2017: one number divides all scores.
    """

    metrics = metrics.MANY_CLASSES
    headline = "accuracy"

    def fit(self, images: Floats, truth: NDArray[Any], regularisation: float) -> LogisticRegression:
        # Newton's Hessian has (D K)^2 entries; single precision halves the time of L-BFGS.
        classifier = LogisticRegression(C=regularisation, tol=1e-3, max_iter=200)
        return classifier.fit(images.astype(np.float32), truth)

    def scores(self, model: LogisticRegression, images: Floats) -> Floats:
        return np.asarray(model.decision_function(images.astype(np.float32)), np.float64)

    def score(self, truth: NDArray[Any], scores: Floats) -> float:
        return float(balanced_accuracy_score(truth, scores.argmax(1)))

    def selection_score(self, truth: NDArray[Any], scores: Floats) -> float:
        return self.score(truth, scores)

    def calibrate(
        self, model: LogisticRegression, truth: NDArray[Any], scores: Floats, weights: Floats
    ) -> None:
        def loss(log_temperature: float) -> float:
            said = log_softmax(scores / np.exp(log_temperature), axis=1)
            return -float(np.average(said[np.arange(len(truth)), truth], weights=weights))

        temperature = float(np.exp(minimize_scalar(loss, bounds=(-5, 10), method="bounded").x))
        model.coef_ = model.coef_ / temperature
        model.intercept_ = model.intercept_ / temperature

    def threshold(self, truth: NDArray[Any]) -> float:
        return 0.0

    def predict(self, model: LogisticRegression, images: Floats) -> Floats:
        return np.asarray(model.predict_proba(images), np.float64)

    def evaluate(
        self, truth: NDArray[Any], predicted: Floats, threshold: float, weights: Floats
    ) -> dict[str, Floats]:
        return metrics.evaluate_many(truth, predicted, weights)


class Regression:
    """Ridge regression with the penalty 1 / C, chosen by R^2."""

    metrics = metrics.NUMBER
    headline = "r2"

    def fit(self, images: Floats, truth: NDArray[Any], regularisation: float) -> Ridge:
        return Ridge(alpha=1 / regularisation).fit(images, truth)

    def scores(self, model: Ridge, images: Floats) -> Floats:
        return np.asarray(model.predict(images))

    def score(self, truth: NDArray[Any], scores: Floats) -> float:
        return float(r2_score(truth, scores))

    def selection_score(self, truth: NDArray[Any], scores: Floats) -> float:
        return self.score(truth, scores)

    def calibrate(self, model: Ridge, truth: NDArray[Any], scores: Floats, weights: Floats) -> None:
        """A prediction is no probability: nothing is done."""

    def threshold(self, truth: NDArray[Any]) -> float:
        return 0.0

    def predict(self, model: Ridge, images: Floats) -> Floats:
        return np.asarray(model.predict(images))

    def evaluate(
        self, truth: NDArray[Any], predicted: Floats, threshold: float, weights: Floats
    ) -> dict[str, Floats]:
        return metrics.evaluate_number(truth, predicted, weights)


Task = Binary | Multiclass | Regression
