"""Kinds of acquisition, found without labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

# As many as a reader of the page can compare by eye.
_CLUSTERS = 6
_MIN_IMAGES = 10
"""Of a cluster, on average: its shares of labels would be noise below."""
_COMPONENTS = 16


def acquisition_clusters(frame: NDArray[np.float32], seed: int = 0) -> NDArray[np.intp]:
    """Cluster images by their frames and positions.

    k-means on the principal components of the standardised features.

    Parameters
    ----------
    frame : shape (N, F), see :func:`medvq.images.frame.frame_features`.

    Returns
    -------
    Shape (N,), the cluster of each image, largest first; -1 where there are none.
    """
    standard = StandardScaler().fit_transform(frame)
    distinct = len(np.unique(standard.round(3), axis=0))
    count = min(_CLUSTERS, len(frame) // _MIN_IMAGES, distinct)
    if count < 2:
        return np.full(len(frame), -1)
    components = min(_COMPONENTS, *standard.shape)
    reduced = PCA(components, svd_solver="full").fit_transform(standard)
    assigned = KMeans(count, n_init=4, random_state=seed).fit_predict(reduced)
    by_size = np.argsort(-np.bincount(assigned, minlength=count), kind="stable")
    return np.asarray(np.argsort(by_size)[assigned], np.intp)
