"""Intervals by hand and by their properties; how often they hold the truth: test_coverage.py."""

import numpy as np
import pytest
from factories.cores import blas_threads
from hypothesis import given, settings
from hypothesis import strategies as st
from medvq.evaluation.intervals import (
    Resampled,
    average,
    cross,
    interval,
    mean_interval,
    resample,
    subject_weights,
)
from medvq.summaries import Interval
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import norm, ttest_1samp
from threadpoolctl import threadpool_limits

Floats = NDArray[np.float64]


@st.composite
def metrics(draw: st.DrawFn) -> Resampled:
    """A metric of one to five trainings by one to five label subsets, biased and skewed."""
    seed, *shape = (draw(st.integers(*ends)) for ends in ((0, 10_000), (1, 5), (1, 5)))
    rng = np.random.default_rng(seed)
    return Resampled(rng.normal(size=shape), rng.normal(3) + rng.exponential(size=50) ** 2)


def width(metric: Resampled) -> float:
    low, high = interval(metric).ci95
    return high - low


def test_images_of_a_subject_are_drawn_together() -> None:
    subjects = np.array(["c", "a", "b", "a", "c", "c", "d"])
    weights = subject_weights(subjects, 4000, seed=0)
    first = [int(np.flatnonzero(subjects == name)[0]) for name in subjects]
    np.testing.assert_array_equal(weights, weights[:, first])
    one_each = weights[:, np.unique(subjects, return_index=True)[1]]
    assert np.all(one_each.sum(1) == 4)
    # Binomial with n = 4 and p = 1/4: mean 1, variance 3/4.
    np.testing.assert_allclose(one_each.mean(0), 1, atol=0.07)
    np.testing.assert_allclose(one_each.var(0), 0.75, atol=0.08)


def test_a_metric_is_computed_on_the_test_set_and_on_its_resamples() -> None:
    weights = np.array([[2.0, 0], [0, 3]])

    def compute(subset: int, image_weights: Floats) -> dict[str, Floats]:
        return {"total": (subset + 1) * image_weights.sum(1)}

    total = resample(compute, 3, weights)["total"]
    assert total.cells.tolist() == [[2, 4, 6]]
    assert total.resampled.tolist() == [4, 6]


def test_resamples_keep_linear_algebra_on_one_core_and_give_the_others_back() -> None:
    found = []

    def compute(_subset: int, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        found.append(blas_threads())
        return {"mean": weights.mean(1)}

    with threadpool_limits(2, user_api="blas"):
        resample(compute, 1, np.ones((3, 4)))
        assert blas_threads() == {"numpy": 2, "scipy": 2}
    assert found == [{"numpy": 1, "scipy": 1}]


def test_of_one_cell_the_quantiles_of_the_bootstrap_lie_about_the_mean() -> None:
    one = interval(Resampled(np.array([[4.0]]), np.arange(101.0) ** 2))
    assert (one.mean, one.std) == (4, 0)
    assert one.ci95 == pytest.approx((4 - (50**2 - 2.5 * 2.5 - 0.25), 4 + 97.5**2 + 0.25 - 50**2))


@pytest.mark.parametrize("axis", [0, 1])
def test_where_only_label_subsets_or_trainings_vary_the_interval_is_students(axis: int) -> None:
    values = np.array([0.9, 0.94, 0.91, 0.97])
    metric = interval(Resampled(np.expand_dims(values, axis), np.full(100, 0.3)))
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert metric.ci95 == pytest.approx(tuple(expected))
    assert metric.std == pytest.approx(values.std(ddof=1))


def test_the_three_parts_add_up_as_squares() -> None:
    subsets, trainings = np.array([[-1.0, 0, 1]]), np.array([[-2.0], [2]])
    subjects = np.linspace(-3, 3, 101)
    alone = [
        width(Resampled(np.zeros((1, 1)), subjects)),
        width(Resampled(subsets, np.zeros(9))),
        width(Resampled(trainings, np.zeros(9))),
    ]
    assert min(alone) > 0
    assert width(Resampled(subsets + trainings, subjects)) == pytest.approx(np.linalg.norm(alone))


@given(metrics())
@settings(max_examples=60)
def test_the_mean_lies_inside_whatever_the_bias_of_the_bootstrap(metric: Resampled) -> None:
    value = interval(metric)
    assert value.mean == pytest.approx(metric.cells.mean())
    assert value.ci95[0] <= value.mean <= value.ci95[1]
    shifted = interval(Resampled(metric.cells, metric.resampled + 10))
    assert shifted.ci95 == pytest.approx(value.ci95)


@given(metrics(), st.floats(-2, 2), st.floats(0.1, 3))
@settings(max_examples=30)
def test_an_interval_moves_and_grows_with_its_metric(
    metric: Resampled, offset: float, factor: float
) -> None:
    changed = Resampled(factor * metric.cells + offset, factor * metric.resampled + offset)
    value, other = interval(metric), interval(changed)
    assert other.ci95 == pytest.approx([factor * end + offset for end in value.ci95])
    low, high = interval(Resampled(-metric.cells, -metric.resampled)).ci95
    assert (-high, -low) == pytest.approx(value.ci95)


@given(metrics())
@settings(max_examples=30)
def test_a_difference_is_paired(metric: Resampled) -> None:
    assert interval(metric - metric) == Interval(0.0, 0.0, (0.0, 0.0))
    lower = Resampled(metric.cells - 0.1, metric.resampled - 0.1)
    gap = interval(metric - lower)
    assert (gap.mean, gap.std, *gap.ci95) == pytest.approx((0.1, 0, 0.1, 0.1))


def test_a_row_without_chance_in_training_is_compared_with_every_training() -> None:
    trained = Resampled(np.array([[0.9, 0.8], [0.8, 0.7]]), np.array([0.7, 0.9]))
    fixed = Resampled(np.array([[0.6, 0.5]]), np.array([0.5, 0.6]))
    difference = trained - fixed
    np.testing.assert_allclose(difference.cells, [[0.3, 0.3], [0.2, 0.2]])
    np.testing.assert_allclose(difference.resampled, [0.2, 0.3])


def test_trainings_are_crossed_and_shares_of_labels_averaged() -> None:
    one = Resampled(np.array([[1.0, 2]]), np.array([1.0, 2, 3]))
    other = Resampled(np.array([[5.0, 6]]), np.array([5.0, 6, 7]))
    crossed = cross([one, other])
    assert crossed.cells.tolist() == [[1, 2], [5, 6]]
    assert crossed.resampled.tolist() == [3, 4, 5]
    all_labels = Resampled(np.array([[3.0], [3]]), np.array([3.0, 3, 3]))
    mean = average([crossed, all_labels])
    assert mean.cells.tolist() == [[2, 2.5], [4, 4.5]]
    assert mean.resampled.tolist() == [3, 3.5, 4]


def test_the_mean_over_independent_data_sets_is_as_narrow_as_normal_theory_has_it() -> None:
    one, other = Interval(0.8, 0.0, (0.74, 0.83)), Interval(0.6, 0.0, (0.52, 0.64))
    mean = mean_interval([one, other])
    assert mean.mean == pytest.approx(0.7)
    assert mean.ci95 == pytest.approx((0.7 - 0.05, 0.7 + 0.025))
    assert mean_interval([one]) == Interval(0.8, 0.0, pytest.approx(one.ci95))


def test_an_interval_is_cut_to_the_range_of_its_metric() -> None:
    metric = Resampled(np.array([[0.99, 0.95, 1.0]]), np.linspace(0.9, 1, 50))
    low, high = interval(metric).ci95
    assert high > 1
    assert interval(metric, -np.inf, 1.0).ci95 == (low, 1.0)


def test_the_interval_of_a_share_is_walds_in_logits() -> None:
    logits = norm.ppf((np.arange(2000) + 0.5) / 2000) * 0.4 + 3
    mean, width = 0.94, 1.96 * 0.4
    found = interval(Resampled(np.array([[mean]]), expit(logits)), 0.0, 1.0)
    assert found.ci95 == pytest.approx(
        (expit(logit(mean) - width), expit(logit(mean) + width)), abs=2e-5
    )


def test_label_subsets_and_trainings_move_a_logit_by_what_they_move_the_share() -> None:
    cells = np.array([[0.93, 0.94, 0.95]])
    by_t = ttest_1samp(cells[0], 0).confidence_interval(0.95).high - 0.94
    low, high = interval(Resampled(cells, np.full(50, 0.9)), 0.0, 1.0).ci95
    assert logit(high) - logit(0.94) == pytest.approx(by_t / (0.94 * 0.06))
    assert logit(0.94) - logit(low) == pytest.approx(by_t / (0.94 * 0.06))


@given(metrics(), st.floats(0.01, 0.99), st.booleans())
@settings(max_examples=60)
def test_a_share_and_what_it_leaves_have_mirrored_intervals_within_their_range(
    metric: Resampled, mean: float, meets_an_end: bool
) -> None:
    cells = expit(logit(mean) + metric.cells - metric.cells.mean())
    resampled = expit(np.r_[metric.resampled, [np.inf] * meets_an_end])
    low, high = interval(Resampled(cells, resampled), 0.0, 1.0).ci95
    assert 0 <= low <= cells.mean() <= high <= 1
    assert interval(Resampled(1 - cells, 1 - resampled), 0.0, 1.0).ci95 == pytest.approx(
        (1 - high, 1 - low), abs=1e-6
    )


def test_a_perfect_share_leaves_nothing_to_chance() -> None:
    assert interval(Resampled(np.ones((1, 1)), np.ones(9)), 0.0, 1.0).ci95 == (1.0, 1.0)


def test_resamples_without_a_class_are_left_out() -> None:
    resampled = np.r_[np.linspace(0.6, 0.8, 101), [np.nan] * 9]
    value = interval(Resampled(np.array([[0.7]]), resampled))
    assert value.ci95 == pytest.approx((0.605, 0.795))
