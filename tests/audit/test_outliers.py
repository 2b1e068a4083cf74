"""Images unlike the rest, and kinds of acquisition."""

import numpy as np
import pandas as pd
from factories.audited import audited, manifest, pictures
from medvq.audit.clusters import acquisition_clusters


def test_outliers_and_constant_images_are_named_farthest_first() -> None:
    rng = np.random.default_rng(0)
    widths, images = 700 + rng.integers(-20, 20, 60), pictures(60)
    widths[7], widths[9] = 2000, 1400
    images[11], images[12] = 255, 0
    images[13, ::2] = 255
    result, _ = audited(manifest(60, width=widths, height=700), images)
    assert result.outliers == {
        "size": ["i7", "i9"],
        "intensity": ["i11", "i13", "i12"],
        "constant": ["i11", "i12"],
    }


def test_clusters_are_the_kinds_of_frames_largest_first() -> None:
    kind = np.repeat([0, 1, 2], [30, 20, 10])
    rng = np.random.default_rng(0)
    frame = (10 * rng.standard_normal((3, 40))[kind] + rng.standard_normal((60, 40))).astype("f4")
    clusters = acquisition_clusters(frame)
    pairs = pd.crosstab(kind, clusters)
    assert (pairs > 0).sum(axis=0).eq(1).all()  # no cluster holds two kinds
    assert np.all(np.diff(np.bincount(clusters)) <= 0)
    assert (acquisition_clusters(frame[:15]) == -1).all()
    assert (acquisition_clusters(np.ones((100, 40), np.float32)) == -1).all()
