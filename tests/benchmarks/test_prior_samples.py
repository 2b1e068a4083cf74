"""The study of samples: its measures by value, and what it chooses."""

from __future__ import annotations

import numpy as np
import pytest
from medvq.config import SampleConfig

from benchmarks.prior.samples import (
    Pictures,
    choose,
    lifelike,
    memorised,
    precision_and_recall,
    to_nearest,
    two_samples,
    variety,
)


def pictures(codes: list[list[int]], labels: list[int], name: str = "given") -> Pictures:
    given = np.array(codes, np.uint16)
    empty = np.zeros((len(codes), 1, 1), np.uint8)
    return Pictures(name, given, np.array(labels), empty, given.astype(np.float64))


def test_precision_and_recall_of_one_distribution_and_of_two() -> None:
    rng = np.random.default_rng(0)
    real, same = rng.normal(size=(2, 400, 4))
    precision, recall = precision_and_recall(real, same)
    assert min(precision, recall) > 0.9
    assert precision_and_recall(real, same + 100) == (0.0, 0.0)
    # All at one of the real images: none is out of place, and next to nothing is covered.
    precision, recall = precision_and_recall(real, real[:1] + 1e-3 * rng.normal(size=(400, 4)))
    assert precision == 1.0
    assert recall < 0.02
    # And the other way round.
    precision, recall = precision_and_recall(real, 30 * rng.normal(size=(400, 4)))
    assert precision < 0.1
    assert recall > 0.9


def test_precision_is_by_the_distance_to_the_kth_neighbour() -> None:
    real = np.array([[0.0], [1.0], [3.0]])
    # To its nearest each has 1, 1 and 2; to its second 3, 2 and 3.
    made = np.array([[-1.0], [-1.1], [5.0], [5.1]])
    assert precision_and_recall(real, made, k=1)[0] == 0.5
    assert precision_and_recall(real, made, k=2)[0] == 1.0


def test_two_samples_are_told_apart_only_where_they_differ() -> None:
    rng = np.random.default_rng(0)
    real, same = rng.normal(size=(2, 200, 5))
    assert two_samples(real, same) == pytest.approx(0.5, abs=0.1)
    assert two_samples(real, same + 3) > 0.99


def test_variety_is_that_of_all_pairs_within_a_class() -> None:
    codes = [[0, 1], [0, 2], [0, 1], [5, 5], [5, 5]]
    # Of the first class's three pairs two differ in one of two places; of the second's, none.
    assert variety(pictures(codes, [0, 0, 0, 1, 1])) == pytest.approx((2 * 0.5 / 3 + 0) / 2)
    rng = np.random.default_rng(0)
    many = rng.integers(0, 4, (30, 6))
    pairs = [(many[i] != many[j]).mean() for i in range(30) for j in range(30) if i != j]
    assert variety(pictures(many.tolist(), [0] * 30)) == pytest.approx(np.mean(pairs))


def test_memorised_images_are_nearer_than_others() -> None:
    rng = np.random.default_rng(0)
    known = rng.integers(0, 8, (200, 60)).astype(np.uint16)
    assert to_nearest(known[:3], known).tolist() == [0, 0, 0]
    assert to_nearest(np.array([[0, 1, 2]]), np.array([[0, 5, 2], [7, 7, 2]])).tolist() == [1 / 3]
    fresh = pictures(rng.integers(0, 8, (200, 60)).tolist(), [0] * 200, "fresh")
    learnt = pictures(known.tolist(), [0] * 200, "learnt")
    half = pictures([*known[:100].tolist(), *fresh.codes[:100].tolist()], [0] * 200, "half")
    found = {row.figure: row.value for row in memorised([fresh, learnt, half], fresh, known)}
    assert found["distance to the nearest training image, median: learnt"] == 0
    assert found["distance to the nearest training image, median: fresh"] >= 0.5
    assert found["distance to the nearest training image, 5th percentile: half"] == 0
    nearer = "as near to one as the nearest 1% of test images: "
    assert found[f"{nearer}learnt"] == 1.0
    assert found[f"{nearer}fresh"] < 0.1
    assert found[f"{nearer}half"] == pytest.approx(0.5 + found[f"{nearer}fresh"] / 2, abs=0.03)


def test_images_are_compared_with_as_many_test_images_of_every_class() -> None:
    rng = np.random.default_rng(0)
    two = rng.integers(0, 1000, (120, 3)) + np.repeat([[0], [10000]], [30, 90], 0)
    test = pictures(two.tolist(), [0] * 30 + [1] * 90, "test")
    # Other shares of the same classes, which alone would tell them from test images.
    other = rng.integers(0, 1000, (120, 3)) + np.repeat([[0], [10000]], [90, 30], 0)
    given = pictures(other.tolist(), [0] * 90 + [1] * 30, "given")
    found = {row.figure: row.value for row in lifelike([given], test)}
    assert found["told from test images, AUROC: given"] == pytest.approx(0.5, abs=0.2)
    assert found["precision: given"] > 0.8
    assert found["recall: given"] > 0.8


def tried(settings: SampleConfig) -> tuple[float, float]:
    """Guidance and a low temperature make samples better to recognise, and less varied."""
    lift = settings.guidance - settings.temperature
    return 0.9 + 0.02 * lift, 0.8 - 0.1 * lift


def test_the_most_varied_are_chosen_that_are_recognised_as_real_images_are() -> None:
    assert choose(tried, 0.5) == SampleConfig()
    enough = choose(tried, 0.9195)
    assert (enough.guidance, enough.temperature) == (2.0, 1.0)
    best = choose(tried, 0.99)
    assert (best.guidance, best.temperature) == (4.0, 0.7)
