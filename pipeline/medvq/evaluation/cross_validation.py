"""Judge a feature set by repeated cross-validation of all labelled images, by subject."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medvq.config import ProbeConfig
from medvq.errors import UserError
from medvq.evaluation.intervals import Floats, interval, resample
from medvq.evaluation.label_subsets import draw_subset, partition_subjects
from medvq.evaluation.metrics import range_of
from medvq.evaluation.probe_data import ProbeData, Rows
from medvq.evaluation.probing import FeatureSetResult, ProbeJudge
from medvq.method.probe import FittedProbe, ProbeFeatures, fit_probe
from medvq.summaries import LabelScores, ProbeRow

# Scores of different probes have no common scale, so that images are ranked within a fold and the
# folds averaged; all else is computed on the predictions of all folds together, where few images
# bias it less (Forman and Scholz, SIGKDD Explorations 12, 2010, 49).
_OF_RANKS = ("auroc", "auprc")


@dataclass(frozen=True)
class OuterFold:
    """One fold of a partition.

    Attributes
    ----------
    fitted : rows of the label subset of the other folds.
    judged : rows of the fold.
    positions : of ``judged`` among the labelled rows.
    """

    fitted: Rows
    judged: Rows
    positions: Rows


class CrossValidationJudge(ProbeJudge):
    """Fits probes on label subsets of all folds but one and judges them on that one.

    All labelled images take part, whatever their split. Probes are fitted on images as they are,
    since random versions are stored of the training split alone, and swapped copies of the test
    split not at all. Folds, label subsets and bootstrap resamples are shared by all feature sets.
    """

    def __init__(
        self, keys: pd.DataFrame, classes: Sequence[str], config: ProbeConfig, seed: int
    ) -> None:
        self.data = ProbeData.from_keys(keys, check_splits=False)
        self.classes = classes
        self.repeats = config.repeats
        self._seed = seed
        self._check_classes(config.outer_folds)
        self.partitions = [self._partition(config, repeat) for repeat in range(self.repeats)]
        self.subsets = [fold.fitted for folds in self.partitions for fold in folds]
        self._judge_on(self.data.labelled, keys, config.bootstrap, seed)

    def judge(self, name: str, features: ProbeFeatures, config: ProbeConfig) -> FeatureSetResult:
        """Fit and judge a probe for each fold of each partition, as the feature set ``name``."""
        data, task = self.data, self.data.task
        features = ProbeFeatures(features.images, [], None)
        truth = data.truth[data.labelled]
        judged = [self._predict(features, folds, config) for folds in self.partitions]

        def evaluate(repeat: int, weights: Floats) -> dict[str, Floats]:
            predicted, thresholds = judged[repeat]
            pooled = task.evaluate(truth, predicted, thresholds, weights)
            if not set(_OF_RANKS) <= set(pooled):
                return pooled
            # Of a small fold a resample may have no image at all.
            with np.errstate(invalid="ignore"):
                ranked = [
                    task.evaluate(truth[p], predicted[p], thresholds[p], weights[:, p])
                    for p in (fold.positions for fold in self.partitions[repeat])
                ]
            return pooled | {name: _mean(ranked, name) for name in _OF_RANKS}

        metrics = resample(evaluate, self.repeats, self._subject_weights)
        row = ProbeRow(
            features=name,
            metrics={metric: interval(metrics[metric], *range_of(metric)) for metric in metrics},
            recall=task.recall(truth, [predicted for predicted, _ in judged], self.classes),
        )
        tables = [
            self._table(name, repeat, config, task.columns(predicted, thresholds))
            for repeat, (predicted, thresholds) in enumerate(judged)
        ]
        return FeatureSetResult(row, metrics, pd.concat(tables), [self._final(features, config)])

    def label_scores(
        self, judged: FeatureSetResult, features: ProbeFeatures, config: ProbeConfig, seed: int
    ) -> LabelScores | None:
        """Return None: labels are judged in every fold, and none is held back for all parts."""
        return None

    def _predict(
        self, features: ProbeFeatures, folds: list[OuterFold], config: ProbeConfig
    ) -> tuple[Floats, Floats]:
        """Return the prediction of each labelled image by the probe of its fold, and thresholds."""
        data, task = self.data, self.data.task
        probes = [
            fit_probe(features, data.truth, data.subjects, fold.fitted, config, task)
            for fold in folds
        ]
        parts = [
            task.predict(probe.classifier, features.images[fold.judged])
            for probe, fold in zip(probes, folds, strict=True)
        ]
        predicted = np.zeros((len(data.labelled), *parts[0].shape[1:]))
        thresholds = np.zeros(len(data.labelled))
        for probe, part, fold in zip(probes, parts, folds, strict=True):
            predicted[fold.positions], thresholds[fold.positions] = part, probe.threshold
        return predicted, thresholds

    def _final(self, features: ProbeFeatures, config: ProbeConfig) -> FittedProbe:
        """Fit the probe for other images, on a label subset of all labelled ones."""
        data = self.data
        rows = self._draw(data.labelled, config.label_fraction, 0)
        return fit_probe(features, data.truth, data.subjects, rows, config, data.task)

    def _partition(self, config: ProbeConfig, repeat: int) -> list[OuterFold]:
        labelled, subjects = self.data.labelled, self.data.subjects[self.data.labelled]
        strata = self.data.task.strata(self.data.truth[labelled])
        folds = partition_subjects(subjects, strata, config.outer_folds, (self._seed, repeat))
        return [
            OuterFold(
                self._draw(np.delete(labelled, positions), config.label_fraction, repeat),
                labelled[positions],
                positions,
            )
            for positions in folds
        ]

    def _draw(self, rows: Rows, fraction: float, repeat: int) -> Rows:
        """Draw a label subset from ``rows``."""
        strata = self.data.task.strata(self.data.truth[rows])
        seed = 1000 * self._seed + repeat
        return rows[draw_subset(self.data.subjects[rows], strata, fraction, seed)]

    def _check_classes(self, folds: int) -> None:
        """Raise a :class:`UserError` where a fold would be without a class."""
        data = self.data
        strata = data.task.strata(data.truth)
        _, first = np.unique(data.subjects[data.labelled], return_index=True)
        of_subject = strata[data.labelled][first]
        several = len(np.unique(strata[data.labelled])) > 1
        for label in np.unique(strata[data.labelled]):
            count = int((of_subject == label).sum())
            if count >= folds:
                continue
            what = f"class '{self.classes[label]}'" if several else "the number to predict"
            fewer = f"set probe.outer_folds={count} or fewer, " if count > 1 else ""
            raise UserError(
                f"{what} has {count} labelled subject{'s' * (count != 1)} (by the first image of "
                f"each), fewer than probe.outer_folds={folds}: {fewer}label more subjects, or "
                "leave it out"
            )


def _mean(folds: list[dict[str, Floats]], name: str) -> Floats:
    """Return the mean of a metric over the folds where images can be ranked, (B,).

    A resample may lack a class in a small fold.
    """
    defined = np.isfinite([fold["auroc"] for fold in folds])
    values = np.where(defined, [fold[name] for fold in folds], 0.0)
    with np.errstate(invalid="ignore"):
        return np.asarray(values.sum(0) / defined.sum(0))
