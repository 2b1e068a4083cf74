"""What tells the label without the object of the image: a classifier may learn it instead.

Each measure is the AUROC of a logistic regression in cross-validation grouped by subject, so that
no subject is judged by a model that saw another of its images. With more than two classes it is the
mean over one class against the rest. On the frame and the position of radiographs as a source of
such shortcuts see [1]_.

References
----------
.. [1] Zech et al.: Variable generalization performance of a deep learning model to detect pneumonia
   in chest radiographs. PLoS Medicine 15 (2018) e1002683.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from threadpoolctl import threadpool_limits

WARNING = 0.70
_FOLDS = 5
FEWEST_SUBJECTS = 10
"""Of a class, below which an AUROC would be noise."""
_MOST_IMAGES = 20_000
_FEW_COLUMNS = 12
_MOST_CATEGORIES = 20
_C = 0.01


@dataclass(frozen=True)
class Told:
    """How well something is told: an AUROC, or why there is none."""

    auroc: float | None
    reason: str = ""


def told(table: pd.DataFrame, target: NDArray[Any], subjects: NDArray[Any], seed: int = 0) -> Told:
    """How well ``target`` is told from ``table``.

    Parameters
    ----------
    table : N rows; columns of numbers (NaN where there is none) or of categories.
    target : shape (N,), a class per row.
    subjects : shape (N,), what the folds keep together.
    seed : of the sample that stands for more than 20,000 rows, of K classes 20,000 / (K - 1).
    """
    table = table.loc[:, (table.nunique(dropna=False) > 1).to_numpy()]
    if table.shape[1] == 0:
        return Told(None, "the same for every image, or not known")
    per_class = pd.Series(subjects).groupby(target).nunique()
    classes = per_class.index[per_class >= FEWEST_SUBJECTS]
    if len(classes) < 2:
        return Told(None, f"fewer than two groups of {FEWEST_SUBJECTS} subjects or more")
    rows = np.flatnonzero(np.isin(target, classes))
    # The work grows with the classes, of which each but one has coefficients of its own.
    most = _MOST_IMAGES // (len(classes) - 1)
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    truth = target[rows]
    # Newton's Hessian has the square of all coefficients.
    solver = "newton-cholesky" if len(classes) == 2 else "lbfgs"
    # The threads of BLAS spin while they wait for each other, which costs more than they give.
    with threadpool_limits(1):
        probability = cross_val_predict(
            LogisticRegression(C=_C, solver=solver, max_iter=300),
            _design(table.iloc[rows]),
            truth,
            groups=subjects[rows],
            cv=StratifiedGroupKFold(_FOLDS),
            method="predict_proba",
        )
    if len(classes) == 2:
        return Told(float(roc_auc_score(truth, probability[:, 1])))
    return Told(float(roc_auc_score(truth, probability, multi_class="ovr", average="macro")))


def _design(table: pd.DataFrame) -> NDArray[np.float64]:
    """Standardised columns: numbers, whether they are known, and which category it is; of a few
    numbers their squares and products too, since too small may tell as much as too large.
    """
    numbers = table.select_dtypes("number")
    columns = numbers.fillna(numbers.mean()).to_numpy(np.float64)
    if 0 < columns.shape[1] <= _FEW_COLUMNS:
        columns = StandardScaler().fit_transform(columns)
        columns = PolynomialFeatures(2, include_bias=False).fit_transform(columns)
    parts = [columns, numbers.isna().to_numpy(np.float64)]
    others = table.select_dtypes(exclude="number")
    for column in (others[name] for name in others):
        common = column.value_counts().index[:_MOST_CATEGORIES]
        parts.append(column.to_numpy()[:, None] == common.to_numpy()[None, :])
    return np.asarray(StandardScaler().fit_transform(np.concatenate(parts, axis=1)))
