"""How each kind of prediction is judged: the metrics of its rows and the one they compare by."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from medvq.evaluation import metrics
from medvq.method import targets
from medvq.method.targets import Target

Floats = NDArray[np.float64]


class Task(Target, Protocol):
    """A target and how predictions of it are judged.

    Attributes
    ----------
    metrics : names of what :meth:`evaluate` returns.
    headline : the one of them that rows are compared by.
    """

    metrics: ClassVar[tuple[str, ...]]
    headline: ClassVar[str]

    def evaluate(
        self, truth: NDArray[Any], predicted: Floats, threshold: float, weights: Floats
    ) -> dict[str, Floats]:
        """Return the metrics under weights (B, N), each (B,)."""

    def recall(
        self, truth: NDArray[Any], predicted: list[Floats], classes: list[str]
    ) -> dict[str, float]:
        """Return the share of each class that is called by its name, mean over predictions.

        Empty where there are not several classes.
        """


class Binary(targets.Binary):
    """One of two classes; rows are compared by AUROC."""

    metrics: ClassVar[tuple[str, ...]] = metrics.METRICS + metrics.PRIOR_SHIFT
    headline: ClassVar[str] = "auroc"

    def evaluate(
        self, truth: NDArray[Any], predicted: Floats, threshold: float, weights: Floats
    ) -> dict[str, Floats]:
        # The threshold is the drawn prevalence, which is that of the calibrated probabilities.
        return metrics.evaluate(
            truth, predicted, threshold, weights
        ) | metrics.evaluate_prior_shift(truth, predicted, threshold, weights)

    def recall(
        self, truth: NDArray[Any], predicted: list[Floats], classes: list[str]
    ) -> dict[str, float]:
        return {}


class Multiclass(targets.Multiclass):
    """One of several classes; rows are compared by accuracy."""

    metrics: ClassVar[tuple[str, ...]] = metrics.MANY_CLASSES
    headline: ClassVar[str] = "accuracy"

    def evaluate(
        self, truth: NDArray[Any], predicted: Floats, threshold: float, weights: Floats
    ) -> dict[str, Floats]:
        return metrics.evaluate_many(truth, predicted, weights)

    def recall(
        self, truth: NDArray[Any], predicted: list[Floats], classes: list[str]
    ) -> dict[str, float]:
        called = np.stack([p.argmax(1) for p in predicted])
        return {name: float((called[:, truth == k] == k).mean()) for k, name in enumerate(classes)}


class Regression(targets.Regression):
    """A number; rows are compared by R^2."""

    metrics: ClassVar[tuple[str, ...]] = metrics.NUMBER
    headline: ClassVar[str] = "r2"

    def evaluate(
        self, truth: NDArray[Any], predicted: Floats, threshold: float, weights: Floats
    ) -> dict[str, Floats]:
        return metrics.evaluate_number(truth, predicted, weights)

    def recall(
        self, truth: NDArray[Any], predicted: list[Floats], classes: list[str]
    ) -> dict[str, float]:
        return {}
