"""The study of calibration: its mixtures are the probe's, its resamples have their prevalence."""

import numpy as np
import pytest
from medvq.config import ProbeConfig
from medvq.evaluation.tasks import Binary
from medvq.method.probe import ProbeFeatures, SelectedModel, fit_probe, select_model
from medvq.stages.probe import ProbeData
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import log_loss

from benchmarks.calibration import (
    CHOSEN,
    MIXTURES,
    _measured,
    by_mixture,
    by_prevalence,
    calibrated,
    drawn_to,
)

CONFIG = ProbeConfig(regularisation=(0.01, 1.0), folds=3)
NUMBER = 1200


@pytest.fixture(scope="module")
def images() -> ProbeData:
    truth = (np.random.default_rng(0).random(NUMBER) < 0.7).astype(np.int64)
    everyone = np.arange(NUMBER)
    train, validation = everyone[:400], everyone[400:]
    subjects = everyone.astype(str)
    return ProbeData(Binary(), truth, subjects, train, train, validation, validation, [])


@pytest.fixture(scope="module")
def encoded(images: ProbeData) -> ProbeFeatures:
    """Swapped copies hide half of what tells the classes."""
    rng = np.random.default_rng(1)
    signal = 2.0 * images.truth[:, None] * np.array([1, 0, 0])
    clean, swapped = (rng.normal(size=(NUMBER, 3)) + share * signal for share in (1, 0.5))
    return ProbeFeatures(clean, [], swapped)


@pytest.fixture(scope="module")
def chosen(images: ProbeData, encoded: ProbeFeatures) -> SelectedModel:
    truth, subjects = images.truth, images.subjects
    return select_model(encoded, truth, subjects, images.train, CONFIG, images.task)


def test_what_is_called_chosen_is_what_the_probe_does(
    images: ProbeData, encoded: ProbeFeatures, chosen: SelectedModel
) -> None:
    probe = fit_probe(
        encoded, images.truth, images.subjects, images.train, CONFIG, images.task
    ).classifier
    model = calibrated(chosen, MIXTURES[CHOSEN])
    np.testing.assert_allclose(model.coef_, probe.coef_, rtol=1e-6)
    np.testing.assert_allclose(model.intercept_, probe.intercept_, rtol=1e-6)
    assert not np.allclose(chosen.model.coef_, probe.coef_, rtol=1e-3)


def test_swapped_images_make_probabilities_less_sure(
    images: ProbeData, encoded: ProbeFeatures, chosen: SelectedModel
) -> None:
    slopes = [calibrated(chosen, weight).coef_[0, 0] for weight in (1.0, 0.75, 0.5, 0.25, 0.0)]
    assert np.all(np.diff(slopes) < 0)
    table = by_mixture([chosen], [0.7], encoded, images).set_index("mixture")
    assert table.index.tolist() == list(MIXTURES)
    validation = images.validation
    model = calibrated(chosen, 0.75)
    losses = [
        log_loss(images.truth[validation], model.predict_proba(kind[validation])[:, 1])
        for kind in (encoded.images, encoded.swapped)
    ]
    expected = 0.75 * losses[0] + 0.25 * losses[1]
    assert table.loc["3/4 as they are", "log_loss"] == pytest.approx(expected)
    assert table["log_loss"].idxmin() not in ("as they are", "swapped")


@pytest.mark.parametrize("prevalence", [0.25, 0.5, 0.85])
def test_rows_are_drawn_to_a_prevalence(images: ProbeData, prevalence: float) -> None:
    taken = drawn_to(images.truth, prevalence, np.random.default_rng(0))
    assert len(np.unique(taken)) == len(taken)
    assert images.truth[taken].mean() == pytest.approx(prevalence, abs=0.002)
    # One of the classes is used up.
    left = np.bincount(images.truth) - np.bincount(images.truth[taken])
    assert left.min() <= 1


def test_the_correction_mends_what_the_prevalence_broke(
    images: ProbeData, encoded: ProbeFeatures, chosen: SelectedModel
) -> None:
    same = ProbeFeatures(encoded.images, [], encoded.images)
    clean = SelectedModel(
        chosen.model, chosen.regularisation, chosen.truth, chosen.clean, chosen.clean
    )
    found = by_prevalence([clean], [0.7], same, images, seed=0)
    mean = found.groupby("prevalence").mean(numeric_only=True)
    assert mean.loc[0.25, "brier_corrected"] < mean.loc[0.25, "brier"] - 0.02
    np.testing.assert_allclose(mean["estimated"], mean.index, atol=0.06)
    np.testing.assert_allclose(mean["brier_corrected"], mean["brier_known"], atol=0.01)


def test_measures_by_hand() -> None:
    truth: NDArray[np.int64] = np.array([1, 0, 1, 1])
    said = expit(np.array([2.0, 1.0, -1.0, 0.5]))
    found = _measured(truth, said, 0.5)
    assert found["log_loss"] == pytest.approx(log_loss(truth, said))
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 0) / 2)
    assert found["brier"] == pytest.approx(np.mean((said - truth) ** 2))
