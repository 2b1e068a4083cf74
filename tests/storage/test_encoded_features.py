"""Encodings of a feature store, against slow ones in double precision."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import pytest
from factories.cores import blas_threads
from factories.stores import store_keys, write_store
from medvq.config import ProbeConfig
from medvq.storage.encoded_features import FeatureStore
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

TRAIN = np.flatnonzero(store_keys()["split"] == "train")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return FeatureStore(write_store(tmp_path_factory.mktemp("store"), store_keys()).folder)


@pytest.mark.parametrize("components", [3, 8])
def test_single_precision_encodes_as_double_precision_does(
    store: FeatureStore, components: int
) -> None:
    _, encoded = store.encode(("embedding",), ProbeConfig(components=components), 0, TRAIN)
    images = store.read("embedding").images
    table = np.concatenate([images[TRAIN], store.read("embedding").versions[0][TRAIN]])
    scaler = StandardScaler().fit(table)
    pca = PCA(components, svd_solver="full").fit(scaler.transform(table))
    expected = pca.transform(scaler.transform(images))
    # Components are known but for their signs, and the last step chose the scale.
    found, expected = (one @ one.T / np.trace(one @ one.T) for one in (encoded.images, expected))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_encoding_keeps_linear_algebra_on_one_core_and_gives_the_others_back(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    class Watching(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
        def fit(self, X: NDArray[Any], y: object = None) -> Self:
            found.append(blas_threads())
            return self

        def transform(self, X: NDArray[Any]) -> NDArray[Any]:
            found.append(blas_threads())
            return X

        def __sklearn_is_fitted__(self) -> bool:
            return True

    monkeypatch.setattr(FeatureStore, "_steps", lambda *_: [Watching()])
    with threadpool_limits(2, user_api="blas"):
        store.encode(("embedding",), ProbeConfig(), 0, TRAIN)
        assert blas_threads() == {"numpy": 2, "scipy": 2}
    assert found
    assert all(one == {"numpy": 1, "scipy": 1} for one in found)
