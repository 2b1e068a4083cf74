"""The linear probe on drawn labels: regularisation, calibration and threshold from them alone.

Each drawn image is shown to the classifier as it is and in a few random versions. C is chosen by
cross-validation grouped by subject inside the draw, by the score 3/4 AUROC of the images as they
are and 1/4 AUROC of their acquisition-swapped copies: on images as they are alone, whatever reads
the equipment wins. The same held-out scores calibrate the probabilities (Platt 1999), which for a
linear classifier is a scale and a shift of its coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from pipeline.config import ProbeConfig
from pipeline.errors import UserError

Floats = NDArray[np.float64]
CLEAN_WEIGHT = 0.75


@dataclass(frozen=True)
class Encoded:
    """One encoding of all images and their versions.

    Attributes
    ----------
    images : (N, D), every image as it is.
    versions : random versions, each (N, D); rows that are not training images are unused.
    swapped : (N, D), acquisition-swapped copies; rows of test images are unused.
    """

    images: Floats
    versions: list[Floats]
    swapped: Floats


@dataclass(frozen=True)
class Fitted:
    """A calibrated probe.

    Attributes
    ----------
    classifier : its probabilities are calibrated.
    threshold : of the probability, for the metrics that need one: the drawn prevalence, which is
        where a calibrated classifier balances sensitivity and specificity best.
    regularisation : the chosen C.
    inner_score : the cross-validated score that chose it.
    """

    classifier: LogisticRegression
    threshold: float
    regularisation: float
    inner_score: float


def score(truth: NDArray[np.int64], clean: Floats, swapped: Floats) -> float:
    """3/4 AUROC on images as they are, 1/4 on their swapped copies."""
    on_clean, on_swapped = roc_auc_score(truth, clean), roc_auc_score(truth, swapped)
    return float(CLEAN_WEIGHT * on_clean + (1 - CLEAN_WEIGHT) * on_swapped)


def fit_probe(
    encoded: Encoded,
    labels: NDArray[np.int64],
    subjects: NDArray[np.str_],
    rows: NDArray[np.intp],
    config: ProbeConfig,
) -> Fitted:
    """Fit on the images in ``rows``; no other label is looked at.

    Raises
    ------
    UserError
        A class has too few subjects in the draw to cross-validate.
    """
    folds = _folds(labels[rows], subjects[rows], config.folds)
    best: tuple[float, float, Floats, Floats] | None = None
    for regularisation in config.regularisation:
        clean, swapped = np.zeros(len(rows)), np.zeros(len(rows))
        for fitted_on, held_out in folds:
            classifier = _fit(encoded, labels, rows[fitted_on], regularisation)
            clean[held_out] = classifier.decision_function(encoded.images[rows[held_out]])
            swapped[held_out] = classifier.decision_function(encoded.swapped[rows[held_out]])
        found = score(labels[rows], clean, swapped)
        if best is None or found > best[0]:
            best = (found, regularisation, clean, swapped)
    assert best is not None
    inner, regularisation, clean, swapped = best
    # C weighs a sum over images: with all of them a smaller one shrinks as the held-out fits did.
    classifier = _fit(encoded, labels, rows, regularisation * (1 - 1 / len(folds)))
    _calibrate(classifier, labels[rows], clean, swapped)
    return Fitted(classifier, float(labels[rows].mean()), regularisation, inner)


def _folds(
    labels: NDArray[np.int64], subjects: NDArray[np.str_], folds: int
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    fewest = min(len(np.unique(subjects[labels == label])) for label in np.unique(labels))
    if fewest < 2:
        raise UserError(
            "LABEL_FRACTION leaves a class with a single subject, too few to choose the "
            "regularisation by cross-validation; raise it"
        )
    splitter = StratifiedGroupKFold(min(folds, fewest), shuffle=True, random_state=0)
    split = list(splitter.split(labels, labels, subjects))
    # Grouping can leave a fold's training part with one class where classes are tiny.
    return [(a, b) for a, b in split if len(np.unique(labels[a])) > 1]


def _fit(
    encoded: Encoded, labels: NDArray[np.int64], rows: NDArray[np.intp], regularisation: float
) -> LogisticRegression:
    shown = np.concatenate([encoded.images[rows], *(v[rows] for v in encoded.versions)])
    truth = np.tile(labels[rows], 1 + len(encoded.versions))
    classifier = LogisticRegression(
        C=regularisation, solver="newton-cholesky", tol=1e-4, max_iter=200
    )
    return classifier.fit(shown, truth)


def _calibrate(
    classifier: LogisticRegression, labels: NDArray[np.int64], clean: Floats, swapped: Floats
) -> None:
    """Fold the scale and shift that calibrate held-out scores into the classifier, in place."""
    scores = np.concatenate([clean, swapped])
    weight = np.repeat([CLEAN_WEIGHT, 1 - CLEAN_WEIGHT], len(clean))
    spread = float(scores.std()) or 1.0
    sigmoid = LogisticRegression().fit(
        scores[:, None] / spread, np.tile(labels, 2), sample_weight=weight
    )
    slope = float(sigmoid.coef_[0, 0]) / spread
    if slope <= 0:
        # Scores that rank held-out images backwards carry no information to calibrate.
        slope = 1e-6
    classifier.coef_ = classifier.coef_ * slope
    classifier.intercept_ = classifier.intercept_ * slope + sigmoid.intercept_
