"""The linear probe: regularisation, calibration and threshold from the drawn labels alone.

Each labelled image is shown to the model as it is and in a few random versions. ``C`` is chosen by
cross-validation grouped by subject: on images as they are and on their acquisition-swapped copies,
since on the former alone features that read the equipment win. The same held-out scores calibrate
the probabilities.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from threadpoolctl import ThreadpoolController

from medvq.config import ProbeConfig
from medvq.errors import UserError
from medvq.method.targets import Floats, Target, Truth

Rows = NDArray[np.intp]
Folds = list[tuple[Rows, Rows]]

# Weight of the score on images as they are; that on swapped copies has the rest. Of 0.5, 0.75 and 1
# it ranked the baselines most as a test set from other equipment did (docs/method.md).
CLEAN_WEIGHT = 0.75
# The same weight where held-out scores calibrate probabilities; validation images judged it best
# (docs/results).
CLEAN_CALIBRATION_WEIGHT = 0.5
# Above this many labels one held-out fold chooses C, in a quarter of the time, and subjects of one
# image each are not grouped, which would take a minute and do nothing.
MANY_LABELS = 10_000
_LIBRARIES = ThreadpoolController()  # NumPy's and SciPy's; to find them takes milliseconds


@dataclass(frozen=True)
class ProbeFeatures:
    """One encoding of all images and of their versions, (N, D) each.

    Rows of ``versions`` that are not training images are unused, and so are those of ``swapped``
    that are test images.
    """

    images: Floats  # as they are
    versions: list[Floats]  # random versions
    swapped: Floats | None  # acquisition-swapped copies; None where acquisitions are not swapped


@dataclass(frozen=True)
class FittedProbe:
    """A calibrated probe."""

    classifier: Any  # a linear model of the target; its probabilities are calibrated
    threshold: float  # of the probability, see Target.threshold
    regularisation: float  # the chosen C


def on_one_core() -> AbstractContextManager[None]:
    """Keep linear algebra on one core: on small matrices more of them wait for each other.

    On shared cores they are ten times slower.
    """
    limited: AbstractContextManager[None] = _LIBRARIES.limit(limits=1, user_api="blas")
    return limited


def fit_probe(
    features: ProbeFeatures,
    truth: Truth,
    subjects: NDArray[np.str_],
    rows: Rows,
    config: ProbeConfig,
    target: Target,
) -> FittedProbe:
    """Fit and calibrate a probe on the images in ``rows``; no other label is looked at.

    Raises
    ------
    UserError
        A class has too few subjects in ``rows`` to cross-validate.
    """
    # Every feature set is judged on the same rows, and to group them takes longer than to fit.
    strata = np.asarray(target.strata(truth)[rows], np.int64)
    folds = _folds_of(strata.tobytes(), tuple(subjects[rows]), config.folds)
    # C weighs a sum over images: with all of them a smaller one shrinks as the held-out fits did.
    shrink = 1 - 1 / len(folds)
    if len(rows) > MANY_LABELS:
        folds = folds[:1]
    held_out = np.sort(np.concatenate([rows_out for _, rows_out in folds]))
    images = np.concatenate([features.images[rows], *(v[rows] for v in features.versions)])
    of_images = np.tile(truth[rows], 1 + len(features.versions))
    everything = np.arange(len(images)).reshape(-1, len(rows))
    parts = [everything[:, fitted_on].ravel() for fitted_on, _ in folds]
    best_score, best = -np.inf, None
    with on_one_core():
        path = target.fit_path(images, of_images, parts, config.regularisation)
        for regularisation, models in zip(config.regularisation, path, strict=True):
            clean = _held_out_scores(target, models, features.images[rows], folds)[held_out]
            swapped = None
            if features.swapped is not None:
                swapped = _held_out_scores(target, models, features.swapped[rows], folds)[held_out]
            score = selection_score(target, truth[rows[held_out]], clean, swapped)
            if best is None or score > best_score:
                best_score, best = score, (regularisation, clean, swapped)
        assert best is not None
        regularisation, clean, swapped = best
        final = target.fit_path(images, of_images, [everything.ravel()], [regularisation * shrink])
        [[model]] = final
        calibrate(target, model, truth[rows[held_out]], clean, swapped)
    return FittedProbe(model, target.threshold(truth[rows]), regularisation)


def selection_score(target: Target, truth: Truth, clean: Floats, swapped: Floats | None) -> float:
    """Return the score of held-out images, 3/4 as they are and 1/4 swapped where they are."""
    on_clean = target.selection_score(truth, clean)
    if swapped is None:
        return on_clean
    return CLEAN_WEIGHT * on_clean + (1 - CLEAN_WEIGHT) * target.selection_score(truth, swapped)


def calibrate(
    target: Target, model: Any, truth: Truth, clean: Floats, swapped: Floats | None
) -> None:
    """Calibrate ``model`` in place by held-out scores, half of the weight on swapped copies."""
    if swapped is None:
        target.calibrate(model, truth, clean, np.ones(len(truth)))
        return
    weights = np.repeat([CLEAN_CALIBRATION_WEIGHT, 1 - CLEAN_CALIBRATION_WEIGHT], len(truth))
    target.calibrate(model, np.tile(truth, 2), np.concatenate([clean, swapped]), weights)


@functools.lru_cache(maxsize=32)
def _folds_of(strata: bytes, subjects: tuple[str, ...], folds: int) -> Folds:
    return grouped_folds(np.frombuffer(strata, np.int64), np.array(subjects), folds)


def grouped_folds(strata: NDArray[np.int64], subjects: NDArray[np.str_], folds: int) -> Folds:
    """Split rows for cross-validation, stratified, with all images of a subject on one side.

    There are fewer folds where a stratum has fewer subjects. Returns of each fold the rows to fit
    on and the rows held out.

    Raises
    ------
    UserError
        A class has too few subjects.
    """
    classes = np.unique(strata)
    fewest = min(len(np.unique(subjects[strata == label])) for label in classes)
    if fewest < 2:
        raise UserError(
            "LABEL_FRACTION leaves a class with a single subject, too few to choose the "
            "regularisation by cross-validation; raise it"
        )
    ungrouped = len(np.unique(subjects)) == len(subjects) > MANY_LABELS
    kind = StratifiedKFold if ungrouped else StratifiedGroupKFold
    splitter = kind(min(folds, fewest), shuffle=True, random_state=0)
    split = splitter.split(strata, strata, None if ungrouped else subjects)
    # Grouping can leave a fold's training part without a class where classes are tiny.
    complete = [(a, b) for a, b in split if len(np.unique(strata[a])) == len(classes)]
    if not complete:
        raise UserError(
            "LABEL_FRACTION leaves too few subjects of some class to choose the regularisation by "
            "cross-validation; raise it"
        )
    return complete


def _held_out_scores(target: Target, models: list[Any], images: Floats, folds: Folds) -> Floats:
    """Return the scores of every image by the model that was not fitted on it."""
    parts = [target.scores(m, images[rows]) for m, (_, rows) in zip(models, folds, strict=True)]
    scores = np.zeros((len(images), *parts[0].shape[1:]))
    for part, (_, rows) in zip(parts, folds, strict=True):
        scores[rows] = part
    return scores
