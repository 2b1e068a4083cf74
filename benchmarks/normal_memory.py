"""Anomaly maps by a memory of normal images: how far each place is from what is normal there.

A memory of feature maps of normal images, and the distance to the nearest of them, need no training
[1]_. Here images are aligned, so that every place has a memory of its own [2]_, and what is normal
at the diaphragm is no excuse in the lung.

References
----------
.. [1] Roth et al.: Towards Total Recall in Industrial Anomaly Detection. CVPR 2022,
   arXiv 2106.08265.
.. [2] Defard et al.: PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and
   Localization. ICPR 2020, arXiv 2011.08785.
"""

from __future__ import annotations

import numpy as np
from medvq.prior.typicality import Floats
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

_NEIGHBOURS = 5


class NormalMemory:
    """What normal images look like at every place.

    Parameters
    ----------
    normal : (N, C, *grid), feature maps of normal images; channels are standardised place by place.
    """

    def __init__(self, normal: NDArray[np.floating]) -> None:
        number, _, *self.grid = normal.shape
        self._mean, deviation = normal.mean(0), normal.std(0)
        self._deviation = np.where(deviation > 0, deviation, 1.0)
        neighbours = min(_NEIGHBOURS, number)
        self._places = [
            NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(vectors)
            for vectors in self._by_place(normal)
        ]

    def anomaly_maps(self, maps: NDArray[np.floating]) -> Floats:
        """Return distances (M, *grid) of maps (M, C, *grid) to the 5 nearest normal ones there.

        Their mean over places is an image's score.

        >>> memory = NormalMemory(np.array([[[0.0, 0.0]], [[2.0, 2.0]]]))
        >>> memory.anomaly_maps(np.array([[[1.0, 5.0]]])).tolist()
        [[1.0, 4.0]]
        """
        places = zip(self._places, self._by_place(maps), strict=True)
        distances = [memory.kneighbors(vectors)[0].mean(1) for memory, vectors in places]
        return np.stack(distances, 1, dtype=np.float64).reshape(-1, *self.grid)

    def _by_place(self, maps: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return standardised vectors (places, M, C)."""
        scaled = (maps - self._mean) / self._deviation
        return np.moveaxis(scaled.reshape(*maps.shape[:2], -1), 2, 0)
