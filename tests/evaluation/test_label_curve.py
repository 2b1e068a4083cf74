"""The label-efficiency curve: laws are recovered, intervals hold the truth, the inverse agrees."""

import numpy as np
import pytest
from medvq.evaluation.label_curve import LabelCurve, fit_label_curve
from numpy.typing import NDArray

SIZES = np.array([10, 20, 40, 80, 160])


def law(n: NDArray[np.float64], c: float, a: float, b: float) -> NDArray[np.float64]:
    return c - a * np.asarray(n, float) ** -b


def fitted(c: float, a: float, b: float) -> LabelCurve:
    return fit_label_curve(SIZES, np.tile(law(SIZES, c, a, b), (3, 1)), seed=0, resamples=20)


@pytest.mark.parametrize(("c", "a", "b"), [(0.95, 0.6, 0.5), (0.99, 1.0, 1.0), (0.9, 0.5, 0.3)])
def test_an_exact_law_is_recovered_and_extrapolated(c: float, a: float, b: float) -> None:
    curve = fitted(c, a, b)
    assert curve.plateau.value == pytest.approx(c, abs=2e-3)
    for labels in (10, 160, 1600):
        expected = law(np.array(labels), c, a, b)
        assert curve.score(labels).value == pytest.approx(float(expected), abs=2e-3)


def test_the_inverse_agrees_with_the_curve() -> None:
    curve = fitted(0.95, 0.6, 0.5)
    for score in (0.8, 0.9, 0.93):
        assert curve.score(curve.labels_for(score).value).value == pytest.approx(score, abs=1e-9)


def test_the_interval_holds_the_truth_of_ten_times_the_labels() -> None:
    held, truth = 0, float(law(np.array(1600), 0.93, 0.8, 0.6))
    rng = np.random.default_rng(0)
    for seed in range(20):
        scores = law(SIZES, 0.93, 0.8, 0.6) + rng.normal(0, 0.3 / SIZES**0.5, (10, 5))
        found = fit_label_curve(SIZES, scores, seed, resamples=60).score(1600)
        held += found.low <= truth <= found.high
    assert held >= 17


def test_a_sentence_says_how_many_labels_or_that_none_suffice() -> None:
    curve = fitted(0.95, 0.6, 0.5)
    # (0.6 / 0.02)^2 = 900 labels, of which 160 are at hand.
    assert curve.sentence(0.93) == "for .93 you need about 740 [740, 740] more labels"
    assert curve.sentence(0.97).startswith(
        "no number of labels like these reaches .97 (plateau .95"
    )
    assert curve.sentence(0.85) == "the 160 labels at hand are enough for .85"


def test_a_sentence_does_not_exclude_what_the_interval_of_the_plateau_holds() -> None:
    draws = np.repeat([[law(SIZES, 0.99, 0.6, 0.5)], [law(SIZES, 0.87, 0.6, 0.5)]], 3, 0)[:, 0]
    curve = fit_label_curve(SIZES, draws, seed=0)
    assert curve.plateau.value < 0.95 < curve.plateau.high
    sentence = curve.sentence(0.95)
    assert sentence.startswith(
        "it is not certain that more labels like these reach .95 (plateau .93"
    )
    assert curve.sentence(0.998).startswith("no number of labels like these reaches")


def test_no_score_beyond_the_range_of_the_metric_is_promised() -> None:
    rising = np.tile(0.5 + 0.1 * np.arange(5), (2, 1))
    assert fit_label_curve(SIZES, rising, seed=0, resamples=5).score(1e9).high <= 1
    noisy = np.array([[0.9, 0.95, 0.99], [0.8, 0.93, 0.98]])
    assert fit_label_curve([10, 20, 40], noisy, seed=0).score(60).high <= 1


def test_too_few_numbers_of_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="three numbers"):
        fit_label_curve([10, 20], np.ones((3, 2)), seed=0)


def test_a_law_that_misses_the_scores_says_so_and_promises_less() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.002, (10, 5))
    good = fit_label_curve(SIZES, law(SIZES, 0.95, 0.6, 0.5) + noise, seed=0, resamples=60)
    bent = law(SIZES, 0.95, 0.6, 0.5) + np.array([0, 0.02, -0.02, 0.02, -0.01])
    poor = fit_label_curve(SIZES, bent + noise, seed=0, resamples=60)
    assert not good.is_poor
    assert poor.is_poor
    good_score, poor_score = good.score(1600), poor.score(1600)
    assert poor_score.high - poor_score.low > 3 * (good_score.high - good_score.low)


def test_the_score_of_one_probe_is_less_certain_than_the_mean_of_many() -> None:
    rng, draws = np.random.default_rng(0), 400
    scores = law(SIZES, 0.93, 0.8, 0.6) + rng.normal(0, 0.3 / SIZES**0.5, (draws, 5))
    found = fit_label_curve(SIZES, scores, seed=0).score(160)
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.3 / 160**0.5, rel=0.1)
