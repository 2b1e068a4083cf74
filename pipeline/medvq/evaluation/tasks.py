"""How each kind of prediction is judged, and what there is to predict in a data set."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medvq.datasets.classes import plain
from medvq.errors import Notice, UserError
from medvq.evaluation import metrics
from medvq.method import targets
from medvq.method.targets import Target, Truth

Floats = NDArray[np.float64]


class Task(Target, Protocol):
    """A target and how predictions of it are judged; defaults are those of classes.

    Attributes
    ----------
    headline : the metric that rows are compared by.
    """

    headline: ClassVar[str]

    def name(self, number: str | None) -> str:
        """Return the name of the task; ``number`` is that of the number in the data set, if any."""
        return type(self).__name__.lower()

    def evaluate(
        self, truth: Truth, predicted: Floats, threshold: float | Floats, weights: Floats
    ) -> dict[str, Floats]:
        """Return the metrics under weights (B, N), each (B,); ``threshold`` may be (N,)."""

    def recall(
        self, truth: Truth, predicted: list[Floats], classes: Sequence[str]
    ) -> dict[str, float] | None:
        """Return the recall of each class, mean over predictions; None if not multiclass."""
        return None

    def truth_elsewhere(
        self, keys: pd.DataFrame, classes: Sequence[str], trained_classes: Sequence[str]
    ) -> Truth:
        """Return the truth of another data set, its classes numbered as the probe numbers them.

        Parameters
        ----------
        keys : the key columns of the other data set.
        classes, trained_classes : names of the classes of the other data set and of the probe's.
            They are matched by name, capitals, spaces and hyphens aside; or by number, as the probe
            numbers its classes by name, unless these are numbers themselves: that is told.

        Raises
        ------
        UserError
            A class is unknown to the probe.
        """
        names = {plain(name): number for number, name in enumerate(trained_classes)}
        counted = {str(number): number for number in names.values()}
        numbers = names if any(name.isdecimal() for name in names) else counted | names
        if unknown := [name for name in classes if plain(name) not in numbers]:
            raise UserError(
                f"the probe knows the classes {', '.join(trained_classes)}; {unknown[0]!r} is none "
                "of them: name the classes of this data set alike, or leave such labels empty"
            )
        if by_number := [name for name in classes if plain(name) not in names]:
            meant = ", ".join(f"'{n}' as {trained_classes[numbers[plain(n)]]}" for n in by_number)
            warnings.warn(Notice(f"classes are matched by number: {meant}"), stacklevel=2)
        matched = np.array([numbers[plain(name)] for name in classes] + [-1])
        return np.asarray(matched[_labels(keys)])


class Binary(targets.Binary, Task):
    """One of two classes; rows are compared by AUROC."""

    headline: ClassVar[str] = "auroc"

    def evaluate(
        self, truth: Truth, predicted: Floats, threshold: float | Floats, weights: Floats
    ) -> dict[str, Floats]:
        # The threshold is the prevalence of the labels, at which probabilities are calibrated.
        return metrics.binary_metrics(
            truth, predicted, threshold, weights
        ) | metrics.prior_shift_metrics(truth, predicted, threshold, weights)


class Multiclass(targets.Multiclass, Task):
    """One of several classes; rows are compared by accuracy."""

    headline: ClassVar[str] = "accuracy"

    def evaluate(
        self, truth: Truth, predicted: Floats, threshold: float | Floats, weights: Floats
    ) -> dict[str, Floats]:
        return metrics.multiclass_metrics(truth, predicted, weights)

    def recall(
        self, truth: Truth, predicted: list[Floats], classes: Sequence[str]
    ) -> dict[str, float] | None:
        called = np.stack([p.argmax(1) for p in predicted])
        return {name: float((called[:, truth == k] == k).mean()) for k, name in enumerate(classes)}


class Regression(targets.Regression, Task):
    """A number; rows are compared by R^2."""

    headline: ClassVar[str] = "r2"

    def name(self, number: str | None) -> str:
        return number or "target"

    def evaluate(
        self, truth: Truth, predicted: Floats, threshold: float | Floats, weights: Floats
    ) -> dict[str, Floats]:
        return metrics.regression_metrics(truth, predicted, weights)

    def truth_elsewhere(
        self, keys: pd.DataFrame, classes: Sequence[str], trained_classes: Sequence[str]
    ) -> Truth:
        return _numbers(keys)


TASKS: dict[str, Task] = {task.headline: task for task in (Binary(), Multiclass(), Regression())}
"""Tasks by their headline metric, which a summary names."""


def read_truth(keys: pd.DataFrame) -> tuple[Task, Truth]:
    """Return what there is to predict in a data set, and its truth.

    A number comes before labels. Truth is -1 or NaN where an image has none.

    Raises
    ------
    UserError
        The images have neither a number nor two classes.
    """
    labels, numbers = _labels(keys), _numbers(keys)
    classes = len(np.unique(labels[labels >= 0]))
    if np.isfinite(numbers).any():
        task: Task = Regression()
    elif classes == 0:
        raise UserError(
            "no probe: the images have neither labels nor a number to predict. Their features are "
            "in the feature store all the same"
        )
    elif classes == 1:
        raise UserError("the probe needs two classes; this data set has 1")
    else:
        task = Binary() if classes == 2 else Multiclass()
    return task, task.select_truth(labels, numbers)


def _labels(keys: pd.DataFrame) -> NDArray[np.int64]:
    return keys["label"].fillna(-1).to_numpy(np.int64)


def _numbers(keys: pd.DataFrame) -> Floats:
    return np.asarray(
        keys["target"] if "target" in keys else np.full(len(keys), np.nan), np.float64
    )
