"""What a linear probe predicts: one of two classes, one of several, or a number.

Whatever differs between the three is a method of :class:`Target`, so that the probe, its label
subsets and its tables are written once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import balanced_accuracy_score, r2_score, roc_auc_score

from medvq.errors import UserError
from medvq.method.logistic import fit_path

Floats = NDArray[np.float64]
Truth = NDArray[Any]


class Target(Protocol):
    """The kind of a prediction, and how a linear model of it is fitted.

    What has a default here is that of classes. ``truth`` is int64 (N,) for classes, -1 where
    unknown, and float64 (N,) for numbers, NaN where unknown. ``images`` are features, (N, D).
    """

    truth_column: ClassVar[str] = "label"  # name of the column of a table that holds the truth

    def select_truth(self, labels: NDArray[np.int64], numbers: Floats) -> Truth:
        """Return that of the two which is to be predicted."""
        return labels

    def known(self, truth: Truth) -> NDArray[np.bool_]:
        """Return which images have a truth."""
        return np.asarray(truth >= 0)

    def strata(self, truth: Truth) -> NDArray[np.int64]:
        """Return the groups within which subsets and folds are drawn."""
        return truth

    def check_split(self, name: str, truth: Truth, classes: int) -> None:
        """Raise a :class:`UserError` where the split ``name`` with this known truth is unusable.

        ``classes`` is the number of different values in the known truth of all splits.
        """
        if len(np.unique(truth)) != classes:
            raise UserError(f"the {name} split has not every class")

    def fit(self, images: Floats, truth: Truth, regularisation: float) -> Any:
        """Fit a scikit-learn model; ``regularisation`` is scikit-learn's inverse strength ``C``."""

    def fit_path(
        self,
        images: Floats,
        truth: Truth,
        parts: Sequence[NDArray[np.intp]],
        strengths: Sequence[float],
    ) -> Iterator[list[Any]]:
        """Yield for each of ``strengths``, which are values of ``C``, a model of each part.

        Parts are given by their rows.
        """
        for strength in strengths:
            yield [self.fit(images[rows], truth[rows], strength) for rows in parts]

    def scores(self, model: Any, images: Floats) -> Floats:
        """Return what the next three methods take: (N,), or (N, K) for K > 2 classes."""

    def selection_score(self, truth: Truth, scores: Floats) -> float:
        """Return the score by which ``C`` is chosen, higher is better."""
        return self.validation_score(truth, scores)

    def validation_score(self, truth: Truth, scores: Floats) -> float:
        """Return the score by which feature sets are compared, higher is better."""

    def calibrate(self, model: Any, truth: Truth, scores: Floats, weights: Floats) -> None:
        """Calibrate ``model`` in place by images that it was not fitted on, weighted by (N,)."""
        return

    def threshold(self, truth: Truth) -> float:
        """Return the decision threshold that suits the labels ``truth``; 0 where none is used."""
        return 0.0

    def predict(self, model: Any, images: Floats) -> Floats:
        """Return probabilities of class 1 (N,) or of every class (N, K), or numbers (N,)."""

    def columns(self, predicted: Floats, threshold: float | Floats) -> dict[str, Truth | float]:
        """Return the columns that a table shows of what :meth:`predict` returned."""


class Binary(Target):
    """One of two classes, by logistic regression.

    ``C`` is chosen by the log loss: the AUROC of forty held-out images moves in steps and ties.
    Probabilities are calibrated by a slope and an intercept (Platt, Advances in Large Margin
    Classifiers, 1999, 61). The threshold is the share of class 1 among the labels, where a
    calibrated model balances sensitivity and specificity best.
    """

    def check_split(self, name: str, truth: Truth, classes: int) -> None:
        if len(np.unique(truth)) < 2:
            raise UserError(f"the {name} split has images of one class only")

    def fit(self, images: Floats, truth: Truth, regularisation: float) -> LogisticRegression:
        classifier = LogisticRegression(
            C=regularisation, solver="newton-cholesky", tol=1e-4, max_iter=200
        )
        return classifier.fit(images, truth)

    def fit_path(
        self,
        images: Floats,
        truth: Truth,
        parts: Sequence[NDArray[np.intp]],
        strengths: Sequence[float],
    ) -> Iterator[list[LogisticRegression]]:
        paths = fit_path(images, truth, parts, strengths)
        for strength, path in zip(strengths, paths, strict=True):
            if path is None:
                yield [self.fit(images[rows], truth[rows], strength) for rows in parts]
            else:
                yield [_classifier(weights, strength) for weights in path]

    def scores(self, model: LogisticRegression, images: Floats) -> Floats:
        # What decision_function returns, whose checks take longer than the product.
        return np.asarray(images @ model.coef_[0] + model.intercept_[0])

    def selection_score(self, truth: Truth, scores: Floats) -> float:
        return -float(np.logaddexp(0, np.where(truth == 1, -scores, scores)).mean())

    def validation_score(self, truth: Truth, scores: Floats) -> float:
        return float(roc_auc_score(truth, scores))

    def calibrate(
        self, model: LogisticRegression, truth: Truth, scores: Floats, weights: Floats
    ) -> None:
        spread = float(scores.std()) or 1.0
        sigmoid = LogisticRegression().fit(scores[:, None] / spread, truth, sample_weight=weights)
        slope = float(sigmoid.coef_[0, 0]) / spread
        if slope <= 0:
            # Scores that rank held-out images backwards carry no information to calibrate.
            slope = 1e-6
        model.coef_ = model.coef_ * slope
        model.intercept_ = model.intercept_ * slope + sigmoid.intercept_

    def threshold(self, truth: Truth) -> float:
        return float(truth.mean())

    def predict(self, model: LogisticRegression, images: Floats) -> Floats:
        return np.asarray(model.predict_proba(images)[:, 1])

    def columns(self, predicted: Floats, threshold: float | Floats) -> dict[str, Truth | float]:
        return {"probability": predicted, "threshold": threshold}


def _classifier(weights: Floats, strength: float) -> LogisticRegression:
    """Return scikit-learn's model with these coefficients and, last, this intercept."""
    model = LogisticRegression(C=strength)
    model.classes_, model.n_features_in_ = np.arange(2), len(weights) - 1
    model.coef_, model.intercept_ = weights[None, :-1], weights[-1:]
    return model


class Multiclass(Target):
    """One of several classes, by multinomial logistic regression.

    ``C`` is chosen by balanced accuracy; one temperature, which divides all scores, calibrates the
    probabilities (Guo et al., ICML 2017, arXiv 1706.04599).
    """

    def fit(self, images: Floats, truth: Truth, regularisation: float) -> LogisticRegression:
        # Newton's Hessian has (D K)^2 entries; single precision halves the time of L-BFGS.
        classifier = LogisticRegression(C=regularisation, tol=1e-3, max_iter=200)
        return classifier.fit(images.astype(np.float32), truth)

    def scores(self, model: LogisticRegression, images: Floats) -> Floats:
        return np.asarray(model.decision_function(images.astype(np.float32)), np.float64)

    def validation_score(self, truth: Truth, scores: Floats) -> float:
        return float(balanced_accuracy_score(truth, scores.argmax(1)))

    def calibrate(
        self, model: LogisticRegression, truth: Truth, scores: Floats, weights: Floats
    ) -> None:
        def loss(log_temperature: float) -> float:
            log_probability = log_softmax(scores / np.exp(log_temperature), axis=1)
            likelihood = log_probability[np.arange(len(truth)), truth]
            return -float(np.average(likelihood, weights=weights))

        temperature = float(np.exp(minimize_scalar(loss, bounds=(-5, 10), method="bounded").x))
        model.coef_ = model.coef_ / temperature
        model.intercept_ = model.intercept_ / temperature

    def predict(self, model: LogisticRegression, images: Floats) -> Floats:
        return np.asarray(model.predict_proba(images), np.float64)

    def columns(self, predicted: Floats, threshold: float | Floats) -> dict[str, Truth | float]:
        return {"predicted": predicted.argmax(1), "probability": predicted.max(1)}


class Regression(Target):
    """A number, by ridge regression with the penalty ``1 / C``, which is chosen by R^2."""

    truth_column: ClassVar[str] = "target"

    def select_truth(self, labels: NDArray[np.int64], numbers: Floats) -> Truth:
        return numbers

    def known(self, truth: Truth) -> NDArray[np.bool_]:
        return np.asarray(np.isfinite(truth))

    def strata(self, truth: Truth) -> NDArray[np.int64]:
        return np.zeros(len(truth), np.int64)

    def check_split(self, name: str, truth: Truth, classes: int) -> None:
        if len(truth) < 2:
            raise UserError(f"the {name} split has fewer than two images with a number")

    def fit(self, images: Floats, truth: Truth, regularisation: float) -> Ridge:
        return Ridge(alpha=1 / regularisation).fit(images, truth)

    def scores(self, model: Ridge, images: Floats) -> Floats:
        return self.predict(model, images)

    def validation_score(self, truth: Truth, scores: Floats) -> float:
        return float(r2_score(truth, scores))

    def predict(self, model: Ridge, images: Floats) -> Floats:
        return np.asarray(model.predict(images))

    def columns(self, predicted: Floats, threshold: float | Floats) -> dict[str, Truth | float]:
        return {"predicted": predicted}
