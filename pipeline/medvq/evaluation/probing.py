"""Judge a feature set by the probes that are fitted on it, one for each label subset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from medvq.config import ProbeConfig
from medvq.evaluation.intervals import (
    Floats,
    Resampled,
    interval,
    resample,
    subject_weights,
)
from medvq.evaluation.label_scores import score_parts
from medvq.evaluation.metrics import range_of
from medvq.evaluation.probe_data import ProbeData, Rows
from medvq.method.probe import CLEAN_WEIGHT, FittedProbe, ProbeFeatures, fit_probe
from medvq.method.targets import Truth
from medvq.summaries import Interval, LabelScores, ProbeRow, Validation

_CONSTANT = 1e-3
"""Range of predictions, in standard deviations of the truth, below which they are one answer."""


@dataclass(frozen=True)
class FeatureSetResult:
    """What the probes of one feature set reached.

    Attributes
    ----------
    row : metrics with intervals.
    metrics : by name, of every label subset.
    predictions : one row per judged image and label subset.
    probes : of each label subset; of cross-validation the one to be used on other images.
    """

    row: ProbeRow
    metrics: dict[str, Resampled]
    predictions: pd.DataFrame
    probes: list[FittedProbe]

    def renamed(self, name: str) -> FeatureSetResult:
        """Return the same result under another name of the feature set."""
        predictions = self.predictions.assign(features=name)
        return replace(self, row=replace(self.row, features=name), predictions=predictions)


class ProbeJudge:
    """Fits probes on label subsets and judges them on the test split.

    All feature sets share label subsets and bootstrap resamples, so that differences are paired.

    Parameters
    ----------
    keys : the key columns of the feature store.
    classes : names of the classes.

    Attributes
    ----------
    subsets : rows that the probes are fitted on.
    repeats : how many values each metric has, one for each label subset.
    """

    def __init__(
        self, keys: pd.DataFrame, classes: Sequence[str], config: ProbeConfig, seed: int
    ) -> None:
        self.data = ProbeData.from_keys(keys)
        self.subsets: list[Rows] = self.data.label_subsets(config, seed)
        self.classes = classes
        self.repeats = len(self.subsets)
        self._judge_on(self.data.test, keys, config.bootstrap, seed)

    def _judge_on(self, rows: Rows, keys: pd.DataFrame, resamples: int, seed: int) -> None:
        """Draw the resamples of the judged images."""
        self._judged = {
            "image_id": keys["image_id"].to_numpy()[rows],
            "subject_id": keys["subject_id"].to_numpy()[rows],
            self.data.task.truth_column: self.data.truth[rows],
        }
        self._subject_weights = subject_weights(self.data.subjects[rows], resamples, seed)

    def judge(self, name: str, features: ProbeFeatures, config: ProbeConfig) -> FeatureSetResult:
        """Fit a probe on each label subset and judge them, as the feature set ``name``."""
        data, task = self.data, self.data.task
        truth, images = data.truth[data.test], features.images[data.test]
        probes = [
            fit_probe(features, data.truth, data.subjects, rows, config, task)
            for rows in self.subsets
        ]
        predicted = [task.predict(probe.classifier, images) for probe in probes]

        def evaluate(subset: int, weights: Floats) -> dict[str, Floats]:
            return task.evaluate(truth, predicted[subset], probes[subset].threshold, weights)

        metrics = resample(evaluate, len(probes), self._subject_weights)
        row = ProbeRow(
            features=name,
            metrics={metric: interval(metrics[metric], *range_of(metric)) for metric in metrics},
            validation=self._validate(features, probes),
            recall=task.recall(truth, predicted, self.classes),
        )
        tables = [
            self._table(name, number, config, task.columns(values, probe.threshold))
            for number, (values, probe) in enumerate(zip(predicted, probes, strict=True))
        ]
        return FeatureSetResult(row, metrics, pd.concat(tables), probes)

    def label_scores(
        self, judged: FeatureSetResult, features: ProbeFeatures, config: ProbeConfig, seed: int
    ) -> LabelScores | None:
        """Judge the feature set of ``judged`` on parts of its labels, see :mod:`label_scores`.

        None where label subsets are not drawn at random.
        """
        if config.label_subsets != "random":
            return None
        data, task = self.data, self.data.task
        truth, images = data.truth[data.test], features.images[data.test]

        def score(rows: Rows) -> float:
            probe = fit_probe(features, data.truth, data.subjects, rows, config, task)
            predicted = task.predict(probe.classifier, images)
            metrics = task.evaluate(truth, predicted, probe.threshold, np.ones((1, len(truth))))
            return float(metrics[task.headline][0])

        scores = judged.metrics[task.headline].cells[0]
        return score_parts(data, self.subsets, scores, config.label_fraction, seed, score)

    def gives_one_answer(self, probe: FittedProbe, features: ProbeFeatures) -> bool:
        """Say whether what ``probe`` predicts hardly varies, beside how much the truth does."""
        data, task = self.data, self.data.task
        spread = np.ptp(task.predict(probe.classifier, features.images), axis=0).max()
        return bool(spread < _CONSTANT * data.truth[task.known(data.truth)].std())

    def difference(self, first: FeatureSetResult, second: FeatureSetResult) -> Interval:
        """Return by how much the headline metric of one feature set exceeds that of another."""
        headline = self.data.task.headline
        return interval(first.metrics[headline] - second.metrics[headline])

    def _validate(self, features: ProbeFeatures, probes: list[FittedProbe]) -> Validation:
        """Return the validation score on validation images, mean over label subsets.

        Images that an official label subset holds are left out where its probe is judged.
        """
        data, task = self.data, self.data.task

        def score(images: Floats) -> float:
            scores = []
            for probe, subset in zip(probes, self.subsets, strict=True):
                rows = np.setdiff1d(data.validation, subset)
                scores.append(
                    task.validation_score(
                        data.truth[rows], task.scores(probe.classifier, images[rows])
                    )
                )
            return float(np.mean(scores))

        clean = score(features.images)
        if features.swapped is None:
            return Validation(clean, None, clean)
        swapped = score(features.swapped)
        return Validation(clean, swapped, CLEAN_WEIGHT * clean + (1 - CLEAN_WEIGHT) * swapped)

    def _table(
        self, name: str, subset: int, config: ProbeConfig, columns: dict[str, Truth | float]
    ) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "features": name,
                "label_fraction": config.label_fraction,
                "label_subset": subset,
                **self._judged,
                **columns,
            }
        )
