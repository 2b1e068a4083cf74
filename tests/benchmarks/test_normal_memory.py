"""The memory of normal images against a slow search, and on images with a lesion."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.normal_memory import NormalMemory

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("grid", [(3, 4), (2, 3, 2)])
def test_distances_are_those_of_a_slow_search(grid: tuple[int, ...]) -> None:
    normal, maps = RNG.normal(3, 2, (30, 5, *grid)), RNG.normal(3, 2, (7, 5, *grid))
    normal[:, 2] = 1.0  # a channel that is constant says nothing
    found = NormalMemory(normal).anomaly_maps(maps)
    for image, *place in np.ndindex(7, *grid):
        here = (slice(None), slice(None), *place)
        deviation = normal[here].std(0)
        deviation[2] = 1.0
        apart = (normal[here] - maps[(image, slice(None), *place)]) / deviation
        expected = np.sort(np.linalg.norm(apart, axis=1))[:5].mean()
        assert found[(image, *place)] == pytest.approx(expected)


def test_what_is_normal_elsewhere_is_none_here() -> None:
    """A lesion that looks as another place does is found, and where it lies."""
    places = RNG.normal(size=(1, 6, 4, 4)) * 3

    def draw(number: int) -> np.ndarray:
        return places + RNG.normal(size=(number, 6, 4, 4))

    memory, healthy, ill = NormalMemory(draw(200)), draw(60), draw(60)
    ill[:, :, 1, 2] = ill[:, :, 3, 0]
    maps = [memory.anomaly_maps(images) for images in (healthy, ill)]
    scores = np.concatenate([one.mean((1, 2)) for one in maps])
    assert roc_auc_score(np.repeat([0, 1], 60), scores) > 0.95
    worst = maps[1].reshape(60, -1).argmax(1)
    assert (worst == 4 * 1 + 2).mean() > 0.95


def test_of_few_normal_images_all_are_neighbours() -> None:
    memory = NormalMemory(np.array([[[0.0]], [[2.0]]]))
    assert memory.anomaly_maps(np.array([[[4.0]]])).tolist() == [[3.0]]
