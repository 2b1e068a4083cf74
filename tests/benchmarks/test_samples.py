"""The study of samples: its measures by value."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.page import Figure
from benchmarks.prior.__main__ import crossed
from benchmarks.prior.samples import (
    Decoded,
    distance_to_nearest,
    frechet_distance,
    precision_and_recall,
    two_samples,
    variety,
)


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


def test_precision_is_by_the_distance_to_the_neighbour_of_a_rank() -> None:
    real = np.array([[0.0], [1.0], [3.0]])
    # To its nearest each has 1, 1 and 2; to its second 3, 2 and 3.
    made = np.array([[-1.0], [-1.1], [5.0], [5.1]])
    assert precision_and_recall(real, made, neighbours=1)[0] == 0.5
    assert precision_and_recall(real, made, neighbours=2)[0] == 1.0


def test_variety_is_that_of_all_pairs_within_a_class() -> None:
    def images(codes: np.ndarray, labels: list[int]) -> Decoded:
        nothing = np.zeros((len(codes), 1))
        return Decoded(codes.astype(np.uint16), np.array(labels), nothing, nothing, {})

    codes = np.array([[0, 1], [0, 2], [0, 1], [5, 5], [5, 5]])
    # Of the first class's three pairs two differ in one of two places; of the second's, none.
    assert variety(images(codes, [0, 0, 0, 1, 1])) == pytest.approx((2 * 0.5 / 3 + 0) / 2)
    many = np.random.default_rng(0).integers(0, 4, (30, 6))
    pairs = [(many[i] != many[j]).mean() for i in range(30) for j in range(30) if i != j]
    assert variety(images(many, [0] * 30)) == pytest.approx(np.mean(pairs))


def test_distance_is_the_share_of_codes_that_the_nearest_does_not_have() -> None:
    known = np.random.default_rng(0).integers(0, 8, (200, 60)).astype(np.uint16)
    assert distance_to_nearest(known[:3], known).tolist() == [0, 0, 0]
    others = np.array([[0, 5, 2], [7, 7, 2]], np.uint16)
    assert distance_to_nearest(np.array([[0, 1, 2]], np.uint16), others).tolist() == [1 / 3]


def test_two_samples_are_told_by_what_differs_and_not_by_chance() -> None:
    rng = np.random.default_rng(0)
    real, same = rng.normal(size=(2, 300, 5))
    assert abs(two_samples(real, same) - 0.5) < 0.08
    # Shifted by d along one axis, two normal distributions are told apart at Phi(d / sqrt(2)).
    assert two_samples(real, same + np.eye(5)[0]) == pytest.approx(0.760, abs=0.04)
    assert two_samples(real, same + 10) == 1.0
    # By labels it was fitted on, a classifier of many features would tell them all.
    many = rng.normal(size=(2, 60, 500))
    assert abs(two_samples(*many) - 0.5) < 0.15


def test_the_frechet_distance_is_that_of_normal_distributions() -> None:
    rng = np.random.default_rng(0)
    sigmas, shift = np.array([[1.0, 2.0, 3.0], [2.0, 0.5, 3.0]]), np.array([1.0, 0.0, -2.0])
    real, other = rng.normal(size=(2, 40_000, 3)) * sigmas[:, None]
    # Of independent axes: the squared shift plus the squared differences of deviations.
    expected = (shift**2).sum() + ((sigmas[0] - sigmas[1]) ** 2).sum()
    assert frechet_distance(real, other + shift) == pytest.approx(expected, rel=0.03)
    # It does not depend on the axes, and is nothing between a set and itself.
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turned = frechet_distance(real @ turn, (other + shift) @ turn)
    assert turned == pytest.approx(frechet_distance(real, other + shift))
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-6)


def test_a_table_has_a_row_for_each_set_and_a_column_for_each_measure() -> None:
    figures = [
        Figure("a: x", 0.5),
        Figure("a: y", 0.25),
        Figure("b, 2: x", 1.0),
        Figure("b, 2: y", 2),
    ]
    found = crossed(figures)
    assert list(found) == ["images", "x", "y"]
    assert found.to_numpy().tolist() == [["a", "0.5", "0.25"], ["b, 2", "1", "2"]]
