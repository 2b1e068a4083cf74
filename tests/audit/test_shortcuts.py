"""How well a table tells a label: known answers, and no subject in two folds."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from medvq.audit.shortcuts import MIN_SUBJECTS, auroc_with_interval, measure_shortcuts
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

RNG = np.random.default_rng(0)
N = 600
LABELS = np.repeat(["ill", "well"], N // 2)
ONE_IMAGE_EACH = np.arange(N)


def auroc(
    table: pd.DataFrame, labels: NDArray[Any] = LABELS, subjects: NDArray[Any] = ONE_IMAGE_EACH
) -> float:
    result = measure_shortcuts({"": table}, labels, subjects)[""]
    assert result.reason == ""
    assert result.auroc is not None
    return result.auroc


def test_two_shifted_normals_have_the_auroc_of_theory() -> None:
    table = pd.DataFrame({"x": RNG.standard_normal(N) + (LABELS == "well")})
    assert auroc(table) == pytest.approx(norm.cdf(1 / np.sqrt(2)), abs=0.04)


def test_noise_is_at_chance() -> None:
    assert auroc(pd.DataFrame(RNG.standard_normal((N, 40)))) == pytest.approx(0.5, abs=0.08)


def test_squares_are_among_the_features() -> None:
    far = RNG.uniform(1, 2, N) * RNG.choice([-1, 1], N)
    table = pd.DataFrame({"x": np.where(LABELS == "ill", far, RNG.uniform(-1, 1, N))})
    assert auroc(table) > 0.95


def test_features_of_a_subject_do_not_help_with_other_subjects() -> None:
    subjects = np.arange(N) // 10
    of_subject = RNG.choice(["ill", "well"], N // 10)
    # Ungrouped folds would tell every image by its subject's own values.
    table = pd.DataFrame(RNG.standard_normal((N // 10, 30))[subjects] * 10)
    assert auroc(table, of_subject[subjects], subjects) == pytest.approx(0.5, abs=0.2)


def test_categories_and_missing_values_are_features() -> None:
    ill = LABELS == "ill"
    scanner = np.where(ill, RNG.choice(["a", "b"], N), RNG.choice(["c", "d"], N)).astype(object)
    assert auroc(pd.DataFrame({"scanner": scanner})) == 1
    voltage = np.where(ill, np.nan, RNG.uniform(60, 80, N))
    assert auroc(pd.DataFrame({"kvp": voltage})) == 1


def test_it_equals_a_cross_validated_logistic_regression() -> None:
    table = pd.DataFrame(RNG.standard_normal((N, 3)) + 0.5 * (LABELS == "ill")[:, None])
    subjects = np.arange(N) // 3
    polynomial = PolynomialFeatures(2, include_bias=False)
    X = polynomial.fit_transform(StandardScaler().fit_transform(table))
    X = StandardScaler().fit_transform(X)
    scores = np.zeros(N)
    for fit, rest in StratifiedGroupKFold(5).split(X, LABELS, subjects):
        model = LogisticRegression(C=0.01, tol=1e-8).fit(X[fit], LABELS[fit])
        scores[rest] = model.predict_proba(X[rest])[:, 1]
    expected = roc_auc_score(LABELS, scores)
    assert auroc(table, subjects=subjects) == pytest.approx(expected, abs=1e-3)


def test_of_three_classes_the_mean_of_one_against_the_rest() -> None:
    labels = np.repeat(["a", "b", "c"], 200)
    table = pd.DataFrame({"x": np.where(labels == "a", 5.0, 0.0) + RNG.standard_normal(600) / 9})
    # a against the rest is told for certain; b and c against the rest: never from each other, so
    # a half of their pairs by chance and the half against a for certain.
    assert auroc(table, labels) == pytest.approx((1 + 0.75 + 0.75) / 3, abs=0.04)


def test_missing_measures_have_a_reason() -> None:
    table = pd.DataFrame({"x": RNG.standard_normal(N)})
    tables = {"same": pd.DataFrame({"x": np.ones(N)}), "other": table}
    results = measure_shortcuts(tables, LABELS, ONE_IMAGE_EACH)
    same = results["same"]
    assert (same.auroc, same.reason) == (None, "the same for every image, or not known")
    assert results["other"].auroc is not None
    few = np.minimum(ONE_IMAGE_EACH, N // 2 + MIN_SUBJECTS - 2)
    reasons = {one.reason for one in measure_shortcuts(tables, LABELS, few).values()}
    assert reasons == {"fewer than two groups of 10 subjects or more"}
    enough = np.minimum(ONE_IMAGE_EACH, N // 2 + MIN_SUBJECTS - 1)
    assert measure_shortcuts({"": table}, LABELS, enough)[""].auroc is not None
    assert measure_shortcuts({"": table}, np.full(N, "ill"), ONE_IMAGE_EACH)[""].auroc is None


def test_the_area_is_scikit_learns_ties_included() -> None:
    scores = RNG.integers(0, 6, (N, 3)).astype(float)
    truth = RNG.integers(0, 3, N)[:, None] == np.arange(3)
    assert auroc_with_interval(scores, truth, ONE_IMAGE_EACH)[0] == pytest.approx(
        roc_auc_score(truth, scores)
    )


def test_an_image_shown_three_times_makes_no_interval_narrower() -> None:
    scores, truth = RNG.standard_normal(N) + (LABELS == "ill"), LABELS == "ill"
    once = auroc_with_interval(scores, truth, ONE_IMAGE_EACH)
    thrice = auroc_with_interval(
        *(np.repeat(values, 3) for values in (scores, truth, ONE_IMAGE_EACH))
    )
    np.testing.assert_allclose(thrice[1], once[1])


def test_the_interval_is_as_wide_as_the_area_varies() -> None:
    """Of two images each of 60 subjects, much alike, over 400 draws of subjects."""
    truth, subjects = np.repeat([True, False], 60), np.arange(120) // 2
    estimates = []
    for _ in range(400):
        of_subject = RNG.standard_normal(60)[subjects]
        estimates.append(
            auroc_with_interval(
                of_subject + 0.5 * RNG.standard_normal(120) + truth, truth, subjects
            )
        )
    areas, intervals = (np.array(values) for values in zip(*estimates, strict=True))
    expected = norm.cdf(1 / np.sqrt(2 * 1.25))
    assert areas.mean() == pytest.approx(expected, abs=0.01)
    covered = (intervals[:, 0] < expected) & (expected < intervals[:, 1])
    assert covered.mean() == pytest.approx(0.95, abs=0.03)
    widths = intervals[:, 1] - intervals[:, 0]
    assert np.median(widths) == pytest.approx(2 * 1.96 * areas.std(), rel=0.1)


def test_a_perfect_ranking_has_no_width() -> None:
    assert auroc_with_interval(np.arange(N), LABELS == "well", ONE_IMAGE_EACH) == (1, (1, 1))
