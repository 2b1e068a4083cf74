"""Encodings of code maps and of joined feature sets, as scikit-learn transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

# Mean squared norm that :class:`NormScaler` makes. With it C from 1e-5 to 1e-3 suits every feature
# set; any other constant would only shift that range.
_SQUARED_NORM = 1000


class Encoding(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """The base of encodings: scikit-learn's classes, which mypy does not know."""


class CodeHistogram(Encoding):
    """Histograms of code indices over a spatial pyramid.

    The latent grid is cut into cells; in each, the share of every code is counted. The square root
    of the shares is taken, which makes their dot product the Bhattacharyya coefficient and keeps
    frequent codes from drowning rare ones [1]_.

    Parameters
    ----------
    size : number of codes, K.
    shape : the latent grid, e.g. (8, 8); codes are given flattened.
    grids : cells along each axis, one entry per level of the pyramid [2]_; (1,) is global.

    References
    ----------
    .. [1] Arandjelovic, Zisserman: Three things everyone should know to improve object retrieval.
       CVPR 2012.
    .. [2] Lazebnik, Schmid, Ponce: Beyond bags of features. CVPR 2006.

    Examples
    --------
    >>> codes = [[0, 0, 1, 1]]  # the 2 x 2 grid [[0, 0], [1, 1]]
    >>> (CodeHistogram(size=2, shape=(2, 2)).fit_transform(codes).toarray() ** 2).round(3)
    array([[0.5, 0.5]], dtype=float32)
    """

    def __init__(self, size: int, shape: Sequence[int], grids: Sequence[int] = (1,)) -> None:
        self.size, self.shape, self.grids = size, shape, grids

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Check the shape; nothing is learnt. ``X`` is (N, prod(shape)) integers in [0, size)."""
        self.n_features_in_ = int(np.prod(self.shape))
        self.cells_ = [_cells(self.shape, grid) for grid in self.grids]
        return self

    def transform(self, X: ArrayLike) -> csr_array:
        """Return the histograms, sparse float32 (N, size * cells of all grids)."""
        check_is_fitted(self)
        codes = np.asarray(X, dtype=np.int64).reshape(-1, self.n_features_in_)
        if codes.size and not 0 <= codes.min() <= codes.max() < self.size:
            raise ValueError(f"codes must lie in [0, {self.size})")
        columns, shares, offset = [], [], 0
        for cells, grid in zip(self.cells_, self.grids, strict=True):
            columns.append(codes + (cells * self.size + offset))
            share = (1 / np.bincount(cells))[cells].astype(np.float32)
            shares.append(np.broadcast_to(share, codes.shape))
            offset += grid ** len(self.shape) * self.size
        rows = np.repeat(np.arange(len(codes), dtype=np.int32), codes.shape[1] * len(self.grids))
        # Some estimators take no sparse matrix with indices of 64 bits.
        index = (rows, np.concatenate(columns, axis=1).ravel().astype(np.int32))
        values = np.concatenate(shares, axis=1).ravel()
        histogram = csr_array((values, index), shape=(len(codes), offset))
        histogram.sum_duplicates()
        return histogram.sqrt()


class BlockScaler(Encoding):
    """Standardises every column, then divides each block by the root of its width.

    Joined feature sets then count alike, however wide each is.

    Parameters
    ----------
    widths : columns of each block, in order.

    Examples
    --------
    >>> X = [[0.0, 1.0, 5.0], [2.0, 3.0, 7.0]]
    >>> (BlockScaler((2, 1)).fit_transform(X) ** 2).sum(axis=1)
    array([2., 2.])
    """

    def __init__(self, widths: Sequence[int]) -> None:
        self.widths = widths

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Learn mean and deviation of each column of ``X`` (N, sum(widths))."""
        table = np.asarray(X)
        if table.shape[1] != sum(self.widths):
            raise ValueError(f"{table.shape[1]} columns are not blocks of {list(self.widths)}")
        # In single precision the mean of a long constant column is not the constant.
        self.mean_ = table.mean(0, dtype=np.float64)
        deviation = table.std(0, dtype=np.float64)
        weight = np.repeat(np.sqrt(self.widths), self.widths)
        # A column that never varies becomes zero.
        constant = deviation <= 1e-6 * np.maximum(np.abs(self.mean_), 1e-6)
        self.scale_ = np.where(constant, np.inf, deviation * weight)
        return self

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """Return the scaled columns; of a table in single precision in single precision.

        Raises
        ------
        ValueError
            There are other columns than were fitted: one alone would count as all of them.
        """
        check_is_fitted(self)
        table = np.asarray(X)
        if table.shape[1:] != self.mean_.shape:
            columns = len(self.mean_)
            raise ValueError(f"the features have the shape {table.shape}, not (N, {columns})")
        precision = np.result_type(table, np.float32)
        scaled: NDArray[Any] = table - self.mean_.astype(precision)
        scaled /= self.scale_.astype(precision)
        return scaled


class NormScaler(Encoding):
    """Multiplies by the one number that brings the mean squared norm to a thousand.

    One range of C then serves every feature set, however wide.
    """

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Learn the factor from ``X`` (N, D), less its mean."""
        table = np.asarray(X)
        squared = ((table - table.mean(0)) ** 2).sum(1).mean()
        self.factor_ = float(np.sqrt(_SQUARED_NORM / np.maximum(squared, 1e-12)))
        return self

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        check_is_fitted(self)
        scaled: NDArray[Any] = np.asarray(X) * self.factor_
        return scaled


class WithinImageWhitening(Encoding):
    """Whitens by what varies between the versions of one image.

    Directions in which an image differs from its own random versions tell nothing about what is in
    it, and are scaled down: the covariance within images becomes nearly the identity. Of speaker
    recognition, where it is known as within-class covariance normalisation [1]_; an image and its
    versions are a class here, so no label is used.

    Parameters
    ----------
    shrinkage : share of the mean variance that is added to all variances within images. It keeps
        directions apart that few images tell of; much of it changes little.

    References
    ----------
    .. [1] Hatch, Kajarekar, Stolcke: Within-Class Covariance Normalization for SVM-Based Speaker
       Recognition. Interspeech 2006.
    """

    def __init__(self, shrinkage: float = 1.0) -> None:
        self.shrinkage = shrinkage

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Learn from ``X`` (N, D), where equal entries of ``y`` (N,) are of one image.

        Raises
        ------
        ValueError
            No image has two rows.
        """
        table = np.asarray(X, np.float64)
        _, image, number = np.unique(np.asarray(y), return_inverse=True, return_counts=True)
        if (freedom := len(table) - len(number)) < 1:
            raise ValueError("no image has versions")
        sums = np.zeros((len(number), table.shape[1]))
        np.add.at(sums, image, table)
        residuals = table - (sums / number[:, None])[image]
        covariance = residuals.T @ residuals / freedom
        variances, directions = np.linalg.eigh(covariance)
        mean = max(variances.mean(), np.finfo(np.float64).tiny)
        deviations = np.sqrt(np.maximum(variances, 0) / mean + self.shrinkage)
        self.directions_ = (directions / deviations).T
        return self

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        check_is_fitted(self)
        whitened: NDArray[Any] = np.asarray(X) @ self.directions_.T
        return whitened


def pyramid_grids(grid: int) -> tuple[int, ...]:
    """Return the cells along each axis at every level of a pyramid: 1, 2, 4, ... up to ``grid``.

    >>> pyramid_grids(4)
    (1, 2, 4)
    """
    return tuple(2**level for level in range(grid.bit_length()) if 2**level <= grid)


def _cells(shape: Sequence[int], grid: int) -> NDArray[np.int64]:
    """Return the cell of every position of the latent grid, flattened."""
    axes = np.meshgrid(*(np.arange(side) * grid // side for side in shape), indexing="ij")
    cell = np.zeros(tuple(shape), np.int64)
    for axis in axes:
        cell = cell * grid + axis
    return cell.ravel()
