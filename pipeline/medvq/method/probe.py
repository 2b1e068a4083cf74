"""The linear probe on drawn labels: regularisation, calibration and threshold from them alone.

Each drawn image is shown to the model as it is and in a few random versions. C is chosen by
cross-validation grouped by subject inside the draw, by the merit of the task (for two classes the
log loss): 3/4 that of the images as they are and 1/4 that of their acquisition-swapped copies,
since on images as they are alone, whatever reads the equipment wins. Where acquisitions are not
swapped it is that of the images as they are. The same held-out scores calibrate the probabilities,
there the swapped copies weighing half (``make benchmark-calibration``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from threadpoolctl import threadpool_limits

from medvq.config import ProbeConfig
from medvq.errors import UserError
from medvq.evaluation.tasks import Binary, Regression, Task

Floats = NDArray[np.float64]
CLEAN_WEIGHT = 0.75
_MANY = 10_000


@dataclass(frozen=True)
class ProbeFeatures:
    """One encoding of all images and their versions.

    Attributes
    ----------
    images : (N, D), every image as it is.
    versions : random versions, each (N, D); rows that are not training images are unused.
    swapped : (N, D), acquisition-swapped copies; rows of test images are unused. None where
        acquisitions are not swapped.
    """

    images: Floats
    versions: list[Floats]
    swapped: Floats | None


@dataclass(frozen=True)
class Uncalibrated:
    """A linear model of all drawn images, and scores of theirs by models not fitted on them.

    Attributes
    ----------
    model : of the task; its probabilities are not calibrated.
    truth : (M,), of the held-out images.
    clean, swapped : their scores, (M, ...), as they are and swapped; the latter None where
        acquisitions are not.
    regularisation : the chosen C.
    inner_merit : the cross-validated merit that chose it.
    """

    model: Any
    truth: NDArray[Any]
    clean: Floats
    swapped: Floats | None
    regularisation: float
    selection_score: float


@dataclass(frozen=True)
class Fitted:
    """A calibrated probe.

    Attributes
    ----------
    classifier : a linear model of the task; its probabilities are calibrated.
    threshold : of the probability, for the metrics that need one: the drawn prevalence, which is
        where a calibrated classifier balances sensitivity and specificity best.
    regularisation : the chosen C.
    inner_merit : the cross-validated merit that chose it.
    """

    classifier: Any
    threshold: float
    regularisation: float
    selection_score: float


def selection_score(
    task: Task, truth: NDArray[Any], clean: Floats, swapped: Floats | None
) -> float:
    """3/4 the task's merit on images as they are, 1/4 on their swapped copies where there are."""
    on_clean = task.selection_score(truth, clean)
    if swapped is None:
        return on_clean
    return CLEAN_WEIGHT * on_clean + (1 - CLEAN_WEIGHT) * task.selection_score(truth, swapped)


def fit_probe(
    encoded: ProbeFeatures,
    truth: NDArray[Any],
    subjects: NDArray[np.str_],
    rows: NDArray[np.intp],
    config: ProbeConfig,
    task: Task | None = None,
) -> Fitted:
    """Fit on the images in ``rows`` and calibrate; no other label is looked at.

    Raises
    ------
    UserError
        A class has too few subjects in the draw to cross-validate.
    """
    task = task or Binary()
    chosen = choose(encoded, truth, subjects, rows, config, task)
    calibrate(task, chosen.model, chosen.truth, chosen.clean, chosen.swapped)
    threshold = task.threshold(truth[rows])
    return Fitted(chosen.model, threshold, chosen.regularisation, chosen.selection_score)


def choose(
    encoded: ProbeFeatures,
    truth: NDArray[Any],
    subjects: NDArray[np.str_],
    rows: NDArray[np.intp],
    config: ProbeConfig,
    task: Task,
) -> Uncalibrated:
    """Fit on the images in ``rows`` with the C that cross-validation among them prefers.

    Raises
    ------
    UserError
        A class has too few subjects in the draw to cross-validate.
    """
    strata = np.zeros(len(truth), np.int64) if isinstance(task, Regression) else truth
    folds = grouped_folds(strata[rows], subjects[rows], config.folds)
    shrink = 1 - 1 / len(folds)
    if len(rows) > _MANY:
        # With so many labels one fold held out says enough, in a quarter of the time.
        folds = folds[:1]
    judged = np.sort(np.concatenate([held_out for _, held_out in folds]))
    best: tuple[float, float, Floats, Floats | None] | None = None
    # On more threads these small matrices wait for each other: ten times slower where cores are
    # shared.
    with threadpool_limits(limits=1, user_api="blas"):
        for regularisation in config.regularisation:
            models = [_fit(task, encoded, truth, rows[a], regularisation) for a, _ in folds]
            clean = _held_out(task, models, encoded.images[rows], folds)[judged]
            swapped = None
            if encoded.swapped is not None:
                swapped = _held_out(task, models, encoded.swapped[rows], folds)[judged]
            found = selection_score(task, truth[rows[judged]], clean, swapped)
            if best is None or found > best[0]:
                best = (found, regularisation, clean, swapped)
        assert best is not None
        inner, regularisation, clean, swapped = best
        # C weighs a sum over images: with all of them a smaller one shrinks as the held-out fits
        # did.
        model = _fit(task, encoded, truth, rows, regularisation * shrink)
    return Uncalibrated(model, truth[rows[judged]], clean, swapped, regularisation, inner)


def _held_out(
    task: Task,
    models: list[Any],
    images: Floats,
    folds: list[tuple[NDArray[np.intp], NDArray[np.intp]]],
) -> Floats:
    """Scores of every image by the model that was not fitted on it."""
    parts = [task.scores(m, images[rows]) for m, (_, rows) in zip(models, folds, strict=True)]
    scores = np.zeros((len(images), *parts[0].shape[1:]))
    for part, (_, rows) in zip(parts, folds, strict=True):
        scores[rows] = part
    return scores


def grouped_folds(
    labels: NDArray[np.int64], subjects: NDArray[np.str_], folds: int
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Rows to fit on and rows held out, no subject in both; of fewer subjects fewer folds.

    Raises
    ------
    UserError
        A class has too few subjects.
    """
    classes = np.unique(labels)
    fewest = min(len(np.unique(subjects[labels == label])) for label in classes)
    if fewest < 2:
        raise UserError(
            "LABEL_FRACTION leaves a class with a single subject, too few to choose the "
            "regularisation by cross-validation; raise it"
        )
    alone = len(np.unique(subjects)) == len(subjects)
    # Grouping takes a minute for tens of thousands of subjects, and does nothing where each is
    # one image.
    kind = StratifiedKFold if alone and len(subjects) > _MANY else StratifiedGroupKFold
    splitter = kind(min(folds, fewest), shuffle=True, random_state=0)
    groups = None if kind is StratifiedKFold else subjects
    split = list(splitter.split(labels, labels, groups))
    # Grouping can leave a fold's training part without a class where classes are tiny.
    split = [(a, b) for a, b in split if len(np.unique(labels[a])) == len(classes)]
    if not split:
        raise UserError(
            "LABEL_FRACTION leaves too few subjects of some class to choose the regularisation by "
            "cross-validation; raise it"
        )
    return split


def _fit(
    task: Task,
    encoded: ProbeFeatures,
    truth: NDArray[Any],
    rows: NDArray[np.intp],
    regularisation: float,
) -> Any:
    shown = np.concatenate([encoded.images[rows], *(v[rows] for v in encoded.versions)])
    return task.fit(shown, np.tile(truth[rows], 1 + len(encoded.versions)), regularisation)


def calibrate(
    task: Task, model: Any, truth: NDArray[Any], clean: Floats, swapped: Floats | None
) -> None:
    """Calibrate by held-out scores, half of the weight on those of swapped copies."""
    if swapped is None:
        task.calibrate(model, truth, clean, np.ones(len(truth)))
        return
    weights = np.full(2 * len(truth), 0.5)
    task.calibrate(model, np.tile(truth, 2), np.concatenate([clean, swapped]), weights)
