"""Feature sets of a store, encoded for a probe: reduced to few components, without labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.pipeline import Pipeline, make_pipeline

from medvq.config import ProbeConfig
from medvq.config.probe import FROM_CODES
from medvq.errors import UserError
from medvq.method.encodings import (
    BlockScaler,
    CodeHistogram,
    Encoding,
    NormScaler,
    WithinImageWhitening,
    pyramid_grids,
)
from medvq.method.probe import ProbeFeatures, on_one_core
from medvq.storage.feature_store import (
    FEATURES,
    SWAPPED,
    VERSIONS,
    augmented,
    feature_names,
    read_feature,
    read_keys,
    read_metadata,
)

_BATCH = 10_000
"""Rows that components are fitted on, and that are transformed at once. Components of more rows
would take minutes and be the same; wide features of more take gigabytes in double precision."""


class FeatureColumns(Encoding):
    """Picks the columns that an encoding needs from a table with an array in every cell.

    Such a table is what an encoder returns, or the feature store read by pandas. An array is
    returned as it is.

    Parameters
    ----------
    names : the columns, whose arrays are joined in this order.

    Examples
    --------
    >>> table = pd.DataFrame({"a": [np.array([1, 2])], "b": [np.array([3])]})
    >>> FeatureColumns(["b", "a"]).fit_transform(table)
    array([[3, 1, 2]])
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, X: pd.DataFrame | ArrayLike, y: object = None) -> Self:
        """Return the transformer itself; nothing is learnt."""
        return self

    def transform(self, X: pd.DataFrame | ArrayLike) -> NDArray[Any]:
        """Return the joined columns, (N, D)."""
        if not isinstance(X, pd.DataFrame):
            return np.asarray(X)
        if missing := [name for name in self.names if name not in X]:
            raise ValueError(f"the table has no column '{missing[0]}', which the probe reads")
        return np.concatenate([np.stack(list(X[name])) for name in self.names], axis=1)


class FeatureStore:
    """The feature sets of images and of their versions.

    Attributes
    ----------
    keys : the key columns of the images, one row each.
    names : the feature sets with their widths.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = read_keys(folder / FEATURES)
        self.metadata = read_metadata(folder / FEATURES)
        self.names = feature_names(folder / FEATURES)
        self._version = np.array([], str)
        self._names_of_versions: dict[str, int] = {}
        self._row_of_version = np.array([], np.intp)
        if (folder / VERSIONS).exists():
            versions = read_keys(folder / VERSIONS, "version")
            self._names_of_versions = feature_names(folder / VERSIONS)
            row = pd.Series(np.arange(len(self.keys)), index=self.keys["image_id"])
            self._version = versions["version"].to_numpy(str)
            self._row_of_version = row[versions["image_id"]].to_numpy()

    def check(self, names: Sequence[str]) -> None:
        """Raise a :class:`UserError` where a feature set is missing."""
        if unknown := [name for name in names if name not in self.names]:
            raise UserError(
                f"probe.features={unknown[0]!r} is not in the feature store; "
                f"it holds: {', '.join(self.names)}"
            )

    def encode(
        self, names: Sequence[str], config: ProbeConfig, seed: int, train: NDArray[np.intp]
    ) -> tuple[Pipeline, ProbeFeatures]:
        """Fit an encoding without labels, and apply it to all images and versions.

        Parameters
        ----------
        names : feature sets, which are joined.
        train : rows of the training images. The encoding is fitted on them and on their first
            random versions, or on all of these for ``config.whitening``.

        Raises
        ------
        UserError
            There are no random versions to whiten by.

        Returns
        -------
        The encoding, whose first step picks the columns that it needs, and what it returned.
        """
        columns = ["codes_0" if name in FROM_CODES else name for name in names]
        tables = [self._read(name) for name in columns]
        images = np.concatenate([of_images for of_images, _ in tables], axis=1)
        # Embeddings of a table are of images alone, and so is what they are joined with.
        versioned = all(len(of_versions) == len(self._version) for _, of_versions in tables)
        versions = images[:0]
        if versioned:
            versions = np.concatenate([of_versions for _, of_versions in tables], axis=1)
        elif config.whitening is not None:
            raise UserError(
                "probe.whitening needs random versions, which embeddings of a table have not: set "
                "probe.whitening: null"
            )
        widths = [of_images.shape[1] for of_images, _ in tables]
        # A small data set has fewer training images than components.
        rank = min(len(train), len(images) // 2)
        encoding = make_pipeline(
            FeatureColumns(columns), *self._steps(names, widths, rank, config, seed)
        )
        if config.whitening is None:
            first = self._version == augmented(0)
            table = images[train]
            if len(versions):
                table = np.concatenate([table, versions[first]])
            # Evenly spaced rows, since images lie in the order of the manifest.
            table, owner = table[:: -(-len(table) // _BATCH)], None
        else:
            rows, of_versions = self._with_versions(train)
            owner = np.concatenate([rows, self._row_of_version[of_versions]])
            table = np.concatenate([images[rows], versions[of_versions]])
        # Cores that other programs use make all wait; on one, bits do not depend on their number.
        with on_one_core():
            with np.errstate(invalid="ignore"):  # PCA divides by the variance, none of a constant
                encoding.fit(table, owner)
            return encoding, self._encoded(encoding, images, versions)

    def count_versioned(self, train: NDArray[np.intp]) -> int:
        """Return how many training images have random versions."""
        return len(np.intersect1d(train, self._row_of_version[self._version != SWAPPED]))

    def _with_versions(self, train: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return evenly spaced training images, and the rows of their random versions."""
        random = self._version != SWAPPED
        known = np.intersect1d(train, self._row_of_version[random])
        if not len(known):
            raise UserError("probe.whitening needs random versions; set extract.versions above 0")
        number = 1 + np.count_nonzero(random & np.isin(self._row_of_version, known)) // len(known)
        rows = known[:: -(-len(known) * number // _BATCH)]
        return rows, np.flatnonzero(random & np.isin(self._row_of_version, rows))

    def read(self, name: str) -> ProbeFeatures:
        """Return a feature set or codes as they are stored."""
        return self._encoded(FeatureColumns([name]), *self._read(name))

    def _read(self, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return a column of images, and of versions, of which there may be none."""
        images = read_feature(self.folder / FEATURES, name)
        if not len(self._version) or name not in self._names_of_versions:
            return images, images[:0]
        return images, read_feature(self.folder / VERSIONS, name)

    def _steps(
        self, names: Sequence[str], widths: list[int], rank: int, config: ProbeConfig, seed: int
    ) -> list[BaseEstimator]:
        """Return the steps after the choice of columns; at most ``rank`` components are kept."""
        components, last = config.components, [NormScaler()]
        if config.whitening is not None:
            last = [WithinImageWhitening(config.whitening), *last]
        if names[0] not in FROM_CODES:
            components = min(components, sum(widths), rank)
            pca = PCA(components, svd_solver="randomized", random_state=seed)
            return [BlockScaler(widths), pca, *last]
        level = self.metadata.levels[0]
        grids = (1,) if names[0] == "histogram" else pyramid_grids(self.metadata.grid)
        histogram = CodeHistogram(level.codebook_size, tuple(level.latent_shape), grids)
        cells = sum(grid ** len(level.latent_shape) for grid in grids)
        components = min(components, level.codebook_size * cells - 1, rank)
        return [histogram, TruncatedSVD(components, random_state=seed), *last]

    def _encoded(
        self, encoding: Pipeline | FeatureColumns, images: NDArray[Any], versions: NDArray[Any]
    ) -> ProbeFeatures:
        """Encode images, and versions in the rows of their images."""
        encoded = _transform(encoding, images)
        encoded_versions = _transform(encoding, versions) if len(versions) else encoded[:0]

        def version(name: str) -> NDArray[np.float64]:
            full = np.zeros_like(encoded)
            chosen = self._version == name
            full[self._row_of_version[chosen]] = encoded_versions[chosen]
            return full

        names = np.unique(self._version) if len(versions) else self._version[:0]
        swapped = version(SWAPPED) if SWAPPED in names else None
        return ProbeFeatures(encoded, [version(n) for n in names if n != SWAPPED], swapped)


def _transform(encoding: Pipeline | FeatureColumns, table: NDArray[Any]) -> NDArray[np.float64]:
    batches = [table[at : at + _BATCH] for at in range(0, len(table), _BATCH)]
    return np.concatenate([np.asarray(encoding.transform(b), np.float64) for b in batches])
