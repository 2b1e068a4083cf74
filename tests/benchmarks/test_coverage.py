"""Intervals hold the truth as often as they say, within what chance in so many trials allows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
from scipy.stats import binom

from benchmarks import coverage
from benchmarks.coverage import (
    CALIBRATIONS,
    CASES,
    MISUSED,
    Coverage,
    simulate,
    simulate_calibration,
)

TRIALS = 150
LEAST, MOST = (int(binom.ppf(share, TRIALS, 0.95)) for share in (0.001, 0.999))


@pytest.fixture(scope="module", autouse=True)
def _fewer_resamples() -> Iterator[None]:
    """Half of the benchmark's: the deviation of 200 resamples is known to one part in twenty."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coverage, "_RESAMPLES", 200)
        yield


@cache
def simulated(name: str) -> Coverage:
    """Judge accuracy, which is a matrix product; the intervals of all metrics are made alike."""
    return simulate(CASES[name], TRIALS, seed=1, metric="accuracy")


@pytest.mark.parametrize("name", CASES)
def test_the_truth_is_held_by_nineteen_intervals_of_twenty(name: str) -> None:
    assert LEAST <= simulated(name).share * TRIALS <= MOST


def test_intervals_of_the_auroc_hold_the_truth() -> None:
    held = simulate(CASES["label subsets differ much"], 60, seed=1).share * 60
    assert held >= binom.ppf(0.001, 60, 0.95)


@pytest.mark.parametrize("name", MISUSED)
def test_of_one_training_set_or_training_the_general_truth_is_often_missed(name: str) -> None:
    assert simulate(MISUSED[name], TRIALS, seed=1, metric="accuracy").share * TRIALS < LEAST


def test_more_label_subsets_and_trainings_narrow_an_interval() -> None:
    def width(name: str) -> float:
        return simulated(name).width

    assert width("3 trainings") > width("5 trainings") > width("label subsets hardly differ")
    assert width("label subsets differ much") > width("the same, 30 of them")


def test_of_a_calibrated_classifier_the_interval_holds_no_error() -> None:
    calibrated = simulate_calibration(*CALIBRATIONS["calibrated"], TRIALS, seed=1)
    assert calibrated.share * TRIALS >= LEAST
    assert calibrated.width < 0.1
