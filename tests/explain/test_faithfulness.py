"""Evidence maps show what the probe looks at: deleting what they name moves the logit most."""

from pathlib import Path

import numpy as np
import pytest
from medvq.explain.sources import ProbeSources
from medvq.storage.feature_store import read_feature, read_keys

from benchmarks.evidence_maps import Judge, delete, fills, mean_over_subjects, replace_places


def test_deleting_the_top_tenth_moves_the_logit_more_than_random_places(probe: Path) -> None:
    sources = ProbeSources(probe, "cpu")
    keys, judge = read_keys(sources.store), Judge(sources)
    test = np.flatnonzero(keys["split"] == "test")
    images = np.load(sources.ingest.folder / "images.npy")[test]
    logits, _ = judge(images)
    (name,) = sources.pipeline[0].names
    stored = read_feature(sources.store, name)[test]
    assert logits == pytest.approx(sources.pipeline.decision_function(stored), abs=1e-5)
    for _, fill in fills(sources, images, judge.grid[-1]):
        found = delete(judge, images, fill, occlude=True)
        assert found.top.mean() > 1.5 * abs(found.random.mean())
        assert (found.top > found.random).mean() > 0.6
        assert found.correlation is not None
        assert found.occluded is not None
        # Occlusion looks at the very pixels: no map can be far better.
        assert found.top.mean() < 2 * found.occluded.mean()
        assert found.correlation.mean() > 0.05


@pytest.mark.parametrize("shape", [(8, 12), (3, 8, 12), (1, 4, 8, 12)])
def test_places_are_replaced_and_no_others(shape: tuple[int, ...]) -> None:
    grid = (2, 4, 3) if len(shape) == 4 else (4, 3)
    images = np.zeros((2, *shape), np.uint8)
    fill = np.full((1, *shape), 9, np.uint8)
    places = np.array([[0, 5], [1, 11]])
    changed = replace_places(images, fill, places, grid)
    assert changed.shape == images.shape
    corner = (0,) * (len(shape) - len(grid))
    for image, chosen in zip(changed, places, strict=True):
        size = [side // cells for side, cells in zip(shape[-len(grid) :], grid, strict=True)]
        firsts = np.stack(np.unravel_index(np.arange(np.prod(grid)), grid), 1) * size
        shown = np.array([image[(*corner, *first)] for first in firsts])
        assert np.flatnonzero(shown == 9).tolist() == chosen.tolist()
        assert np.count_nonzero(image) == image.size * 2 / np.prod(grid)


def test_intervals_are_over_subjects() -> None:
    values = np.repeat([0.0, 1.0], 50)
    of_images = mean_over_subjects(values, np.arange(100).astype(str))
    of_two = mean_over_subjects(values, np.repeat(["a", "b"], 50))
    assert of_images.mean == of_two.mean == 0.5
    assert np.ptp(of_two.ci95) > 3 * np.ptp(of_images.ci95)
