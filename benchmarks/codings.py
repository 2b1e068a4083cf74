"""Codings of MedVQ's embedding, and ways to decode its codes, all made without labels.

References
----------
.. [1] Jégou, Douze, Schmid: Product Quantization for Nearest Neighbor Search. TPAMI 2011.
.. [2] Ge, He, Ke, Sun: Optimized Product Quantization. TPAMI 2014 (the parametric allocation).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from medvq.config import Config
from medvq.evaluation.probe_data import ProbeData
from medvq.method.encodings import BlockScaler, CodeHistogram, Encoding, NormScaler
from medvq.method.probe import ProbeFeatures
from medvq.storage.encoded_features import FeatureStore
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import FunctionTransformer

Floats = NDArray[np.float64]
CODES, EMBEDDING = "MedVQ's codes", "embedding, float32"
PQ, PCA_8, PCA_4 = "product quantization", "PCA at 8 bits", "PCA at 4 bits"


class ProductQuantizer(Encoding):
    """Replaces sub-vectors of principal components by the nearest of 2^bits centroids [1]_.

    Components are dealt out so that the variances in each sub-vector have about the same product
    [2]_. With one component in each it is PCA at so many bits, of which no level is wasted.

    Parameters
    ----------
    subvectors : how many there are; ``bits`` of an image are spent on each.
    components : how many of the first columns are coded; the others are dropped.
    """

    def __init__(self, subvectors: int, bits: int, components: int) -> None:
        self.subvectors, self.bits, self.components = subvectors, bits, components

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Learn the centroids of ``X`` (N, at least ``components``), widest columns first."""
        table = np.asarray(X)[:, : self.components]
        self.columns_ = balanced_groups(table.var(0), self.subvectors)
        clusters = KMeans(min(2**self.bits, len(table)), n_init=1, max_iter=25, random_state=0)
        self.centroids_ = [
            clusters.fit(table[:, columns]).cluster_centers_ for columns in self.columns_
        ]
        return self

    def transform(self, X: ArrayLike) -> Floats:
        """Return what is decoded, (N, components)."""
        table = np.asarray(X)
        decoded = np.empty((len(table), self.components))
        for columns, centroids in zip(self.columns_, self.centroids_, strict=True):
            products = table[:, columns] @ centroids.T
            nearest = np.argmin((centroids**2).sum(1) - 2 * products, axis=1)
            decoded[:, columns] = centroids[nearest]
        return decoded


def balanced_groups(variances: Floats, groups: int) -> list[list[int]]:
    """Deal out columns, so that products of variances are alike and sizes differ by at most one.

    Parameters
    ----------
    variances : of the columns, in descending order.

    >>> balanced_groups(np.array([8.0, 4.0, 2.0, 1.0]), 2)
    [[0, 3], [1, 2]]
    """
    dealt: list[list[int]] = [[] for _ in range(groups)]
    weight = np.zeros(groups)
    smallest = max(float(variances[-1]), 1e-12)
    for column, variance in enumerate(variances):
        fewest = min(map(len, dealt))
        # A group that is full has to wait until all others are.
        open_groups = [group for group in range(groups) if len(dealt[group]) == fewest]
        group = min(open_groups, key=weight.__getitem__)
        dealt[group].append(column)
        weight[group] += np.log(max(float(variance), smallest) / smallest) + 1e-9
    return dealt


class CodebookVectors(Encoding):
    """Replaces every code by its vector, each at its place.

    Parameters
    ----------
    codebook : (K, D).
    """

    def __init__(self, codebook: NDArray[np.float32]) -> None:
        self.codebook = codebook

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Return the transformer itself; nothing is learnt."""
        return self

    def transform(self, X: ArrayLike) -> NDArray[np.float32]:
        """Return the vectors (N, places * D) of codes (N, places)."""
        codes = np.asarray(X, np.int64)
        return self.codebook[codes].reshape(len(codes), -1)


@dataclass(frozen=True)
class Coded:
    """A coding of the images of a data set.

    Attributes
    ----------
    kind : what made it, a key of the picture's legend.
    size : bytes of an image.
    decoded : what the probe sees of it.
    """

    kind: str
    size: float
    decoded: ProbeFeatures


class Codings:
    """The codings of a feature store, all made without labels, of training images only.

    Parameters
    ----------
    codebook : of the coarsest codes, (K, D).
    """

    def __init__(self, store: FeatureStore, codebook: NDArray[np.float32], config: Config) -> None:
        self.store, self.codebook, self.config = store, codebook, config
        data = ProbeData.from_keys(store.keys)
        self.train, self.labelled = data.unlabelled_train, data.train

    @cached_property
    def embedding(self) -> ProbeFeatures:
        """MedVQ's embedding, reduced to principal components as the probe sees it."""
        return self._encode_set("embedding")

    @property
    def bits_per_code(self) -> float:
        """Bits of a code of the coarsest level, where all codes take as many."""
        return float(np.log2(self.store.metadata.levels[0].codebook_size))

    @property
    def size_of_codes(self) -> float:
        """Bytes of an image's coarsest codes, packed."""
        places = np.prod(self.store.metadata.levels[0].latent_shape)
        return float(places * self.bits_per_code / 8)

    def rivals(self) -> Iterator[Coded]:
        """Yield the codings of the embedding: at the size of the codes, half and a quarter."""
        width = self.store.names["embedding"]
        yield Coded(EMBEDDING, 4 * width, self.embedding)
        components = self.embedding.images.shape[1]
        for share in (1, 2, 4):
            size = round(self.size_of_codes / share)
            for kind, bits in ((PQ, 8), (PCA_8, 8), (PCA_4, 4)):
                subvectors = min(size * 8 // bits, components)
                coded = components if kind == PQ else subvectors
                encoding = ProductQuantizer(subvectors, bits, coded)
                yield Coded(kind, subvectors * bits / 8, self.encode(self.embedding, encoding))

    def of_codes(self) -> Iterator[tuple[str, ProbeFeatures]]:
        """Yield ways to decode MedVQ's codes, which compete on validation images."""
        level, codes = self.store.metadata.levels[0], self.store.read("codes_0")
        components = min(self.config.probe.components, len(self.train))
        svd = TruncatedSVD(components, random_state=self.config.seed)
        pca = PCA(components, svd_solver="randomized", random_state=self.config.seed)
        histogram = CodeHistogram(level.codebook_size, level.latent_shape)
        one_hot = CodeHistogram(level.codebook_size, level.latent_shape, (level.latent_shape[0],))
        vectors = CodebookVectors(self.codebook)
        scaler = BlockScaler([self.codebook.shape[1] * codes.images.shape[1]])
        placed = make_pipeline(vectors, scaler, pca, NormScaler())
        ways = {
            "histogram": self._encode_set("histogram"),
            "code at each place, reduced": self.encode(codes, make_pipeline(one_hot, svd)),
            "vectors, pooled": self._encode_set("quantized"),
            "vectors, each at its place": self.encode(codes, placed),
        }
        yield from ways.items()
        yield "embedding that they predict", self._predict_embedding([*ways.values()])
        yield "pyramid of histograms", self._encode_set("pyramid")
        both = make_union(make_pipeline(histogram, svd, NormScaler()), placed)
        yield "histogram, and vectors at their places", self.encode(codes, both)

    def _encode_set(self, name: str) -> ProbeFeatures:
        """Encode a feature set of the store as the product does."""
        probe, seed = self.config.probe, self.config.seed
        return self.store.encode((name,), probe, seed, self.train)[1]

    def _predict_embedding(self, ways: Sequence[ProbeFeatures]) -> ProbeFeatures:
        """Predict the embedding from ways to decode the codes, by ridge regression."""

        def known(features: ProbeFeatures) -> Floats:
            versions = [version[self.labelled] for version in features.versions]
            return np.concatenate([features.images[self.train], *versions])

        joined = _side_by_side(ways)
        ridge = Ridge().fit(known(joined), known(self.embedding))
        return self.encode(joined, FunctionTransformer(ridge.predict))

    def encode(self, features: ProbeFeatures, encoding: BaseEstimator) -> ProbeFeatures:
        """Fit an encoding on training images and their first versions, and apply it to all."""
        first = [version[self.labelled] for version in features.versions[:1]]
        steps = make_pipeline(encoding, NormScaler())
        steps.fit(np.concatenate([features.images[self.train], *first]))
        swapped = features.swapped

        def transform(table: Any) -> Floats:
            return np.asarray(steps.transform(table), np.float64)

        return ProbeFeatures(
            transform(features.images),
            [transform(version) for version in features.versions],
            None if swapped is None else transform(swapped),
        )


def _side_by_side(sets: Sequence[ProbeFeatures]) -> ProbeFeatures:
    swapped = [one.swapped for one in sets if one.swapped is not None]
    return ProbeFeatures(
        np.concatenate([one.images for one in sets], 1),
        [np.concatenate(same, 1) for same in zip(*(one.versions for one in sets), strict=True)],
        np.concatenate(swapped, 1) if swapped else None,
    )
