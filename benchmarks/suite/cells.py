"""The rows of one cell, a data set at a share of its labels, and how they are compared.

Test subjects, label subsets and trainings are crossed, see :mod:`medvq.evaluation.intervals`; a
difference is taken on the same of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import pandas as pd
from medvq.config import Config
from medvq.evaluation.intervals import (
    Resampled,
    average,
    cross,
    interval,
    mean_interval,
    resample,
    subject_weights,
)
from medvq.evaluation.metrics import binary_metrics, range_of, regression_metrics
from medvq.stages.probe import MEDVQ
from medvq.summaries import Interval, Validation
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """What one row reached: ``trainings`` probes, or one where all would be the same."""

    features: str
    trainings: int
    validation: Validation | None
    score: Resampled

    def interval(self, headline: str) -> Interval:
        """Return the mean and its 95% interval."""
        return interval(self.score, *range_of(headline))

    @property
    def mean(self) -> float:
        return float(self.score.cells.mean())


@dataclass(frozen=True)
class Cell:
    """The rows of a data set at a share of its labels, MedVQ's first where it is judged."""

    dataset: str
    label_fraction: float
    labels: int
    headline: str
    rows: list[Row]

    @property
    def medvq(self) -> Row | None:
        return next((row for row in self.rows if row.features == MEDVQ), None)

    @property
    def best_baseline(self) -> Row | None:
        """The baseline with the highest mean on the test split, which flatters it."""
        baselines = [row for row in self.rows if row.features != MEDVQ]
        return max(baselines, key=lambda row: row.mean, default=None)

    @property
    def lead(self) -> Resampled | None:
        """MedVQ's score less that of the best baseline."""
        medvq, baseline = self.medvq, self.best_baseline
        return medvq.score - baseline.score if medvq and baseline else None


HEADLINES: dict[str, Callable[[pd.DataFrame, Floats], Floats]] = {
    "auroc": lambda table, weights: binary_metrics(
        table["label"].to_numpy(np.int64), table["probability"].to_numpy(), 0.5, weights
    )["auroc"],
    "accuracy": lambda table, weights: (
        weights @ (table["label"] == table["predicted"]).to_numpy(float) / weights.sum(1)
    ),
    "r2": lambda table, weights: regression_metrics(
        table["target"].to_numpy(), table["predicted"].to_numpy(), weights
    )["r2"],
}
"""Headline metrics of predictions under weights (B, N), each (B,)."""


def score(
    trainings: Sequence[Sequence[pd.DataFrame]], headline: str, config: Config, part: int = 0
) -> Resampled:
    """Judge the predictions of a row.

    Parameters
    ----------
    trainings : of each, for each label subset, the test images in one order.
    config : of the data set, so that its rows share the resamples of test subjects.
    part : of the data set; the test subjects of each are resampled independently.
    """
    subjects = trainings[0][0]["subject_id"].to_numpy(str)
    weights = subject_weights(subjects, config.probe.bootstrap, config.seed + part)

    def of_training(subsets: Sequence[pd.DataFrame]) -> Resampled:
        def compute(number: int, weights: Floats) -> dict[str, Floats]:
            return {headline: HEADLINES[headline](subsets[number], weights)}

        return resample(compute, len(subsets), weights)[headline]

    return cross([of_training(subsets) for subsets in trainings])


def mean_of_parts(parts: Sequence[Cell]) -> Cell:
    """Return the mean of the cells of a data set's parts, which have the same rows."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    labels = round(np.mean([part.labels for part in parts]))
    return replace(
        first, labels=labels, rows=list(map(_mean_row, zip(*(p.rows for p in parts), strict=True)))
    )


def _mean_row(rows: Sequence[Row]) -> Row:
    names = {(row.features, row.trainings) for row in rows}
    assert len(names) == 1, f"parts of a data set have other rows: {names}"
    scores = [row.validation for row in rows if row.validation]
    validation = mean_validation(scores) if scores else None
    return replace(rows[0], validation=validation, score=average([row.score for row in rows]))


def mean_validation(scores: Sequence[Validation]) -> Validation:
    """Return the mean of validation scores; ``swapped`` is that of those that have it."""
    swapped = [score.swapped for score in scores if score.swapped is not None]
    return Validation(
        float(np.mean([score.clean for score in scores])),
        float(np.mean(swapped)) if swapped else None,
        float(np.mean([score.score for score in scores])),
    )


def by_data_set(cells: Sequence[Cell]) -> list[tuple[str, list[Cell]]]:
    """Return the cells of each data set."""
    return [(name, list(part)) for name, part in groupby(cells, lambda cell: cell.dataset)]


def mean_lead(cells: Sequence[Cell]) -> Interval | None:
    """Return the mean over data sets of MedVQ's lead, which is that over a set's own cells."""
    of_sets = [[lead for cell in part if (lead := cell.lead)] for _, part in by_data_set(cells)]
    means = [interval(average(leads)) for leads in of_sets if leads]
    return mean_interval(means) if means else None
