"""Logistic regression of several parts at once, against scikit-learn's of each part alone."""

import numpy as np
import pytest
from medvq.method import logistic
from medvq.method.logistic import fit_path
from medvq.method.targets import Binary
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

Floats = NDArray[np.float64]
STRENGTHS = (1e-5, 1e-3, 1e-2, 1.0)


def table(rows: int, columns: int, seed: int = 0) -> tuple[Floats, NDArray[np.int64]]:
    """Return images with a mean squared norm of a thousand, off centre, and their classes."""
    rng = np.random.default_rng(seed)
    truth = np.arange(rows) % 3 // 2
    images = rng.normal(size=(rows, columns)) * np.linspace(2, 0.1, columns)
    images[:, 0] += 2 * truth
    return images * np.sqrt(1000 / (images**2).sum(1).mean()) + 3, truth


def folds(rows: int, number: int) -> list[NDArray[np.intp]]:
    everything = np.arange(rows)
    return [everything[everything // 3 % number != fold] for fold in range(number)]


@pytest.mark.parametrize(("rows", "columns"), [(240, 20), (60, 90)], ids=["many", "few"])
@pytest.mark.parametrize("strengths", [STRENGTHS, STRENGTHS[::-1]], ids=["rising", "falling"])
def test_every_part_is_fitted_as_scikit_learn_fits_it_alone(
    rows: int, columns: int, strengths: tuple[float, ...]
) -> None:
    images, truth = table(rows, columns)
    unseen, _ = table(200, columns, seed=1)
    parts = [*folds(rows, 4), np.arange(rows)]
    for strength, models in zip(
        strengths, Binary().fit_path(images, truth, parts, strengths), strict=True
    ):
        for part, model in zip(parts, models, strict=True):
            exact = LogisticRegression(C=strength, solver="newton-cholesky", tol=1e-12)
            expected = exact.fit(images[part], truth[part]).decision_function(unseen)
            np.testing.assert_allclose(model.decision_function(unseen), expected, atol=1e-6, rtol=0)
            np.testing.assert_allclose(
                model.predict_proba(unseen), exact.predict_proba(unseen), atol=1e-6, rtol=0
            )


def test_rows_of_no_part_change_nothing_but_the_last_bits() -> None:
    images, truth = table(120, 10)
    part = folds(120, 2)[0]
    others = np.setdiff1d(np.arange(120), part)
    [before] = fit_path(images, truth, [part], [1e-2])
    images[others], truth[others] = images[others][::-1], 1 - truth[others]
    [after] = fit_path(images, truth, [part], [1e-2])
    assert before is not None
    assert after is not None
    np.testing.assert_allclose(before, after, rtol=0, atol=1e-8)


def test_where_newtons_method_does_not_converge_scikit_learn_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, truth = table(60, 5)
    parts = folds(60, 2)
    monkeypatch.setattr(logistic, "_STEPS", 1)
    assert list(fit_path(images, truth, parts, [1.0])) == [None]
    [models] = Binary().fit_path(images, truth, parts, [1.0])
    for part, model in zip(parts, models, strict=True):
        alone = Binary().fit(images[part], truth[part], 1.0)
        assert model.coef_.tobytes() == alone.coef_.tobytes()
        assert model.intercept_.tobytes() == alone.intercept_.tobytes()
