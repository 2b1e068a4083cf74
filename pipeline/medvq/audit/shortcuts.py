"""What predicts the label without the object of the image: a classifier may learn it instead.

Each measure is the AUROC of a logistic regression in cross-validation grouped by subject, so that
no subject is judged by a model that saw another of its images. With more than two classes it is the
mean over one class against the rest. Its interval takes the predictions as fixed and the subjects
as sampled (DeLong's, with the images of a subject kept together [2]_). On the frame and the
position of radiographs as a source of such shortcuts see [1]_.

References
----------
.. [1] Zech et al.: Variable generalization performance of a deep learning model to detect pneumonia
   in chest radiographs. PLoS Medicine 15 (2018) e1002683.
.. [2] Obuchowski: Nonparametric analysis of clustered ROC curve data. Biometrics 53 (1997) 567-578.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from threadpoolctl import threadpool_limits

Folds = Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]]

WARNING = 0.70
"""AUROC above which a shortcut is warned of; a convention, since no such line is exact."""
MIN_SUBJECTS = 10
"""Of a class, below which an AUROC would be noise."""
_FOLDS = 5
# Images that a measure is taken on: more change its second digit no longer.
_MAX_IMAGES = 10_000
# Columns up to which squares and products are added: of more they would outnumber the images.
_MAX_EXPANDED = 12
# Categories of a column that are told apart, the most frequent ones.
_MAX_CATEGORIES = 20
# Strong regularisation of standardised features, since there may be 200 of few images.
_C = 0.01
_NORMAL_95 = 1.96


@dataclass(frozen=True)
class ShortcutResult:
    """How well something predicts a target: AUROC with 95% interval, or why there is none."""

    auroc: float | None
    reason: str = ""
    interval: tuple[float, float] | None = None


def measure_shortcuts(
    tables: Mapping[str, pd.DataFrame],
    target: NDArray[Any],
    subjects: NDArray[Any],
    seed: int = 0,
) -> dict[str, ShortcutResult]:
    """Measure how well each of ``tables`` predicts ``target``.

    Parameters
    ----------
    tables : N rows each; columns of numbers (NaN where there is none) or of categories.
    target : shape (N,), a class per row. Classes of too few subjects are left out.
    subjects : shape (N,), what the folds keep together.
    seed : of the sample that stands for more than 10,000 rows.
    """
    per_class = pd.Series(subjects).groupby(target).nunique()
    classes = per_class.index[per_class >= MIN_SUBJECTS]
    if len(classes) < 2:
        reason = f"fewer than two groups of {MIN_SUBJECTS} subjects or more"
        return dict.fromkeys(tables, ShortcutResult(None, reason))
    rows = np.flatnonzero(np.isin(target, classes))
    if len(rows) > _MAX_IMAGES:
        rows = np.sort(np.random.default_rng(seed).choice(rows, _MAX_IMAGES, replace=False))
    truth, groups = target[rows], subjects[rows]
    folds = list(StratifiedGroupKFold(_FOLDS).split(truth, truth, groups))
    return {
        name: _measure(table.iloc[rows], truth, groups, folds) for name, table in tables.items()
    }


def _measure(
    table: pd.DataFrame, truth: NDArray[Any], subjects: NDArray[Any], folds: Folds
) -> ShortcutResult:
    table = table.loc[:, (table.nunique(dropna=False) > 1).to_numpy()]
    if table.shape[1] == 0:
        return ShortcutResult(None, "the same for every image, or not known")
    classes = np.unique(truth)
    binary = len(classes) == 2
    solver = "newton-cholesky" if binary else "lbfgs"
    model = LogisticRegression(C=_C, tol=1e-3, max_iter=500, solver=solver)
    # The threads of BLAS spin while they wait for each other, which costs more than they give.
    with threadpool_limits(1):
        probability = cross_val_predict(
            model, _design_matrix(table), truth, cv=folds, method="predict_proba"
        )
    if binary:
        probability, classes = probability[:, 1:], classes[1:]
    area, interval = auroc_with_interval(probability, truth[:, None] == classes, subjects)
    return ShortcutResult(area, interval=interval)


def auroc_with_interval(
    scores: NDArray[np.floating], positive: NDArray[np.bool_], subjects: NDArray[Any]
) -> tuple[float, tuple[float, float]]:
    """Return the area under the ROC curve, and its 95% interval over subjects.

    Where every pair is ranked correctly there is no spread to estimate the interval's width from,
    and it is a point.

    Parameters
    ----------
    scores, positive, subjects : of shape (N,); the first two (N, K) for the mean over K classes of
        each against the rest.

    >>> score, truth = np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])
    >>> auroc_with_interval(score, truth, np.arange(4))[0]
    0.75
    """
    scores, positive = scores.reshape(len(scores), -1), positive.reshape(len(scores), -1)
    pairs = [_influence(one, truth) for one, truth in zip(scores.T, positive.T, strict=True)]
    area = float(np.mean([share for share, _ in pairs]))
    influence = np.mean([change for _, change in pairs], axis=0)
    of_subject = np.bincount(np.unique(subjects, return_inverse=True)[1], influence)
    count = len(of_subject)
    error = np.sqrt(count / (count - 1) * np.sum(of_subject**2))
    if not 0 < area < 1:
        return area, (area, area)
    # On the logit scale the interval stays within 0 and 1.
    ends = expit(logit(area) + np.array([-1, 1]) * _NORMAL_95 * error / (area * (1 - area)))
    return area, (float(ends[0]), float(ends[1]))


def _influence(
    scores: NDArray[np.floating], positive: NDArray[np.bool_]
) -> tuple[float, NDArray[np.float64]]:
    """Return the share of pairs ranked correctly (ties by half), and each image's influence."""
    above = np.empty(len(scores))
    for group in (positive, ~positive):
        # How many of the other group lie below, by ranks among all and within the group.
        above[group] = rankdata(scores)[group] - rankdata(scores[group])
    negatives, positives = int((~positive).sum()), int(positive.sum())
    correct = np.where(positive, above / negatives, 1 - above / positives)
    area = float(correct[positive].mean())
    return area, (correct - area) / np.where(positive, positives, negatives)


def _design_matrix(table: pd.DataFrame) -> NDArray[np.float64]:
    """Return standardised columns: numbers, whether they are known, and indicators of categories.

    Squares and products of a few numbers are added, since too small may say as much as too large.
    """
    numbers = table.select_dtypes("number")
    columns = numbers.fillna(numbers.mean()).to_numpy(np.float64)
    if 0 < columns.shape[1] <= _MAX_EXPANDED:
        columns = StandardScaler().fit_transform(columns)
        columns = PolynomialFeatures(2, include_bias=False).fit_transform(columns)
    parts = [columns, numbers.isna().to_numpy(np.float64)]
    categories = table.select_dtypes(exclude="number")
    for column in (categories[name] for name in categories):
        common = column.value_counts().index[:_MAX_CATEGORIES]
        parts.append(column.to_numpy()[:, None] == common.to_numpy()[None, :])
    return np.asarray(StandardScaler().fit_transform(np.concatenate(parts, axis=1)))
