"""The probe on Gaussian data, whose answers are known."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medvq.config import ProbeConfig
from medvq.errors import UserError
from medvq.method.probe import (
    FittedProbe,
    ProbeFeatures,
    fit_probe,
    grouped_folds,
    selection_score,
)
from medvq.method.targets import Binary
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

Floats = NDArray[np.float64]
CONFIG = ProbeConfig(regularisation=(1e-4, 1e-2, 1.0, 100.0), folds=3)
WIDTH = 6


class Gaussian:
    """Two images of each subject; classes differ by ``gap`` along the first axis.

    The second axis tells the class of images as they are, and that of nobody once swapped.
    """

    def __init__(self, subjects: int, gap: float, seed: int = 0, equipment: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        self.labels = np.repeat(rng.permutation(np.arange(subjects) % 3 > 0), 2).astype(np.int64)
        self.subjects = np.repeat(np.arange(subjects), 2).astype(str)
        signed = 2 * self.labels - 1
        own = np.repeat(rng.normal(size=(subjects, WIDTH)), 2, axis=0)
        self.images = own + 0.3 * rng.normal(size=own.shape)
        self.images[:, 0] += gap / 2 * signed
        swapped = self.images.copy()
        self.images[:, 1] += equipment / 2 * signed
        swapped[:, 1] += equipment / 2 * rng.permutation(signed)
        versions = [self.images + 0.2 * rng.normal(size=own.shape) for _ in range(2)]
        self.features = ProbeFeatures(self.images, versions, swapped)
        self.everyone = np.arange(len(self.labels))

    def fit(
        self, rows: NDArray[np.intp] | None = None, config: ProbeConfig = CONFIG
    ) -> FittedProbe:
        rows = self.everyone if rows is None else rows
        return fit_probe(self.features, self.labels, self.subjects, rows, config, Binary())


def slow_score(data: Gaussian, rows: NDArray[np.intp], regularisation: float) -> float:
    splitter = StratifiedGroupKFold(CONFIG.folds, shuffle=True, random_state=0)
    scores: dict[int, tuple[float, float]] = {}
    labels, subjects = data.labels[rows], data.subjects[rows]
    for fitted_on, held_out in splitter.split(labels, labels, subjects):
        tables = [data.features.images, *data.features.versions]
        X = [table[row] for table in tables for row in rows[fitted_on]]
        y = [data.labels[row] for _ in tables for row in rows[fitted_on]]
        model = LogisticRegression(C=regularisation, tol=1e-8, max_iter=1000).fit(X, y)
        for position in held_out:
            row = rows[position]
            seen = np.stack([data.features.images[row], data.features.swapped[row]])
            clean, swapped = seen @ model.coef_[0] + model.intercept_[0]
            scores[int(position)] = (clean, swapped)
    clean, swapped = np.array([scores[position] for position in range(len(rows))]).T
    return -0.75 * log_loss(labels, expit(clean)) - 0.25 * log_loss(labels, expit(swapped))


@pytest.mark.parametrize(("gap", "equipment"), [(0.7, 0.0), (0.7, 2.0)])
def test_the_chosen_c_is_that_of_a_slow_search(gap: float, equipment: float) -> None:
    data = Gaussian(60, gap, equipment=equipment)
    rows = data.everyone[20:]
    fitted = data.fit(rows)
    scores = [slow_score(data, rows, c) for c in CONFIG.regularisation]
    assert max(scores) - min(scores) > 0.005
    assert fitted.regularisation == CONFIG.regularisation[int(np.argmax(scores))]


@st.composite
def grouped(draw: st.DrawFn) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    """Images of subjects of one class each, two subjects or more of either."""
    classes = [0, 0, 1, 1, *draw(st.lists(st.integers(0, 1), max_size=12))]
    images = [draw(st.integers(1, 9)) for _ in classes]
    return np.repeat(classes, images), np.repeat(np.arange(len(classes)), images).astype(str)


@given(grouped(), st.integers(2, 5))
@settings(max_examples=100)
def test_no_subject_is_fitted_on_and_held_out(
    table: tuple[NDArray[np.int64], NDArray[np.str_]], folds: int
) -> None:
    labels, subjects = table
    split = grouped_folds(labels, subjects, folds)
    for fitted_on, held_out in split:
        assert not set(subjects[fitted_on]) & set(subjects[held_out])
        assert len(np.unique(labels[fitted_on])) == 2
    everyone = np.concatenate([held_out for _, held_out in split])
    assert sorted(everyone) == list(range(len(labels)))


def test_labels_outside_the_draw_are_never_used() -> None:
    data = Gaussian(60, 1.0)
    rows = data.everyone[data.everyone % 10 < 4]
    before = data.fit(rows)
    outside = np.setdiff1d(data.everyone, rows)
    data.labels[outside] = 1 - data.labels[outside]
    after = data.fit(rows)
    assert before.classifier.coef_.tobytes() == after.classifier.coef_.tobytes()
    assert before.classifier.intercept_.tobytes() == after.classifier.intercept_.tobytes()
    assert replace(before, classifier=after.classifier) == after


def test_images_outside_the_draw_are_never_used() -> None:
    data = Gaussian(60, 1.0)
    rows = data.everyone[:60]
    before = data.fit(rows)
    for table in (data.features.images, data.features.swapped, *data.features.versions):
        table[60:] = np.nan
    assert data.fit(rows).classifier.coef_.tobytes() == before.classifier.coef_.tobytes()


def plain(data: Gaussian, regularisation: float) -> LogisticRegression:
    tables = [data.features.images, *data.features.versions]
    model = LogisticRegression(C=regularisation, solver="newton-cholesky", tol=1e-8)
    return model.fit(np.concatenate(tables), np.tile(data.labels, len(tables)))


def test_calibration_keeps_the_ranking() -> None:
    data = Gaussian(40, 1.0)
    fitted = data.fit()
    # With all of the draw the final fit shrinks as those with a fold less did.
    uncalibrated = plain(data, fitted.regularisation * (1 - 1 / CONFIG.folds))
    scores = fitted.classifier.decision_function(data.images)
    slope, shift = np.polyfit(uncalibrated.decision_function(data.images), scores, 1)
    assert slope > 0
    np.testing.assert_allclose(
        slope * uncalibrated.decision_function(data.images) + shift, scores, rtol=1e-3, atol=1e-3
    )
    ranking = np.argsort(fitted.classifier.predict_proba(data.images)[:, 1])
    np.testing.assert_array_equal(np.argsort(scores), ranking)


def test_calibration_corrects_overconfidence() -> None:
    # Few subjects, each shown six times, hardly held back: far too sure.
    config = ProbeConfig(regularisation=(100.0,), folds=4)
    losses = []
    for seed in range(6):
        data, unseen = Gaussian(24, 1.0, seed), Gaussian(400, 1.0, 100 + seed)
        models = data.fit(config=config).classifier, plain(data, 100.0)
        losses.append([log_loss(unseen.labels, m.predict_proba(unseen.images)) for m in models])
    calibrated, sure = np.mean(losses, axis=0)
    assert calibrated < 0.8 * sure
    assert calibrated < np.log(2)


@pytest.mark.parametrize("regularisation", [1.0, 1e-4])
def test_calibrated_probabilities_are_those_of_the_model_that_made_the_data(
    regularisation: float,
) -> None:
    data, unseen = Gaussian(6000, 1.5), Gaussian(500, 1.5, seed=1)
    fitted = data.fit(config=ProbeConfig(regularisation=(regularisation,), folds=3))
    said = fitted.classifier.predict_proba(unseen.images)[:, 1]
    # Classes N(+-gap / 2, 1 + 0.3^2) with prior 2 : 1.
    true = expit(1.5 * unseen.images[:, 0] / 1.09 + np.log(2))
    assert np.abs(said - true).mean() < 0.02


def test_random_labels_give_chance() -> None:
    aurocs = []
    for seed in range(8):
        data, unseen = Gaussian(60, 0.0, seed), Gaussian(200, 0.0, 100 + seed)
        scores = data.fit().classifier.decision_function(unseen.images)
        aurocs.append(roc_auc_score(unseen.labels, scores))
    # One AUROC on 200 subjects of two alike images each deviates by 0.04, the mean of 8 by 0.015.
    assert np.mean(aurocs) == pytest.approx(0.5, abs=0.05)


def test_threshold_is_the_drawn_prevalence() -> None:
    data = Gaussian(30, 1.0)
    rows = data.everyone[8:36]
    assert data.fit(rows).threshold == data.labels[rows].mean()
    assert data.fit(rows).threshold != data.labels.mean()


def test_the_selection_score_is_three_parts_clean_and_one_part_swapped() -> None:
    truth, clean = np.array([0, 1, 1]), np.array([-2.0, 1.0, 0.0])
    losses = [log_loss(truth, expit(scores)) for scores in (clean, -clean)]
    mixed = selection_score(Binary(), truth, clean, -clean)
    assert mixed == pytest.approx(-0.75 * losses[0] - 0.25 * losses[1])
    assert selection_score(Binary(), truth, clean, None) == pytest.approx(-losses[0])


def test_a_single_subject_of_a_class_is_too_few() -> None:
    data = Gaussian(30, 1.0)
    one = data.subjects[data.labels == 0][0]
    rows = np.flatnonzero((data.labels == 1) | (data.subjects == one))
    with pytest.raises(UserError, match="single subject"):
        data.fit(rows)
